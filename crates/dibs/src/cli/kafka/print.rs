//! Records as text: Kafka's default formatter, or JSON.

use std::io::{self, Write};

use dibs_client::{
    ClientError, Properties, TopicPartition,
    batch::{Batch, Record},
};
use serde_json::{Value, json};

use super::format::Format;

/// What of a record is printed, and how.
pub(super) struct Printer {
    timestamp: bool,
    partition: bool,
    offset: bool,
    epoch: bool,
    headers: bool,
    key: bool,
    value: bool,
    key_separator: String,
    line_separator: String,
    headers_separator: String,
    null: String,
    formats: (Format, Format),
    json: bool,
    line: Vec<u8>,
}

impl Printer {
    /// Takes the formatter's settings out of `properties`.
    pub(super) fn new(
        properties: &mut Properties,
        formats: (Format, Format),
        json: bool,
    ) -> Result<Printer, ClientError> {
        let mut flag =
            |name: &str, default| properties.take_as::<bool>(name).map(|value| value.unwrap_or(default));
        let (timestamp, partition, offset) =
            (flag("print.timestamp", false)?, flag("print.partition", false)?, flag("print.offset", false)?);
        let (epoch, headers) = (flag("print.epoch", false)?, flag("print.headers", false)?);
        let (key, value) = (flag("print.key", false)?, flag("print.value", true)?);
        let mut text =
            |name: &str, default: &str| properties.take_raw(name).unwrap_or_else(|| default.to_owned());
        Ok(Printer {
            timestamp,
            partition,
            offset,
            epoch,
            headers,
            key,
            value,
            key_separator: text("key.separator", "\t"),
            line_separator: text("line.separator", "\n"),
            headers_separator: text("headers.separator", ","),
            null: text("null.literal", "null"),
            formats,
            json,
            line: Vec::new(),
        })
    }

    /// Prints one; the outer error says what does not fit its format.
    pub(super) fn print(
        &mut self,
        tp: &TopicPartition,
        batch: &Batch<'_>,
        record: &Record<'_>,
        out: &mut impl Write,
    ) -> Result<io::Result<()>, String> {
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        let made = if self.json {
            self.json(tp, batch, record, &mut line)
        } else {
            self.text(tp, batch, record, &mut line)
        };
        let written = made.map(|()| out.write_all(&line));
        self.line = line;
        written
    }

    fn text(
        &self,
        tp: &TopicPartition,
        batch: &Batch<'_>,
        record: &Record<'_>,
        line: &mut Vec<u8>,
    ) -> Result<(), String> {
        let separator = self.key_separator.as_bytes();
        let mut first = true;
        let mut begin = |line: &mut Vec<u8>| {
            if !std::mem::take(&mut first) {
                line.extend_from_slice(separator);
            }
        };
        let header = &batch.header;
        let facts = [
            (self.timestamp, time_type(batch).to_owned(), record.timestamp),
            (self.partition, "Partition".to_owned(), i64::from(tp.partition)),
            (self.offset, "Offset".to_owned(), record.offset as i64),
            (self.epoch, "Epoch".to_owned(), i64::from(header.partition_leader_epoch)),
        ];
        for (_, name, fact) in facts.iter().filter(|(wanted, ..)| *wanted) {
            begin(line);
            line.extend_from_slice(format!("{name}:{fact}").as_bytes());
        }
        if self.headers {
            begin(line);
            self.put_headers(record, line);
        }
        if self.key {
            begin(line);
            self.put(self.formats.0, record.key, line).map_err(|e| format!("key: {e}"))?;
        }
        if self.value {
            begin(line);
            self.put(self.formats.1, record.value, line).map_err(|e| format!("value: {e}"))?;
        }
        line.extend_from_slice(self.line_separator.as_bytes());
        Ok(())
    }

    fn put_headers(&self, record: &Record<'_>, line: &mut Vec<u8>) {
        if record.headers.is_empty() {
            line.extend_from_slice(b"NO_HEADERS");
        }
        for (i, header) in record.headers.iter().enumerate() {
            if i > 0 {
                line.extend_from_slice(self.headers_separator.as_bytes());
            }
            line.extend_from_slice(header.name.as_bytes());
            line.push(b':');
            line.extend_from_slice(header.value.unwrap_or(self.null.as_bytes()));
        }
    }

    fn put(&self, format: Format, bytes: Option<&[u8]>, line: &mut Vec<u8>) -> Result<(), String> {
        match bytes {
            Some(bytes) => format.decode(bytes, line),
            None => {
                line.extend_from_slice(self.null.as_bytes());
                Ok(())
            }
        }
    }

    fn json(
        &self,
        tp: &TopicPartition,
        batch: &Batch<'_>,
        record: &Record<'_>,
        line: &mut Vec<u8>,
    ) -> Result<(), String> {
        let value = |format: Format, bytes: Option<&[u8]>| bytes.map_or(Ok(Value::Null), |b| format.value(b));
        let headers: Vec<Value> = record
            .headers
            .iter()
            .map(|h| json!([h.name, h.value.map(|v| String::from_utf8_lossy(v).into_owned())]))
            .collect();
        let shown = json!({
            "topic": tp.topic,
            "partition": tp.partition,
            "offset": record.offset,
            "timestamp": record.timestamp,
            "timestamp_type": time_type(batch),
            "headers": headers,
            "key": value(self.formats.0, record.key).map_err(|e| format!("key: {e}"))?,
            "value": value(self.formats.1, record.value).map_err(|e| format!("value: {e}"))?,
        });
        line.extend_from_slice(shown.to_string().as_bytes());
        line.push(b'\n');
        Ok(())
    }
}

fn time_type(batch: &Batch<'_>) -> &'static str {
    if batch.header.is_log_append_time() { "LogAppendTime" } else { "CreateTime" }
}
