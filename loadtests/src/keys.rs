//! API keys, and the hashes that the gateway knows them by.

use std::fmt::Write;

use ring::digest::{SHA256, digest};

use crate::random::Random;

/// The digits of base64url (RFC 4648, section 5).
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A key that looks like one of the gateway's: `sgk_` and 256 bits. They are not secret here: each run has the
/// same.
pub(crate) fn mint(random: &mut Random) -> String {
    let mut key = String::from("sgk_");
    for _ in 0..42 {
        key.push(char::from(DIGITS[random.one_of_64()]));
    }
    // 256 bits are 42 digits and two thirds of another: its low bits are zero.
    key.push(char::from(DIGITS[random.one_of_64() & 0b11_1100]));
    key
}

/// What the configuration says of a key.
pub(crate) fn hash(key: &str) -> String {
    let mut hash = String::from("sha256:");
    for byte in digest(&SHA256, key.as_bytes()).as_ref() {
        let _ = write!(hash, "{byte:02x}");
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_have_their_length() {
        let mut random = Random::new(1);
        let (one, two) = (mint(&mut random), mint(&mut random));
        assert_ne!(one, two);
        assert_eq!((one.len(), &one[..4]), (47, "sgk_"));
        let last = DIGITS
            .iter()
            .position(|digit| one.ends_with(char::from(*digit)));
        assert_eq!(last.unwrap() % 4, 0);
    }

    #[test]
    fn a_hash_is_that_of_fips_180() {
        assert_eq!(
            hash("abc"),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
