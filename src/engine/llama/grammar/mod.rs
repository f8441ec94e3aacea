//! Structured output: what a generation may say next, by a JSON Schema, a regular expression or a
//! grammar.
//!
//! ```text
//! text of a schema or grammar
//!   | schema, terminals, gbnf/  checked, translated      (a thread of its own, one source at a time)
//!   | compile.rs            compiled by llguidance
//!   v cache.rs              kept, the last few dozen
//! Guide, one per sequence   a mask before every token, the token after it   (engine thread)
//! ```
//!
//! llguidance does the matching; it is driven directly, so that an error ends the one sequence that has
//! it and never leaves a row unmasked. No grammar of a caller ever reaches llama.cpp's parser.

mod cache;
mod compile;
mod gbnf;
mod guide;
mod schema;
mod terminals;
mod tokens;

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use self::cache::Cache;
use super::heavy;
use crate::generation::{Constraint, Failure, Grammar, Kind};

pub use self::compile::Compiler;
pub use self::guide::{Guide, GuideError};
pub(super) use self::tokens::words;

/// Longest schema or grammar, in bytes. OpenAI's own bound is 120,000 characters in names and values.
const MAX_SOURCE: usize = 256 * 1024;

/// Longest regular expression: the time that it takes grows faster than its length.
const MAX_REGEX: usize = 16 * 1024;

/// How long a request waits for its turn to compile, and then for the compiling. The schema of
/// `benches/grammar.rs` takes 5 ms.
const PATIENCE: Duration = Duration::from_secs(2);

/// Most compiled grammars kept for one model; what each may hold is bounded by the limits in `compile.rs`.
const KEPT: usize = 64;

/// The stack of a compiling thread. The compilers of schemas and grammars call themselves for every
/// reference that they follow; the source's length bounds how deep. Only what is used of it costs
/// memory.
const STACK: usize = 512 * 1024 * 1024;

/// Who may compile, all models together: half of the cores, so that a source that takes long holds up
/// other sources at most.
static TURNS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new((cores / 2).max(1)))
});

/// The bytes of every token, and the tokens that end a generation.
type Tokens = (Vec<Vec<u8>>, Vec<u32>);

/// The grammars of one model.
pub(super) struct Grammars {
    tokens: Arc<dyn Fn() -> Tokens + Send + Sync>,
    /// Made when it is first needed: it takes a while, and most servers never need it.
    compiler: OnceCell<Arc<Compiler>>,
    kept: Arc<Kept>,
}

/// What was compiled lately, at its beginning.
struct Kept(Mutex<Cache<Grammar, Guide>>);

impl Grammars {
    /// `tokens` is asked once, and not before it is needed.
    pub(super) fn new(tokens: impl Fn() -> Tokens + Send + Sync + 'static) -> Self {
        Self {
            tokens: Arc::new(tokens),
            compiler: OnceCell::new(),
            kept: Arc::new(Kept(Mutex::new(Cache::new(KEPT)))),
        }
    }

    /// A guide at its beginning for what `constraint` asks.
    ///
    /// # Errors
    /// `Invalid` when the constraint is wrong, too long or takes too long; `Overloaded` when too many
    /// others are being compiled.
    pub(super) async fn guide(&self, constraint: &Constraint) -> Result<Guide, Failure> {
        let field = constraint.field;
        let (length, most) = length(&constraint.grammar);
        if length > most {
            return Err(Failure::invalid(
                field,
                format!("{field} has {length} bytes; at most {most} are read."),
            ));
        }
        if let Some(guide) = self.kept.copy(&constraint.grammar) {
            return Ok(guide);
        }
        let compiler = self.compiler().await?;
        let turn = timeout_at(Instant::now() + PATIENCE, TURNS.clone().acquire_owned());
        let turn = turn.await.map_err(|_| busy())?.map_err(Failure::internal)?;
        let (kept, grammar) = (self.kept.clone(), constraint.grammar.clone());
        let (done, result) = oneshot::channel();
        // Not on the blocking pool: its threads have an ordinary stack. Once begun it is finished and
        // keeps its turn until then, whether or not anybody still waits for it.
        std::thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                // Nobody may be waiting any more.
                let _ = done.send(kept.compile(&compiler, &grammar));
                drop(turn);
            })
            .map_err(Failure::internal)?;
        match timeout_at(Instant::now() + PATIENCE, result).await {
            Ok(Ok(guide)) => guide.map_err(|message| Failure::invalid(field, message)),
            Ok(Err(_)) => Err(Failure::internal("compiling a grammar panicked")),
            Err(_) => Err(Failure::invalid(
                field,
                format!(
                    "{field} is too complex: it was not compiled within {} seconds.",
                    PATIENCE.as_secs()
                ),
            )),
        }
    }

    /// The compiler for this model's vocabulary. The first to ask has it made, others wait with it.
    async fn compiler(&self) -> Result<Arc<Compiler>, Failure> {
        let make = || async {
            let tokens = self.tokens.clone();
            let made = heavy(move || {
                let (words, end) = tokens();
                Compiler::new(&words, &end)
            });
            made.await?.map(Arc::new).map_err(Failure::internal)
        };
        self.compiler.get_or_try_init(make).await.cloned()
    }
}

fn busy() -> Failure {
    Failure::new(
        Kind::Overloaded,
        "Too many other schemas and grammars are being compiled.",
    )
    .with_retry_after(super::RETRY_AFTER)
}

impl Kept {
    /// A copy of what is kept. It shares nothing with the others, so that no sequence waits for or
    /// fails with another.
    fn copy(&self, grammar: &Grammar) -> Option<Guide> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(grammar).map(Guide::copy)
    }

    fn compile(&self, compiler: &Compiler, grammar: &Grammar) -> Result<Guide, String> {
        // Another request may have brought the same one meanwhile.
        if let Some(guide) = self.copy(grammar) {
            return Ok(guide);
        }
        let guide = compiler.compile(grammar)?;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.put(grammar.clone(), guide.copy());
        Ok(guide)
    }
}

/// The length of a source, and the most that it may have.
fn length(grammar: &Grammar) -> (usize, usize) {
    match grammar {
        Grammar::JsonObject => (0, 0),
        Grammar::Regex(regex) => (regex.len(), MAX_REGEX),
        Grammar::JsonSchema { schema: text, .. } | Grammar::Lark(text) | Grammar::Gbnf(text) => {
            (text.len(), MAX_SOURCE)
        }
    }
}

#[cfg(test)]
mod tests;
