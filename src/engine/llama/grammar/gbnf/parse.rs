//! GBNF as llama.cpp reads it, into rules without groups.
//!
//! ```text
//! rules        name ::= alternatives        up to the end of the line, or to the end of a group
//! alternatives sequence | sequence | …      a line may end before or after a |
//! element      "text"  [a-z]  [^a-z]  .  name  ( alternatives )  <token>  <[id]>
//! repetition   element* element+ element? element{3} element{3,} element{3,5}
//! escapes      \n \r \t \\ \" \[ \] \xHH \uHHHH \UHHHHHHHH
//! comment      # to the end of the line
//! ```
//!
//! A group becomes a rule of its own, so that whatever follows need not walk a tree.

use std::collections::HashMap;

/// Most rules, groups among them.
const MAX_RULES: usize = 10_000;
/// Deepest nesting of groups.
const MAX_DEPTH: usize = 64;
/// Most repetitions that may be asked for by number; llama.cpp's bound.
const MAX_REPETITIONS: u32 = 2000;

/// A rule: the alternatives, each a sequence.
pub(super) type Alternatives = Vec<Vec<Element>>;

/// One element of a sequence, and how often it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) atom: Atom,
    pub(super) least: u32,
    /// `None` for no bound.
    pub(super) most: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Atom {
    Text(String),
    /// Characters from the first to the last of each range, or all others.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    /// Another rule, by its number.
    Rule(usize),
    /// A token by its name or id, as written, with its brackets.
    Token(String),
}

/// Rules by number; the first is the root.
pub(super) fn parse(text: &str) -> Result<Vec<Alternatives>, String> {
    let mut parser = Parser {
        text,
        at: 0,
        rules: Vec::new(),
        numbers: HashMap::new(),
    };
    parser.number("root", 0)?;
    parser.space(true);
    while parser.peek().is_some() {
        parser.rule()?;
    }
    let missing = parser.rules.iter().find(|rule| rule.alternatives.is_none());
    if let Some(missing) = missing {
        let message = format!("there is no rule {:?}", missing.name);
        return Err(place(text, missing.named_at, &message));
    }
    let rules = parser.rules.into_iter();
    Ok(rules.filter_map(|rule| rule.alternatives).collect())
}

