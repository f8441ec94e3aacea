//! A model file is tried in a process of its own before the server loads it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{demo_file, gateway};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sluicegate"))
}

fn scratch(name: &str, bytes: &[u8]) -> PathBuf {
    let path =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.gguf", std::process::id()));
    fs::write(&path, bytes).unwrap();
    path
}

/// The demo model with weights that are no numbers, which no check of the file alone finds.
fn poisoned() -> Vec<u8> {
    let mut bytes = fs::read(demo_file()).unwrap();
    let middle = bytes.len() / 2;
    // Whatever the place in a block, its scale becomes 0x7e7e: not a number.
    bytes[middle..middle + 4096].fill(0x7e);
    bytes
}

fn check_model(file: &Path) -> Output {
    let mut command = Command::new(program());
    command.arg("check-model").arg(file);
    command.output().unwrap()
}

#[test]
fn check_model_says_ok_or_what_is_wrong() {
    let good = check_model(demo_file());
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    assert_eq!(good.stdout, b"ok\n");

    let file = scratch("poisoned-by-hand", &poisoned());
    let bad = check_model(&file);
    fs::remove_file(&file).unwrap();
    let said = String::from_utf8(bad.stderr).unwrap();
    assert_eq!(bad.status.code(), Some(2), "{said}");
    assert!(said.contains("logit") && said.contains("damaged"), "{said}");
}

#[tokio::test]
async fn a_file_that_fails_its_trial_is_not_loaded_unless_it_is_trusted() {
    let file = scratch("poisoned", &poisoned());
    let small = "context = 64\nparallel = 1";
    let setup = gateway().scripted().program(program());
    let gateway = setup.model("bad", &file, small).start_loading();
    let reason = gateway.loaded().await.expect_err("it fails its trial");
    assert!(
        reason.contains("bad") && reason.contains("logit"),
        "{reason}"
    );
    let refused = gateway.chat("bad", "x", "").send().await.refusal().await;
    assert_eq!(refused, (503, "model_failed".to_owned()));
    assert_eq!(gateway.chat("scripted", "x", "").send().await.status, 200);

    let trusted = format!("{small}\ntrusted = true");
    let setup = gateway_with_program().model("bad", &file, &trusted);
    let reason = setup
        .start_loading()
        .loaded()
        .await
        .expect_err("it computes no numbers");
    assert!(reason.contains("test generation"), "{reason}");
    fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn a_good_file_is_tried_and_served() {
    let setup = gateway_with_program().demo("context = 512\nparallel = 2");
    let gateway = setup.start().await;
    assert_eq!(
        gateway
            .chat("demo", "x", r#""max_tokens":2"#)
            .send()
            .await
            .status,
        200
    );
}

fn gateway_with_program() -> crate::support::Setup {
    gateway().program(program())
}
