//! RFC 9218: how urgent a request says it is, as quinn's order of streams.
//!
//! Urgency 0 to 7 is quinn's 7 to 0, doubled: between two levels there is room for streams that have
//! only begun. So the head and the first tokens of an answer go before what is in bulk at the same
//! urgency, and never before anything more urgent. Within a level quinn goes round; the `i` of the
//! header has no switch there.

use axum::http::HeaderMap;

/// Of streams without which nothing else works: above every answer.
pub(super) const CONTROL: i32 = i32::MAX;

/// What an answer begins with has this many bytes.
const BEGINNING: u64 = 4096;

/// RFC 9218, section 4.1.
const DEFAULT_URGENCY: u8 = 3;

/// quinn's order for an answer of this urgency of which so many bytes are out.
pub(super) fn order(urgency: u8, sent: u64) -> i32 {
    let level = 7 - i32::from(urgency.min(7));
    2 * level + i32::from(sent < BEGINNING)
}

/// What a request's `priority` asks for. The field is a dictionary (RFC 8941, section 3.2): the last of
/// equal keys counts, and what cannot be read counts as absent.
pub(super) fn urgency(headers: &HeaderMap) -> u8 {
    let fields = headers.get_all("priority").iter();
    let members = fields
        .filter_map(|field| field.to_str().ok())
        .flat_map(|field| field.split(','));
    members
        .filter_map(|member| {
            let value = member.trim().strip_prefix("u=")?;
            let value = value.split(';').next()?.trim_end();
            value.parse().ok().filter(|urgency| *urgency <= 7)
        })
        .next_back()
        .unwrap_or(DEFAULT_URGENCY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[&str]) -> u8 {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append("priority", field.parse().unwrap());
        }
        urgency(&headers)
    }

    #[test]
    fn the_priority_header_is_read_as_a_dictionary() {
        assert_eq!(of(&[]), 3);
        assert_eq!(of(&["u=0"]), 0);
        assert_eq!(of(&["i, u=5"]), 5);
        assert_eq!(of(&["u=1;x=2 , i=?0"]), 1);
        assert_eq!(of(&["u=1, u=6"]), 6, "the last counts");
        assert_eq!(of(&["u=1", "u=2"]), 2);
        for unreadable in [
            "u=8",
            "u=-1",
            "u",
            "u=x",
            "u=999999999999",
            "=",
            ",,,",
            "U=1",
        ] {
            assert_eq!(of(&[unreadable]), 3, "{unreadable}");
        }
    }

    #[test]
    fn urgency_orders_streams_and_beginnings_go_first_within_it() {
        for urgency in 0..7 {
            assert!(order(urgency, u64::MAX) > order(urgency + 1, 0));
            assert!(order(urgency, BEGINNING - 1) > order(urgency, BEGINNING));
        }
        assert_eq!(order(3, BEGINNING), 8);
        assert!(CONTROL > order(0, 0));
    }
}
