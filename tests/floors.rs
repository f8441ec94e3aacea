//! The house rules that a compiler does not keep: which module may import which, and a few more.
//!
//! A module imports only from floors below its own, and the modules of one floor do not know each
//! other. The last floor is the exception: its modules call each other in one order.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every module at the root of the crate, by floor, from the ground up.
const FLOORS: [&[&str]; 7] = [
    &["generation"],
    &["telemetry"],
    &["auth", "limit", "engine"],
    &["route"],
    &["gateway", "wire", "control"],
    &["transport", "client"],
    // On this floor each may import those before it.
    &["config", "app", "cli", "main"],
];

/// Most lines of code in one file; comments, blank lines and tests do not count.
const LONGEST_FILE: usize = 500;

#[test]
fn no_import_runs_up_or_sideways() {
    let mut wrong = Vec::new();
    for file in rust_files("src") {
        let (path, text) = (relative(&file), read(&file));
        let from = top_module(&path);
        if from == "lib" {
            continue;
        }
        for (line, to) in imports(&path, &text) {
            if to != from && !may_import(from, &to) {
                wrong.push(format!("{path}:{line}: {from} imports {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_has_a_floor() {
    for file in rust_files("src") {
        let path = relative(&file);
        let module = top_module(&path);
        assert!(
            module == "lib" || floor(module).is_some(),
            "{path}: {module} has no floor yet"
        );
    }
}

#[test]
fn the_rule_tells_up_from_down() {
    assert!(may_import("transport", "wire"));
    assert!(may_import("cli", "config"));
    assert!(may_import("main", "cli"));
    for (from, to) in [
        ("generation", "telemetry"),
        ("wire", "gateway"),
        ("wire", "engine2"),
        ("client", "transport"),
        ("config", "app"),
        ("engine", "route"),
    ] {
        assert!(!may_import(from, to), "{from} -> {to}");
    }
}

#[test]
fn imports_are_found_in_every_shape() {
    let text = "\
//! [`crate::config`] in a comment is no import.
use crate::generation::{Burst, Event};
use crate::{route::Registry, telemetry::{self, Metrics}};
fn f() -> crate::engine::Card { let url = \"http://a\"; crate::wire::JSON }
mod tests {
    use super::super::super::gateway::Phase;
    use super::super::super::inner;
    use super::super::text;
}
use super::super::app::App;
use super::neighbour;
use crate::{
    limit::Ticket,
    auth,
};
";
    let found: Vec<_> = imports("src/engine/scripted.rs", text)
        .into_iter()
        .map(|(line, to)| format!("{line} {to}"))
        .collect();
    let expected = [
        "2 generation",
        "3 route",
        "3 telemetry",
        "4 engine",
        "4 wire",
        "6 gateway",
        "7 inner",
        "10 app",
        "12 auth",
        "12 limit",
    ];
    assert_eq!(found, expected);
}

#[test]
fn unsafe_code_lives_where_c_is_called() {
    const WHERE: [&str; 5] = [
        "src/engine/llama/ffi.rs",
        "src/engine/llama/ffi/",
        "src/engine/llama/shim.rs",
        // One system call that no crate has in a safe form.
        "src/transport/outq.rs",
        // The handler of a signal.
        "src/telemetry/profile/sample.rs",
    ];
    for file in rust_files("src") {
        let path = relative(&file);
        let has_unsafe = read(&file).lines().any(|line| {
            let mut words = code_of(line).split(|c: char| !c.is_alphanumeric() && c != '_');
            words.any(|word| word == "unsafe")
        });
        assert!(
            !has_unsafe || WHERE.iter().any(|place| path.starts_with(place)),
            "{path} has unsafe code"
        );
    }
}

#[test]
fn every_file_says_first_what_it_is_about() {
    for folder in ["src", "tests", "benches", "loadtests"] {
        for file in rust_files(folder) {
            let path = relative(&file);
            assert!(read(&file).starts_with("//! "), "{path} begins without //!");
        }
    }
}

#[test]
fn no_file_is_too_long_to_be_read_at_one_sitting() {
    for folder in ["src", "tests", "benches", "loadtests"] {
        for file in rust_files(folder) {
            let path = relative(&file);
            if path.ends_with("/tests.rs") || path.contains("/tests/") {
                continue;
            }
            let lines = code_lines(&read(&file));
            assert!(
                lines <= LONGEST_FILE,
                "{path} has {lines} lines of code; split it by idea"
            );
        }
    }
}

#[test]
fn nothing_waits_for_later() {
    for folder in ["src", "tests", "benches", "loadtests", "static"] {
        for file in files(folder, &["rs", "js", "css", "html"]) {
            let text = read(&file);
            // Put together here, so that this file does not find itself.
            for mark in [["TO", "DO"], ["FIX", "ME"], ["XX", "X:"]].map(|parts| parts.concat()) {
                let path = relative(&file);
                assert!(!text.contains(&mark), "{path} has a {mark}");
            }
        }
    }
}

fn may_import(from: &str, to: &str) -> bool {
    match (floor(from), floor(to)) {
        (Some(from), Some(to)) if from.0 == to.0 => from.0 == FLOORS.len() - 1 && to.1 < from.1,
        (Some(from), Some(to)) => to.0 < from.0,
        _ => false,
    }
}

/// Floor and place on it.
fn floor(module: &str) -> Option<(usize, usize)> {
    FLOORS.iter().enumerate().find_map(|(floor, modules)| {
        let place = modules.iter().position(|known| *known == module)?;
        Some((floor, place))
    })
}

/// The module at the root of the crate that a file below `src/` belongs to.
fn top_module(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let first = inside.split('/').next().unwrap_or(inside);
    first.strip_suffix(".rs").unwrap_or(first)
}

/// How deep a file's own module lies below the root of the crate.
fn depth(path: &str) -> usize {
    let parts = path.split('/').count() - 1;
    if path.ends_with("/mod.rs") {
        parts - 1
    } else {
        parts
    }
}

/// The modules at the root of the crate that a file names, with the line.
fn imports(path: &str, text: &str) -> BTreeSet<(usize, String)> {
    let code: Vec<&str> = text.lines().map(code_of).collect();
    let mut found = BTreeSet::new();
    // The indents of the inline modules around a line: each lies one step deeper.
    let mut blocks: Vec<&str> = Vec::new();
    for (index, line) in code.iter().enumerate() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if blocks.last() == Some(&indent) && line.trim() == "}" {
            blocks.pop();
        }
        // A chain of `super::` that reaches the root names a module there as well.
        let chain = "super::".repeat(depth(path) + blocks.len());
        for root in ["crate::", "sluicegate::", &chain] {
            for (at, _) in line.match_indices(root) {
                let is_inside =
                    line[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c));
                // In a text, `sluicegate::engine=debug` is a filter.
                let is_text = line[..at].matches('"').count() % 2 == 1;
                let rest = &line[at + root.len()..];
                if is_inside || is_text || rest.starts_with("super::") {
                    continue;
                }
                // A list may go on in the lines below.
                let below = code[index + 1..].join(" ");
                for name in first_names(&format!("{rest} {below}")) {
                    found.insert((index + 1, name));
                }
            }
        }
        let words: Vec<_> = line.split_whitespace().collect();
        if words.last() == Some(&"{") && words.iter().rev().nth(2) == Some(&"mod") {
            blocks.push(indent);
        }
    }
    found
}

/// `a` of `a::b`; `a` and `b` of `{a::x, b}`. What follows the path or the list is ignored.
fn first_names(path: &str) -> Vec<String> {
    let word = |text: &str| {
        let text = text.trim_start();
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
        text[..end.unwrap_or(text.len())].to_owned()
    };
    let mut names = Vec::new();
    if let Some(list) = path.strip_prefix('{') {
        let mut depth = 1;
        let mut start = 0;
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if (depth == 1 && c == ',') || depth == 0 {
                names.push(word(&list[start..at]));
                start = at + 1;
            }
            if depth == 0 {
                break;
            }
        }
    } else {
        names.push(word(path));
    }
    // A type or a macro at the root is no module.
    names.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
    names
}

/// A line without its comment.
fn code_of(line: &str) -> &str {
    match line.find("//") {
        // Two slashes in a URL are no comment.
        Some(at) if !line[..at].ends_with(':') => &line[..at],
        _ => line,
    }
}

fn code_lines(text: &str) -> usize {
    let (code, _tests) = text
        .split_once("\n#[cfg(test)]\nmod tests {")
        .unwrap_or((text, ""));
    let lines = code.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    files(folder, &["rs"])
}

/// The repository's own files below `folder`, with one of these extensions.
fn files(folder: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder exists") {
            let path = entry.expect("the folder can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                // What clients' tests install, and what builds leave.
                if !["node_modules", "target", ".venv"].contains(&&*name) {
                    folders.push(path);
                }
            } else if extensions
                .iter()
                .any(|end| path.extension().is_some_and(|e| e == *end))
            {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has files");
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn relative(file: &Path) -> String {
    let path = file.strip_prefix(root()).unwrap_or(file);
    path.to_string_lossy().replace('\\', "/")
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}
