//! What ties a request to one TLS connection: keys derived from it, and a proof made with them.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{digest, hkdf, hmac};
use zeroize::Zeroizing;

use super::{NoRandomness, random};

/// The label under which keys are taken from TLS.
pub const LABEL: &[u8] = b"EXPORTER-ai-token-binding";

/// The first bytes of what a proof signs: the version of the derivation and of the message.
const VERSION: &[u8; 12] = b"sluice-tb/1\0";

/// How the header value of this version begins.
const PREFIX: &str = "v1.";

const DIGEST: usize = 32;

/// One full handshake and everything resumed from it: 16 random bytes, no secret, unguessable.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lineage(pub [u8; 16]);

impl Lineage {
    /// A fresh one.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn random() -> Result<Self, NoRandomness> {
        random().map(Self)
    }
}

/// Enough to tell lineages apart in a log.
impl fmt::Debug for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = self.0[..4]
            .iter()
            .fold(0, |n, byte| n << 8 | u32::from(*byte));
        write!(f, "Lineage({start:08x}..)")
    }
}

/// Writes `out.len()` bytes from TLS's exporter (RFC 8446, section 7.5) for a label and a context;
/// `false` while the handshake is not complete.
pub type Exporter<'a> = &'a dyn Fn(&mut [u8], &[u8], &[u8]) -> bool;

/// A secret of a connection from which a key is derived.
#[derive(Clone, Copy)]
pub enum Secret<'a> {
    /// `CLIENT_EARLY_TRAFFIC_SECRET`: both sides have it once a PSK is accepted, before the
    /// handshake ends.
    EarlyTraffic(&'a [u8]),
    /// The exporter of the complete handshake.
    Exporter(Exporter<'a>),
}

/// The only derivation of keys, version 1; `None` while the exporter has nothing to give.
///
/// * Full key: `TLS-Exporter(LABEL, client_random, 32)`, the standard way; it depends on the whole
///   handshake, so that nobody else shares it.
/// * Early key: `HKDF-Expand-SHA256(client_early_traffic_secret, LABEL || 0 || "early" || 0 ||
///   client_random, 32)`. This is not the early exporter of RFC 8446, which rustls 0.23 does not
///   offer; once quinn stands on a rustls that does, that one takes its place, under a new version.
///
/// Why the early key may be taken from a traffic secret: TLS uses that secret only as the key of
/// HKDF-Expand, with an `HkdfLabel` as input (RFC 8446, section 7.1), whose first two bytes are the
/// length asked for. Ours begins with `EX`, a length of 17,752, more than HKDF can give with any hash
/// of TLS (255 blocks of at most 48 bytes). So no input is ever the same, and outputs of a PRF
/// for different inputs tell nothing of one another: the key reveals nothing of TLS's keys nor they of it.
/// With a suite of SHA-384 the hash differs as well. The traffic secret itself depends on the
/// ticket's secret and on every byte of the `ClientHello`, so the key is bound to this connection; an
/// exact copy of the `ClientHello` has the same key, which is why tickets are single-use and request
/// ids are remembered. It has no forward secrecy against who steals the server's tickets.
#[must_use]
pub fn derive(secret: Secret<'_>, client_random: &[u8; 32]) -> Option<Key> {
    let mut key = Zeroizing::new([0; 32]);
    let made = match secret {
        Secret::EarlyTraffic(secret) => {
            let info = [LABEL, b"\0early\0", client_random];
            hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret)
                .expand(&info, hkdf::HKDF_SHA256)
                .and_then(|output| output.fill(&mut *key))
                .is_ok()
        }
        Secret::Exporter(export) => export(&mut *key, LABEL, client_random),
    };
    made.then_some(Key(key))
}

/// A key of one connection. Erased when dropped, never printed.
pub struct Key(Zeroizing<[u8; 32]>);

impl Key {
    /// Signs a request.
    #[must_use]
    pub fn prove(&self, message: &Message) -> Proof {
        let mut proof = [0; DIGEST];
        proof.copy_from_slice(hmac::sign(&self.mac(), &message.0).as_ref());
        Proof(proof)
    }

