//! Lines of standard input, read on a thread of their own and parsed as Kafka's console producer does.

use std::io::{BufRead, Read};

use dibs_client::Properties;
use tokio::sync::mpsc;

use super::format::Format;

/// The most lines that are read ahead, in chunks of as many.
const CHUNK: usize = 512;
const CHUNKS_AHEAD: usize = 8;

/// Reads lines until the end; dropping the receiver ends it at its next line.
pub(super) fn read(input: impl Read + Send + 'static) -> mpsc::Receiver<std::io::Result<Vec<Vec<u8>>>> {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    std::thread::spawn(move || {
        let mut input = std::io::BufReader::with_capacity(1 << 16, input);
        let mut chunk = Vec::new();
        loop {
            let mut line = Vec::new();
            match input.read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {
                    if line.last() == Some(&b'\n') {
                        line.pop();
                        if line.last() == Some(&b'\r') {
                            line.pop();
                        }
                    }
                    chunk.push(line);
                }
                Err(error) => {
                    let _ = sender.blocking_send(Err(error));
                    return;
                }
            }
            // What is typed goes out line by line; what is piped, in chunks.
            let more = input.buffer().contains(&b'\n');
            if (!more || chunk.len() == CHUNK)
                && sender.blocking_send(Ok(std::mem::take(&mut chunk))).is_err()
            {
                return;
            }
        }
        if !chunk.is_empty() {
            let _ = sender.blocking_send(Ok(chunk));
        }
    });
    receiver
}

/// How a line becomes a record: Kafka's `--property` names.
#[derive(Debug)]
pub(super) struct LineParser {
    parse_key: bool,
    key_separator: Vec<u8>,
    parse_headers: bool,
    headers_delimiter: Vec<u8>,
    headers_separator: Vec<u8>,
    headers_key_separator: Vec<u8>,
    ignore_error: bool,
    null_marker: Option<Vec<u8>>,
    pub(super) key_format: Format,
    pub(super) value_format: Format,
}

/// Names and values of headers.
type TypedHeaders = Vec<(String, Option<Vec<u8>>)>;

/// A record as it was typed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Typed {
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: TypedHeaders,
}

impl LineParser {
    /// Takes the parser's settings out of `properties`.
    pub(super) fn new(properties: &mut Properties, formats: (Format, Format)) -> Result<LineParser, String> {
        let mut flag = |name: &str| {
            let value = properties.take_as::<bool>(name).map_err(|e| e.to_string());
            value.map(Option::unwrap_or_default)
        };
        let (parse_key, parse_headers, ignore_error) =
            (flag("parse.key")?, flag("parse.headers")?, flag("ignore.error")?);
        let null_marker = properties.take_raw("null.marker").map(String::into_bytes);
        let mut text = |name: &str, default: &str| match properties.take_raw(name) {
            Some(text) if text.is_empty() => Err(format!("{name} must not be empty")),
            text => Ok(text.unwrap_or_else(|| default.to_owned()).into_bytes()),
        };
        Ok(LineParser {
            parse_key,
            parse_headers,
            ignore_error,
            null_marker,
            key_separator: text("key.separator", "\t")?,
            headers_delimiter: text("headers.delimiter", "\t")?,
            headers_separator: text("headers.separator", ",")?,
            headers_key_separator: text("headers.key.separator", ":")?,
            key_format: formats.0,
            value_format: formats.1,
        })
    }

    /// `[headers DELIMITER] [key SEPARATOR] value`, as far as they are asked for.
    pub(super) fn parse(&self, line: &[u8]) -> Result<Typed, String> {
        let mut typed = Typed::default();
        let mut rest = line;
        if self.parse_headers
            && let Some(headers) = self.cut(&mut rest, &self.headers_delimiter, "headers.delimiter")?
        {
            typed.headers = self.headers(headers)?;
        }
        if self.parse_key
            && let Some(key) = self.cut(&mut rest, &self.key_separator, "key.separator")?
        {
            typed.key = self.encode(self.key_format, key).map_err(|e| format!("key: {e}"))?;
        }
        typed.value = self.encode(self.value_format, rest).map_err(|e| format!("value: {e}"))?;
        Ok(typed)
    }

