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

/// What rustc was told to use, and ggml with it (`target-cpu` goes to both); and what ggml uses whatever
/// it is told. The CPU is asked itself: `is_x86_feature_detected!` answers yes for all that the program
/// was compiled for.
#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> [Set; 40] {
    use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

    let none = CpuidResult {
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    };
    let basic = __cpuid(1);
    let more = if __cpuid(0).eax >= 7 {
        __cpuid_count(7, 0)
    } else {
        none
    };
    let newer = if more.eax >= 1 {
        __cpuid_count(7, 1)
    } else {
        none
    };
    let extended = if __cpuid(0x8000_0000).eax > 0x8000_0000 {
        __cpuid(0x8000_0001)
    } else {
        none
    };
    macro_rules! sets {
        ($($name:tt $(or $always:literal)?: $leaf:ident.$register:ident, $bit:literal;)*) => {
            [$((
                $name,
                cfg!(target_feature = $name) $(|| $always)?,
                $leaf.$register & (1u32 << $bit) != 0,
            )),*]
        };
    }
    sets![
        "ssse3": basic.ecx, 9;
        "fma" or true: basic.ecx, 12;
        "sse4.1": basic.ecx, 19;
        "sse4.2": basic.ecx, 20;
        "movbe": basic.ecx, 22;
        "popcnt": basic.ecx, 23;
        "pclmulqdq": basic.ecx, 1;
        "aes": basic.ecx, 25;
        "avx" or true: basic.ecx, 28;
        "f16c" or true: basic.ecx, 29;
        "rdrand": basic.ecx, 30;
        "bmi1": more.ebx, 3;
        "avx2" or true: more.ebx, 5;
        "bmi2" or true: more.ebx, 8;
        "avx512f": more.ebx, 16;
        "avx512dq": more.ebx, 17;
        "rdseed": more.ebx, 18;
        "adx": more.ebx, 19;
        "avx512ifma": more.ebx, 21;
        "avx512cd": more.ebx, 28;
        "sha": more.ebx, 29;
        "avx512bw": more.ebx, 30;
        "avx512vl": more.ebx, 31;
        "avx512vbmi": more.ecx, 1;
        "avx512vbmi2": more.ecx, 6;
        "gfni": more.ecx, 8;
        "vaes": more.ecx, 9;
        "vpclmulqdq": more.ecx, 10;
        "avx512vnni": more.ecx, 11;
        "avx512bitalg": more.ecx, 12;
        "avx512vpopcntdq": more.ecx, 14;
        "avx512vp2intersect": more.edx, 8;
        "avx512fp16": more.edx, 23;
        "avxvnni": newer.eax, 4;
        "avx512bf16": newer.eax, 5;
        "avxifma": newer.eax, 23;
        "avxvnniint8": newer.edx, 4;
        "avxneconvert": newer.edx, 5;
        "avxvnniint16": newer.edx, 10;
        "lzcnt": extended.ecx, 5;
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
    #[cfg(target_arch = "x86_64")]
    fn the_cpu_is_asked_as_the_standard_library_asks_it() {
        let has = |name| {
            let sets = instruction_sets();
            sets.iter().find(|set| set.0 == name).unwrap().2
        };
        assert_eq!(has("avx512f"), is_x86_feature_detected!("avx512f"));
        assert_eq!(has("avx512fp16"), is_x86_feature_detected!("avx512fp16"));
        assert_eq!(has("avx512bf16"), is_x86_feature_detected!("avx512bf16"));
        assert_eq!(has("avxvnni"), is_x86_feature_detected!("avxvnni"));
        assert_eq!(has("avxvnniint8"), is_x86_feature_detected!("avxvnniint8"));
        assert_eq!(has("lzcnt"), is_x86_feature_detected!("lzcnt"));
        assert_eq!(has("gfni"), is_x86_feature_detected!("gfni"));
    }

    #[test]
    fn the_cpu_that_runs_this_test_is_accepted() {
        assert!(!refuses());
    }
}
