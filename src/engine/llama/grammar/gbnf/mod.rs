//! GBNF, llama.cpp's grammar language, as Lark.
//!
//! GBNF knows characters only; llguidance wants terminals, which it matches by one automaton each. So
//! rules that do not recurse become terminals, and within the others every run of elements that do not
//! recurse becomes one too. As in any lexer, a terminal takes as much text as it can: a grammar that
//! wants a repetition to stop short for the sake of what comes after a recursion is not followed there.
//! A grammar without recursion is one terminal, and is followed exactly.

mod parse;

use std::fmt::Write;

use self::parse::{Alternatives, Atom, Element};

/// Translates a grammar.
///
/// # Errors
/// A sentence that names line and column of what is wrong.
pub(super) fn to_lark(gbnf: &str) -> Result<String, String> {
    let rules = parse::parse(gbnf)?;
    let is_terminal = terminals(&rules);
    let mut lark = String::with_capacity(gbnf.len() * 2);
    let mut writer = Writer {
        is_terminal: &is_terminal,
        lark: &mut lark,
        runs: 0,
    };
    writer.line("start: ", |writer| writer.reference(0));
    for (number, rule) in rules.iter().enumerate() {
        writer.rule(number, rule);
    }
    Ok(lark)
}

/// For each rule, whether it neither recurses nor names a token, nor uses one that does.
fn terminals(rules: &[Alternatives]) -> Vec<bool> {
    // Rules are struck off once all rules that they use are; what is left recurses or leads there.
    let mut users = vec![Vec::new(); rules.len()];
    let mut open = vec![0_usize; rules.len()];
    for (user, rule) in rules.iter().enumerate() {
        for element in rule.iter().flatten() {
            match element.atom {
                Atom::Rule(used) => {
                    users[used].push(user);
                    open[user] += 1;
                }
                // Never to be struck off.
                Atom::Token(_) => open[user] += 1,
                Atom::Text(_) | Atom::Class { .. } => {}
            }
        }
    }
    let mut closed: Vec<usize> = (0..rules.len()).filter(|&rule| open[rule] == 0).collect();
    let mut is_terminal = vec![false; rules.len()];
    while let Some(rule) = closed.pop() {
        is_terminal[rule] = true;
        for &user in &users[rule] {
            open[user] -= 1;
            if open[user] == 0 {
                closed.push(user);
            }
        }
    }
    is_terminal
}

struct Writer<'w> {
    is_terminal: &'w [bool],
    lark: &'w mut String,
    /// Terminals made of runs so far.
    runs: usize,
}

impl Writer<'_> {
    fn line(&mut self, head: &str, write: impl FnOnce(&mut Self)) {
        self.lark.push_str(head);
        write(self);
        self.lark.push('\n');
    }

    fn rule(&mut self, number: usize, rule: &Alternatives) {
        let mut runs: Vec<&[Element]> = Vec::new();
        let first_run = self.runs;
        self.reference(number);
        self.lark.push_str(": ");
        for (index, sequence) in rule.iter().enumerate() {
            if index > 0 {
                self.lark.push_str(" | ");
            }
            if sequence.is_empty() {
                self.lark.push_str("\"\"");
            } else if self.is_terminal[number] {
                self.elements(sequence);
            } else {
                let is_terminal = self.is_terminal;
                let regular = |element: &Element| is_regular(element, is_terminal);
                for run in sequence.chunk_by(|a, b| regular(a) && regular(b)) {
                    if regular(&run[0]) {
                        let _ = write!(self.lark, "S{} ", self.runs);
                        self.runs += 1;
                        runs.push(run);
                    } else {
                        self.elements(run);
                    }
                }
            }
        }
        self.lark.push('\n');
        for (index, run) in runs.into_iter().enumerate() {
            let head = format!("S{}: ", first_run + index);
            self.line(&head, |writer| writer.elements(run));
        }
    }

    /// A rule's name in Lark, where terminals are in capitals.
    fn reference(&mut self, rule: usize) {
        let letter = if self.is_terminal[rule] { 'T' } else { 'r' };
        let _ = write!(self.lark, "{letter}{rule}");
    }

    fn elements(&mut self, elements: &[Element]) {
        for element in elements {
            // Lark has no repetition of zero times.
            if element.most == Some(0) {
                self.lark.push_str("\"\" ");
                continue;
            }
            match &element.atom {
                Atom::Text(text) => self.text(text),
                Atom::Class { negated, ranges } => self.class(*negated, ranges),
                Atom::Rule(rule) => self.reference(*rule),
                Atom::Token(name) => self.lark.push_str(name),
            }
            let _ = match (element.least, element.most) {
                (1, Some(1)) => Ok(()),
                (0, None) => write!(self.lark, "*"),
                (1, None) => write!(self.lark, "+"),
                (0, Some(1)) => write!(self.lark, "?"),
                (least, None) => write!(self.lark, "{{{least},}}"),
                (least, Some(most)) => write!(self.lark, "{{{least},{most}}}"),
            };
            self.lark.push(' ');
        }
    }

    /// Lark's strings are JSON's, but for one character.
    fn text(&mut self, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        self.lark.push_str(&quoted.replace('\u{7f}', "\\u007f"));
    }

    fn class(&mut self, negated: bool, ranges: &[(char, char)]) {
        if ranges.is_empty() {
            // Any character, or none at all.
            self.lark
                .push_str(if negated { "/(?s:.)/" } else { r"/[^\s\S]/" });
            return;
        }
        self.lark.push_str(if negated { "/[^" } else { "/[" });
        for &(first, last) in ranges {
            let _ = write!(self.lark, r"\x{{{:x}}}", u32::from(first));
            if last != first {
                let _ = write!(self.lark, r"-\x{{{:x}}}", u32::from(last));
            }
        }
        self.lark.push_str("]/");
    }
}

fn is_regular(element: &Element, is_terminal: &[bool]) -> bool {
    match element.atom {
        Atom::Text(_) | Atom::Class { .. } => true,
        Atom::Rule(rule) => is_terminal[rule],
        Atom::Token(_) => false,
    }
}

#[cfg(test)]
mod tests;
