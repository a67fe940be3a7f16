//! SCRAM-SHA-256 and SCRAM-SHA-512 (RFC 5802, RFC 7677; in Kafka KIP-84), the server's side, as a pure state.

use data_encoding::BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};

/// Rounds of PBKDF2, at least: what RFC 7677 asks for and Kafka enforces.
pub(crate) const MIN_ITERATIONS: i32 = 4096;
/// Rounds of PBKDF2, at most: Kafka's bound, so that nobody's login costs too much.
pub(crate) const MAX_ITERATIONS: i32 = 16_384;

/// The hash that a mechanism uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Scram {
    Sha256,
    Sha512,
}

impl Scram {
    pub(crate) const ALL: [Scram; 2] = [Scram::Sha256, Scram::Sha512];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Scram::Sha256 => "SCRAM-SHA-256",
            Scram::Sha512 => "SCRAM-SHA-512",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Scram> {
        Scram::ALL.into_iter().find(|s| s.name() == name)
    }

    /// Its number in DescribeUserScramCredentials.
    pub(crate) fn number(self) -> i8 {
        match self {
            Scram::Sha256 => 1,
            Scram::Sha512 => 2,
        }
    }

    pub(crate) fn numbered(number: i8) -> Option<Scram> {
        Scram::ALL.into_iter().find(|s| s.number() == number)
    }

    fn hmac(self, key: &[u8], text: &[u8]) -> Vec<u8> {
        const ANY: &str = "an HMAC takes a key of any length";
        match self {
            Scram::Sha256 => {
                let mac = Hmac::<Sha256>::new_from_slice(key).expect(ANY);
                mac.chain_update(text).finalize().into_bytes().to_vec()
            }
            Scram::Sha512 => {
                let mac = Hmac::<Sha512>::new_from_slice(key).expect(ANY);
                mac.chain_update(text).finalize().into_bytes().to_vec()
            }
        }
    }

    fn hash(self, text: &[u8]) -> Vec<u8> {
        match self {
            Scram::Sha256 => Sha256::digest(text).to_vec(),
            Scram::Sha512 => Sha512::digest(text).to_vec(),
        }
    }

    fn salted(self, password: &str, salt: &[u8], iterations: i32) -> Vec<u8> {
        let rounds = iterations.max(1) as u32;
        match self {
            Scram::Sha256 => {
                pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), salt, rounds).to_vec()
            }
            Scram::Sha512 => {
                pbkdf2::pbkdf2_hmac_array::<Sha512, 64>(password.as_bytes(), salt, rounds).to_vec()
            }
        }
    }
}

/// What is kept of a password: enough to recognise it, not enough to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credential {
    pub(crate) salt: Vec<u8>,
    pub(crate) iterations: i32,
    pub(crate) stored_key: Vec<u8>,
    pub(crate) server_key: Vec<u8>,
}

impl Credential {
    pub(crate) fn of_password(scram: Scram, password: &str, salt: Vec<u8>, iterations: i32) -> Credential {
        let salted = scram.salted(password, &salt, iterations);
        Credential::of_salted(scram, &salted, salt, iterations)
    }

    /// Of a password that a client has salted already, as AlterUserScramCredentials has it.
    pub(crate) fn of_salted(scram: Scram, salted: &[u8], salt: Vec<u8>, iterations: i32) -> Credential {
        let stored_key = scram.hash(&scram.hmac(salted, b"Client Key"));
        Credential { salt, iterations, stored_key, server_key: scram.hmac(salted, b"Server Key") }
    }
}

/// The server's side of one exchange: what it has said.
#[derive(Clone, Debug)]
pub(crate) struct Challenge {
    scram: Scram,
    credential: Credential,
    pub(crate) user: String,
    /// The client's first message without its header, and the server's.
    said: String,
    nonce: String,
    header: String,
    /// To be sent.
    pub(crate) message: String,
}

/// The client's first message, taken apart: the user, and what the rest is made of.
pub(crate) struct First {
    pub(crate) user: String,
    header: String,
    bare: String,
    nonce: String,
}

