//! Kafka's four codecs, for the few places that must look inside a compressed batch.

use std::io::{self, Read, Write};

use super::BatchError;

/// The most bytes that a compressed batch may unpack to: more is taken for an attack.
pub const MAX_UNPACKED_BYTES: u64 = 256 << 20;
/// What snappy-java writes before its blocks: a magic, version 1, compatible with version 1.
const XERIAL: [u8; 16] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1];
/// Unpacked bytes in one of snappy-java's blocks.
const XERIAL_BLOCK: usize = 32 << 10;

/// Appends what `packed` unpacks to. `codec` is the number in a batch's attributes.
pub(crate) fn unpack(codec: u8, packed: &[u8], out: &mut Vec<u8>) -> Result<(), BatchError> {
    let done = match codec {
        0 => {
            out.extend_from_slice(packed);
            Ok(())
        }
        1 => drain(flate2::read::MultiGzDecoder::new(packed), out),
        2 => unsnap(packed, out),
        3 => drain(lz4_flex::frame::FrameDecoder::new(packed), out),
        4 => unzstd(packed, out),
        _ => return Err(BatchError::Codec(codec)),
    };
    done.map_err(|_| BatchError::Packed(codec))
}

/// Appends `plain`, compressed.
pub(crate) fn pack(codec: u8, plain: &[u8], out: &mut Vec<u8>) -> Result<(), BatchError> {
    let done = match codec {
        0 => out.write_all(plain),
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
            encoder.write_all(plain).and_then(|()| encoder.finish().map(drop))
        }
        2 => snap(plain, out),
        3 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(out);
            encoder.write_all(plain).and_then(|()| encoder.finish().map(drop).map_err(io::Error::other))
        }
        4 => {
            ruzstd::encoding::compress(plain, out, ruzstd::encoding::CompressionLevel::Fastest);
            Ok(())
        }
        _ => return Err(BatchError::Codec(codec)),
    };
    done.map_err(|_| BatchError::Packed(codec))
}

/// Reads to the end, but no more than [`MAX_UNPACKED_BYTES`].
fn drain(reader: impl Read, out: &mut Vec<u8>) -> io::Result<()> {
    let read = reader.take(MAX_UNPACKED_BYTES + 1).read_to_end(out)? as u64;
    if read > MAX_UNPACKED_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
}

/// Zstandard: one frame after another.
fn unzstd(mut packed: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    while !packed.is_empty() {
        let decoder = ruzstd::decoding::StreamingDecoder::new(&mut packed)
            .map_err(|e| io::Error::other(e.to_string()))?;
        drain(decoder, out)?;
    }
    Ok(())
}

/// Snappy: one raw block, or the blocks of snappy-java behind its header.
fn unsnap(packed: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    if !packed.starts_with(&XERIAL[..8]) {
        return unsnap_block(packed, out);
    }
    let mut rest = packed.get(XERIAL.len()..).ok_or(io::ErrorKind::UnexpectedEof)?;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (block, after) = after
            .split_at_checked(u32::from_be_bytes(*length) as usize)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        unsnap_block(block, out)?;
        rest = after;
    }
    if rest.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn unsnap_block(block: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let length = snap::raw::decompress_len(block)?;
    // A block is never more than 64 times smaller than what it holds: a longer length is a lie.
    if (out.len() + length) as u64 > MAX_UNPACKED_BYTES || length / 64 > block.len() {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let at = out.len();
    out.resize(at + length, 0);
    snap::raw::Decoder::new().decompress(block, &mut out[at..])?;
    Ok(())
}

fn snap(plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    out.extend_from_slice(&XERIAL);
    let mut encoder = snap::raw::Encoder::new();
    for block in plain.chunks(XERIAL_BLOCK) {
        let packed = encoder.compress_vec(block)?;
        out.extend_from_slice(&(packed.len() as u32).to_be_bytes());
        out.extend_from_slice(&packed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> Vec<u8> {
        (0..20_000_u32).flat_map(|i| format!("claim {} of {}; ", i * i % 7919, i).into_bytes()).collect()
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        for plain in [Vec::new(), vec![7; 100], text()] {
            for codec in 0..=4 {
                let (mut packed, mut again) = (Vec::new(), b"kept".to_vec());
                pack(codec, &plain, &mut packed).unwrap();
                unpack(codec, &packed, &mut again).unwrap();
                assert_eq!(again[4..], plain, "codec {codec}");
                assert!(codec == 0 || plain.len() < 1000 || packed.len() < plain.len() / 2, "codec {codec}");
            }
        }
        assert_eq!(pack(5, b"", &mut Vec::new()), Err(BatchError::Codec(5)));
        assert_eq!(unpack(7, b"", &mut Vec::new()), Err(BatchError::Codec(7)));
    }

    #[test]
    fn snappy_without_javas_header_is_understood() {
        let plain = text();
        let packed = snap::raw::Encoder::new().compress_vec(&plain).unwrap();
        let mut out = Vec::new();
        unpack(2, &packed, &mut out).unwrap();
        assert_eq!(out, plain);
    }

    #[test]
    fn damaged_bytes_are_errors_and_bombs_do_not_go_off() {
        for codec in 1..=4 {
            let mut packed = Vec::new();
            pack(codec, &text()[..3000], &mut packed).unwrap();
            for at in 0..packed.len() {
                let mut bad = packed.clone();
                bad[at] ^= 0x55;
                let _ = unpack(codec, &bad, &mut Vec::new());
                let _ = unpack(codec, &packed[..at], &mut Vec::new());
            }
        }
        // Snappy's length comes first and may lie.
        let lie = [0xff, 0xff, 0xff, 0x7f, 0, 0];
        assert_eq!(unpack(2, &lie, &mut Vec::new()), Err(BatchError::Packed(2)));
    }
}
