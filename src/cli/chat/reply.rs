//! One answer: its text as it comes, and the figures when it has ended.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::time::Instant;

use crate::client::{ChatRequest, Client, Error, Event, Usage};

/// What was answered.
#[derive(Debug)]
pub(super) struct Reply {
    /// The whole text.
    pub(super) text: String,
    /// The user stopped it.
    pub(super) interrupted: bool,
}

/// Where an answer is shown.
///
/// A pipe gets the text and nothing else, to the byte. A terminal gets the text without control
/// characters, which could otherwise move its cursor or retitle its window, and a line of figures.
pub(super) struct Screen<W> {
    out: W,
    terminal: bool,
    colour: bool,
    /// The last character written was no line feed.
    mid_line: bool,
}

/// Streams an answer to the screen until it ends or `interrupt` does, which drops the stream.
///
/// # Errors
/// What the client reports, or that the output cannot be written.
pub(super) async fn stream<W: Write>(
    client: &Client,
    request: &ChatRequest,
    screen: &mut Screen<W>,
    interrupt: impl Future<Output = ()>,
) -> anyhow::Result<Reply> {
    let mut text = String::new();
    let mut figures = Figures::new();
    let answer = answer(client, request, screen, &mut text, &mut figures);
    let end = tokio::select! {
        biased;
        () = interrupt => {
            figures.interrupted = true;
            Ok(())
        }
        end = answer => end,
    };
    screen.end_line()?;
    end?;
    screen.note(&figures)?;
    Ok(Reply {
        text,
        interrupted: figures.interrupted,
    })
}

async fn answer<W: Write>(
    client: &Client,
    request: &ChatRequest,
    screen: &mut Screen<W>,
    text: &mut String,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut stream = client.chat(request).await?;
    tell_fall_back(client);
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Text { text: piece, .. }) => {
                figures.text();
                screen.text(&piece)?;
                text.push_str(&piece);
            }
            Ok(Event::Finish { reason, .. }) => figures.finish = Some(reason),
            Ok(Event::Usage(usage)) => figures.usage = Some(usage),
            Ok(Event::Role { .. }) => {}
            // Some servers just close the body; what they sent is then all there is to show.
            Err(Error::Truncated) if figures.finish.is_some() => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Says once, to who looks, that something else is spoken than was asked for.
fn tell_fall_back(client: &Client) {
    if io::stderr().is_terminal()
        && let Some(blocked) = client.take_fall_back()
    {
        eprintln!(
            "{} does not get through; speaking {}.",
            blocked.name(),
            client.transport().name()
        );
    }
}

impl<W: Write> Screen<W> {
    pub(super) fn new(out: W, terminal: bool) -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let colour = set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb");
        Self {
            out,
            terminal,
            colour: colour && terminal,
            mid_line: false,
        }
    }

    /// Writes a line about the conversation, not of it; only a terminal gets it.
    pub(super) fn note(&mut self, line: &impl fmt::Display) -> io::Result<()> {
        if !self.terminal {
            return Ok(());
        }
        self.end_line()?;
        if self.colour {
            writeln!(self.out, "\x1b[2m{line}\x1b[0m")?;
        } else {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        let text = if self.terminal {
            printable(text)
        } else {
            Cow::Borrowed(text)
        };
        self.mid_line = !text.ends_with('\n');
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    fn end_line(&mut self) -> io::Result<()> {
        if self.terminal && std::mem::take(&mut self.mid_line) {
            self.out.write_all(b"\n")?;
            self.out.flush()?;
        }
        Ok(())
    }
}

/// Text without the control characters that a terminal would obey.
fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(obeyed) {
        Cow::Owned(text.replace(obeyed, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// What is measured of one answer.
struct Figures {
    asked: Instant,
    first: Option<Instant>,
    last: Instant,
    /// Text events, which stand for tokens where the server does not count them.
    pieces: u64,
    usage: Option<Usage>,
    finish: Option<String>,
    interrupted: bool,
}

impl Figures {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            asked: now,
            first: None,
            last: now,
            pieces: 0,
            usage: None,
            finish: None,
            interrupted: false,
        }
    }

    fn text(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = now;
        self.pieces += 1;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (about, tokens) = match self.usage {
            Some(usage) => ("", usage.completion_tokens),
            None => ("about ", self.pieces),
        };
        let plural = if tokens == 1 { "" } else { "s" };
        write!(f, "{about}{tokens} token{plural}")?;
        if let Some(first) = self.first {
            write!(f, " · first after {}", Short(first - self.asked))?;
            let spell = (self.last - first).as_secs_f64();
            // The first token's wait is told apart, so the rate counts those after it.
            if tokens > 1 && spell > 0.0 {
                #[expect(clippy::cast_precision_loss, reason = "no answer has 2^52 tokens")]
                let rate = (tokens - 1) as f64 / spell;
                write!(f, " · {rate:.1} tokens/s")?;
            }
        }
        match self.finish.as_deref() {
            _ if self.interrupted => f.write_str(" · stopped"),
            Some("length") => f.write_str(" · cut off at the token limit"),
            _ => Ok(()),
        }
    }
}

/// A duration in milliseconds, or in seconds where those would be many.
struct Short(Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        if seconds < 1.0 {
            write!(f, "{:.0} ms", seconds * 1e3)
        } else {
            write!(f, "{seconds:.2} s")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(terminal: bool) -> Screen<Vec<u8>> {
        Screen {
            out: Vec::new(),
            terminal,
            colour: terminal,
            mid_line: false,
        }
    }

    #[test]
    fn a_pipe_gets_the_text_to_the_byte_and_nothing_else() {
        let mut screen = screen(false);
        screen.text("a\u{1b}[1m").unwrap();
        screen.end_line().unwrap();
        screen.note(&"figures").unwrap();
        assert_eq!(screen.out, b"a\x1b[1m");
    }

    #[test]
    fn a_terminal_gets_no_control_characters_and_a_dimmed_note_on_its_own_line() {
        let mut screen = screen(true);
        screen.text("é\t\u{1b}]0;x\u{7}\u{9b}\n").unwrap();
        screen.text("b").unwrap();
        screen.note(&"figures").unwrap();
        let shown = String::from_utf8(screen.out).unwrap();
        assert_eq!(
            shown,
            "é\t\u{fffd}]0;x\u{fffd}\u{fffd}\nb\n\u{1b}[2mfigures\u{1b}[0m\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_figures_tell_the_first_wait_from_the_rate() {
        let mut figures = Figures::new();
        for wait in [500, 100, 100] {
            tokio::time::advance(Duration::from_millis(wait)).await;
            figures.text();
        }
        assert_eq!(
            figures.to_string(),
            "about 3 tokens · first after 500 ms · 10.0 tokens/s"
        );
        figures.usage = Some(Usage {
            prompt_tokens: 1,
            completion_tokens: 5,
        });
        figures.finish = Some("length".to_owned());
        assert_eq!(
            figures.to_string(),
            "5 tokens · first after 500 ms · 20.0 tokens/s · cut off at the token limit"
        );
        figures.interrupted = true;
        assert!(figures.to_string().ends_with(" · stopped"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_without_text_has_no_rate() {
        assert_eq!(Figures::new().to_string(), "about 0 tokens");
        let mut figures = Figures::new();
        tokio::time::advance(Duration::from_millis(1234)).await;
        figures.text();
        assert_eq!(figures.to_string(), "about 1 token · first after 1.23 s");
    }
}
