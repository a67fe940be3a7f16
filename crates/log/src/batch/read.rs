//! Reading batches.

use dibs_model::Offset;

use super::{BatchError, BatchHeader, HEADER_BYTES, codec, crc_of};

/// Iterates over the batches in bytes that a read returned. Checks each batch's CRC; stops at the first error.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    rest: &'a [u8],
}

impl<'a> Batches<'a> {
    /// Begins at the start of a batch.
    pub fn new(bytes: &'a [u8]) -> Self {
        Batches { rest: bytes }
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<Batch<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let batch = Batch::parse(self.rest);
        self.rest = match &batch {
            Ok(batch) => &self.rest[batch.bytes.len()..],
            Err(_) => &[],
        };
        Some(batch)
    }
}

/// One whole batch whose CRC is right.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Its header.
    pub header: BatchHeader,
    /// All its bytes, the header's included.
    pub bytes: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Takes the batch at the start of `bytes`; more may follow.
    pub fn parse(bytes: &'a [u8]) -> Result<Batch<'a>, BatchError> {
        let header = BatchHeader::parse(bytes)?;
        let Some(bytes) = bytes.get(..header.size()) else {
            return Err(BatchError::Truncated { need: header.size(), have: bytes.len() });
        };
        let found = crc_of(bytes);
        if found != header.crc {
            return Err(BatchError::Crc { expected: header.crc, found });
        }
        Ok(Batch { header, bytes })
    }

    /// The records, if they are not compressed.
    pub fn records(&self) -> Result<Records<'a>, BatchError> {
        match self.header.compression() {
            0 => Ok(Records::new(self.header, &self.bytes[HEADER_BYTES..])),
            codec => Err(BatchError::Compressed(codec)),
        }
    }

    /// The records, compressed or not. `buffer` is overwritten with what compressed ones unpack to.
    pub fn records_in<'b>(&self, buffer: &'b mut Vec<u8>) -> Result<Records<'b>, BatchError>
    where
        'a: 'b,
    {
        match self.header.compression() {
            0 => self.records(),
            codec => {
                buffer.clear();
                codec::unpack(codec, &self.bytes[HEADER_BYTES..], buffer)?;
                Ok(Records::new(self.header, buffer))
            }
        }
    }

    /// Checks that the records, if they are not compressed, are all there, follow the format and count up.
    pub fn check_records(&self) -> Result<(), BatchError> {
        if self.header.compression() != 0 {
            return Ok(());
        }
        self.records()?.try_for_each(|record| record.map(drop))
    }

    /// The first record from the offset `from` on that is not older than `timestamp` (ms), as offset and
    /// timestamp.
    pub fn find_time(
        &self,
        timestamp: i64,
        from: Offset,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<(Offset, i64)>, BatchError> {
        if self.header.is_log_append_time() && self.header.is_dense() {
            let offset = self.header.base_offset.max(from);
            let there = self.header.max_timestamp >= timestamp && offset <= self.header.last_offset();
            return Ok(there.then_some((offset, self.header.max_timestamp)));
        }
        for record in self.records_in(buffer)? {
            let record = record?;
            if record.offset >= from && record.timestamp >= timestamp {
                return Ok(Some((record.offset, record.timestamp)));
            }
        }
        Ok(None)
    }
}

/// One record, borrowed from its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its offset.
    pub offset: Offset,
    /// Its time, in ms: that of the append if the batch says so, else its producer's.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value; none is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: Headers<'a>,
}

/// A record's headers, not decoded yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Headers<'a> {
    /// Number of headers.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The headers as they stand in the record, without their count.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The headers in order. Stops early at one whose name is not UTF-8 or that does not follow the format.
    pub fn iter(&self) -> impl Iterator<Item = Header<'a>> + use<'a> {
        let mut reader = Reader(self.bytes);
        (0..self.count).map_while(move |_| reader.header().ok())
    }
}

/// One header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value.
    pub value: Option<&'a [u8]>,
}

/// Iterates over a batch's records; stops at the first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    header: BatchHeader,
    reader: Reader<'a>,
    index: usize,
    /// The next record's smallest possible offset, less the batch's.
    next_delta: i64,
}

impl<'a> Records<'a> {
    fn new(header: BatchHeader, bytes: &'a [u8]) -> Self {
        Records { header, reader: Reader(bytes), index: 0, next_delta: 0 }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let count = self.header.records_count as usize;
        if self.index >= count {
            return None;
        }
        let index = self.index;
        self.index += 1;
        let record = self.reader.record(&self.header, &mut self.next_delta).and_then(|record| {
            let more = index + 1 == count && !self.reader.0.is_empty();
            if more { Err("bytes after the last record") } else { Ok(record) }
        });
        if record.is_err() {
            self.index = count;
        }
        Some(record.map_err(|what| BatchError::Record { index, what }))
    }
}

