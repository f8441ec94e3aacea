//! What the kernel holds for all sockets of the machine, as Linux tells in `/proc/net/sockstat`.

use anyhow::{Context, Result};

const FILE: &str = "/proc/net/sockstat";

/// Memory of the buffers of all TCP and UDP sockets, in KiB: those of both ends where both are here.
///
/// # Errors
/// The file is not as expected.
pub(super) fn memory_kib() -> Result<u64> {
    let text = std::fs::read_to_string(FILE).with_context(|| format!("could not read {FILE}"))?;
    let page = rustix::param::page_size() as u64 / 1024;
    let pages = pages(&text).with_context(|| format!("{FILE} is not as expected"))?;
    Ok(pages * page)
}

fn pages(text: &str) -> Option<u64> {
    let of = |protocol| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(protocol))?;
        let mut words = line.split_whitespace();
        words.find(|word| *word == "mem")?;
        words.next()?.parse().ok()
    };
    Some(of("TCP:")? + of("UDP:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_both_protocols_are_added() {
        let text = "sockets: used 27\nTCP: inuse 1 orphan 0 tw 2991 alloc 1 mem 177\n\
                    UDP: inuse 0 mem 3\nUDPLITE: inuse 0\n";
        assert_eq!(pages(text), Some(180));
        assert_eq!(pages("TCP: inuse 1\n"), None);
    }

    #[test]
    fn this_machine_can_be_read() {
        memory_kib().unwrap();
    }
}
