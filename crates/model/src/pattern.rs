//! The shape of a generated coupon code: literal text in which every `#` stands for one secret symbol.

use alloc::{boxed::Box, string::String};
use core::fmt;

use crate::limits;

/// The 32 symbols of a generated code: digits and capital letters without I, L, O and U (Crockford's
/// base 32), so that a code read over the telephone or from a print is unambiguous.
pub const SYMBOLS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Bits that one symbol carries.
pub const BITS_PER_SYMBOL: u32 = 5;

/// Whoever guesses a code must on average try this many before one belongs to somebody.
pub const GUESSES_PER_CODE: u64 = 1 << 20;

/// A code pattern such as `SUMMER-####-####`: 1 to 64 characters, of which at most 12 are `#`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern(Box<str>);

/// Why a text is not a code pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Too long, or empty.
    #[error("a code pattern is 1 to {} characters long", limits::CODE_BYTES)]
    Length,
    /// Something other than `#` and literal text.
    #[error("a code pattern has ASCII capital letters, digits, '-', '_' and '#', not {0:?}")]
    Character(char),
    /// Fewer than one or more than twelve `#`.
    #[error("a code pattern has 1 to 12 '#', this one has {0}")]
    Symbols(usize),
    /// The codes of this many winners could be guessed.
    #[error(
        "{symbols} '#' are too few for a stock of {stock}: one guess in fewer than a million would hit a \
         coupon; use at least {needed}"
    )]
    Guessable {
        /// How many `#` there are.
        symbols: usize,
        /// How many coupons there are.
        stock: u64,
        /// How many `#` there should be.
        needed: u32,
    },
}

impl Pattern {
    /// Takes the text if it is a pattern.
    pub fn new(text: &str) -> Result<Pattern, PatternError> {
        if text.is_empty() || text.len() > limits::CODE_BYTES {
            return Err(PatternError::Length);
        }
        let allowed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '#');
        if let Some(bad) = text.chars().find(|c| !allowed(*c)) {
            return Err(PatternError::Character(bad));
        }
        let pattern = Pattern(text.into());
        match pattern.symbols() {
            1..=12 => Ok(pattern),
            n => Err(PatternError::Symbols(n)),
        }
    }

    /// Refuses a pattern whose codes could be guessed when `stock` of them are given out.
    pub fn check_stock(&self, stock: u64) -> Result<(), PatternError> {
        let bits = (stock.saturating_mul(GUESSES_PER_CODE)).next_power_of_two().trailing_zeros();
        if bits <= self.bits() {
            return Ok(());
        }
        let needed = bits.div_ceil(BITS_PER_SYMBOL);
        Err(PatternError::Guessable { symbols: self.symbols(), stock, needed })
    }

    /// How many `#` the pattern has.
    pub fn symbols(&self) -> usize {
        self.0.bytes().filter(|b| *b == b'#').count()
    }

    /// How many secret bits a code has: at most 60.
    pub fn bits(&self) -> u32 {
        self.symbols() as u32 * BITS_PER_SYMBOL
    }

    /// Writes the code whose secret part is `value`, most significant symbol first.
    pub fn fill(&self, value: u64, into: &mut String) {
        let mut left = self.bits();
        for c in self.0.chars() {
            if c == '#' {
                left -= BITS_PER_SYMBOL;
                into.push(char::from(SYMBOLS[(value >> left) as usize & 31]));
            } else {
                into.push(c);
            }
        }
    }

    /// The secret part of a code of this pattern, if the text is one.
    pub fn parse(&self, code: &str) -> Option<u64> {
        if code.len() != self.0.len() {
            return None;
        }
        let mut value = 0u64;
        for (p, c) in self.0.bytes().zip(code.bytes()) {
            if p == b'#' {
                let symbol = SYMBOLS.iter().position(|s| *s == c.to_ascii_uppercase())?;
                value = value << BITS_PER_SYMBOL | symbol as u64;
            } else if p != c {
                return None;
            }
        }
        Some(value)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Pattern {
    /// 60 secret bits, in three groups of four symbols.
    fn default() -> Self {
        Pattern("####-####-####".into())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_and_parses() {
        let pattern = Pattern::new("SUMMER-####-####").unwrap();
        assert_eq!(pattern.bits(), 40);
        let mut code = String::new();
        pattern.fill(0x12_3456_789a, &mut code);
        assert_eq!(code, "SUMMER-28T5-CY4T");
        assert_eq!(pattern.parse(&code), Some(0x12_3456_789a));
        assert_eq!(pattern.parse("SUMMER-28T5-CY4U"), None);
        assert_eq!(pattern.parse("WINTER-28T5-CY4T"), None);
    }

    #[test]
    fn refuses_what_can_be_guessed() {
        assert!(Pattern::new("####").unwrap().check_stock(1).is_ok());
        assert_eq!(
            Pattern::new("####").unwrap().check_stock(1_000),
            Err(PatternError::Guessable { symbols: 4, stock: 1_000, needed: 6 })
        );
        assert!(Pattern::default().check_stock(limits::STOCK).is_ok());
        assert_eq!(Pattern::new("SUMMER"), Err(PatternError::Symbols(0)));
        assert_eq!(Pattern::new("a-####"), Err(PatternError::Character('a')));
    }
}
