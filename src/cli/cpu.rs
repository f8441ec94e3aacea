//! A clear refusal on a CPU that lacks instructions the program was compiled for, instead of SIGILL.
//!
//! Best effort: it is the first thing that `main` does, it writes piece by piece and allocates nothing, so
//! that little compiled code runs before it. What runs before `main` is the standard library and
//! llama.cpp's static initializers, both compiled for any x86-64; ggml, which is not, has none.

use std::io::Write;

/// Exit status on a CPU that cannot run this program.
pub(super) const WRONG_CPU: u8 = 3;

/// An instruction set: its name, whether the program needs it, whether the CPU has it.
type Set = (&'static str, bool, bool);

/// Says on stderr what is missing, if something is; whether something is.
#[inline(never)]
pub(super) fn refuses() -> bool {
    refuse(&instruction_sets(), &mut std::io::stderr())
}

fn refuse(sets: &[Set], out: &mut impl Write) -> bool {
    let mut missing = sets.iter().filter(|(_, needed, has)| *needed && !has);
    let Some((first, ..)) = missing.next() else {
        return false;
    };
    let mut say = |text: &str| {
        // Nobody is left to tell if stderr is closed; the exit status remains.
        let _ = out.write_all(text.as_bytes());
    };
    say("sluicegate: this program was compiled for a CPU with ");
    say(first);
    for (name, ..) in missing {
        say(", ");
        say(name);
    }
    say(", which this one has not. Build it on this machine (`cargo build --release`), or for ");
    say("any x86-64 CPU with AVX2 and FMA (`make portable`).\n");
    true
}

/// What rustc was told to use, and with it ggml (`target-cpu` goes to both); and what ggml uses whatever
/// it is told.
#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> [Set; 40] {
    macro_rules! sets {
        ($($name:tt $(or $always:literal)?,)*) => {
            [$((
                $name,
                cfg!(target_feature = $name) $(|| $always)?,
                std::arch::is_x86_feature_detected!($name),
            )),*]
        };
    }
    sets![
        "ssse3",
        "sse4.1",
        "sse4.2",
        "popcnt",
        "avx" or true,
        "avx2" or true,
        "fma" or true,
        "f16c" or true,
        "bmi1",
        "bmi2" or true,
        "lzcnt",
        "movbe",
        "adx",
        "aes",
        "pclmulqdq",
        "rdrand",
        "rdseed",
        "sha",
        "avx512f",
        "avx512bw",
        "avx512cd",
        "avx512dq",
        "avx512vl",
        "avx512ifma",
        "avx512vbmi",
        "avx512vbmi2",
        "avx512vnni",
        "avx512bitalg",
        "avx512vpopcntdq",
        "avx512bf16",
        "avx512fp16",
        "avx512vp2intersect",
        "avxvnni",
        "avxifma",
        "avxneconvert",
        "avxvnniint8",
        "avxvnniint16",
        "gfni",
        "vaes",
        "vpclmulqdq",
    ]
}

/// Elsewhere the compiler's baseline is the architecture's.
#[cfg(not(target_arch = "x86_64"))]
fn instruction_sets() -> [Set; 0] {
    []
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(sets: &[Set]) -> Option<String> {
        let mut out = Vec::new();
        refuse(sets, &mut out).then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_cpu_with_all_that_is_needed_is_accepted() {
        let sets = [
            ("avx2", true, true),
            ("avx512f", false, false),
            ("sha", false, true),
        ];
        assert_eq!(said(&sets), None);
        assert_eq!(said(&[]), None);
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_else() {
        let sets = [
            ("avx2", true, true),
            ("avx512f", true, false),
            ("gfni", false, false),
            ("vaes", true, false),
        ];
        let text = said(&sets).unwrap();
        assert!(
            text.contains("a CPU with avx512f, vaes, which this one has not"),
            "{text}"
        );
        assert!(text.ends_with(".\n"));
    }

    #[test]
    fn the_cpu_that_runs_this_test_is_accepted() {
        assert!(!refuses());
    }
}
