//! `sluicegate key`: makes an API key, shows it once, and writes down what is kept of it.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use zeroize::Zeroizing;

use crate::auth::keys::{self, KeyHash, Keys};
use crate::generation::Scopes;

/// Who may read a new key file: whoever made it.
const OWNER_ONLY: u32 = 0o600;

/// Make an API key
///
/// Prints the key, which is kept nowhere, and the entry with its SHA-256 for [[auth.keys]] or a key file.
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    /// What the key is called in logs; letters, digits and . _ - @
    #[arg(long, value_parser = name)]
    id: String,
    /// Who pays; keys of one owner share the limits of that organization
    #[arg(long, value_parser = name)]
    owner: Option<String>,
    /// What it is good for: generate, embed, ops:read, ops:write; may be repeated [default: generate, embed]
    #[arg(long = "scope", value_parser = scope)]
    scopes: Vec<Scopes>,
    /// A model that it may use; may be repeated [default: all]
    #[arg(long = "model")]
    models: Vec<String>,
    /// The class of limits
    #[arg(long, value_parser = name)]
    class: Option<String>,
    /// When it ends: after a time (90d), on a date (2027-01-31, from midnight UTC on), or at a time of RFC 3339
    #[arg(long, value_parser = expires)]
    expires: Option<Timestamp>,
    /// Append the entry to this key file and print the key alone
    #[arg(long)]
    append: Option<PathBuf>,
}

