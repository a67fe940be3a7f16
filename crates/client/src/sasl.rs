//! Who is speaking: SASL with PLAIN (RFC 4616) or SCRAM (RFC 5802), inside Kafka's SaslAuthenticate.

use bytes::Bytes;
use data_encoding::BASE64;
use hmac::{Hmac, KeyInit, Mac};
use kafka_protocol::messages::{SaslAuthenticateRequest, SaslHandshakeRequest};
use sha2::{Digest, Sha256, Sha512};

use crate::{ClientError, Properties, cluster::text, connection::Connection, error::KafkaError};

/// Fewer rounds than this Kafka does not store, and RFC 7677 does not want.
const MIN_ITERATIONS: u32 = 4096;
/// More would keep this side busy for minutes.
const MAX_ITERATIONS: u32 = 10_000_000;

/// How a login is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// The password itself.
    Plain,
    /// SCRAM-SHA-256.
    ScramSha256,
    /// SCRAM-SHA-512.
    ScramSha512,
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// A login.
#[derive(Clone)]
pub(crate) struct Sasl {
    pub(crate) mechanism: Mechanism,
    user: String,
    password: String,
}

impl std::fmt::Debug for Sasl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} as {}", self.mechanism.name(), self.user)
    }
}

impl Sasl {
    /// Takes the login out of `properties`; `None` unless it is wanted.
    pub(crate) fn new(properties: &mut Properties, wanted: bool) -> Result<Option<Sasl>, ClientError> {
        let mechanism = properties.take("sasl.mechanism");
        let jaas = properties.take("sasl.jaas.config");
        if !wanted {
            return Ok(None);
        }
        let mechanism = match mechanism.as_deref() {
            Some("PLAIN") => Mechanism::Plain,
            Some("SCRAM-SHA-256") => Mechanism::ScramSha256,
            Some("SCRAM-SHA-512") => Mechanism::ScramSha512,
            other => {
                return Err(ClientError::Config(format!(
                    "sasl.mechanism={} is not supported: PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512 are",
                    other.unwrap_or("GSSAPI (the default)")
                )));
            }
        };
        let jaas = jaas.unwrap_or_default();
        let option = |name: &str| {
            jaas_option(&jaas, name)
                .ok_or_else(|| ClientError::Config(format!("sasl.jaas.config has no {name}=\"…\"")))
        };
        Ok(Some(Sasl { mechanism, user: option("username")?, password: option("password")? }))
    }
}

/// An option of a JAAS line: `module required username="alice" password="secret";`
fn jaas_option(jaas: &str, name: &str) -> Option<String> {
    let mut rest = jaas;
    loop {
        let at = rest.find(name)?;
        let fresh = rest[..at].chars().next_back().is_none_or(char::is_whitespace);
        let value = rest[at + name.len()..].trim_start().strip_prefix('=').map(str::trim_start);
        rest = &rest[at + name.len()..];
        let Some(value) = value.filter(|_| fresh) else { continue };
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
        return Some(match quote {
            Some(quote) => {
                let mut out = String::new();
                let mut letters = value[1..].chars();
                while let Some(letter) = letters.next().filter(|&l| l != quote) {
                    out.push(if letter == '\\' { letters.next()? } else { letter });
                }
                out
            }
            None => value.split([' ', ';', '\t', '\n']).next().unwrap_or_default().to_owned(),
        });
    }
}

/// Logs in on a connection that was just made.
pub(crate) async fn login(connection: &Connection, sasl: &Sasl) -> Result<(), ClientError> {
    let handshake = SaslHandshakeRequest::default().with_mechanism(text(sasl.mechanism.name()));
    let answer = connection.call(&handshake).await?;
    if KafkaError::check(answer.error_code, None).is_err() {
        let offered: Vec<&str> = answer.mechanisms.iter().map(|m| &**m).collect();
        return Err(refused(
            connection,
            &format!("it does not offer {}, only {}", sasl.mechanism.name(), offered.join(", ")),
        ));
    }
    match sasl.mechanism {
        Mechanism::Plain => {
            let message = format!("\0{}\0{}", sasl.user, sasl.password);
            say(connection, message.into_bytes()).await.map(drop)
        }
        Mechanism::ScramSha256 => scram::<Sha256Hash>(connection, sasl).await,
        Mechanism::ScramSha512 => scram::<Sha512Hash>(connection, sasl).await,
    }
}

async fn say(connection: &Connection, message: Vec<u8>) -> Result<Bytes, ClientError> {
    let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
    let answer = connection.call(&request).await?;
    match KafkaError::check(answer.error_code, answer.error_message.as_deref()) {
        Ok(()) => Ok(answer.auth_bytes),
        Err(error) => Err(refused(connection, &error.to_string())),
    }
}

fn refused(connection: &Connection, why: &str) -> ClientError {
    ClientError::Login { address: connection.address().to_owned(), why: why.to_owned() }
}

