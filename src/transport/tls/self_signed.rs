//! A certificate for loopback, made once and kept: the first `make run` has TLS and QUIC, and a browser
//! that was told to trust it need not be told again.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};
use rustls::pki_types::PrivateKeyDer;

use super::certificates::{Loaded, certified, load};

/// The names and addresses it is good for.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Browsers take no certificate that is good for longer than 398 days.
const DAYS: i64 = 397;

/// With less than this left a new one is made.
const LEAST_LEFT_SECONDS: i64 = 7 * 24 * 3600;

const CERT: &str = "dev-cert.pem";
const KEY: &str = "dev-key.pem";

/// The kept certificate of `directory`, or a new one, which is then kept. Without a directory that can
/// be written it lives as long as the process.
pub(super) fn certificate(directory: Option<&Path>) -> io::Result<Loaded> {
    let kept = directory.and_then(|directory| {
        let loaded = load(&directory.join(CERT), &directory.join(KEY)).ok()?;
        let left = loaded.expires - Timestamp::now().as_second();
        (left > LEAST_LEFT_SECONDS).then_some(loaded)
    });
    if let Some(kept) = kept {
        return Ok(kept);
    }
    let made = make().map_err(io::Error::other)?;
    match directory.map(|directory| keep(directory, &made)) {
        None => tracing::warn!("no state directory: the self-signed certificate is not kept"),
        Some(Err(error)) => {
            tracing::warn!(%error, "the self-signed certificate could not be kept");
        }
        Some(Ok(())) => {}
    }
    let private = PrivateKeyDer::try_from(made.key.serialize_der()).map_err(io::Error::other)?;
    let chain = vec![made.certificate.der().clone()];
    certified(chain, private, Path::new(CERT), Path::new(KEY)).map_err(io::Error::other)
}

struct Made {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

fn make() -> Result<Made, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(NAMES.map(String::from))?;
    params
        .distinguished_name
        .push(DnType::CommonName, "Sluicegate on loopback");
    // The day before: clocks of containers lag.
    let (year, month, day) = date_in(-1);
    params.not_before = date_time_ymd(year, month, day);
    let (year, month, day) = date_in(DAYS);
    params.not_after = date_time_ymd(year, month, day);
    let certificate = params.self_signed(&key)?;
    Ok(Made { certificate, key })
}

/// Year, month and day of the day that is so many days away.
fn date_in(days: i64) -> (i32, u8, u8) {
    let day = Timestamp::now()
        .to_zoned(TimeZone::UTC)
        .saturating_add(days.days());
    let part = |number: i8| u8::try_from(number).unwrap_or(1);
    (day.year().into(), part(day.month()), part(day.day()))
}

/// Writes both files, the key first and for its owner only. Each appears whole or not at all; of two
/// processes that begin together the later one's pair may be half overwritten, which the next start
/// sees as a pair that does not match, and makes anew.
fn keep(directory: &Path, made: &Made) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    write(&directory.join(KEY), &made.key.serialize_pem(), 0o600)?;
    write(&directory.join(CERT), &made.certificate.pem(), 0o644)
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| {
            // A file left over from a crash keeps its own mode.
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_its_key_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let first = certificate(Some(&state)).unwrap();
        let second = certificate(Some(&state)).unwrap();
        assert_eq!(first.key.cert, second.key.cert);
        let mode = fs::metadata(state.join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let left = first.expires - Timestamp::now().as_second();
        assert!((395 * 86_400..398 * 86_400).contains(&left), "{left}");
    }

    #[test]
    fn one_that_ends_soon_or_does_not_match_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let first = certificate(Some(directory.path())).unwrap();
        let other = make().unwrap();
        fs::write(directory.path().join(KEY), other.key.serialize_pem()).unwrap();
        let second = certificate(Some(directory.path())).unwrap();
        assert_ne!(first.key.cert, second.key.cert);

        let mut params = CertificateParams::new(NAMES.map(String::from)).unwrap();
        let (year, month, day) = date_in(2);
        params.not_after = date_time_ymd(year, month, day);
        let old = params.self_signed(&other.key).unwrap();
        fs::write(directory.path().join(CERT), old.pem()).unwrap();
        fs::write(directory.path().join(KEY), other.key.serialize_pem()).unwrap();
        let third = certificate(Some(directory.path())).unwrap();
        assert_ne!(&third.key.cert[0], old.der());
    }

    #[test]
    fn without_a_place_it_lives_in_memory() {
        assert!(certificate(None).is_ok());
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(certificate(Some(&file.path().join("under-a-file"))).is_ok());
    }
}
