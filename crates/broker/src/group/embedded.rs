//! What consumers say to each other within the classic protocol (`ConsumerProtocolSubscription` and
//! `ConsumerProtocolAssignment`), as far as the coordinator has to know it.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};

/// The newest version of an assignment that is written.
const NEWEST: i16 = 3;

/// Topics with their partitions.
pub(super) type Named = BTreeMap<String, Vec<i32>>;

/// What a consumer wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) version: i16,
    pub(super) topics: Vec<String>,
    /// What it has, if it says so.
    pub(super) owned: Named,
    pub(super) rack: Option<String>,
}

impl Subscription {
    /// `None` if it is none.
    pub(super) fn parse(bytes: &[u8]) -> Option<Subscription> {
        let mut r = Reader(bytes);
        let version = r.i16()?;
        let topics = (0..r.i32()?).map(|_| r.text()).collect::<Option<_>>()?;
        let mut subscription = Subscription { version, topics, ..Subscription::default() };
        r.bytes()?;
        if version >= 1 {
            subscription.owned = r.named()?;
        }
        if version >= 2 {
            r.i32()?;
        }
        if version >= 3 {
            subscription.rack = r.nullable()?;
        }
        Some(subscription)
    }
}

/// Reads an assignment: its partitions, and whether an assignor has said something beyond them.
pub(super) fn parse_assignment(bytes: &[u8]) -> Option<(Named, bool)> {
    if bytes.is_empty() {
        return Some((Named::new(), false));
    }
    let mut r = Reader(bytes);
    r.i16()?;
    let named = r.named()?;
    Some((named, r.bytes()?.is_some_and(|data| !data.is_empty())))
}

/// Writes an assignment for a member that reads this version.
pub(super) fn assignment(version: i16, named: &Named) -> Bytes {
    let mut out = Vec::new();
    out.put_i16(version.clamp(0, NEWEST));
    out.put_i32(named.len() as i32);
    for (topic, partitions) in named {
        out.put_i16(topic.len() as i16);
        out.put_slice(topic.as_bytes());
        out.put_i32(partitions.len() as i32);
        partitions.iter().for_each(|p| out.put_i32(*p));
    }
    out.put_i32(-1);
    Bytes::from(out)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn i16(&mut self) -> Option<i16> {
        Some(i16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn i32(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        self.nullable()?
    }

    fn nullable(&mut self) -> Option<Option<String>> {
        match usize::try_from(self.i16()?) {
            Ok(length) => Some(Some(String::from_utf8(self.take(length)?.to_vec()).ok()?)),
            Err(_) => Some(None),
        }
    }

    fn bytes(&mut self) -> Option<Option<&'a [u8]>> {
        match usize::try_from(self.i32()?) {
            Ok(length) => Some(Some(self.take(length)?)),
            Err(_) => Some(None),
        }
    }

    fn named(&mut self) -> Option<Named> {
        let mut named = Named::new();
        for _ in 0..self.i32()? {
            let topic = self.text()?;
            let partitions: Vec<i32> = (0..self.i32()?).map(|_| self.i32()).collect::<Option<_>>()?;
            named.entry(topic).or_default().extend(partitions);
        }
        Some(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscriptions_of_every_version_are_read() {
        // Topic "t", no user data; version 1 adds owned t-0; 2 a generation; 3 a rack.
        let v0 = b"\0\0\0\0\0\x01\0\x01t\xff\xff\xff\xff".to_vec();
        let one = Subscription { topics: vec!["t".into()], ..Subscription::default() };
        assert_eq!(Subscription::parse(&v0), Some(one.clone()));
        let mut v3 = v0.clone();
        v3[1] = 3;
        v3.extend(b"\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\0\0\0\0\x07\0\x01r");
        let owned = Named::from([("t".to_owned(), vec![0])]);
        let three = Subscription { version: 3, owned, rack: Some("r".into()), ..one };
        assert_eq!(Subscription::parse(&v3), Some(three));
        for cut in 0..v3.len() {
            assert_eq!(Subscription::parse(&v3[..cut]), None);
        }
        // More topics than there is room for.
        assert_eq!(Subscription::parse(b"\0\0\x7f\xff\xff\xff"), None);
    }

    #[test]
    fn an_assignment_is_read_as_it_was_written() {
        let named = Named::from([("t".to_owned(), vec![0, 2])]);
        let bytes = assignment(1, &named);
        assert_eq!(bytes, &b"\0\x01\0\0\0\x01\0\x01t\0\0\0\x02\0\0\0\0\0\0\0\x02\xff\xff\xff\xff"[..]);
        assert_eq!(parse_assignment(&bytes), Some((named, false)));
        assert_eq!(parse_assignment(b""), Some((Named::new(), false)));
    }
}
