//! How large the terminals of a Lark grammar become when they are written out.
//!
//! llguidance writes a terminal out wherever another one uses it, so forty short lines can describe a
//! terabyte. Its own limits come too late for that; this one comes before it sees the grammar.

use std::collections::HashMap;

/// Most elements of all terminals together, written out. Grammars of programming languages have some
/// thousands.
const MOST: u64 = 100_000;

/// Refuses a grammar whose terminals are too large.
///
/// # Errors
/// A sentence for the caller.
pub(super) fn check(lark: &str) -> Result<(), String> {
    let terminals = scan(lark);
    let numbers: HashMap<&str, usize> = (terminals.iter().enumerate())
        .map(|(number, terminal)| (terminal.name, number))
        .collect();
    // From those that use no others upwards. What uses itself is never reached: llguidance says so.
    let mut users = vec![Vec::new(); terminals.len()];
    let mut open = vec![0_usize; terminals.len()];
    for (user, terminal) in terminals.iter().enumerate() {
        for used in terminal.uses.iter().filter_map(|name| numbers.get(name)) {
            users[*used].push(user);
            open[user] += 1;
        }
    }
    let mut sizes: Vec<u64> = terminals.iter().map(|terminal| terminal.own).collect();
    let mut closed: Vec<usize> = (0..terminals.len()).filter(|&t| open[t] == 0).collect();
    let mut sum = 0_u64;
    while let Some(terminal) = closed.pop() {
        sum = sum.saturating_add(sizes[terminal]);
        for &user in &users[terminal] {
            sizes[user] = sizes[user].saturating_add(sizes[terminal]);
            open[user] -= 1;
            if open[user] == 0 {
                closed.push(user);
            }
        }
    }
    if sum > MOST {
        return Err(format!(
            "Its terminals have more than {MOST} elements when they are written out."
        ));
    }
    Ok(())
}

struct Terminal<'l> {
    name: &'l str,
    uses: Vec<&'l str>,
    /// Its own elements.
    own: u64,
}

/// Finds the terminals: a line that begins with a name in capitals and a colon, and what follows up to
/// the next line that begins with a name.
fn scan(lark: &str) -> Vec<Terminal<'_>> {
    let mut terminals: Vec<Terminal<'_>> = Vec::new();
    let mut is_terminal = false;
    let mut begins_line = true;
    let mut rest = lark;
    while let Some(first) = rest.chars().next() {
        let is_comment = first == '#' || rest.starts_with("//");
        let length = match first {
            _ if is_comment => rest.find('\n').unwrap_or(rest.len()),
            '"' | '/' => quoted(rest, first),
            _ if is_name(first) => rest.find(|c| !is_name(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (lexeme, tail) = rest.split_at(length);
        if is_name(first) {
            let name = lexeme.trim_start_matches('_');
            let in_capitals = name.starts_with(|c: char| c.is_ascii_uppercase());
            if begins_line && defines(tail) {
                is_terminal = in_capitals;
                if is_terminal {
                    terminals.push(Terminal {
                        name: lexeme,
                        uses: Vec::new(),
                        own: 0,
                    });
                }
            } else if is_terminal && let Some(terminal) = terminals.last_mut() {
                terminal.own += 1;
                if in_capitals {
                    terminal.uses.push(lexeme);
                }
            }
        } else if is_terminal
            && !is_comment
            && let Some(terminal) = terminals.last_mut()
        {
            terminal.own += lexeme.trim().len() as u64;
        }
        begins_line = first == '\n' || begins_line && first.is_whitespace();
        rest = tail;
    }
    terminals
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

/// Whether what follows a name makes it a definition: a colon, perhaps after a priority, parameters or
/// attributes.
fn defines(tail: &str) -> bool {
    let line = tail.lines().next().unwrap_or_default();
    line.trim_start().starts_with([':', '.', '{', '[']) && line.contains(':')
}

/// The length of a string or regular expression with its quotes.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, next) in text.char_indices().skip(1) {
        match next {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            // Neither holds a line end: this was no quote.
            '\n' => return 1,
            _ if next == quote => return at + 1,
            _ => {}
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(lark: &str) -> Vec<(&str, u64, usize)> {
        let terminals = scan(lark);
        terminals
            .iter()
            .map(|t| (t.name, t.own, t.uses.len()))
            .collect()
    }

    #[test]
    fn terminals_are_found_with_what_they_use() {
        let lark = "start: A b\nA: \"x: Y\" B /[A-Z\\/]/ // C: D\n  | B{2}\n_B.2 : \"y\"\nb: A A\n  %ignore A\n";
        assert_eq!(sizes(lark), [("A", 22, 2), ("_B", 6, 0)]);
    }

    #[test]
    fn terminals_that_explode_are_refused() {
        let chain = |n: usize, more: &str| {
            let lines = (0..n).map(|i| format!("A{i}: A{} {more}\n", i + 1));
            format!("start: A0\n{}A{n}: \"x\"\n", lines.collect::<String>())
        };
        assert!(check(&chain(40, "")).is_ok());
        assert!(check(&chain(8, "A3")).is_ok());
        let doubled: Vec<_> = (0..40)
            .map(|i| format!("A{i}: A{} A{}\n", i + 1, i + 1))
            .collect();
        let doubled = doubled.concat();
        assert!(check(&format!("start: A0\n{doubled}A40: \"x\"")).is_err());
        assert!(check(&chain(2000, "\"x\"")).is_err());
        assert!(check("start: A\nA: B\nB: A A").is_ok());
    }
}
