//! Who is at the other end: TLS, SASL, and the users that may come in.

pub(crate) mod acl;
pub(crate) mod sasl;
pub(crate) mod scram;
pub(crate) mod tls;
pub(crate) mod users;

/// What a listener speaks, under Kafka's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protocol {
    /// Whether connections are encrypted (`SSL`, `SASL_SSL`).
    pub tls: bool,
    /// Whether clients have to say who they are (`SASL_PLAINTEXT`, `SASL_SSL`).
    pub sasl: bool,
}

impl Protocol {
    /// The protocol of a name.
    pub(crate) fn parse(name: &str) -> Option<Protocol> {
        let (tls, sasl) = match name {
            "PLAINTEXT" => (false, false),
            "SSL" => (true, false),
            "SASL_PLAINTEXT" => (false, true),
            "SASL_SSL" => (true, true),
            _ => return None,
        };
        Some(Protocol { tls, sasl })
    }
}

/// The user of a connection that did not have to say who it is.
pub(crate) const ANONYMOUS: &str = "User:ANONYMOUS";
