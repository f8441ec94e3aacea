//! Attacks on the transports, frame by frame: each ends its own connection or is refused, and nobody else
//! notices.
//!
//! Where each is tried, by the name under which it is known:
//!
//! | Attack | Tests |
//! |---|---|
//! | Rapid reset (CVE-2023-44487) | `http2`: resets in bursts and one by one; `quic`: by streams |
//! | Resets that the server is made to send (CVE-2025-8671) | `http2` |
//! | CONTINUATION without end (CVE-2024-27316, RUSTSEC-2024-0332) | `http2` |
//! | Floods of SETTINGS, PING, PRIORITY, `WINDOW_UPDATE`, empty DATA (CVE-2019-9512, 9513, 9515, 9518; RUSTSEC-2026-0258) | `http2`; our own client against ours: `windows` |
//! | HPACK bomb, thousands of fields, a field of a megabyte (CVE-2016-6581, 2019-9516) | `http2`; HTTP/1.1: `limits`; HTTP/3: `quic_hostile` |
//! | Silence, headers and bodies that trickle | `timeouts`; HTTP/2's preface, headers, body: `http2`; HTTP/3: `quic_hostile`; `sluice/1`: `sluice_hostile` |
//! | Readers that stop, windows of zero (CVE-2019-9511, 9517) | `windows`, `connections`, `http3`, `sluice`; many streams at once: `http2` |
//! | Request smuggling, by length, coding, line ends, chunks | `smuggling`; HTTP/3: `quic_hostile` |
//! | Injection into headers; hop-by-hop fields | `smuggling` |
//! | Injection into event streams | `text`, and the property tests of `wire` |
//! | Spoofed Initials, amplification | `quic`; nonsense datagrams, Retry: `quic_hostile` |
//! | Replay of 0-RTT | `quic_hostile`, and the tests of token binding |
//! | TLS: protocols confused, a huge `ClientHello`, handshakes without end | `tls_hello`; `tls` |
//!
//! Hostile upstreams do not concern us yet: there are none. What quinn itself must bear (transport parameters,
//! connection ids, path challenges) is fuzzed there.

mod http2;
mod peer;
mod quic;
mod smuggling;
mod tls_hello;
