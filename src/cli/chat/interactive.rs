//! A conversation on the terminal: a line in, an answer out, until the user leaves.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};
use tokio::runtime::Handle;

use super::reply::{self, Reply, Screen};
use crate::client::{ChatRequest, Client, Message};
use crate::config::state;

/// Lines kept in the history.
const HISTORY: usize = 1_000;

const HELP: &str = "\
/clear   forget the conversation and begin anew
/help    show this
/quit    leave; Ctrl-D does too
Ctrl-C stops an answer. The arrow keys and Ctrl-R find what you said before.";

/// Talks until the user leaves.
///
/// # Errors
/// The terminal cannot be read or written. A failed answer is shown, and the conversation goes on.
pub(super) async fn converse(client: Client, request: ChatRequest) -> anyhow::Result<ExitCode> {
    let runtime = Handle::current();
    // The line editor blocks its thread while it waits for keys.
    tokio::task::spawn_blocking(move || talk(&runtime, &client, request))
        .await
        .context("the conversation ended abnormally")??;
    Ok(ExitCode::SUCCESS)
}

fn talk(runtime: &Handle, client: &Client, request: ChatRequest) -> anyhow::Result<()> {
    let mut screen = Screen::new(io::stdout(), true);
    let mut lines = Lines::open()?;
    let model = request.model.as_deref().unwrap_or("the default model");
    let server = client.endpoint().authority();
    screen.note(&format_args!(
        "{model} at {server}. /help lists the commands, Ctrl-D leaves."
    ))?;
    let mut conversation = Conversation::new(request);
    let mut interrupts = 0;
    loop {
        let line = match lines.next() {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) if interrupts == 0 => {
                interrupts += 1;
                screen.note(&"Ctrl-C again leaves.")?;
                continue;
            }
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error).context("could not read from the terminal"),
        };
        interrupts = 0;
        match Command::of(&line) {
            Command::Nothing => {}
            Command::Quit => return Ok(()),
            Command::Help => screen.note(&HELP)?,
            Command::Clear => {
                conversation.clear();
                screen.note(&"A new conversation begins.")?;
            }
            Command::Unknown(name) => {
                screen.note(&format_args!(
                    "There is no {name}; /help lists what there is."
                ))?;
            }
            Command::Say(text) => {
                let request = conversation.say(text);
                let interrupt = async {
                    if tokio::signal::ctrl_c().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                };
                let reply = reply::stream(client, request, &mut screen, interrupt);
                match runtime.block_on(reply) {
                    Ok(reply) => conversation.answered(reply),
                    Err(error) if error.is::<io::Error>() => return Err(error),
                    Err(error) => {
                        conversation.take_back();
                        eprintln!("error: {error:#}");
                    }
                }
            }
        }
    }
}

/// What a line asks for. A line that begins with two slashes says the rest after the first.
#[derive(Debug, PartialEq)]
enum Command<'a> {
    Nothing,
    Quit,
    Clear,
    Help,
    Unknown(&'a str),
    Say(&'a str),
}

impl<'a> Command<'a> {
    fn of(line: &'a str) -> Self {
        let line = line.trim();
        match line {
            "" => Self::Nothing,
            "/quit" | "/exit" => Self::Quit,
            "/clear" => Self::Clear,
            "/help" | "/?" => Self::Help,
            _ => match line.strip_prefix('/') {
                Some(rest) if rest.starts_with('/') => Self::Say(rest),
                Some(_) => Self::Unknown(line.split_whitespace().next().unwrap_or(line)),
                None => Self::Say(line),
            },
        }
    }
}

/// The request that grows with every turn.
struct Conversation {
    request: ChatRequest,
    /// Messages that stand before the first turn.
    opening: usize,
}

impl Conversation {
    fn new(request: ChatRequest) -> Self {
        Self {
            opening: request.messages.len(),
            request,
        }
    }

    fn say(&mut self, text: &str) -> &ChatRequest {
        self.request.messages.push(Message::new("user", text));
        &self.request
    }

    /// A stopped answer stays as far as it went, so that "go on" means something.
    fn answered(&mut self, reply: Reply) {
        if reply.interrupted && reply.text.is_empty() {
            self.take_back();
        } else {
            let message = Message::new("assistant", reply.text);
            self.request.messages.push(message);
        }
    }

    /// Forgets what was said and not answered.
    fn take_back(&mut self) {
        self.request.messages.pop();
    }

    fn clear(&mut self) {
        self.request.messages.truncate(self.opening);
    }
}

/// The user's lines, with those of earlier conversations where they can be kept.
struct Lines {
    editor: Editor<(), FileHistory>,
    history: Option<PathBuf>,
}

impl Lines {
    fn open() -> anyhow::Result<Self> {
        let config = Config::builder()
            .auto_add_history(true)
            .history_ignore_space(true)
            .max_history_size(HISTORY)?
            .build();
        let mut editor = Editor::with_config(config).context("could not open the terminal")?;
        let history = state::directory().map(|state| state.join("chat_history"));
        if let Some(path) = &history {
            if let Some(folder) = path.parent() {
                // Where nothing can be kept, the history lives as long as the conversation.
                let _ = std::fs::create_dir_all(folder);
            }
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }

    fn next(&mut self) -> Result<String, ReadlineError> {
        let line = self.editor.readline("> ")?;
        // Each line is kept at once: a terminal that is closed loses none.
        self.history = self
            .history
            .take()
            .filter(|path| self.editor.append_history(path).is_ok());
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_words() {
        for (line, command) in [
            ("  ", Command::Nothing),
            ("/quit", Command::Quit),
            (" /exit ", Command::Quit),
            ("/clear", Command::Clear),
            ("/help", Command::Help),
            ("/nonsense x", Command::Unknown("/nonsense")),
            ("//quit", Command::Say("/quit")),
            (" what is /quit? ", Command::Say("what is /quit?")),
        ] {
            assert_eq!(Command::of(line), command);
        }
    }

    fn contents(conversation: &Conversation) -> Vec<&str> {
        let messages = &conversation.request.messages;
        messages.iter().map(|m| m.content.as_str()).collect()
    }

    fn reply(text: &str, interrupted: bool) -> Reply {
        Reply {
            text: text.to_owned(),
            interrupted,
        }
    }

    #[test]
    fn turns_gather_and_clear_keeps_the_system_message() {
        let mut conversation = Conversation::new(ChatRequest {
            messages: vec![Message::new("system", "s")],
            ..ChatRequest::default()
        });
        assert_eq!(conversation.say("a").messages.len(), 2);
        conversation.answered(reply("b", false));
        conversation.say("c");
        conversation.answered(reply("half", true));
        assert_eq!(contents(&conversation), ["s", "a", "b", "c", "half"]);
        conversation.clear();
        assert_eq!(contents(&conversation), ["s"]);
    }

    #[test]
    fn what_was_not_answered_is_forgotten() {
        let mut conversation = Conversation::new(ChatRequest::default());
        conversation.say("a");
        conversation.take_back();
        conversation.say("b");
        conversation.answered(reply("", true));
        assert!(contents(&conversation).is_empty());
    }
}
