//! What is measured: a table of groups, with a row for each transport and setting.

use std::time::Duration;

use crate::net::Transport;

/// The groups, in the order of the report: a name for `--only`, and what they are.
pub(super) const GROUPS: [(&str, &str); 10] = [
    ("throughput", "64 streams as fast as they go"),
    (
        "singly",
        "64 streams on 8 connections, a token every millisecond",
    ),
    ("paced", "1,000 streams, a token every 50 ms"),
    (
        "path",
        "40 ms of round trip, one connection: 4 streams with a token every 20 ms; 16 as fast as they go",
    ),
    (
        "acks",
        "One stream, 16-byte tokens every 10 ms, 40 ms of round trip",
    ),
    ("slow", "10,000 open streams that are read at 1,000 bytes/s"),
    ("idle", "10,000 open streams with a token every 2 s"),
    (
        "stalled",
        "50 streams, a token every 10 ms, without and with 5,000 stalled ones on other connections",
    ),
    (
        "beside",
        "A stalled stream on the connection of others, a token every 10 ms each",
    ),
    (
        "dead",
        "64 streams as fast as they go on 8 connections, whose path dies",
    ),
];

/// One measurement.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unit {
    /// Which of [`GROUPS`].
    pub(super) group: &'static str,
    /// The name of its row.
    pub(super) row: String,
    /// Over what.
    pub(super) transport: Transport,
    /// What is done.
    pub(super) kind: Kind,
}

/// What is done in a measurement.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Streams as fast as they go.
    Full { connections: usize },
    /// Tokens that come one by one, as fast as a fast model makes them.
    Singly,
    /// Many streams with time between their tokens.
    Paced { connections: usize },
    /// Through a relay.
    Path { loss_percent: f64 },
    /// Through a relay with these settings of `[quic]`.
    Acks(Acks),
    /// Many readers who do not keep up.
    Slow,
    /// Many streams on which next to nothing happens.
    Idle,
    /// Readers who keep up, without and with others who have stopped.
    Stalled,
    /// The same on one connection.
    Beside { running: usize },
    /// Through a relay that swallows everything from some time on.
    Dead,
}

/// Settings that bear on how many packets go back. All at `None` are the gateway's own defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Acks {
    /// `quic.ack_threshold`.
    pub(super) threshold: Option<u32>,
    /// `quic.ack_delay` in milliseconds.
    pub(super) delay: Option<u32>,
    /// `quic.flush_interval` in milliseconds.
    pub(super) flush: Option<u32>,
}

impl Acks {
    /// What a peer of quinn does that was never asked for anything else: with a threshold of 1 the second
    /// packet is answered at once (RFC 9000, section 13.2.2), and each token goes at once.
    pub(super) const PLAIN: Self = Self {
        threshold: Some(1),
        delay: None,
        flush: Some(0),
    };

    fn of(threshold: u32, delay: Option<u32>, flush: u32) -> Self {
        Self {
            threshold: Some(threshold),
            delay,
            flush: Some(flush),
        }
    }

    /// As flags of the gateway.
    pub(super) fn settings(self) -> Vec<String> {
        let threshold = self
            .threshold
            .map(|packets| format!("quic.ack_threshold={packets}"));
        let flush = self
            .flush
            .map(|ms| format!("quic.flush_interval=\"{ms}ms\""));
        let delay = match self.delay {
            Some(ms) => Some(format!("quic.ack_delay=\"{ms}ms\"")),
            // The gateway asks for some unless it is told not to.
            None if self.threshold.is_some() => Some("quic.ack_delay=\"off\"".to_owned()),
            None => None,
        };
        [threshold, delay, flush].into_iter().flatten().collect()
    }

    fn name(self) -> String {
        let (Some(threshold), Some(flush)) = (self.threshold, self.flush) else {
            return "the gateway's defaults".to_owned();
        };
        let delay = self
            .delay
            .map_or(String::new(), |ms| format!(", delay {ms} ms"));
        format!("threshold {threshold}{delay}, flush {flush} ms")
    }
}

/// Time in each direction of a relay that stands for 40 ms of round trip.
pub(super) const ONE_WAY: Duration = Duration::from_millis(20);

/// All measurements whose name has one of these texts in it; all, if there is none.
pub(super) fn chosen(only: &[String]) -> Vec<Unit> {
    let wanted =
        |unit: &Unit| only.is_empty() || only.iter().any(|only| unit.name().contains(only));
    all().into_iter().filter(wanted).collect()
}

