//! Model files: what is broken is an error with a reason, and never the end of the process.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{demo_file, gateway};

/// A file that is gone with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("{name}-{}.gguf", std::process::id()));
        fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

async fn load(file: &Scratch) -> Result<(), String> {
    let settings = "context = 64\nparallel = 1";
    let gateway = gateway()
        .scripted()
        .model("broken", &file.0, settings)
        .start_loading();
    let loaded = gateway.loaded().await;
    // A model that does not load harms no other.
    assert_eq!(gateway.chat("scripted", "x", "").send().await.status, 200);
    if let Err(reason) = &loaded {
        assert!(reason.contains("broken"), "it names the model: {reason}");
        let reply = gateway.chat("broken", "x", "").send().await;
        assert_eq!(reply.refusal().await, (503, "model_failed".to_owned()));
        let ready = gateway.get("/readyz").send().await;
        assert_eq!(ready.status, 503);
        assert!(ready.text().await.contains("broken"));
    }
    loaded
}

#[tokio::test]
async fn a_truncated_file_is_refused_wherever_it_ends() {
    let whole = fs::read(demo_file()).unwrap();
    let len = whole.len();
    for end in [
        0,
        1,
        4,
        8,
        23,
        24,
        100,
        5_000,
        60_000,
        len / 3,
        len / 2,
        len - 4096,
        len - 1,
    ] {
        let file = Scratch::new(&format!("truncated-{end}"), &whole[..end]);
        let reason = load(&file).await.expect_err("it is not whole");
        assert!(reason.len() < 1000, "{reason}");
    }
}

#[tokio::test]
async fn a_file_of_something_else_is_refused() {
    for (name, bytes) in [
        ("text", b"This is no model.".repeat(1000)),
        ("zeros", vec![0; 100_000]),
        ("magic", [b"GGUF".as_slice(), &[0xff; 4000]].concat()),
        (
            "counts",
            [
                b"GGUF\x03\0\0\0".as_slice(),
                &u64::MAX.to_le_bytes(),
                &u64::MAX.to_le_bytes(),
            ]
            .concat(),
        ),
    ] {
        load(&Scratch::new(name, &bytes)).await.expect_err(name);
    }
}

#[tokio::test]
async fn damaged_metadata_is_refused_or_harmless_and_never_fatal() {
    let whole = fs::read(demo_file()).unwrap();
    // The first bytes are counts, keys and lengths; then comes the vocabulary.
    let places = (0..64)
        .map(|at| at * 16 + 8)
        .chain((1..12).map(|at| at * 5_003));
    let mut refused = 0;
    for (round, at) in places.enumerate() {
        let mut bytes = whole.clone();
        bytes[at] ^= [0xff, 0x80, 0x01][round % 3];
        let file = Scratch::new(&format!("damaged-{at}"), &bytes);
        refused += usize::from(load(&file).await.is_err());
    }
    assert!(refused > 20, "only {refused} were noticed");
}