struct Rule<'t> {
    name: &'t str,
    /// Where it is first named, in bytes.
    named_at: usize,
    alternatives: Option<Alternatives>,
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    rules: Vec<Rule<'t>>,
    numbers: HashMap<&'t str, usize>,
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at..)?.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn take(&mut self, expected: &str) -> bool {
        let found = self.text[self.at..].starts_with(expected);
        if found {
            self.at += expected.len();
        }
        found
    }

    fn wrong<T>(&self, message: &str) -> Result<T, String> {
        Err(place(self.text, self.at, message))
    }

    /// Skips blanks and comments, and line ends if `lines`.
    fn space(&mut self, lines: bool) {
        while let Some(next) = self.peek() {
            match next {
                ' ' | '\t' => self.at += 1,
                '\r' | '\n' if lines => self.at += 1,
                '#' => {
                    let rest = &self.text[self.at..];
                    self.at += rest.find(['\r', '\n']).unwrap_or(rest.len());
                }
                _ => return,
            }
        }
    }

    /// A rule's number, a new one for a new name.
    fn number(&mut self, name: &'t str, named_at: usize) -> Result<usize, String> {
        if let Some(&number) = self.numbers.get(name) {
            return Ok(number);
        }
        let number = self.add(name, named_at)?;
        self.numbers.insert(name, number);
        Ok(number)
    }

    fn add(&mut self, name: &'t str, named_at: usize) -> Result<usize, String> {
        if self.rules.len() == MAX_RULES {
            return self.wrong(&format!("more than {MAX_RULES} rules and groups"));
        }
        self.rules.push(Rule {
            name,
            named_at,
            alternatives: None,
        });
        Ok(self.rules.len() - 1)
    }

    fn name(&mut self) -> Result<&'t str, String> {
        let rest = &self.text[self.at..];
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        if end == 0 {
            return self.wrong("a name is expected");
        }
        self.at += end;
        Ok(&rest[..end])
    }

    fn rule(&mut self) -> Result<(), String> {
        let named_at = self.at;
        let name = self.name()?;
        self.space(false);
        if !self.take("::=") {
            return self.wrong("::= is expected");
        }
        self.space(true);
        let number = self.number(name, named_at)?;
        let alternatives = self.alternatives(0)?;
        if self.rules[number].alternatives.is_some() {
            self.at = named_at;
            return self.wrong(&format!("there is another rule {name:?}"));
        }
        self.rules[number].alternatives = Some(alternatives);
        match self.peek() {
            None | Some('\r' | '\n') => {
                self.space(true);
                Ok(())
            }
            Some(_) => self.wrong("the end of the line is expected"),
        }
    }

    fn alternatives(&mut self, depth: usize) -> Result<Alternatives, String> {
        let mut alternatives = vec![self.sequence(depth)?];
        loop {
            let before = self.at;
            // A line may end before a | as well.
            self.space(true);
            if !self.take("|") {
                self.at = before;
                return Ok(alternatives);
            }
            self.space(true);
            alternatives.push(self.sequence(depth)?);
        }
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Element>, String> {
        let mut sequence = Vec::new();
        // Within a group, lines do not matter.
        let lines = depth > 0;
        self.space(lines);
        while let Some(next) = self.peek() {
            let atom = match next {
                '"' => Some(self.literal()?),
                '[' => Some(self.class()?),
                '.' => {
                    self.at += 1;
                    Some(Atom::Class {
                        negated: true,
                        ranges: Vec::new(),
                    })
                }
                '(' => Some(self.group(depth)?),
                '<' => Some(self.token()?),
                '!' => return self.wrong("tokens cannot be excluded"),
                next if next.is_ascii_alphanumeric() || next == '-' || next == '_' => {
                    let named_at = self.at;
                    let name = self.name()?;
                    Some(Atom::Rule(self.number(name, named_at)?))
                }
                _ => None,
            };
            let Some(atom) = atom else { break };
            self.space(lines);
            sequence.push(self.repeated(atom, lines)?);
        }
        Ok(sequence)
    }

    fn group(&mut self, depth: usize) -> Result<Atom, String> {
        if depth == MAX_DEPTH {
            return self.wrong(&format!("groups nest more than {MAX_DEPTH} deep"));
        }
        let opened_at = self.at;
        self.at += 1;
        let number = self.add("", opened_at)?;
        let alternatives = self.alternatives(depth + 1)?;
        self.space(true);
        if !self.take(")") {
            return self.wrong(") is expected");
        }
        self.rules[number].alternatives = Some(alternatives);
        Ok(Atom::Rule(number))
    }

    fn repeated(&mut self, atom: Atom, lines: bool) -> Result<Element, String> {
        let (least, most) = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => {
                self.at += 1;
                let bounds = self.bounds()?;
                self.space(lines);
                if !self.take("}") {
                    return self.wrong("} is expected");
                }
                self.space(lines);
                return self.once_repeated(atom, bounds);
            }
            _ => {
                return Ok(Element {
                    atom,
                    least: 1,
                    most: Some(1),
                });
            }
        };
        self.at += 1;
        self.space(lines);
        self.once_repeated(atom, (least, most))
    }

    /// An element may carry one repetition: of two, llama.cpp repeats the repeated.
    fn once_repeated(
        &mut self,
        atom: Atom,
        (least, most): (u32, Option<u32>),
    ) -> Result<Element, String> {
        if matches!(self.peek(), Some('*' | '+' | '?' | '{')) {
            return self.wrong("an element is repeated once; put parentheses around it");
        }
        Ok(Element { atom, least, most })
    }

    fn bounds(&mut self) -> Result<(u32, Option<u32>), String> {
        self.space(true);
        let least = self.count()?;
        self.space(true);
        if !self.take(",") {
            return Ok((least, Some(least)));
        }
        self.space(true);
        if self.peek() == Some('}') {
            return Ok((least, None));
        }
        let most = self.count()?;
        if most < least {
            return self.wrong("the upper bound is below the lower");
        }
        Ok((least, Some(most)))
    }

    fn count(&mut self) -> Result<u32, String> {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !c.is_ascii_digit());
        let digits = &rest[..end.unwrap_or(rest.len())];
        match digits.parse() {
            Ok(count) if count <= MAX_REPETITIONS => {
                self.at += digits.len();
                Ok(count)
            }
            Ok(_) => self.wrong(&format!("more than {MAX_REPETITIONS} repetitions")),
            Err(_) => self.wrong("a number is expected"),
        }
    }

    fn literal(&mut self) -> Result<Atom, String> {
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.peek() {
                Some('"') => {
                    self.at += 1;
                    return Ok(Atom::Text(text));
                }
                Some(_) => text.push(self.character()?),
                None => return self.wrong("the text has no end"),
            }
        }
    }

    fn class(&mut self) -> Result<Atom, String> {
        self.at += 1;
        let negated = self.take("^");
        let mut ranges = Vec::new();
        loop {
            match self.peek() {
                Some(']') => {
                    self.at += 1;
                    return Ok(Atom::Class { negated, ranges });
                }
                None => return self.wrong("the set of characters has no end"),
                Some(_) => {}
            }
            let first = self.character()?;
            let is_range =
                self.text[self.at..].starts_with('-') && !self.text[self.at + 1..].starts_with(']');
            let last = if is_range {
                self.at += 1;
                if self.peek().is_none() {
                    continue;
                }
                self.character()?
            } else {
                first
            };
            if last < first {
                return self.wrong("the range of characters ends before it begins");
            }
            ranges.push((first, last));
        }
    }

    /// One character, escaped or not; there is one.
    fn character(&mut self) -> Result<char, String> {
        let at = self.at;
        let next = self.next();
        if next != Some('\\') {
            return next.map_or_else(|| self.wrong("a character is expected"), Ok);
        }
        let digits = match self.next() {
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some(escaped @ ('\\' | '"' | '[' | ']' | '-' | '^')) => return Ok(escaped),
            _ => {
                self.at = at;
                return self.wrong("this escape is unknown");
            }
        };
        let hex = self.text.get(self.at..self.at + digits);
        let code = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok());
        if let Some(character) = code.and_then(char::from_u32) {
            self.at += digits;
            return Ok(character);
        }
        self.at = at;
        self.wrong("this escape is no character")
    }

    fn token(&mut self) -> Result<Atom, String> {
        let rest = &self.text[self.at..];
        match rest.find('>') {
            Some(end)
                if end > 1 && !rest[1..end].contains(|c: char| c == '<' || c.is_whitespace()) =>
            {
                self.at += end + 1;
                Ok(Atom::Token(rest[..=end].to_owned()))
            }
            _ => self.wrong("the token's name has no end"),
        }
    }
}

/// A message with its place.
fn place(text: &str, at: usize, message: &str) -> String {
    let before = &text[..at.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    format!("GBNF, line {line}, column {column}: {message}.")
}
