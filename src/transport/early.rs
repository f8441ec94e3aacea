//! What a request knows about the TLS handshake beneath it.

/// Request extension: whether the request's stream began before the handshake had ended (0-RTT).
///
/// Whoever recorded such a request can send it once more (RFC 8446, section 8), so nothing that
/// matters is done for it before the handshake has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlyData(pub bool);
