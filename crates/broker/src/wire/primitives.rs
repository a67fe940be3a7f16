//! Kafka's primitive types, as they stand in messages and in the records of its internal topics.

use bytes::{BufMut, Bytes};
use uuid::Uuid;

/// Reads an unsigned varint: its value, and the bytes it takes.
pub(crate) fn varint(bytes: &[u8]) -> Option<(u32, usize)> {
    let mut value = 0_u32;
    for (i, &byte) in bytes.iter().take(5).enumerate() {
        if i == 4 && byte > 0x0f {
            return None;
        }
        value |= u32::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, i + 1));
        }
    }
    None
}

/// Appends an unsigned varint, as the flexible versions write lengths.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut n: usize) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_i16(text.len() as i16);
    out.put_slice(text.as_bytes());
}

pub(crate) fn put_nullable(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => put_text(out, text),
        None => out.put_i16(-1),
    }
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_i32(bytes.len() as i32);
    out.put_slice(bytes);
}

pub(crate) fn put_compact(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() + 1);
    out.put_slice(text.as_bytes());
}

pub(crate) fn put_compact_nullable(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => put_compact(out, text),
        None => out.put_u8(0),
    }
}

/// Reads what is there. `None` is the end before it, or nonsense.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn i16(&mut self) -> Option<i16> {
        Some(i16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    pub(crate) fn i32(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(crate) fn i64(&mut self) -> Option<i64> {
        Some(i64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(crate) fn uuid(&mut self) -> Option<Uuid> {
        Uuid::from_slice(self.take(16)?).ok()
    }

    pub(crate) fn text(&mut self) -> Option<String> {
        self.nullable()?
    }

    pub(crate) fn varint(&mut self) -> Option<u32> {
        let (value, size) = varint(self.0)?;
        self.take(size)?;
        Some(value)
    }

    /// Whether a flexible version's null comes next, which is taken.
    pub(crate) fn take_null(&mut self) -> Option<bool> {
        let null = *self.0.first()? == 0;
        if null {
            self.take(1)?;
        }
        Some(null)
    }

    /// A length that is there, of text, bytes or an array.
    pub(crate) fn compact_length(&mut self) -> Option<usize> {
        (self.varint()? as usize).checked_sub(1)
    }

    pub(crate) fn compact_text(&mut self) -> Option<String> {
        self.compact_nullable()?
    }

    pub(crate) fn compact_nullable(&mut self) -> Option<Option<String>> {
        match (self.varint()? as usize).checked_sub(1) {
            Some(length) => Some(Some(String::from_utf8(self.take(length)?.to_vec()).ok()?)),
            None => Some(None),
        }
    }

    /// A tagged field: its number, and its bytes.
    pub(crate) fn tag(&mut self) -> Option<(u32, &'a [u8])> {
        let (tag, size) = (self.varint()?, self.varint()?);
        Some((tag, self.take(size as usize)?))
    }

    pub(crate) fn skip_tags(&mut self) -> Option<()> {
        for _ in 0..self.varint()? {
            self.tag()?;
        }
        Some(())
    }

    pub(crate) fn nullable(&mut self) -> Option<Option<String>> {
        match usize::try_from(self.i16()?) {
            Ok(length) => Some(Some(String::from_utf8(self.take(length)?.to_vec()).ok()?)),
            Err(_) => Some(None),
        }
    }

    pub(crate) fn bytes(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.i32()?).ok()?;
        Some(Bytes::copy_from_slice(self.take(length)?))
    }
}