#[derive(Clone, Debug)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn record(&mut self, header: &BatchHeader, next_delta: &mut i64) -> Result<Record<'a>, &'static str> {
        let length = usize::try_from(self.varint()?).map_err(|_| "a negative length")?;
        let mut body = Reader(self.take(length)?);
        body.take(1)?;
        let timestamp_delta = body.varint()?;
        let delta = body.varint()?;
        if delta < *next_delta || delta > i64::from(header.last_offset_delta) {
            return Err("an offset out of order");
        }
        *next_delta = delta + 1;
        let key = body.field()?;
        let value = body.field()?;
        let count = usize::try_from(body.varint()?).map_err(|_| "a negative number of headers")?;
        let headers = Headers { count, bytes: body.0 };
        for _ in 0..count {
            body.header()?;
        }
        if !body.0.is_empty() {
            return Err("more bytes than its fields");
        }
        let timestamp = if header.is_log_append_time() {
            header.max_timestamp
        } else {
            header.base_timestamp.wrapping_add(timestamp_delta)
        };
        Ok(Record { offset: header.base_offset + delta as u64, timestamp, key, value, headers })
    }

    fn header(&mut self) -> Result<Header<'a>, &'static str> {
        let name = self.field()?.ok_or("a header without a name")?;
        let name = std::str::from_utf8(name).map_err(|_| "a header's name that is not UTF-8")?;
        Ok(Header { name, value: self.field()? })
    }

    fn field(&mut self) -> Result<Option<&'a [u8]>, &'static str> {
        match self.varint()? {
            -1 => Ok(None),
            length => self.take(usize::try_from(length).map_err(|_| "a negative length")?).map(Some),
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or("fewer bytes than its length")?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<i64, &'static str> {
        let mut value = 0_u64;
        for (i, &byte) in self.0.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.0 = &self.0[i + 1..];
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err("an integer without an end")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchBuilder, set_crc};

    fn sample() -> Vec<u8> {
        let mut builder = BatchBuilder::new();
        builder.push(Some(b"a"), Some(b"1"));
        builder.push_with(
            None,
            None,
            &[Header { name: "h", value: None }, Header { name: "i", value: Some(b"x") }],
        );
        builder.finish(77)
    }

    #[test]
    fn what_was_pushed_is_read() {
        let bytes = [sample(), sample()].concat();
        let batches: Vec<_> = Batches::new(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(batches.len(), 2);
        let records: Vec<_> = batches[0].records().unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!((records[0].offset, records[0].timestamp, records[0].key), (0, 77, Some(&b"a"[..])));
        assert_eq!(records[1].value, None);
        let headers: Vec<_> = records[1].headers.iter().collect();
        assert_eq!(headers, [Header { name: "h", value: None }, Header { name: "i", value: Some(b"x") }]);
    }

    #[test]
    fn no_damage_goes_unnoticed() {
        let good = sample();
        // Base offset and leader epoch are outside the CRC: the log checks the one, nobody needs the other.
        for at in (8..12).chain(16..good.len()) {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(Batch::parse(&bad).is_err(), "bit {bit} of byte {at}");
            }
        }
        for cut in 0..good.len() {
            assert!(matches!(Batch::parse(&good[..cut]), Err(BatchError::Truncated { .. })));
        }
    }

    #[test]
    fn records_that_do_not_follow_the_format_are_errors_not_panics() {
        let good = sample();
        for at in HEADER_BYTES..good.len() {
            for byte in 0..=255 {
                let mut bad = good.clone();
                bad[at] = byte;
                let crc = crc_of(&bad);
                bad[17..21].copy_from_slice(&crc.to_be_bytes());
                let _ = Batch::parse(&bad).unwrap().check_records();
            }
        }
        let mut bad = good.clone();
        bad[22] |= 4;
        let crc = crc_of(&bad);
        bad[17..21].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(Batch::parse(&bad).unwrap().records().unwrap_err(), BatchError::Compressed(4));
        assert_eq!(
            Batch::parse(&bad).unwrap().records_in(&mut Vec::new()).unwrap_err(),
            BatchError::Packed(4)
        );
    }

    #[test]
    fn compressed_records_are_read_and_times_are_found_to_the_record() {
        for codec in 0..=4 {
            let mut builder = BatchBuilder::new();
            for (i, time) in [500, 300, 700, 600].into_iter().enumerate() {
                builder.push_at(time, Some(&[i as u8]), Some(b"value"));
            }
            let bytes = builder.finish_with(codec).unwrap();
            let batch = Batch::parse(&bytes).unwrap();
            assert_eq!((batch.header.compression(), batch.header.max_timestamp), (codec, 700));
            let mut buffer = Vec::new();
            let times: Vec<_> =
                batch.records_in(&mut buffer).unwrap().map(|r| r.unwrap().timestamp).collect();
            assert_eq!(times, [500, 300, 700, 600]);
            let mut find = |time, from| batch.find_time(time, from, &mut buffer).unwrap();
            assert_eq!(find(0, 0), Some((0, 500)));
            assert_eq!(find(501, 0), Some((2, 700)));
            assert_eq!(find(501, 3), Some((3, 600)));
            assert_eq!(find(701, 0), None);
        }
    }

    #[test]
    fn offsets_may_have_gaps_and_must_increase() {
        let mut bytes = sample();
        // As compaction leaves it: the last offset is beyond the last record's.
        bytes[26] = 9;
        set_crc(&mut bytes);
        let batch = Batch::parse(&bytes).unwrap();
        assert!(!batch.header.is_dense());
        assert_eq!(batch.header.next_offset(), 10);
        let offsets: Vec<_> = batch.records().unwrap().map(|r| r.unwrap().offset).collect();
        assert_eq!(offsets, [0, 1]);
        bytes[26] = 0;
        set_crc(&mut bytes);
        assert!(Batch::parse(&bytes).is_err(), "fewer offsets than records");
    }
}
