//! Subscriptions by regular expression, in RE2's syntax: a topic's whole name has to match.

use regex::{Regex, RegexBuilder};

/// The most memory that one compiled expression takes, in bytes.
const SIZE_LIMIT: usize = 1 << 20;

/// Compiles an expression; the error is a sentence for the client.
pub(super) fn compile(pattern: &str) -> Result<Regex, String> {
    let whole = |p: &str| RegexBuilder::new(p).size_limit(SIZE_LIMIT).build();
    let pattern = unquote(pattern);
    // On its own first: `a)(b` is none, though it would be one with brackets around it.
    whole(&pattern)
        .and_then(|_| whole(&format!("^(?:{pattern})$")))
        .map_err(|e| e.to_string().lines().last().unwrap_or_default().trim().to_owned())
}

/// RE2's `\Q…\E`, which the compiler does not know: what is between them, letter by letter.
fn unquote(pattern: &str) -> String {
    let (mut out, mut rest) = (String::new(), pattern);
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        if let Some(quoted) = escape.strip_prefix("\\Q") {
            let (literal, after) = quoted.split_once("\\E").unwrap_or((quoted, ""));
            out.push_str(&regex::escape(literal));
            rest = after;
        } else {
            let end = escape.char_indices().nth(2).map_or(escape.len(), |(i, _)| i);
            out.push_str(&escape[..end]);
            rest = &escape[end..];
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::compile;

    #[test]
    fn the_whole_name_has_to_match() {
        let matches = |pattern: &str, name: &str| compile(pattern).unwrap().is_match(name);
        assert!(matches("topic-.*", "topic-1") && !matches("topic-.*", "a-topic-1"));
        assert!(!matches("a|b", "ab") && matches("a|b", "b"));
        assert!(matches(r"\Qa.b\E.", "a.bc") && !matches(r"\Qa.b\E", "axb"));
        assert!(matches(r"t\d+", "t12") && matches("(?i)T", "t"));
        assert!(!matches("", "t"));
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for wrong in ["[", "a)(b", "(?=a)", r"\1", "a{1000}{1000}{1000}"] {
            assert!(compile(wrong).is_err(), "{wrong}");
        }
    }
}
