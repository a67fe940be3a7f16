//! Frames and headers: what stands around every request and response.

mod primitives;
mod reply;
mod shape;

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::protocol::Decodable;

pub(crate) use primitives::{
    Reader, put_bytes, put_compact, put_compact_nullable, put_nullable, put_text, put_varint, varint,
};
pub(crate) use reply::{Reply, Response};
#[cfg(test)]
pub(crate) use shape::samples;
pub(crate) use shape::{Malformed, Versions, shape};

/// The most bytes that room is made for before they have come.
const READ_AHEAD: usize = 256 << 10;

/// What stands before a request's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestHeader {
    pub(crate) key: i16,
    pub(crate) version: i16,
    pub(crate) correlation: i32,
    pub(crate) client_id: Option<String>,
}

/// What is asked: a message of the codec, or one that is read by hand.
pub(crate) trait Request: Sized {
    /// Reads a body that has the shape of its version. The error is a sentence.
    fn read(body: &mut Bytes, version: i16) -> Result<Self, String>;
}

impl<R: Decodable> Request for R {
    fn read(body: &mut Bytes, version: i16) -> Result<Self, String> {
        R::decode(body, version).map_err(|e| e.to_string())
    }
}

/// Takes one frame's content out of what has been read; `None` if it is not whole yet, with room made for what
/// comes next.
pub(crate) fn next_frame(buffer: &mut BytesMut, max: usize) -> Result<Option<Bytes>, Malformed> {
    let Some(prefix) = buffer.get(..4) else {
        buffer.reserve(4096);
        return Ok(None);
    };
    let length = i32::from_be_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]);
    let length = usize::try_from(length).map_err(|_| Malformed("a negative frame length"))?;
    if length > max {
        return Err(Malformed("a frame larger than socket.request.max.bytes"));
    }
    let missing = (length + 4).saturating_sub(buffer.len());
    if missing > 0 {
        // Not all at once: a frame that never comes should cost no more than its first bytes.
        buffer.reserve(missing.min(READ_AHEAD.max(buffer.len())));
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(length).freeze()))
}

impl RequestHeader {
    /// Reads the first eight bytes, which all versions share.
    pub(crate) fn begin(frame: &mut Bytes) -> Result<RequestHeader, Malformed> {
        if frame.len() < 8 {
            return Err(Malformed("a frame without a header"));
        }
        let (key, version, correlation) = (frame.get_i16(), frame.get_i16(), frame.get_i32());
        Ok(RequestHeader { key, version, correlation, client_id: None })
    }

    /// Reads the rest of the header.
    pub(crate) fn finish(&mut self, frame: &mut Bytes, flexible: bool) -> Result<(), Malformed> {
        let cut_off = Malformed("a header that is cut off");
        if frame.len() < 2 {
            // Version 0 of the header ends here, and old clients' ApiVersions may too.
            return if frame.is_empty() && !flexible { Ok(()) } else { Err(cut_off) };
        }
        if let Ok(length) = usize::try_from(frame.get_i16()) {
            if frame.len() < length {
                return Err(cut_off);
            }
            let text = String::from_utf8(frame.split_to(length).to_vec());
            self.client_id = Some(text.map_err(|_| Malformed("a client id that is not UTF-8"))?);
        }
        if flexible {
            let count = take_varint(frame)?;
            for _ in 0..count {
                take_varint(frame)?;
                let size = take_varint(frame)? as usize;
                if frame.len() < size {
                    return Err(cut_off);
                }
                frame.advance(size);
            }
        }
        Ok(())
    }
}

fn take_varint(frame: &mut Bytes) -> Result<u32, Malformed> {
    let (value, size) = varint(frame).ok_or(Malformed("an integer without an end"))?;
    frame.advance(size);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    #[test]
    fn a_frame_comes_in_pieces() {
        let mut buffer = BytesMut::new();
        for byte in [0, 0, 0, 2, 7] {
            assert_eq!(next_frame(&mut buffer, 100), Ok(None));
            buffer.put_u8(byte);
        }
        buffer.put_slice(&[8, 0]);
        assert_eq!(next_frame(&mut buffer, 100), Ok(Some(Bytes::from_static(&[7, 8]))));
        assert_eq!(&buffer[..], [0]);
    }

    #[test]
    fn a_frame_that_only_announces_itself_costs_little() {
        let mut buffer = BytesMut::from(&[0x06, 0, 0, 0][..]);
        assert_eq!(next_frame(&mut buffer, 1 << 30), Ok(None));
        assert!(buffer.capacity() < 1 << 20);
        assert!(next_frame(&mut buffer, 1 << 20).is_err());
        let mut buffer = BytesMut::from(&[0xff, 0, 0, 0][..]);
        assert!(next_frame(&mut buffer, 1 << 20).is_err());
    }
}