    /// Whether this key made the proof for this request; in constant time.
    #[must_use]
    pub fn verify(&self, message: &Message, proof: &Proof) -> bool {
        hmac::verify(&self.mac(), &message.0, &proof.0).is_ok()
    }

    /// Made anew each time: ring's own form cannot be erased.
    fn mac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &*self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Everything of a request that a proof covers.
#[derive(Clone, Copy)]
pub struct Signed<'a> {
    /// `x-request-id`.
    pub id: &'a str,
    /// The method, as sent.
    pub method: &'a str,
    /// The path with its query, as sent.
    pub path: &'a str,
    /// The credential: what follows `Bearer `; empty without one.
    pub token: &'a str,
    /// The body, whole.
    pub body: &'a [u8],
}

impl Signed<'_> {
    /// What is signed: each part by its digest, so that no byte can move from one part to the next.
    #[must_use]
    pub fn message(&self) -> Message {
        let mut message = [0; VERSION.len() + 5 * DIGEST];
        let (version, digests) = message.split_at_mut(VERSION.len());
        version.copy_from_slice(VERSION);
        let parts = [
            self.id.as_bytes(),
            self.method.as_bytes(),
            self.path.as_bytes(),
            self.token.as_bytes(),
            self.body,
        ];
        for (to, part) in digests.chunks_exact_mut(DIGEST).zip(parts) {
            to.copy_from_slice(digest::digest(&digest::SHA256, part).as_ref());
        }
        Message(message)
    }
}

/// A request as it is signed.
#[derive(Clone)]
pub struct Message([u8; VERSION.len() + 5 * DIGEST]);

/// The value of `x-sluice-proof`: `v1.` and 32 bytes in unpadded base64url.
#[derive(Clone)]
pub struct Proof([u8; DIGEST]);

/// A text that is no proof of a version known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a proof is \"v1.\" and 43 characters of base64url")]
pub struct NoProof;

impl FromStr for Proof {
    type Err = NoProof;

    fn from_str(text: &str) -> Result<Self, NoProof> {
        const CHARACTERS: usize = 43;
        // One byte more than the digest: what the decoder asks for at this length.
        let mut bytes = [0; DIGEST + 1];
        let text = text.strip_prefix(PREFIX).ok_or(NoProof)?;
        if text.len() != CHARACTERS {
            return Err(NoProof);
        }
        let decoded = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes);
        match (decoded, bytes.first_chunk()) {
            (Ok(DIGEST), Some(proof)) => Ok(Self(*proof)),
            _ => Err(NoProof),
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANDOM: [u8; 32] = [
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24,
        25, 26, 27, 28, 29, 30, 31,
    ];
    const REQUEST: Signed<'static> = Signed {
        id: "req-1",
        method: "POST",
        path: "/v1/chat/completions?x=1",
        token: "sgb1.abc",
        body: b"{\"model\":\"m\"}",
    };

    fn early(secret: &[u8], client_random: &[u8; 32]) -> Key {
        derive(Secret::EarlyTraffic(secret), client_random).unwrap()
    }

    fn hex(key: &Key) -> String {
        let byte = |text: String, byte: &u8| text + &format!("{byte:02x}");
        key.0.iter().fold(String::new(), byte)
    }

    // The expected values of the next two tests were computed with another implementation.
    #[test]
    fn the_early_key_of_version_1_is_known() {
        assert_eq!(
            hex(&early(&[0x11; 32], &RANDOM)),
            "1b6227c78c691ed55c7213467fccadaa7fbeb2951227d9afe8ba982fe8e4adf6"
        );
        // As long as the secrets of suites with SHA-384 are.
        assert_eq!(
            hex(&early(&[0x22; 48], &RANDOM)),
            "5ad9c861eca18afb26d53fcb917cd88eacc2d061dcec8357543a1e0e67ffc0c9"
        );
    }

