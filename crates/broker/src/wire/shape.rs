//! Checks that a request is all there before it is decoded.
//!
//! The decoders of `kafka-protocol` make room for as many elements as an array says it has. So a request is
//! walked first, after Kafka's own schemas (`requests.txt`): nothing is allocated, and a request that passes has
//! every element that it announces. What it can cost is then bound to what was sent.

use std::sync::LazyLock;

use super::primitives::varint;

/// The most elements of arrays in one request, all counted. An element takes some 100 bytes once decoded, and
/// may be sent in one: without a limit, a frame of 100 MiB could take 10 GiB.
pub(crate) const MAX_ELEMENTS: usize = 1 << 20;

/// A request that is not of the shape its version has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a malformed request: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Versions from..=to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Versions(pub(crate) i16, pub(crate) i16);

impl Versions {
    const NONE: Versions = Versions(1, 0);

    pub(crate) fn has(self, version: i16) -> bool {
        self.0 <= version && version <= self.1
    }

    fn parse(text: &str) -> Versions {
        let number = |s: &str| s.parse().unwrap_or(i16::MAX);
        match text.split_once('-') {
            _ if text == "none" => Versions::NONE,
            Some((from, to)) => Versions(number(from), number(to)),
            None => match text.strip_suffix('+') {
                Some(from) => Versions(number(from), i16::MAX),
                None => Versions(number(text), number(text)),
            },
        }
    }
}

#[derive(Debug)]
enum Kind {
    /// So many bytes.
    Fixed(usize),
    Text,
    Bytes,
    Struct(Vec<Field>),
}

#[derive(Debug)]
struct Field {
    kind: Kind,
    array: bool,
    versions: Versions,
    nullable: Versions,
    tag: Option<(u32, Versions)>,
}

#[derive(Debug)]
pub(crate) struct Shape {
    key: i16,
    pub(crate) versions: Versions,
    flexible: Versions,
    fields: Vec<Field>,
}

static SHAPES: LazyLock<Vec<Shape>> = LazyLock::new(|| parse(include_str!("requests.txt")));

/// The shape of an API's requests; `None` if the API is not known here.
pub(crate) fn shape(key: i16) -> Option<&'static Shape> {
    SHAPES.iter().find(|shape| shape.key == key)
}

impl Shape {
    /// Whether a version's headers and fields may carry tags.
    pub(crate) fn is_flexible(&self, version: i16) -> bool {
        self.flexible.has(version)
    }

    /// Checks a request's body, which must end with it.
    pub(crate) fn check(&self, body: &[u8], version: i16) -> Result<(), Malformed> {
        let flexible = self.is_flexible(version);
        let mut walk = Walk { rest: body, version, flexible, elements: 0 };
        walk.fields(&self.fields)?;
        Ok(())
    }
}

struct Walk<'a> {
    rest: &'a [u8],
    version: i16,
    flexible: bool,
    elements: usize,
}

