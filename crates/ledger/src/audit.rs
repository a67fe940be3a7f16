//! Checksummed windows: how an auditor finds a wrong row among millions without reading them all.
//!
//! The offsets of a partition are cut into fixed windows of [`WINDOW_OFFSETS`]. A coupon belongs to the window of
//! its *claim's* offset, whenever it was issued. A window's hash is the sum, modulo 2⁶⁴, of the hashes of its
//! coupons: a sum does not depend on the order in which they came, and unlike XOR it does not lose pairs.

use dibs_model::{Offset, Partition, Rank};
use twox_hash::XxHash3_64;

use crate::Coupon;

/// How many offsets a window has. A constant of the format: windows of another size could not be compared.
pub const WINDOW_OFFSETS: u64 = 65_536;

/// What the ledger says of one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Which partition.
    pub partition: Partition,
    /// Its first offset, a multiple of [`WINDOW_OFFSETS`].
    pub from: Offset,
    /// The first offset after it.
    pub to: Offset,
    /// How many coupons were claimed in it.
    pub count: u64,
    /// The sum of their hashes. A database that has only signed numbers keeps it as the same 64 bits.
    pub hash: u64,
}

/// The first offset of the window that an offset is in.
pub fn window_start(offset: Offset) -> Offset {
    offset - offset % WINDOW_OFFSETS
}

/// The hash of one coupon: XXH3 (64 bits, seed 0) over these bytes, all numbers little-endian:
///
/// | bytes | what |
/// | --- | --- |
/// | 8 | the claim's offset |
/// | 4 | the rank |
/// | 4 + n | the campaign: its length in bytes, its UTF-8 |
/// | 4 + n | the user, likewise |
/// | 4 + n | the code, likewise; without a code the length is 0xFFFFFFFF and nothing follows |
///
/// What changes during a coupon's life (its status, who redeemed it) is not in it; a late code is, and changes
/// the window's sum when it comes.
pub fn coupon_hash(campaign: &str, rank: Rank, user: &str, code: Option<&str>, offset: Offset) -> u64 {
    // The longest ids and code fit with room to spare; only a longer foreign code takes the heap.
    let mut bytes = Bytes { stack: [0; 320], used: 0, heap: Vec::new() };
    bytes.put(&offset.to_le_bytes());
    bytes.put(&rank.to_le_bytes());
    bytes.put_text(campaign);
    bytes.put_text(user);
    match code {
        Some(code) => bytes.put_text(code),
        None => bytes.put(&u32::MAX.to_le_bytes()),
    }
    XxHash3_64::oneshot(bytes.as_slice())
}

impl Coupon {
    /// Its [`coupon_hash`].
    pub fn hash(&self) -> u64 {
        coupon_hash(&self.campaign, self.rank, &self.user, self.code.as_deref(), self.offset)
    }
}

/// A buffer that stays on the stack while it is small.
struct Bytes {
    stack: [u8; 320],
    used: usize,
    heap: Vec<u8>,
}

impl Bytes {
    fn put(&mut self, part: &[u8]) {
        let end = self.used + part.len();
        if self.heap.is_empty() && end <= self.stack.len() {
            self.stack[self.used..end].copy_from_slice(part);
        } else {
            if self.heap.is_empty() {
                self.heap.extend_from_slice(&self.stack[..self.used]);
            }
            self.heap.extend_from_slice(part);
        }
        self.used = end;
    }

    fn put_text(&mut self, text: &str) {
        self.put(&(text.len() as u32).to_le_bytes());
        self.put(text.as_bytes());
    }

    fn as_slice(&self) -> &[u8] {
        if self.heap.is_empty() { &self.stack[..self.used] } else { &self.heap }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fixed for ever: ledgers hold sums of these.
    #[test]
    fn hashes_are_what_they_were() {
        assert_eq!(coupon_hash("summer", 17, "u-1", Some("SUMMER-28T5-CY4T"), 1234), 0x3355_38f4_64b7_691a);
        assert_eq!(coupon_hash("summer", 17, "u-1", None, 1234), 0xef4d_dc54_7392_1f2c);
        assert_eq!(
            coupon_hash("여름", 1, &"x".repeat(128), Some(&"y".repeat(64)), u64::MAX),
            0xe71a_6840_c932_2dbc
        );
    }

    #[test]
    fn hashes_what_the_table_says() {
        let by_hand = |campaign: &str, rank: u32, user: &str, code: Option<&str>, offset: u64| {
            let mut bytes = offset.to_le_bytes().to_vec();
            bytes.extend(rank.to_le_bytes());
            for text in [campaign, user] {
                bytes.extend((text.len() as u32).to_le_bytes());
                bytes.extend(text.as_bytes());
            }
            bytes.extend(code.map_or(u32::MAX, |c| c.len() as u32).to_le_bytes());
            bytes.extend(code.unwrap_or("").as_bytes());
            XxHash3_64::oneshot(&bytes)
        };
        let long = "z".repeat(400);
        for (campaign, user, code) in [
            ("a", "b", Some("c")),
            ("ab", "", None),
            ("a", "b", Some(&*long)),
            (&*long, &*long, Some(&*long)),
        ] {
            assert_eq!(coupon_hash(campaign, 3, user, code, 9), by_hand(campaign, 3, user, code, 9));
        }
        // Moving a letter over a border, or an empty code for none, is another coupon.
        assert_ne!(coupon_hash("ab", 1, "c", None, 0), coupon_hash("a", 1, "bc", None, 0));
        assert_ne!(coupon_hash("a", 1, "b", None, 0), coupon_hash("a", 1, "b", Some(""), 0));
    }

    #[test]
    fn windows_are_fixed() {
        assert_eq!([0, 65_535, 65_536, 131_071].map(window_start), [0, 0, 65_536, 65_536]);
    }
}
