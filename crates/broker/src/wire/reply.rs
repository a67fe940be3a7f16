//! What goes out: bytes, and between them pieces of the log's files, which need not pass through this process.

use std::{fmt, io};

use bytes::BufMut;
use dibs_log::FileRange;
use kafka_protocol::protocol::{Encodable, HeaderVersion};

/// A piece of a file that is not longer is copied: a system call of its own would cost more than that.
const COPIED: u64 = 16 << 10;

/// What answers a request: a message of the codec, or one that is written by hand.
pub(crate) trait Response {
    /// Whether the header before it has tags.
    fn has_tags(version: i16) -> bool;
    /// Writes the body. The error is a sentence.
    fn write(&self, out: &mut Reply, version: i16) -> Result<(), String>;
}

impl<R: Encodable + HeaderVersion> Response for R {
    fn has_tags(version: i16) -> bool {
        R::header_version(version) >= 1
    }

    fn write(&self, out: &mut Reply, version: i16) -> Result<(), String> {
        self.encode(&mut out.bytes, version).map_err(|e| e.to_string())
    }
}

/// A whole frame, or several, ready to be sent.
#[derive(Default)]
pub(crate) struct Reply {
    /// All that does not come from files.
    pub(crate) bytes: Vec<u8>,
    /// What comes from files, each before the byte of this position. In order.
    files: Vec<(usize, FileRange)>,
}

impl Reply {
    /// A whole frame with a response in it. The error is a sentence.
    pub(crate) fn frame<R: Response>(correlation: i32, version: i16, response: &R) -> Result<Reply, String> {
        let mut out = Reply { bytes: Vec::with_capacity(256), files: Vec::new() };
        out.bytes.put_i32(0);
        out.bytes.put_i32(correlation);
        if R::has_tags(version) {
            out.bytes.put_u8(0);
        }
        response.write(&mut out, version)?;
        let length = i32::try_from(out.len() - 4).map_err(|_| "longer than 2 GiB")?;
        out.bytes[..4].copy_from_slice(&length.to_be_bytes());
        Ok(out)
    }

    /// Bytes in all.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64 + self.files.iter().map(|(_, range)| range.length).sum::<u64>()
    }

    /// Appends another.
    pub(crate) fn append(&mut self, other: Reply) {
        let before = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        self.files.extend(other.files.into_iter().map(|(at, range)| (before + at, range)));
    }

    /// Appends a piece of a file.
    pub(crate) fn put_file(&mut self, range: &FileRange) -> io::Result<()> {
        if range.length > COPIED {
            self.files.push((self.bytes.len(), range.clone()));
            return Ok(());
        }
        match range.file.read_into(&mut self.bytes, range.length as usize, range.position)? as u64 {
            n if n == range.length => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// In the order in which they are sent: some bytes, and the piece of a file that follows them if there is one.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (&[u8], Option<&FileRange>)> {
        let mut from = 0;
        let ends = self.files.iter().map(|(at, range)| (*at, Some(range)));
        ends.chain([(self.bytes.len(), None)]).map(move |(at, range)| {
            let bytes = &self.bytes[from..at];
            from = at;
            (bytes, range)
        })
    }

    /// All bytes, those of files too.
    #[cfg(test)]
    pub(crate) fn flat(&self) -> bytes::Bytes {
        let mut all = Vec::new();
        for (bytes, range) in self.parts() {
            all.extend_from_slice(bytes);
            if let Some(range) = range {
                let read = range.file.read_into(&mut all, range.length as usize, range.position);
                assert_eq!(read.unwrap() as u64, range.length);
            }
        }
        all.into()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, of which {} from memory", self.len(), self.bytes.len())
    }
}