impl First {
    pub(crate) fn parse(message: &[u8]) -> Option<First> {
        let text = std::str::from_utf8(message).ok()?;
        let mut parts = text.splitn(3, ',');
        let (binding, authzid, bare) = (parts.next()?, parts.next()?, parts.next()?);
        // Channels are not bound to: a client that could do so ("y") may go on.
        if !matches!(binding, "n" | "y") {
            return None;
        }
        let mut fields = bare.split(',');
        let user = unescape(fields.next()?.strip_prefix("n=")?)?;
        let nonce = fields.next()?.strip_prefix("r=")?.to_owned();
        // Delegation tokens would come as an extension; there are none here.
        let known = fields.all(|f| !f.starts_with("tokenauth="));
        let same = match authzid {
            "" => true,
            a => unescape(a.strip_prefix("a=")?)? == user,
        };
        let header = format!("{binding},{authzid},");
        (known && same && !user.is_empty() && !nonce.is_empty()).then(|| First {
            user,
            header,
            bare: bare.to_owned(),
            nonce,
        })
    }
}

impl Challenge {
    /// Answers the client's first message. `random` is the server's part of the nonce, of printable ASCII.
    pub(crate) fn new(scram: Scram, first: First, credential: Credential, random: &str) -> Challenge {
        let nonce = format!("{}{random}", first.nonce);
        let salt = BASE64.encode(&credential.salt);
        let message = format!("r={nonce},s={salt},i={}", credential.iterations);
        let said = format!("{},{message}", first.bare);
        Challenge { scram, credential, user: first.user, said, nonce, header: first.header, message }
    }

    /// Checks the client's proof; what the server then says to prove itself.
    pub(crate) fn verify(&self, message: &[u8]) -> Option<String> {
        let text = std::str::from_utf8(message).ok()?;
        let (without_proof, proof) = text.rsplit_once(",p=")?;
        let proof = BASE64.decode(proof.as_bytes()).ok()?;
        let mut fields = without_proof.split(',');
        let header = BASE64.decode(fields.next()?.strip_prefix("c=")?.as_bytes()).ok()?;
        if header != self.header.as_bytes() || fields.next()?.strip_prefix("r=")? != self.nonce {
            return None;
        }
        let auth = format!("{},{without_proof}", self.said);
        let signature = self.scram.hmac(&self.credential.stored_key, auth.as_bytes());
        if proof.len() != signature.len() {
            return None;
        }
        let client_key: Vec<u8> = proof.iter().zip(&signature).map(|(p, s)| p ^ s).collect();
        // Hashes are compared: how long that takes tells nothing of use.
        if self.scram.hash(&client_key) != self.credential.stored_key {
            return None;
        }
        let signature = self.scram.hmac(&self.credential.server_key, auth.as_bytes());
        Some(format!("v={}", BASE64.encode(&signature)))
    }
}

/// A user's name as SCRAM writes it, with `,` and `=` escaped.
fn unescape(name: &str) -> Option<String> {
    let plain = name.replace("=2C", ",").replace("=3D", "\0");
    (!plain.contains('=')).then(|| plain.replace('\0', "="))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange of RFC 7677, section 3.
    #[test]
    fn the_exchange_of_the_rfc() {
        let salt = BASE64.decode(b"W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let credential = Credential::of_password(Scram::Sha256, "pencil", salt, 4096);
        let first = First::parse(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
        assert_eq!(first.user, "user");
        let challenge = Challenge::new(Scram::Sha256, first, credential, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0");
        assert_eq!(
            challenge.message,
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let last = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                    p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let expected = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(challenge.verify(last.as_bytes()).as_deref(), Some(expected));
        assert_eq!(challenge.verify(last.replace("p=dH", "p=dX").as_bytes()), None);
        assert_eq!(challenge.verify(last.replace("biws", "eSws").as_bytes()), None);
        assert_eq!(challenge.verify(last.replace("rOprN", "rOprM").as_bytes()), None);
    }

    #[test]
    fn first_messages() {
        let user = |text: &str| First::parse(text.as_bytes()).map(|f| f.user);
        assert_eq!(user("n,,n=a=2Cb=3Dc,r=x"), Some("a,b=c".into()));
        assert_eq!(user("y,a=kim,n=kim,r=x"), Some("kim".into()));
        for wrong in
            ["", "n,,", "n,a=lee,n=kim,r=x", "p=tls,,n=a,r=x", "n,,n=,r=x", "n,,n=a,r=", "n,,n=a=2,r=x"]
        {
            assert_eq!(user(wrong), None, "{wrong}");
        }
        assert_eq!(user("n,,n=a,r=x,tokenauth=true"), None);
    }
}
