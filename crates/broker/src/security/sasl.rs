//! SASL on one connection, as a pure state: handshake, tokens, and who it turned out to be (KIP-43, KIP-152).

use super::{
    ANONYMOUS,
    scram::{Challenge, First, Scram},
    users::{Passwords, Users, has_password},
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
    /// A mechanism is agreed on.
    Begun(Begun),
    /// SCRAM's first half is done.
    Challenged(Begun, Box<Challenge>),
    /// It is known.
    Done(Identity),
    /// It could not say. Nothing more is answered.
    Failed,
}

#[derive(Debug)]
pub(crate) struct Begun {
    mechanism: Mechanism,
    /// Tokens come without a request around them (SaslHandshake version 0).
    raw: bool,
    /// Who it was, if it was known before (KIP-368).
    before: Option<String>,
}

/// Who a connection's other end is.
#[derive(Debug)]
pub(crate) struct Identity {
    /// Such as `User:kim`.
    pub(crate) principal: String,
    /// How it has said so; `None` without SASL.
    mechanism: Option<Mechanism>,
    /// When it must have said so again (ms, on the clock that never goes back); `None` for never (KIP-368).
    pub(crate) until_ms: Option<u64>,
}

/// What the client is told when it is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) &'static str);

const CREDENTIALS: Refused = Refused("Authentication failed: Invalid username or password");
const ANOTHER: Refused = Refused("Authentication failed: Cannot change principals during re-authentication");
const TOKEN: Refused = Refused("Authentication failed: the token is not what the mechanism expects");

impl Auth {
    /// Of a connection on a listener without SASL: a principal that TLS has found, or nobody in particular.
    pub(crate) fn open(principal: Option<String>) -> Auth {
        let principal = principal.unwrap_or_else(|| ANONYMOUS.to_owned());
        Auth::Done(Identity { principal, mechanism: None, until_ms: None })
    }

    /// Who it is.
    pub(crate) fn principal(&self) -> &str {
        match self {
            Auth::Done(identity) => &identity.principal,
            Auth::Begun(begun) | Auth::Challenged(begun, _) => begun.before.as_deref().unwrap_or(ANONYMOUS),
            Auth::None | Auth::Failed => ANONYMOUS,
        }
    }

    /// Whether the next frame is a token and not a request.
    pub(crate) fn takes_raw(&self) -> bool {
        matches!(self, Auth::Begun(begun) | Auth::Challenged(begun, _) if begun.raw)
    }

    /// Agrees on a mechanism: at first, or again (KIP-368) with the same one. False if it is not the time for it.
    pub(crate) fn begin(&mut self, mechanism: Mechanism, raw: bool) -> bool {
        let before = match self {
            Auth::None => None,
            Auth::Done(identity) if identity.mechanism == Some(mechanism) && identity.until_ms.is_some() => {
                Some(std::mem::take(&mut identity.principal))
            }
            _ => return false,
        };
        *self = Auth::Begun(Begun { mechanism, raw, before });
        true
    }

    /// Takes a token, and returns the answer to it. `random` is fresh, printable ASCII.
    pub(crate) fn step(
        &mut self,
        token: &[u8],
        users: &Users,
        passwords: &Passwords,
        random: &str,
    ) -> Result<Vec<u8>, Refused> {
        let (begun, user, answer) = match std::mem::replace(self, Auth::Failed) {
            Auth::Begun(begun) => match begun.mechanism {
                Mechanism::Plain => (begun, plain(token, passwords)?.to_owned(), Vec::new()),
                Mechanism::Scram(scram) => {
                    let first = First::parse(token).ok_or(TOKEN)?;
                    let credential = users.credential(&first.user, scram).ok_or(CREDENTIALS)?;
                    let challenge = Box::new(Challenge::new(scram, first, credential, random));
                    let message = challenge.message.clone().into_bytes();
                    *self = Auth::Challenged(begun, challenge);
                    return Ok(message);
                }
            },
            Auth::Challenged(begun, challenge) => {
                let proof = challenge.verify(token).ok_or(CREDENTIALS)?;
                (begun, challenge.user, proof.into_bytes())
            }
            Auth::None | Auth::Done(_) | Auth::Failed => return Err(TOKEN),
        };
        let principal = format!("User:{user}");
        if begun.before.is_some_and(|before| before != principal) {
            return Err(ANOTHER);
        }
        *self = Auth::Done(Identity { principal, mechanism: Some(begun.mechanism), until_ms: None });
        Ok(answer)
    }
}

/// Authorization id, user and password, apart by NULs.
fn plain<'t>(token: &'t [u8], passwords: &Passwords) -> Result<&'t str, Refused> {
    let text = std::str::from_utf8(token).map_err(|_| TOKEN)?;
    let mut parts = text.split('\0');
    let (Some(authzid), Some(user), Some(password), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TOKEN);
    };
    if !has_password(passwords, user, password) {
        return Err(CREDENTIALS);
    }
    if !authzid.is_empty() && authzid != user {
        return Err(Refused(
            "Authentication failed: Client requested an authorization id that is different from username",
        ));
    }
    Ok(user)
}
