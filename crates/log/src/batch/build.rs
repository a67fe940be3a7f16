//! Writing batches.

use dibs_model::Offset;

use super::{
    BatchError, CONTROL, CRC_FROM, DELETE_HORIZON, HEADER_BYTES, LENGTH_OFFSET, LOG_APPEND_TIME,
    TRANSACTIONAL, codec, crc_of,
    read::{Batch, Header, Record},
};

/// Builds one batch, record by record, as a producer does.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    records: i32,
    /// Timestamp of the first record, which the others' are relative to, in ms.
    base: i64,
    max: i64,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        BatchBuilder::new()
    }
}

impl BatchBuilder {
    /// A batch without records.
    pub fn new() -> Self {
        let mut bytes = Vec::with_capacity(4096);
        open_batch(&mut bytes);
        BatchBuilder { bytes, records: 0, base: 0, max: i64::MIN }
    }

    /// Adds a record without headers.
    pub fn push(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) {
        self.push_with(key, value, &[]);
    }

    /// Adds a record. Its time is the first record's.
    pub fn push_with(&mut self, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header<'_>]) {
        put_record(&mut self.bytes, self.records, 0, key, value, headers);
        self.records += 1;
    }

    /// Adds a record without headers, with its own time in ms.
    pub fn push_at(&mut self, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>) {
        self.push_at_with(timestamp, key, value, &[]);
    }

    /// Adds a record with its own time in ms.
    pub fn push_at_with(
        &mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) {
        if self.records == 0 {
            self.base = timestamp;
        }
        self.max = self.max.max(timestamp);
        put_record(&mut self.bytes, self.records, timestamp - self.base, key, value, headers);
        self.records += 1;
    }

    /// Says who the producer is: its id, its epoch, and the sequence number of the first record.
    pub fn producer(&mut self, id: i64, epoch: i16, sequence: i32) {
        self.bytes[43..51].copy_from_slice(&id.to_be_bytes());
        self.bytes[51..53].copy_from_slice(&epoch.to_be_bytes());
        self.bytes[53..57].copy_from_slice(&sequence.to_be_bytes());
    }

    /// Makes the batch part of its producer's transaction.
    pub fn transactional(&mut self) {
        self.attributes(TRANSACTIONAL);
    }

    /// Makes the batch a control batch, whose one record is a transaction's end marker.
    pub(crate) fn control(&mut self) {
        self.attributes(TRANSACTIONAL | CONTROL);
    }

    fn attributes(&mut self, set: i16) {
        let attributes = i16::from_be_bytes([self.bytes[21], self.bytes[22]]) | set;
        self.bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
    }

    /// Number of records so far.
    pub fn len(&self) -> usize {
        self.records as usize
    }

    /// Whether there is no record yet. Such a batch is not valid.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Bytes that the batch has so far, its header included.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The batch, with base offset 0 and this time (ms) as the producer's timestamp of every record that was
    /// not given one.
    pub fn finish(mut self, timestamp: i64) -> Vec<u8> {
        let (base, max) = if self.max == i64::MIN { (timestamp, timestamp) } else { (self.base, self.max) };
        seal_batch(&mut self.bytes, 0, self.records);
        self.bytes[27..35].copy_from_slice(&base.to_be_bytes());
        self.bytes[35..43].copy_from_slice(&max.to_be_bytes());
        set_crc(&mut self.bytes);
        self.bytes
    }

    /// Like [`BatchBuilder::finish`] for records with times of their own, compressed with a codec's number: 0
    /// none, 1 gzip, 2 snappy, 3 lz4, 4 zstd.
    pub fn finish_with(mut self, codec: u8) -> Result<Vec<u8>, BatchError> {
        let plain = self.bytes.split_off(HEADER_BYTES);
        codec::pack(codec, &plain, &mut self.bytes)?;
        self.attributes(i16::from(codec));
        Ok(self.finish(0))
    }
}

/// Gives a finished batch another producer: its id, its epoch, and the sequence number of the first record. For
/// a producer that has to start over with batches that were not taken.
pub fn set_producer(batch: &mut [u8], id: i64, epoch: i16, sequence: i32) {
    batch[43..51].copy_from_slice(&id.to_be_bytes());
    batch[51..53].copy_from_slice(&epoch.to_be_bytes());
    batch[53..57].copy_from_slice(&sequence.to_be_bytes());
    set_crc(batch);
}

/// Begins a batch at the end of `out`: a header whose variable fields are still zero.
pub(crate) fn open_batch(out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + HEADER_BYTES, 0);
    let header = &mut out[at..];
    header[16] = 2;
    // No idempotent producer: id, epoch and sequence are −1.
    header[43..57].fill(0xff);
}

