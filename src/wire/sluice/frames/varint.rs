//! Integers of 1, 2, 4 or 8 bytes (RFC 9000, section 16).
//!
//! ```text
//! 00vvvvvv                     6 bits of value
//! 01vvvvvv vvvvvvvv           14 bits
//! 10vvvvvv … 3 more bytes     30 bits
//! 11vvvvvv … 7 more bytes     62 bits, network byte order
//! ```
//!
//! We write the shortest form, and read any.

use bytes::BufMut;

/// The largest value.
pub const MAX: u64 = (1 << 62) - 1;

/// Bytes of the shortest form.
#[must_use]
pub const fn len(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Appends the shortest form. What is above [`MAX`] becomes [`MAX`].
#[expect(
    clippy::cast_possible_truncation,
    reason = "each arm holds values that fit"
)]
pub fn write(out: &mut impl BufMut, value: u64) {
    match len(value) {
        1 => out.put_u8(value as u8),
        2 => out.put_u16(0x4000 | value as u16),
        4 => out.put_u32(0x8000_0000 | value as u32),
        _ => out.put_u64(0xc000_0000_0000_0000 | value.min(MAX)),
    }
}

/// Takes one off the front of `input`; `None`, and nothing is taken, if it is not all there.
pub fn read(input: &mut &[u8]) -> Option<u64> {
    let (&first, _) = input.split_first()?;
    let (bytes, rest) = input.split_at_checked(1 << (first >> 6))?;
    *input = rest;
    let start = u64::from(first & 0x3f);
    let value = bytes[1..]
        .iter()
        .fold(start, |value, &byte| value << 8 | u64::from(byte));
    Some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_the_rfc_read_as_it_says() {
        // RFC 9000, appendix A.1; the last is a long form of the one before it.
        let table: [(&[u8], u64); 5] = [
            (
                &[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c],
                151_288_809_941_952_652,
            ),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ];
        for (bytes, value) in table {
            let mut input = bytes;
            assert_eq!(read(&mut input), Some(value));
            assert!(input.is_empty());
        }
    }

    #[test]
    fn what_is_too_large_becomes_the_largest() {
        let mut out = Vec::new();
        write(&mut out, u64::MAX);
        assert_eq!(read(&mut &out[..]), Some(MAX));
    }

    proptest! {
        #[test]
        fn any_value_reads_back_and_is_missed_when_cut(shift in 0..62u32, value in 0..=MAX) {
            let value = value >> shift;
            let mut out = Vec::new();
            write(&mut out, value);
            prop_assert_eq!(out.len(), len(value));
            for cut in 0..out.len() {
                let mut input = &out[..cut];
                prop_assert_eq!(read(&mut input), None);
                prop_assert_eq!(input.len(), cut);
            }
            prop_assert_eq!(read(&mut &out[..]), Some(value));
        }
    }
}