impl Unit {
    /// For `--only`, and for messages.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.group, self.row)
    }
}

fn all() -> Vec<Unit> {
    let mut units = Vec::new();
    let mut add = |group, transport: Transport, more: &str, kind| {
        let row = match more {
            "" => transport.name().to_owned(),
            more => format!("{}, {more}", transport.name()),
        };
        units.push(Unit {
            group,
            row,
            transport,
            kind,
        });
    };
    let multiplexed = || {
        Transport::ALL
            .into_iter()
            .filter(|transport| transport.is_multiplexed())
    };
    for transport in Transport::ALL {
        if !transport.is_multiplexed() {
            let connections = 64;
            add(
                "throughput",
                transport,
                "64 connections",
                Kind::Full { connections },
            );
            continue;
        }
        for connections in [1, 8, 64] {
            let plural = if connections == 1 { "" } else { "s" };
            let more = format!("{connections} connection{plural}");
            add("throughput", transport, &more, Kind::Full { connections });
        }
    }
    for transport in Transport::ALL {
        add("singly", transport, "", Kind::Singly);
    }
    for transport in Transport::ALL {
        add("paced", transport, "", Kind::Paced { connections: 20 });
    }
    for transport in multiplexed() {
        for (loss_percent, more) in [(0.0, "no loss"), (1.0, "1 % loss"), (5.0, "5 % loss")] {
            // A relay in user space cannot lose segments of TCP.
            if transport.is_quic() || loss_percent == 0.0 {
                add("path", transport, more, Kind::Path { loss_percent });
            }
        }
    }
    for acks in [
        Acks::default(),
        Acks::PLAIN,
        Acks::of(9, None, 0),
        Acks::of(9, Some(100), 0),
        Acks::of(25, Some(100), 0),
        Acks::of(9, None, 15),
        Acks::of(9, None, 20),
        Acks::of(9, None, 25),
        Acks::of(9, None, 30),
        Acks::of(9, Some(100), 15),
        Acks::of(9, Some(100), 20),
        Acks::of(9, Some(100), 25),
    ] {
        add("acks", Transport::Sluice, &acks.name(), Kind::Acks(acks));
    }
    add(
        "acks",
        Transport::Http3,
        &Acks::default().name(),
        Kind::Acks(Acks::default()),
    );
    for (group, kind) in [("slow", Kind::Slow), ("idle", Kind::Idle)] {
        for transport in Transport::ALL {
            add(group, transport, "", kind.clone());
        }
    }
    for transport in Transport::ALL {
        add("stalled", transport, "", Kind::Stalled);
    }
    for transport in multiplexed() {
        for running in [1, 10, 100] {
            let more = format!("{running} running");
            add("beside", transport, &more, Kind::Beside { running });
        }
    }
    for transport in Transport::ALL {
        add("dead", transport, "", Kind::Dead);
    }
    units
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_measurement_has_a_name_of_its_own_and_a_known_group() {
        let all = all();
        let names: BTreeSet<String> = all.iter().map(Unit::name).collect();
        assert_eq!(names.len(), all.len());
        for (group, _) in GROUPS {
            assert!(all.iter().any(|unit| unit.group == group), "{group}");
        }
        for unit in &all {
            assert!(GROUPS.iter().any(|(group, _)| *group == unit.group));
        }
    }

    #[test]
    fn tcp_is_not_said_to_lose_anything() {
        let lossy = all()
            .into_iter()
            .filter(|unit| matches!(unit.kind, Kind::Path { loss_percent } if loss_percent > 0.0));
        assert!(lossy.clone().count() == 4 && lossy.clone().all(|unit| unit.transport.is_quic()));
    }

    #[test]
    fn measurements_are_chosen_by_parts_of_their_names() {
        let only = |text: &str| chosen(&[text.to_owned()]).len();
        assert_eq!(only("throughput h2, 8"), 1);
        assert_eq!(only("nothing"), 0);
        assert_eq!(chosen(&[]).len(), all().len());
    }

    #[test]
    fn acknowledgements_are_set_by_flags() {
        assert_eq!(
            Acks::of(9, Some(100), 20).settings(),
            [
                "quic.ack_threshold=9",
                "quic.ack_delay=\"100ms\"",
                "quic.flush_interval=\"20ms\""
            ]
        );
        assert!(
            Acks::PLAIN
                .settings()
                .contains(&"quic.ack_delay=\"off\"".to_owned())
        );
        assert!(Acks::default().settings().is_empty());
    }
}
