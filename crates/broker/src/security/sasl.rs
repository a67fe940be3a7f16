//! SASL on one connection, as a pure state: handshake, tokens, and who it turned out to be (KIP-43, KIP-152).

use super::{
    ANONYMOUS,
    scram::{Challenge, First, Scram},
    users::Users,
};

/// The mechanisms that Kafka's clients speak and this broker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mechanism {
    /// RFC 4616.
    Plain,
    Scram(Scram),
}

impl Mechanism {
    pub(crate) const ALL: [Mechanism; 3] =
        [Mechanism::Plain, Mechanism::Scram(Scram::Sha256), Mechanism::Scram(Scram::Sha512)];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::Scram(scram) => scram.name(),
        }
    }

    pub(crate) fn named(name: &str) -> Option<Mechanism> {
        Mechanism::ALL.into_iter().find(|m| m.name() == name)
    }
}

/// How far a connection is in saying who it is.
#[derive(Debug)]
pub(crate) enum Auth {
    /// It has not begun.
    None,
    /// A mechanism is agreed on. `raw`: tokens come without a request around them (SaslHandshake version 0).
    Begun { mechanism: Mechanism, raw: bool },
    /// SCRAM's first half is done.
    Challenged { challenge: Box<Challenge>, raw: bool },
    /// It is this principal, such as `User:kim`.
    Done(String),
    /// It could not say. Nothing more is answered.
    Failed,
}

/// What the client is told when it is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) &'static str);

const CREDENTIALS: Refused = Refused("Authentication failed: Invalid username or password");
const TOKEN: Refused = Refused("Authentication failed: the token is not what the mechanism expects");

impl Auth {
    /// Of a connection on a listener without SASL: a principal that TLS has found, or nobody in particular.
    pub(crate) fn open(principal: Option<String>) -> Auth {
        Auth::Done(principal.unwrap_or_else(|| ANONYMOUS.to_owned()))
    }

    /// Who it is.
    pub(crate) fn principal(&self) -> &str {
        match self {
            Auth::Done(principal) => principal,
            Auth::None | Auth::Begun { .. } | Auth::Challenged { .. } | Auth::Failed => ANONYMOUS,
        }
    }

    /// Whether the next frame is a token and not a request.
    pub(crate) fn takes_raw(&self) -> bool {
        matches!(self, Auth::Begun { raw: true, .. } | Auth::Challenged { raw: true, .. })
    }

    /// Takes a token, and returns the answer to it. `random` is fresh, printable ASCII.
    pub(crate) fn step(&mut self, token: &[u8], users: &Users, random: &str) -> Result<Vec<u8>, Refused> {
        match std::mem::replace(self, Auth::Failed) {
            Auth::Begun { mechanism: Mechanism::Plain, .. } => {
                *self = Auth::Done(format!("User:{}", plain(token, users)?));
                Ok(Vec::new())
            }
            Auth::Begun { mechanism: Mechanism::Scram(scram), raw } => {
                let first = First::parse(token).ok_or(TOKEN)?;
                let credential = users.credential(&first.user, scram).ok_or(CREDENTIALS)?;
                let challenge = Box::new(Challenge::new(scram, first, credential, random));
                let message = challenge.message.clone().into_bytes();
                *self = Auth::Challenged { challenge, raw };
                Ok(message)
            }
            Auth::Challenged { challenge, .. } => {
                let proof = challenge.verify(token).ok_or(CREDENTIALS)?;
                *self = Auth::Done(format!("User:{}", challenge.user));
                Ok(proof.into_bytes())
            }
            Auth::None | Auth::Done(_) | Auth::Failed => Err(TOKEN),
        }
    }
}

/// Authorization id, user and password, apart by NULs.
fn plain<'t>(token: &'t [u8], users: &Users) -> Result<&'t str, Refused> {
    let text = std::str::from_utf8(token).map_err(|_| TOKEN)?;
    let mut parts = text.split('\0');
    let (Some(authzid), Some(user), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TOKEN);
    };
    if !users.has_password(user, password) {
        return Err(CREDENTIALS);
    }
    if !authzid.is_empty() && authzid != user {
        return Err(Refused(
            "Authentication failed: Client requested an authorization id that is different from username",
        ));
    }
    Ok(user)
}