/// Fills in what is known when a batch has its last record: length, offsets and count.
pub(crate) fn seal_batch(batch: &mut [u8], base_offset: Offset, records: i32) {
    let length = (batch.len() - LENGTH_OFFSET) as i32;
    batch[0..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    batch[23..27].copy_from_slice(&(records - 1).to_be_bytes());
    batch[57..61].copy_from_slice(&records.to_be_bytes());
}

/// Gives a sealed batch the time of its append, in ms, and with it its CRC. `log_append_time` says that this is
/// the topic's timestamp type; `own` that the records' time base is not a producer's, which stays as it is.
pub(crate) fn stamp_batch(batch: &mut [u8], append_time: i64, log_append_time: bool, own: bool) {
    if log_append_time {
        let attributes = i16::from_be_bytes([batch[21], batch[22]]) | LOG_APPEND_TIME;
        batch[21..23].copy_from_slice(&attributes.to_be_bytes());
    }
    if own {
        batch[27..35].copy_from_slice(&append_time.to_be_bytes());
    }
    batch[35..43].copy_from_slice(&append_time.to_be_bytes());
    set_crc(batch);
}

/// Writes the CRC of a whole batch into its header.
pub(crate) fn set_crc(batch: &mut [u8]) {
    let crc = crc_of(batch);
    batch[17..CRC_FROM].copy_from_slice(&crc.to_be_bytes());
}

/// The same batch with fewer records, at the same offsets, and with another delete horizon (ms). `each` calls
/// back for every record that is left.
pub(crate) fn rebuild<'r>(
    batch: &Batch<'_>,
    horizon: Option<i64>,
    records: usize,
    each: impl FnOnce(&mut dyn FnMut(&Record<'r>, &[Header<'_>])),
) -> Result<Vec<u8>, BatchError> {
    let header = &batch.header;
    let base = horizon.unwrap_or(if records == 0 { -1 } else { header.base_timestamp });
    let (mut plain, mut max) = (Vec::new(), i64::MIN);
    each(&mut |record, headers| {
        let delta = (record.offset - header.base_offset) as i32;
        let time = if header.is_log_append_time() { 0 } else { record.timestamp.wrapping_sub(base) };
        put_record(&mut plain, delta, time, record.key, record.value, headers);
        max = max.max(record.timestamp);
    });
    let mut bytes = batch.bytes[..HEADER_BYTES].to_vec();
    let mut attributes = header.attributes & !DELETE_HORIZON;
    if records == 0 {
        attributes &= !0x07;
        max = header.max_timestamp;
    } else {
        codec::pack(header.compression(), &plain, &mut bytes)?;
    }
    if horizon.is_some() && records > 0 {
        attributes |= DELETE_HORIZON;
    }
    let length = (bytes.len() - LENGTH_OFFSET) as i32;
    bytes[8..LENGTH_OFFSET].copy_from_slice(&length.to_be_bytes());
    bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
    bytes[27..35].copy_from_slice(&if records == 0 { -1 } else { base }.to_be_bytes());
    bytes[35..43].copy_from_slice(&max.to_be_bytes());
    bytes[57..61].copy_from_slice(&(records as i32).to_be_bytes());
    set_crc(&mut bytes);
    Ok(bytes)
}

/// Gives a batch's header another largest timestamp (ms).
pub(crate) fn retime(batch: &mut [u8], max_timestamp: i64) {
    batch[35..43].copy_from_slice(&max_timestamp.to_be_bytes());
    set_crc(batch);
}

/// The same batch, its records compressed with another codec.
pub(crate) fn recompress(batch: &Batch<'_>, codec: u8) -> Result<Vec<u8>, BatchError> {
    let mut plain = Vec::new();
    codec::unpack(batch.header.compression(), &batch.bytes[HEADER_BYTES..], &mut plain)?;
    let mut bytes = batch.bytes[..HEADER_BYTES].to_vec();
    codec::pack(codec, &plain, &mut bytes)?;
    let attributes = (batch.header.attributes & !0x07) | i16::from(codec);
    bytes[21..23].copy_from_slice(&attributes.to_be_bytes());
    let length = (bytes.len() - LENGTH_OFFSET) as i32;
    bytes[8..LENGTH_OFFSET].copy_from_slice(&length.to_be_bytes());
    set_crc(&mut bytes);
    Ok(bytes)
}