/// Makes a key.
pub(super) fn run(args: &KeyArgs) -> anyhow::Result<ExitCode> {
    let key = keys::mint()?;
    let hash = KeyHash::of(&key);
    let mut out = io::stdout().lock();
    if let Some(path) = &args.append {
        append(path, &entry(args, "keys", hash)).with_context(|| path.display().to_string())?;
        writeln!(out, "{}", *key)?;
    } else {
        let entry = entry(args, "auth.keys", hash);
        writeln!(out, "{}\n\n{entry}", *key)?;
    }
    out.flush()?;
    let mut to_whom = io::stderr().lock();
    writeln!(to_whom, "This is the only time that the key is shown.")?;
    match &args.append {
        Some(path) => writeln!(to_whom, "Its entry is in {}.", path.display())?,
        None => writeln!(
            to_whom,
            "Put the entry into the configuration, or as [[keys]] into the file of auth.keys_file."
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

fn name(text: &str) -> Result<String, String> {
    keys::check_name(text).map(|()| text.to_owned())
}

fn scope(text: &str) -> Result<Scopes, String> {
    Scopes::parse(text).ok_or_else(|| {
        let known: Vec<_> = Scopes::ALL.names().collect();
        format!("there are {}", known.join(", "))
    })
}

fn expires(text: &str) -> Result<Timestamp, String> {
    let at = if let Ok(after) = humantime::parse_duration(text) {
        let now = Duration::from_secs(crate::generation::clock::unix_seconds());
        now.saturating_add(after).as_secs()
    } else {
        keys::time(text).map_err(|wrong| format!("{wrong}, or a duration (90d)"))?
    };
    let at = i64::try_from(at).unwrap_or(i64::MAX);
    let at = Timestamp::from_second(at).map_err(|_| "that is too far away".to_owned())?;
    if at <= Timestamp::now() {
        return Err("that is over already".to_owned());
    }
    Ok(at)
}

/// The entry, in TOML.
fn entry(args: &KeyArgs, section: &str, hash: KeyHash) -> String {
    let texts = |texts: &mut dyn Iterator<Item = String>| {
        toml::Value::Array(texts.map(toml::Value::String).collect())
    };
    let scopes = args.scopes.iter().copied().reduce(Scopes::with);
    let scopes = scopes.unwrap_or_else(keys::usual_scopes);
    let mut out = format!("[[{section}]]\nid = \"{}\"\nhash = \"{hash}\"\n", args.id);
    let mut line = |key: &str, value: toml::Value| {
        let _ = writeln!(out, "{key} = {value}");
    };
    let text = |text: &String| toml::Value::String(text.clone());
    if let Some(owner) = &args.owner {
        line("owner", text(owner));
    }
    line("scopes", texts(&mut scopes.names().map(str::to_owned)));
    if !args.models.is_empty() {
        line("models", texts(&mut args.models.iter().cloned()));
    }
    if let Some(at) = args.expires {
        line("expires", toml::Value::String(at.to_string()));
    }
    if let Some(class) = &args.class {
        line("class", text(class));
    }
    out
}

/// Adds an entry to a key file, whole or not at all: whoever follows the file never sees a part of it. One
/// at a time, so that no entry of two is lost. The file keeps its owner and mode.
fn append(path: &Path, entry: &str) -> anyhow::Result<()> {
    // A symbolic link stays one.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let lock = File::open(folder)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let mut text = Zeroizing::new(String::new());
    let before = match File::open(&path) {
        Ok(mut file) => {
            file.read_to_string(&mut text)?;
            Some(file.metadata()?)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    if !text.is_empty() {
        let between = if text.ends_with('\n') { "\n" } else { "\n\n" };
        text.push_str(between);
    }
    text.push_str(entry);
    check(&text)?;
    let mut name = path.file_name().context("this is no file")?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = folder.join(name);
    let written = write(&temporary, &text, before.as_ref())
        .and_then(|()| fs::rename(&temporary, &path))
        .and_then(|()| lock.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    Ok(written?)
}

/// What is not good already is not made longer.
fn check(text: &str) -> anyhow::Result<()> {
    let entries = keys::parse_file(text).map_err(anyhow::Error::msg)?;
    match Keys::new(entries.iter().map(|(_, entry)| entry), |_| true) {
        Ok(_) => Ok(()),
        Err(misfits) => {
            let texts: Vec<_> = misfits.into_iter().map(|misfit| misfit.message).collect();
            anyhow::bail!(texts.join("; "))
        }
    }
}

fn write(path: &Path, text: &str, like: Option<&fs::Metadata>) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(OWNER_ONLY)
        .open(path)?;
    if let Some(like) = like {
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
            std::os::unix::fs::fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        file.set_permissions(fs::Permissions::from_mode(like.mode() & 0o7777))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: KeyArgs,
    }

    fn args(line: &str) -> Result<KeyArgs, String> {
        let words = std::iter::once("key").chain(line.split(' '));
        let parsed = Line::try_parse_from(words);
        parsed
            .map(|line| line.args)
            .map_err(|error| error.to_string())
    }

    fn read(text: &str) -> keys::KeyEntry {
        let mut entries = keys::parse_file(text).unwrap();
        assert_eq!(entries.len(), 1, "{text}");
        entries.remove(0).1
    }

    #[test]
    fn what_is_asked_for_is_written_so_that_it_can_be_read() {
        let hash = KeyHash::of("x");
        let little = read(&entry(&args("--id a").unwrap(), "keys", hash));
        assert_eq!((&*little.id, little.hash), ("a", hash));
        assert_eq!(little.scopes, keys::usual_scopes());
        assert_eq!((little.expires, little.models), (None, None));
        let line = "--id a.b-c_d@e --owner acme --scope embed --scope ops:read --model org/\"m --model n \
                    --class batch --expires 2999-01-31";
        let much = read(&entry(&args(line).unwrap(), "keys", hash));
        assert_eq!(much.owner.as_deref(), Some("acme"));
        assert_eq!(much.class.as_deref(), Some("batch"));
        assert_eq!(much.scopes, Scopes::EMBED.with(Scopes::OPS_READ));
        assert_eq!(
            much.models.unwrap()[..],
            [Box::from("org/\"m"), Box::from("n")]
        );
        assert_eq!(much.expires, Some(keys::time("2999-01-31").unwrap()));
    }

    #[test]
    fn an_end_is_a_time_from_now_on_or_a_point_in_time_to_come() {
        let end = |text: &str| args(&format!("--id a --expires {text}")).map(|args| args.expires);
        let day = Timestamp::now() + jiff::SignedDuration::from_hours(24);
        let after = end("1d").unwrap().unwrap();
        assert!((day.as_second() - after.as_second()).abs() < 600, "{after}");
        assert_eq!(
            end("2999-01-31T01:00:00+01:00")
                .unwrap()
                .unwrap()
                .to_string(),
            "2999-01-31T00:00:00Z"
        );
        for (wrong, why) in [
            ("2020-01-31", "over already"),
            ("soon", "must be a date"),
            ("0s", "over already"),
            ("99999999999d", "too far"),
        ] {
            let said = end(wrong).unwrap_err();
            assert!(said.contains(why), "{wrong}: {said}");
        }
        for wrong in [
            "--id a/b",
            "--id a --scope admin",
            "--owner x",
            "--id a --class é",
        ] {
            assert!(args(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_new_file_is_its_owners_alone_and_another_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.toml");
        let add = |id: &str| {
            let hash = KeyHash::of(id);
            append(
                &path,
                &entry(&args(&format!("--id {id}")).unwrap(), "keys", hash),
            )
        };
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        add("a").unwrap();
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let text = entry(&args("--id b").unwrap(), "keys", KeyHash::of("b"));
        append(&link, &text).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(mode(), 0o640);
        let before = fs::read_to_string(&path).unwrap();
        assert_eq!(keys::parse_file(&before).unwrap().len(), 2);
        let said = format!("{:#}", add("a").unwrap_err());
        assert!(said.contains("there are two keys a"), "{said}");
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            2,
            "nothing is left"
        );
        fs::write(&path, "# no end of line").unwrap();
        add("c").unwrap();
        fs::write(&path, "this is no TOML").unwrap();
        assert!(add("d").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "this is no TOML");
    }
}
