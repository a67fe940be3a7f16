//! Types of settings and what values they take.

/// What values a setting takes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Type {
    Bool,
    /// At least the first, at most the second.
    Int(i64, i64),
    Long(i64, i64),
    Double,
    Text,
    /// A secret: shown to nobody.
    Password,
    List,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// Some of these, separated by commas.
    SomeOf(&'static [&'static str]),
}

impl Type {
    /// Its number in `DescribeConfigs` responses.
    pub(crate) fn number(self) -> i8 {
        match self {
            Type::Bool => 1,
            Type::Text | Type::OneOf(_) => 2,
            Type::Int(..) => 3,
            Type::Long(..) => 5,
            Type::Double => 6,
            Type::List | Type::SomeOf(_) => 7,
            Type::Password => 9,
        }
    }

    /// Whether its values are lists, which can be appended to.
    pub(crate) fn is_list(self) -> bool {
        matches!(self, Type::List | Type::SomeOf(_))
    }
}

/// Checks a value; the error is Kafka's sentence.
pub(crate) fn check(name: &str, of: Type, value: &str) -> Result<(), String> {
    let wrong = |what: String| Err(format!("Invalid value {value} for configuration {name}: {what}"));
    let value_ = value.trim();
    match of {
        Type::Bool if !["true", "false"].contains(&value_.to_ascii_lowercase().as_str()) => {
            wrong("Expected value to be either true or false".into())
        }
        Type::Int(min, max) | Type::Long(min, max) => match value_.parse::<i64>() {
            Ok(n) if n < min => wrong(format!("Value must be at least {min}")),
            Ok(n) if n > max => wrong(format!("Value must be no more than {max}")),
            Ok(_) => Ok(()),
            Err(_) => wrong(
                "Not a number of type INT"
                    .replace("INT", if matches!(of, Type::Int(..)) { "INT" } else { "LONG" }),
            ),
        },
        Type::Double if value_.parse::<f64>().is_err() => wrong("Not a number of type DOUBLE".into()),
        Type::OneOf(some) if !some.contains(&value_) => {
            wrong(format!("String must be one of: {}", some.join(", ")))
        }
        Type::SomeOf(some) => {
            match value_.split(',').map(str::trim).find(|v| !v.is_empty() && !some.contains(v)) {
                Some(_) => wrong(format!("String must be one of: {}", some.join(", "))),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}