/// Bytes of a record's body, without the length before it.
fn body_size(
    offset_delta: i32,
    time_delta: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[Header<'_>],
) -> usize {
    let field = |bytes: Option<&[u8]>| bytes.map_or(1, |b| varint_size(b.len() as i64) + b.len());
    let headers_size = headers
        .iter()
        .map(|h| varint_size(h.name.len() as i64) + h.name.len() + field(h.value))
        .sum::<usize>();
    // Attributes are one byte, zero.
    1 + varint_size(time_delta)
        + varint_size(i64::from(offset_delta))
        + field(key)
        + field(value)
        + varint_size(headers.len() as i64)
        + headers_size
}

/// Bytes of a record in a batch, with timestamp delta 0.
pub(crate) fn record_size(
    offset_delta: i32,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[Header<'_>],
) -> usize {
    let body = body_size(offset_delta, 0, key, value, headers);
    varint_size(body as i64) + body
}

/// Appends a record whose time (ms) is so much later than the batch's base.
pub(crate) fn put_record(
    out: &mut Vec<u8>,
    offset_delta: i32,
    time_delta: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[Header<'_>],
) {
    let body = body_size(offset_delta, time_delta, key, value, headers);
    out.reserve(body + 5);
    put_varint(out, body as i64);
    out.push(0);
    put_varint(out, time_delta);
    put_varint(out, i64::from(offset_delta));
    put_field(out, key);
    put_field(out, value);
    put_varint(out, headers.len() as i64);
    for header in headers {
        put_field(out, Some(header.name.as_bytes()));
        put_field(out, header.value);
    }
}

fn put_field(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

fn varint_size(n: i64) -> usize {
    // One byte carries seven bits, and zero still takes one byte.
    (64 - (zigzag(n) | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_varint(out: &mut Vec<u8>, n: i64) {
    let mut rest = zigzag(n);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchHeader, Batches};

    /// Computed by hand from KIP-98's description, field by field; the CRC by an independent program.
    #[test]
    fn a_batch_is_kafkas_bit_for_bit() {
        let mut builder = BatchBuilder::new();
        builder.push(Some(b"k"), Some(b"hello"));
        builder.push_with(None, Some(b""), &[Header { name: "id", value: Some(b"7") }]);
        builder.push(Some(b""), None);
        let bytes = builder.finish(1_700_000_000_000);
        let expected = [
            "0000000000000000",
            "00000051",
            "00000000",
            "02",
            "8adc29ef",
            "0000",
            "00000002",
            "0000018bcfe56800",
            "0000018bcfe56800",
            "ffffffffffffffff",
            "ffff",
            "ffffffff",
            "00000003",
            // length 12, attributes, timestamp delta, offset delta, key, value, no headers
            "18",
            "00",
            "00",
            "00",
            "02",
            "6b",
            "0a",
            "68656c6c6f",
            "00",
            // length 11, offset delta 1, null key, empty value, one header id = 7
            "16",
            "00",
            "00",
            "02",
            "01",
            "00",
            "02",
            "04",
            "6964",
            "02",
            "37",
            // length 6, offset delta 2, empty key, null value, no headers
            "0c",
            "00",
            "00",
            "04",
            "00",
            "01",
            "00",
        ]
        .concat();
        let found: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn another_producer_makes_the_same_batch_as_if_it_had_been_there_first() {
        let headers = [Header { name: "h", value: Some(b"1") }];
        let built = |producer: Option<(i64, i16, i32)>| {
            let mut builder = BatchBuilder::new();
            builder.push_at_with(7, None, Some(b"v"), &headers);
            if let Some((id, epoch, sequence)) = producer {
                builder.producer(id, epoch, sequence);
            }
            builder.finish_with(1).unwrap()
        };
        let mut bytes = built(None);
        set_producer(&mut bytes, 9, 2, 40);
        assert_eq!(bytes, built(Some((9, 2, 40))));
        let batch = Batches::new(&bytes).next().unwrap().unwrap();
        let mut buffer = Vec::new();
        let record = batch.records_in(&mut buffer).unwrap().next().unwrap().unwrap();
        assert_eq!(record.headers.iter().collect::<Vec<_>>(), headers);
    }

    #[test]
    fn stamping_changes_the_time_and_keeps_a_producers_base() {
        let mut builder = BatchBuilder::new();
        builder.push(None, Some(b"v"));
        let mut bytes = builder.finish(5);
        stamp_batch(&mut bytes, 9, true, false);
        let header = BatchHeader::parse(&bytes).unwrap();
        assert_eq!((header.base_timestamp, header.max_timestamp), (5, 9));
        assert!(header.is_log_append_time());
        let batch = Batches::new(&bytes).next().unwrap().unwrap();
        assert_eq!(batch.records().unwrap().next().unwrap().unwrap().timestamp, 9);
    }

    #[test]
    fn sizes_are_what_is_written() {
        let long = vec![b'x'; 9000];
        for delta in [0, 63, 64, 8191, 8192, 1 << 20, i32::MAX] {
            for key in [None, Some(&b""[..]), Some(&long[..63]), Some(&long[..64]), Some(&long[..])] {
                for headers in [&[][..], &[Header { name: "n", value: None }]] {
                    let mut out = Vec::new();
                    put_record(&mut out, delta, 0, key, Some(b"v"), headers);
                    assert_eq!(out.len(), record_size(delta, key, Some(b"v"), headers));
                }
            }
        }
    }
}
