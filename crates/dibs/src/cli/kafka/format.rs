//! Keys and values: bytes in Kafka, text on the terminal.

use clap::ValueEnum;
use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};
use serde_json::Value;

/// How the bytes of a key or value are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// UTF-8, as it is
    #[default]
    String,
    /// Java's Long: 8 bytes, big-endian
    Long,
    /// Java's Integer: 4 bytes, big-endian
    Int,
    /// Java's Short: 2 bytes, big-endian
    Short,
    /// Java's Double: 8 bytes, big-endian
    Double,
    /// JSON, checked
    Json,
    /// Hexadecimal digits
    Hex,
    /// Base64
    Base64,
}

impl Format {
    /// The format of a Java serializer or deserializer class, such as `…LongDeserializer`.
    pub(super) fn of_class(class: &str) -> Option<Format> {
        let name = class.rsplit('.').next()?;
        let name = name.strip_suffix("Deserializer").or_else(|| name.strip_suffix("Serializer"))?;
        Some(match name {
            "String" => Format::String,
            "Long" => Format::Long,
            "Integer" => Format::Int,
            "Short" => Format::Short,
            "Double" => Format::Double,
            "ByteArray" | "Bytes" | "ByteBuffer" => Format::String,
            _ => return None,
        })
    }

    /// The bytes that a text stands for.
    pub(super) fn encode(self, text: &[u8]) -> Result<Vec<u8>, String> {
        fn number<T: std::str::FromStr>(text: &[u8], what: &str) -> Result<T, String> {
            let text = String::from_utf8_lossy(text);
            text.trim().parse().map_err(|_| format!("{text:?} is not {what}"))
        }
        let shown = || String::from_utf8_lossy(text).into_owned();
        Ok(match self {
            Format::String => text.to_vec(),
            Format::Long => number::<i64>(text, "a long")?.to_be_bytes().to_vec(),
            Format::Int => number::<i32>(text, "an int")?.to_be_bytes().to_vec(),
            Format::Short => number::<i16>(text, "a short")?.to_be_bytes().to_vec(),
            Format::Double => number::<f64>(text, "a double")?.to_be_bytes().to_vec(),
            Format::Json => {
                let checked: Result<Value, _> = serde_json::from_slice(text);
                checked.map_err(|e| format!("{:?} is not JSON: {e}", shown()))?;
                text.to_vec()
            }
            Format::Hex => HEXLOWER_PERMISSIVE
                .decode(text.trim_ascii())
                .map_err(|_| format!("{:?} is not hexadecimal", shown()))?,
            Format::Base64 => {
                BASE64.decode(text.trim_ascii()).map_err(|_| format!("{:?} is not base64", shown()))?
            }
        })
    }

    /// The text of bytes, for a terminal or a file. Text is passed on as it is, even if it is not UTF-8.
    pub(super) fn decode(self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        match self {
            Format::String => out.extend_from_slice(bytes),
            Format::Json => {
                self.value(bytes)?;
                out.extend_from_slice(bytes);
            }
            Format::Hex => out.extend_from_slice(HEXLOWER.encode(bytes).as_bytes()),
            Format::Base64 => out.extend_from_slice(BASE64.encode(bytes).as_bytes()),
            _ => out.extend_from_slice(self.value(bytes)?.to_string().as_bytes()),
        }
        Ok(())
    }

    /// The bytes as JSON. Text that is not UTF-8 gets replacement characters.
    pub(super) fn value(self, bytes: &[u8]) -> Result<Value, String> {
        fn exactly<const N: usize>(bytes: &[u8], what: &str) -> Result<[u8; N], String> {
            bytes.try_into().map_err(|_| format!("{} bytes are not {what} of {N}", bytes.len()))
        }
        Ok(match self {
            Format::String => String::from_utf8_lossy(bytes).into(),
            Format::Long => i64::from_be_bytes(exactly(bytes, "a long")?).into(),
            Format::Int => i32::from_be_bytes(exactly(bytes, "an int")?).into(),
            Format::Short => i16::from_be_bytes(exactly(bytes, "a short")?).into(),
            Format::Double => f64::from_be_bytes(exactly(bytes, "a double")?).into(),
            Format::Json => serde_json::from_slice(bytes).map_err(|e| format!("not JSON: {e}"))?,
            Format::Hex => HEXLOWER.encode(bytes).into(),
            Format::Base64 => BASE64.encode(bytes).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (format, text, bytes) in [
            (Format::Long, "-2", &[255, 255, 255, 255, 255, 255, 255, 254][..]),
            (Format::Int, "258", &[0, 0, 1, 2]),
            (Format::Short, "-1", &[255, 255]),
            (Format::Double, "1.5", &[63, 248, 0, 0, 0, 0, 0, 0]),
            (Format::Json, r#"{"b": 1, "a": 2}"#, br#"{"b": 1, "a": 2}"#),
            (Format::Hex, "00ff", &[0, 255]),
            (Format::Base64, "AP8=", &[0, 255]),
            (Format::String, "ü", "ü".as_bytes()),
        ] {
            assert_eq!(format.encode(text.as_bytes()).unwrap(), bytes, "{format:?}");
            let mut out = Vec::new();
            format.decode(bytes, &mut out).unwrap();
            assert_eq!(out, text.as_bytes(), "{format:?}");
        }
        assert_eq!(Format::Long.value(&[127; 8]).unwrap().to_string(), "9187201950435737471");
        assert_eq!(Format::Hex.encode(b"FF").unwrap(), [255]);
    }

    #[test]
    fn what_does_not_fit_is_said() {
        for (format, text) in [
            (Format::Long, "x"),
            (Format::Int, "3000000000"),
            (Format::Short, "70000"),
            (Format::Json, "{"),
            (Format::Hex, "0"),
            (Format::Base64, "?"),
        ] {
            assert!(format.encode(text.as_bytes()).is_err(), "{format:?}");
        }
        assert!(Format::Long.value(&[1, 2, 3]).unwrap_err().contains("3 bytes are not a long of 8"));
        assert!(Format::Json.decode(b"{", &mut Vec::new()).is_err());
    }

    #[test]
    fn javas_classes_are_known() {
        let class = "org.apache.kafka.common.serialization.LongDeserializer";
        assert_eq!(Format::of_class(class), Some(Format::Long));
        assert_eq!(Format::of_class("IntegerSerializer"), Some(Format::Int));
        assert_eq!(Format::of_class("com.example.AvroDeserializer"), None);
    }
}