    /// What stands before a separator; without one, an error or (with `ignore.error`) nothing.
    fn cut<'a>(&self, rest: &mut &'a [u8], separator: &[u8], name: &str) -> Result<Option<&'a [u8]>, String> {
        match find(rest, separator) {
            Some(at) => {
                let part = &rest[..at];
                *rest = &rest[at + separator.len()..];
                Ok(Some(part))
            }
            None if self.ignore_error => Ok(None),
            None => Err(format!(
                "there is no {name} ({:?}) in {:?}",
                String::from_utf8_lossy(separator),
                String::from_utf8_lossy(rest)
            )),
        }
    }

    fn headers(&self, text: &[u8]) -> Result<TypedHeaders, String> {
        if self.is_null(text) {
            return Ok(Vec::new());
        }
        let mut headers = Vec::new();
        let mut rest = Some(text);
        while let Some(text) = rest {
            let (one, after) = match find(text, &self.headers_separator) {
                Some(at) => (&text[..at], Some(&text[at + self.headers_separator.len()..])),
                None => (text, None),
            };
            rest = after;
            let (name, value) = match find(one, &self.headers_key_separator) {
                Some(at) => {
                    let value = &one[at + self.headers_key_separator.len()..];
                    (&one[..at], (!self.is_null(value)).then(|| value.to_vec()))
                }
                None if self.ignore_error => (one, None),
                None => {
                    return Err(format!(
                        "there is no headers.key.separator ({:?}) in the header {:?}",
                        String::from_utf8_lossy(&self.headers_key_separator),
                        String::from_utf8_lossy(one)
                    ));
                }
            };
            headers.push((String::from_utf8_lossy(name).into_owned(), value));
        }
        Ok(headers)
    }

    fn encode(&self, format: Format, text: &[u8]) -> Result<Option<Vec<u8>>, String> {
        if self.is_null(text) { Ok(None) } else { format.encode(text).map(Some) }
    }

    fn is_null(&self, text: &[u8]) -> bool {
        self.null_marker.as_deref() == Some(text)
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parser(text: &str, formats: (Format, Format)) -> LineParser {
        LineParser::new(&mut Properties::parse(text), formats).unwrap()
    }

    const TEXT: (Format, Format) = (Format::String, Format::String);

    #[test]
    fn a_line_is_a_value_unless_more_is_asked_for() {
        let typed = parser("", TEXT).parse(b"a\tb").unwrap();
        assert_eq!(typed, Typed { value: Some(b"a\tb".to_vec()), ..Typed::default() });
    }

    #[test]
    fn keys_headers_and_nulls_are_taken_apart() {
        let parser = parser("parse.key=true\nparse.headers=true\nkey.separator==\nnull.marker=NULL", TEXT);
        let typed = parser.parse(b"h:1,i:NULL\tk=v=w").unwrap();
        assert_eq!(typed.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(typed.value.as_deref(), Some(&b"v=w"[..]));
        assert_eq!(typed.headers, [("h".to_owned(), Some(b"1".to_vec())), ("i".to_owned(), None)]);
        assert_eq!(parser.parse(b"NULL\tNULL=NULL").unwrap(), Typed::default());
        assert!(parser.parse(b"no delimiter").unwrap_err().contains("headers.delimiter"));
        assert!(parser.parse(b"h:1\tno separator").unwrap_err().contains("key.separator"));
        assert!(parser.parse(b"h\tk=v").unwrap_err().contains("headers.key.separator"));
    }

    #[test]
    fn formats_apply_to_keys_and_values() {
        let parser = parser("parse.key=true\nkey.separator=:", (Format::Long, Format::Int));
        let typed = parser.parse(b"7:8").unwrap();
        assert_eq!(typed.key, Some(vec![0, 0, 0, 0, 0, 0, 0, 7]));
        assert_eq!(typed.value, Some(vec![0, 0, 0, 8]));
        assert!(parser.parse(b"x:8").unwrap_err().starts_with("key:"));
    }

    #[test]
    fn lines_are_read_to_the_last_without_its_end() {
        let mut lines = read(&b"a\r\nb\n\nlast"[..]);
        let mut all = Vec::new();
        while let Some(chunk) = lines.blocking_recv() {
            all.extend(chunk.unwrap());
        }
        assert_eq!(all, [&b"a"[..], b"b", b"", b"last"]);
    }
}