    #[test]
    fn the_proof_of_version_1_is_known() {
        let proof = early(&[0x11; 32], &RANDOM).prove(&REQUEST.message());
        assert_eq!(
            proof.to_string(),
            "v1._ZR3r29N2bPWzQ4bu1Vaim4Bcq5U8bjQKFwcDHDFqAA"
        );
    }

    #[test]
    fn the_full_key_is_what_the_exporter_gives_for_our_label_and_the_client_random() {
        let export = |out: &mut [u8], label: &[u8], context: &[u8]| {
            assert_eq!((label, context), (LABEL, &RANDOM[..]));
            out.fill(7);
            true
        };
        let key = derive(Secret::Exporter(&export), &RANDOM).unwrap();
        assert_eq!(*key.0, [7; 32]);
        assert!(derive(Secret::Exporter(&|_, _, _| false), &RANDOM).is_none());
    }

    #[test]
    fn keys_differ_with_secret_and_client_random() {
        let keys = [
            early(&[1; 32], &[1; 32]),
            early(&[2; 32], &[1; 32]),
            early(&[1; 32], &[2; 32]),
        ];
        let proof = keys[0].prove(&REQUEST.message());
        let good = keys.map(|key| key.verify(&REQUEST.message(), &proof));
        assert_eq!(good, [true, false, false]);
    }

    #[test]
    fn a_proof_covers_every_part_and_where_one_ends() {
        let key = early(&[1; 32], &RANDOM);
        let proof = key.prove(&REQUEST.message());
        let others = [
            Signed {
                id: "req-2",
                ..REQUEST
            },
            Signed {
                method: "GET",
                ..REQUEST
            },
            Signed {
                path: "/v1/chat/completions?x=2",
                ..REQUEST
            },
            Signed {
                token: "sgb1.abd",
                ..REQUEST
            },
            Signed {
                body: b"{\"model\":\"n\"}",
                ..REQUEST
            },
            Signed {
                id: "req-1P",
                method: "OST",
                ..REQUEST
            },
            Signed {
                token: "sgb1.abc{",
                body: b"\"model\":\"m\"}",
                ..REQUEST
            },
            Signed {
                body: b"",
                ..REQUEST
            },
        ];
        for other in others {
            assert!(!key.verify(&other.message(), &proof));
        }
        assert!(key.verify(&REQUEST.message(), &proof));
    }

    #[test]
    fn texts_that_are_no_proof_are_refused() {
        let good = early(&[1; 32], &RANDOM)
            .prove(&REQUEST.message())
            .to_string();
        assert_eq!(good.parse::<Proof>().unwrap().to_string(), good);
        let bad = [
            String::new(),
            "v1.".to_owned(),
            good.replace("v1.", "v2."),
            good.replace("v1.", ""),
            format!("{good}="),
            format!("{good}A"),
            good[..good.len() - 1].to_owned(),
            format!(" {good}"),
            // Bits after the last byte must be zero, or one proof would have several texts.
            format!("{}B", &good[..good.len() - 1]),
            format!("{}é", &good[..good.len() - 2]),
        ];
        for text in bad {
            assert_eq!(text.parse::<Proof>().unwrap_err(), NoProof, "{text}");
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let key = early(&[1; 32], &RANDOM);
        let proof = key.prove(&REQUEST.message());
        assert_eq!(format!("{key:?} {proof:?}"), "Key(..) Proof(..)");
        assert_eq!(format!("{:?}", Lineage([0xab; 16])), "Lineage(abababab..)");
    }

    proptest! {
        #[test]
        fn any_text_is_a_proof_or_refused(text in "(v1\\.)?[A-Za-z0-9_=-]{0,50}|\\PC*") {
            if let Ok(proof) = text.parse::<Proof>() {
                prop_assert_eq!(proof.to_string(), text);
            }
        }

        #[test]
        fn one_flipped_bit_of_a_proof_is_seen(bit in 0_usize..256, secret: [u8; 32]) {
            let key = early(&secret, &RANDOM);
            let mut proof = key.prove(&REQUEST.message());
            proof.0[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!key.verify(&REQUEST.message(), &proof));
        }
    }
}