async fn scram<H: Hash>(connection: &Connection, sasl: &Sasl) -> Result<(), ClientError> {
    let mut nonce = [0; 18];
    getrandom::fill(&mut nonce).map_err(|e| ClientError::Config(format!("no randomness: {e}")))?;
    let exchange = Exchange::new(&sasl.user, &BASE64.encode(&nonce));
    let first = say(connection, exchange.first().into_bytes()).await?;
    let first = String::from_utf8_lossy(&first).into_owned();
    let (last, signature) =
        exchange.answer::<H>(&first, &sasl.password).map_err(|why| refused(connection, why))?;
    let end = say(connection, last.into_bytes()).await?;
    if end[..] == *format!("v={}", BASE64.encode(&signature)).as_bytes() {
        Ok(())
    } else {
        Err(refused(connection, "it does not know the password either"))
    }
}

/// The client's side of a SCRAM exchange, without channel binding.
struct Exchange {
    bare: String,
    nonce: String,
}

impl Exchange {
    fn new(user: &str, nonce: &str) -> Exchange {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        Exchange { bare: format!("n={user},r={nonce}"), nonce: nonce.to_owned() }
    }

    fn first(&self) -> String {
        format!("n,,{}", self.bare)
    }

    /// The last message, and the signature that the server must prove itself with.
    fn answer<H: Hash>(&self, server_first: &str, password: &str) -> Result<(String, Vec<u8>), &'static str> {
        let field = |name: &str| server_first.split(',').find_map(|f| f.strip_prefix(name));
        let nonce =
            field("r=").filter(|n| n.starts_with(&self.nonce)).ok_or("it answers with another nonce")?;
        let salt = field("s=").and_then(|s| BASE64.decode(s.as_bytes()).ok()).ok_or("it sends no salt")?;
        let rounds = field("i=").and_then(|i| i.parse().ok()).ok_or("it sends no number of iterations")?;
        if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&rounds) {
            return Err("it wants too few or too many iterations");
        }
        let salted = salted::<H>(password.as_bytes(), &salt, rounds);
        let client_key = H::mac(&salted, &[b"Client Key"]);
        // "biws" is "n,,": no channel binding.
        let without_proof = format!("c=biws,r={nonce}");
        let signed = [self.bare.as_bytes(), b",", server_first.as_bytes(), b",", without_proof.as_bytes()];
        let signature = H::mac(&H::hash(&client_key), &signed);
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let server = H::mac(&H::mac(&salted, &[b"Server Key"]), &signed);
        Ok((format!("{without_proof},p={}", BASE64.encode(&proof)), server))
    }
}

/// PBKDF2 with one block of output (RFC 5802's `Hi`).
fn salted<H: Hash>(password: &[u8], salt: &[u8], rounds: u32) -> Vec<u8> {
    let mut last = H::mac(password, &[salt, &[0, 0, 0, 1]]);
    let mut all = last.clone();
    for _ in 1..rounds {
        last = H::mac(password, &[&last]);
        all.iter_mut().zip(&last).for_each(|(a, b)| *a ^= b);
    }
    all
}

/// A hash and its HMAC.
trait Hash {
    fn hash(bytes: &[u8]) -> Vec<u8>;
    fn mac(key: &[u8], parts: &[&[u8]]) -> Vec<u8>;
}

struct Sha256Hash;
struct Sha512Hash;

macro_rules! hash {
    ($name:ident, $hash:ident) => {
        impl Hash for $name {
            fn hash(bytes: &[u8]) -> Vec<u8> {
                $hash::digest(bytes).to_vec()
            }

            fn mac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
                let mut mac = Hmac::<$hash>::new_from_slice(key).expect("HMAC takes keys of any length");
                parts.iter().for_each(|part| mac.update(part));
                mac.finalize().into_bytes().to_vec()
            }
        }
    };
}

hash!(Sha256Hash, Sha256);
hash!(Sha512Hash, Sha512);

#[cfg(test)]
mod tests {
    use super::*;

    /// The example exchange of RFC 7677.
    #[test]
    fn scram_is_that_of_the_rfc() {
        let exchange = Exchange::new("user", "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(exchange.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let server_first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                            s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (last, signature) = exchange.answer::<Sha256Hash>(server_first, "pencil").unwrap();
        assert_eq!(
            last,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(BASE64.encode(&signature), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn a_server_that_lies_is_not_answered() {
        let exchange = Exchange::new("a=b,c", "mine");
        assert_eq!(exchange.first(), "n,,n=a=3Db=2Cc,r=mine");
        for lie in ["r=other,s=AAAA,i=4096", "r=mine+,s=AAAA,i=1", "r=mine+,i=4096", "r=mine+,s=AAAA", "e=no"]
        {
            assert!(exchange.answer::<Sha512Hash>(lie, "x").is_err(), "{lie}");
        }
    }

    #[test]
    fn jaas_lines_are_read() {
        let jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required \
                    username=\"alice\" password=\"a \\\"b; username=x\";";
        assert_eq!(jaas_option(jaas, "username").as_deref(), Some("alice"));
        assert_eq!(jaas_option(jaas, "password").as_deref(), Some("a \"b; username=x"));
        assert_eq!(jaas_option("m required username=a password=b;", "password").as_deref(), Some("b"));
        assert_eq!(jaas_option("m required;", "username"), None);
    }
}
