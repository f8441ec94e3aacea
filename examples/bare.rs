//! The bare decode loop on any GGUF file: what the machine gives when nothing but the model is computed.
//!
//! Takes the flags of llama.cpp's `llama-batched-bench` that matter here and prints lines as it does, with
//! the CPU time of a token besides; `loadtests engine` reads both.
//!
//! ```sh
//! cargo run --release --example bare -- -m model.gguf -c 8192 -npp 32 -ntg 256 -npl 1,8,32 -t 2
//! ```
#![expect(clippy::print_stdout, reason = "the figures are the output")]

use std::collections::HashMap;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use sluicegate::engine::config::Settings;
use sluicegate::engine::llama::Weights;
use sluicegate::engine::llama::bare::BareLoop;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let flags = flags(&arguments)?;
    let flag = |name: &str| {
        let value = flags.get(name).copied();
        value.with_context(|| format!("{name} is missing"))
    };
    let weights = Weights::File(flag("-m")?.into());
    let cells: u32 = flag("-c")?.parse()?;
    for rows in numbers(flag("-npl")?)? {
        let mut settings = Settings::default();
        settings.parallel = rows;
        settings.context = NonZeroU32::new(cells / rows);
        settings.threads = flags
            .get("-t")
            .map(|threads| threads.parse::<NonZeroU16>())
            .transpose()?;
        settings.batch = settings.batch.max(rows);
        let mut bare = BareLoop::new(&weights, &settings)?;
        for prompt in numbers(flag("-npp")?)? {
            for tokens in numbers(flag("-ntg")?)? {
                ensure!(
                    u64::from(prompt + tokens) * u64::from(rows) <= u64::from(cells),
                    "{rows} sequences of {prompt} and {tokens} tokens need more than {cells} cells"
                );
                measure(&mut bare, prompt, tokens)?;
            }
        }
    }
    Ok(())
}

fn measure(bare: &mut BareLoop, prompt: u32, tokens: u32) -> Result<()> {
    let rows = bare.rows();
    bare.restart();
    let begin = Instant::now();
    bare.read(prompt)?;
    let prompt_rate = f64::from(prompt * rows) / begin.elapsed().as_secs_f64();
    let (begin, cpu) = (Instant::now(), cpu_time());
    for _ in 0..tokens {
        bare.step()?;
    }
    let made = f64::from(tokens * rows);
    let rate = made / begin.elapsed().as_secs_f64();
    let cost = cpu_time().saturating_sub(cpu).as_secs_f64() * 1e6 / made;
    println!(
        "{{\"pp\": {prompt}, \"tg\": {tokens}, \"pl\": {rows}, \"speed_pp\": {prompt_rate:.3}, \
         \"speed_tg\": {rate:.3}, \"cpu_us_tg\": {cost:.3}}}"
    );
    Ok(())
}

/// CPU time of all threads so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn flags(arguments: &[String]) -> Result<HashMap<&str, &str>> {
    let (pairs, rest) = arguments.as_chunks::<2>();
    ensure!(rest.is_empty(), "every flag has a value");
    for [flag, value] in pairs {
        let known = ["-m", "-c", "-npp", "-ntg", "-npl", "-t"].contains(&flag.as_str());
        // The only form that is printed here; llama-batched-bench has others.
        let lines = (flag.as_str(), value.as_str()) == ("--output-format", "jsonl");
        ensure!(known || lines, "{flag} {value} is not understood");
    }
    Ok(pairs
        .iter()
        .map(|[flag, value]| (flag.as_str(), value.as_str()))
        .collect())
}

/// Numbers with commas between them, none of them 0.
fn numbers(text: &str) -> Result<Vec<u32>> {
    let number = |text: &str| text.trim().parse::<NonZeroU32>().map(u32::from);
    let numbers: Result<_, _> = text.split(',').map(number).collect();
    numbers.with_context(|| format!("{text:?} is no list of numbers"))
}