impl Walk<'_> {
    fn fields(&mut self, fields: &[Field]) -> Result<(), Malformed> {
        let version = self.version;
        let tagged = |f: &Field| f.tag.is_some_and(|(_, versions)| versions.has(version));
        for field in fields.iter().filter(|f| f.versions.has(version) && !tagged(f)) {
            self.value(field)?;
        }
        if self.flexible { self.tags(fields) } else { Ok(()) }
    }

    fn tags(&mut self, fields: &[Field]) -> Result<(), Malformed> {
        let count = self.varint()? as usize;
        self.count(count)?;
        for _ in 0..count {
            let tag = self.varint()?;
            let size = self.varint()? as usize;
            let known = fields.iter().find(|f| f.tag.is_some_and(|(t, v)| t == tag && v.has(self.version)));
            let after = self.rest.get(size..).ok_or(Malformed("a tag that is cut off"))?;
            match known {
                Some(field) => {
                    self.value(field)?;
                    if self.rest.len() != after.len() {
                        return Err(Malformed("a tag of another size than it says"));
                    }
                }
                None => self.rest = after,
            }
        }
        Ok(())
    }

    fn value(&mut self, field: &Field) -> Result<(), Malformed> {
        let nullable = field.nullable.has(self.version);
        if !field.array {
            return match &field.kind {
                Kind::Struct(_) if nullable && self.take(1)? == [0xff] => Ok(()),
                kind => self.one(kind, nullable),
            };
        }
        let Some(count) = self.length(true, nullable)? else { return Ok(()) };
        self.count(count)?;
        match &field.kind {
            Kind::Fixed(size) => self.take(count * size).map(drop),
            kind => (0..count).try_for_each(|_| self.one(kind, false)),
        }
    }

    fn one(&mut self, kind: &Kind, nullable: bool) -> Result<(), Malformed> {
        let length = match kind {
            Kind::Fixed(size) => Some(*size),
            Kind::Struct(fields) => return self.fields(fields),
            // Kafka's limit in every version, so that what is recorded can have lengths of 16 bits.
            Kind::Text => match self.length(false, nullable)? {
                Some(length) if length > i16::MAX as usize => {
                    return Err(Malformed("a text that is too long"));
                }
                length => length,
            },
            Kind::Bytes => self.length(true, nullable)?,
        };
        self.take(length.unwrap_or(0)).map(drop)
    }

    /// Elements cannot be more than the bytes that are left.
    fn count(&mut self, count: usize) -> Result<(), Malformed> {
        self.elements = self.elements.saturating_add(count);
        if count > self.rest.len() || self.elements > MAX_ELEMENTS {
            return Err(Malformed("more elements than bytes"));
        }
        Ok(())
    }

    /// A length before bytes, text or an array; `None` for null.
    fn length(&mut self, wide: bool, nullable: bool) -> Result<Option<usize>, Malformed> {
        let length = if self.flexible {
            i64::from(self.varint()?) - 1
        } else if wide {
            i64::from(i32::from_be_bytes(self.array()?))
        } else {
            i64::from(i16::from_be_bytes(self.array()?))
        };
        match usize::try_from(length) {
            Ok(length) => Ok(Some(length)),
            Err(_) if length == -1 && nullable => Ok(None),
            Err(_) => Err(Malformed("a negative length")),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn take(&mut self, n: usize) -> Result<&[u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(Malformed("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u32, Malformed> {
        let (value, size) = varint(self.rest).ok_or(Malformed("an integer without an end"))?;
        self.rest = &self.rest[size..];
        Ok(value)
    }
}

fn parse(text: &str) -> Vec<Shape> {
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    let mut shapes = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let words: Vec<&str> = lines[at].split_whitespace().collect();
        at += 1;
        let fields = parse_fields(&lines, &mut at, 2);
        let key = words[1].parse().unwrap_or(-1);
        let (versions, flexible) = (Versions::parse(words[3]), Versions::parse(words[5]));
        shapes.push(Shape { key, versions, flexible, fields });
    }
    shapes
}

fn parse_fields(lines: &[&str], at: &mut usize, depth: usize) -> Vec<Field> {
    let mut fields = Vec::new();
    while let Some(line) = lines.get(*at).filter(|l| l.len() - l.trim_start().len() == depth) {
        *at += 1;
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |name: &str| words.iter().position(|w| *w == name).map(|i| &words[i + 1..]);
        let kind = match words[1].trim_start_matches("[]") {
            "struct" => Kind::Struct(parse_fields(lines, at, depth + 2)),
            "string" => Kind::Text,
            "bytes" | "records" => Kind::Bytes,
            "bool" | "int8" => Kind::Fixed(1),
            "int16" | "uint16" => Kind::Fixed(2),
            "int32" => Kind::Fixed(4),
            "uuid" => Kind::Fixed(16),
            _ => Kind::Fixed(8),
        };
        fields.push(Field {
            kind,
            array: words[1].starts_with("[]"),
            versions: Versions::parse(words[2]),
            nullable: after("null").map_or(Versions::NONE, |w| Versions::parse(w[0])),
            tag: after("tag").map(|w| (w[0].parse().unwrap_or(u32::MAX), Versions::parse(w[1]))),
        });
    }
    fields
}

#[cfg(test)]
pub(crate) mod samples {
    //! Random requests that fit their shapes.

    use super::{super::primitives::put_varint, *};

    const TEXTS: &[&str] = &["t", "g", "", "m", "consumer", "range", "retention.ms", "1", "uniform", "__x"];

    /// A request of an API, in a version.
    pub(crate) fn request(rng: &mut fastrand::Rng, shape: &Shape, version: i16, bytes: &[u8]) -> Vec<u8> {
        let mut sample =
            Sample { rng, version, flexible: shape.is_flexible(version), bytes, out: Vec::new() };
        sample.fields(&shape.fields);
        sample.out
    }

    struct Sample<'a> {
        rng: &'a mut fastrand::Rng,
        version: i16,
        flexible: bool,
        bytes: &'a [u8],
        out: Vec<u8>,
    }

    impl Sample<'_> {
        fn fields(&mut self, fields: &[Field]) {
            let version = self.version;
            let is_tagged = |f: &Field| f.tag.is_some_and(|(_, v)| v.has(version));
            for field in fields.iter().filter(|f| f.versions.has(version) && !is_tagged(f)) {
                self.value(field);
            }
            if !self.flexible {
                return;
            }
            let tagged: Vec<&Field> =
                fields.iter().filter(|f| is_tagged(f)).filter(|_| self.rng.bool()).collect();
            put_varint(&mut self.out, tagged.len());
            for field in tagged {
                let before = std::mem::take(&mut self.out);
                self.value(field);
                let value = std::mem::replace(&mut self.out, before);
                put_varint(&mut self.out, field.tag.map_or(0, |t| t.0) as usize);
                put_varint(&mut self.out, value.len());
                self.out.extend(value);
            }
        }

        fn value(&mut self, field: &Field) {
            let nullable = field.nullable.has(self.version);
            let null = nullable && self.rng.u8(..4) == 0;
            if field.array {
                if null {
                    return self.length(None, true);
                }
                let count = self.rng.usize(..3);
                self.length(Some(count), true);
                return (0..count).for_each(|_| self.one(&field.kind, false));
            }
            if let Kind::Struct(_) = field.kind
                && nullable
            {
                self.out.push(if null { 0xff } else { 1 });
                if null {
                    return;
                }
            }
            self.one(&field.kind, null);
        }

        fn one(&mut self, kind: &Kind, null: bool) {
            match kind {
                Kind::Struct(fields) => self.fields(fields),
                Kind::Text | Kind::Bytes if null => self.length(None, matches!(kind, Kind::Bytes)),
                Kind::Text => {
                    let text = TEXTS[self.rng.usize(..TEXTS.len())];
                    self.length(Some(text.len()), false);
                    self.out.extend(text.as_bytes());
                }
                Kind::Bytes => {
                    self.length(Some(self.bytes.len()), true);
                    self.out.extend(self.bytes);
                }
                Kind::Fixed(size) => {
                    let small = [0, 1, 2, 5, -1, -2, 1000, 10_000][self.rng.usize(..8)];
                    let number = if self.rng.u8(..10) == 0 { self.rng.i64(..) } else { small };
                    self.out.extend(&(i128::from(number)).to_be_bytes()[16 - size..]);
                }
            }
        }

        fn length(&mut self, length: Option<usize>, wide: bool) {
            let length = length.map_or(-1, |l| l as i32);
            if self.flexible {
                put_varint(&mut self.out, (length + 1) as usize);
            } else if wide {
                self.out.extend(length.to_be_bytes());
            } else {
                self.out.extend((length as i16).to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use kafka_protocol::messages::{ApiKey, FetchRequest, MetadataRequest, fetch_request::*};
    use kafka_protocol::protocol::{Decodable, Encodable};

    #[test]
    fn shapes_know_what_the_codec_knows() {
        for shape in SHAPES.iter() {
            let key = ApiKey::try_from(shape.key).unwrap();
            let codec = key.valid_versions();
            assert_eq!((codec.min, codec.max), (shape.versions.0, shape.versions.1), "{key:?}");
            for version in codec.min..=codec.max {
                let flexible = key.request_header_version(version) >= 2;
                assert_eq!(shape.is_flexible(version), flexible, "{key:?} {version}");
            }
        }
        assert_eq!(SHAPES.len(), 53);
    }

    #[test]
    fn an_array_that_announces_more_than_it_has_is_refused() {
        // Metadata 1: two thousand million topics, and four bytes of them.
        let body = [0x7f, 0xff, 0xff, 0xff, 0, 1, b'a', 0];
        assert!(shape(3).unwrap().check(&body, 1).is_err());
        // Metadata 9, the same in a varint.
        let body = [0xff, 0xff, 0xff, 0xff, 0x0f, 2, b'a', 0];
        assert!(shape(3).unwrap().check(&body, 9).is_err());
    }

    #[test]
    fn text_is_no_longer_than_kafka_has_it() {
        // FindCoordinator 3: a key of compact text, its type, no tags.
        let request = |length: usize| {
            let mut body =
                vec![(length + 1) as u8 | 0x80, ((length + 1) >> 7) as u8 | 0x80, ((length + 1) >> 14) as u8];
            body.extend(vec![b'k'; length]);
            body.extend([0, 0]);
            shape(10).unwrap().check(&body, 3)
        };
        assert_eq!(request(32_767), Ok(()));
        assert_eq!(request(32_768), Err(Malformed("a text that is too long")));
    }

    #[test]
    fn whole_requests_pass_and_cut_ones_do_not() {
        for version in 4..=18 {
            let partition = FetchPartition::default().with_partition(3).with_fetch_offset(9);
            let topic = FetchTopic::default().with_partitions(vec![partition.clone(), partition]);
            let request = FetchRequest::default().with_topics(vec![topic.clone(), topic]);
            let mut bytes = BytesMut::new();
            request.encode_for_test(&mut bytes, version);
            let shape = shape(1).unwrap();
            assert_eq!(shape.check(&bytes, version), Ok(()), "version {version}");
            for cut in 0..bytes.len() {
                assert!(shape.check(&bytes[..cut], version).is_err(), "version {version} cut to {cut}");
            }
            FetchRequest::decode(&mut bytes.freeze(), version).unwrap();
        }
        let mut none = BytesMut::new();
        MetadataRequest::default().with_topics(None).encode_for_test(&mut none, 9);
        assert_eq!(shape(3).unwrap().check(&none, 9), Ok(()));
    }

    trait EncodeForTest {
        fn encode_for_test(&self, bytes: &mut BytesMut, version: i16);
    }
    impl<T: Encodable> EncodeForTest for T {
        fn encode_for_test(&self, bytes: &mut BytesMut, version: i16) {
            self.encode(bytes, version).unwrap();
        }
    }
}
