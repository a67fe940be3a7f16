//! The users that SASL knows: passwords from the settings (PLAIN), and salted ones in a small file (SCRAM).

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use data_encoding::BASE64;

use super::scram::{Credential, MAX_ITERATIONS, MIN_ITERATIONS, Scram};
use crate::topics::Topics;

/// The small file with the SCRAM credentials: a line `user mechanism iterations salt stored-key server-key` each,
/// the user and the bytes in base64.
const FILE: &str = "scram.credentials";

/// SCRAM credentials, by user and mechanism.
type Scrams = BTreeMap<(String, Scram), Credential>;

/// The users with SCRAM credentials.
#[derive(Debug)]
pub(crate) struct Users {
    scram: Mutex<Scrams>,
}

impl Users {
    /// Reads the file.
    pub(crate) fn open(topics: &Topics) -> io::Result<Users> {
        Ok(Users { scram: Mutex::new(topics.read_lines(FILE, parse)?) })
    }

    pub(crate) fn credential(&self, user: &str, scram: Scram) -> Option<Credential> {
        self.scram().get(&(user.to_owned(), scram)).cloned()
    }

    /// The users that have SCRAM credentials, each with mechanisms and iterations.
    pub(crate) fn described(&self) -> BTreeMap<String, Vec<(Scram, i32)>> {
        let mut users: BTreeMap<String, Vec<(Scram, i32)>> = BTreeMap::new();
        for ((user, scram), credential) in &*self.scram() {
            users.entry(user.clone()).or_default().push((*scram, credential.iterations));
        }
        users
    }

    /// Sets credentials, or removes them, durably and all together. Blocks on the disk.
    pub(crate) fn alter(
        &self,
        topics: &Topics,
        changes: impl IntoIterator<Item = (String, Scram, Option<Credential>)>,
    ) -> io::Result<()> {
        let mut scram = self.scram();
        let mut next = scram.clone();
        for (user, mechanism, credential) in changes {
            match credential {
                Some(credential) => drop(next.insert((user, mechanism), credential)),
                None => drop(next.remove(&(user, mechanism))),
            }
        }
        topics.put(FILE, next.iter().map(line).collect::<String>().as_bytes())?;
        *scram = next;
        Ok(())
    }

    fn scram(&self) -> MutexGuard<'_, Scrams> {
        self.scram.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn line(((user, scram), c): (&(String, Scram), &Credential)) -> String {
    let [user, salt, stored, server] =
        [user.as_bytes(), &c.salt, &c.stored_key, &c.server_key].map(|b| BASE64.encode(b));
    format!("{user} {} {} {salt} {stored} {server}\n", scram.name(), c.iterations)
}

fn parse(line: &str) -> Option<((String, Scram), Credential)> {
    let mut words = line.split(' ');
    let bytes = |word: Option<&str>| BASE64.decode(word?.as_bytes()).ok();
    let user = String::from_utf8(bytes(words.next())?).ok()?;
    let (scram, iterations) = (Scram::named(words.next()?)?, words.next()?.parse().ok()?);
    let (salt, stored_key, server_key) = (bytes(words.next())?, bytes(words.next())?, bytes(words.next())?);
    Some(((user, scram), Credential { salt, iterations, stored_key, server_key }))
}

/// Passwords of PLAIN's users, by name.
pub(crate) type Passwords = BTreeMap<String, String>;

/// Whether this is the user's password.
pub(crate) fn has_password(known: &Passwords, user: &str, password: &str) -> bool {
    known.get(user).is_some_and(|known| same(known.as_bytes(), password.as_bytes()))
}

/// Whether two texts are the same, in a time that does not tell how far they are.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

/// The users in a JAAS configuration of Kafka's PlainLoginModule: `user_NAME="PASSWORD"` options.
pub(crate) fn plain_users(jaas: &str) -> Result<Passwords, String> {
    let text = jaas.trim().trim_end_matches(';');
    let mut words = words(text)?.into_iter();
    let module = words.next().unwrap_or_default();
    if !module.ends_with("PlainLoginModule") {
        return Err(format!("{module:?} is not org.apache.kafka.common.security.plain.PlainLoginModule"));
    }
    let user = |word: String| {
        let (name, password) = word.strip_prefix("user_")?.split_once('=')?;
        Some((name.to_owned(), password.to_owned()))
    };
    Ok(words.filter_map(user).collect())
}

/// Words apart by white space, quotes taken off their values.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => word.extend(chars.next()),
            c if c.is_whitespace() && !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    if quoted {
        return Err("a quote is not closed".into());
    }
    words.push(word);
    words.retain(|w| !w.is_empty());
    Ok(words)
}

/// A SCRAM user as Kafka's storage tool takes one: `SCRAM-SHA-256=[name=alice,password=secret,iterations=8192]`.
pub(crate) fn scram_user(text: &str, salt: Vec<u8>) -> Result<(String, Scram, Credential), String> {
    let example = "it must be such as SCRAM-SHA-256=[name=alice,password=secret]";
    let (mechanism, rest) = text.split_once('=').ok_or(example)?;
    let scram =
        Scram::named(mechanism.trim()).ok_or("the mechanism must be SCRAM-SHA-256 or SCRAM-SHA-512")?;
    let fields = rest.trim().strip_prefix('[').and_then(|r| r.strip_suffix(']')).ok_or(example)?;
    let (mut name, mut password, mut iterations) = (None, None, MIN_ITERATIONS);
    for field in fields.split(',') {
        let (key, value) = field.split_once('=').ok_or(example)?;
        let value = value.trim_matches('"');
        match key.trim() {
            "name" => name = Some(value.to_owned()),
            "password" => password = Some(value.to_owned()),
            "iterations" => iterations = value.parse().map_err(|_| "iterations must be a number")?,
            other => return Err(format!("there is no {other:?}; {example}")),
        }
    }
    if !(MIN_ITERATIONS..=MAX_ITERATIONS).contains(&iterations) {
        return Err(format!("iterations must be {MIN_ITERATIONS} to {MAX_ITERATIONS}"));
    }
    match (name, password) {
        (Some(name), Some(password)) if !name.is_empty() && !password.is_empty() => {
            Ok((name, scram, Credential::of_password(scram, &password, salt, iterations)))
        }
        _ => Err(example.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jaas_names_users() {
        let jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required\n username=\"admin\" \
                    password=\"x\" user_admin=\"a b\" user_kim=\"q\\\"=;\";";
        let users = plain_users(jaas).unwrap();
        assert_eq!(users.len(), 2);
        assert_eq!((&*users["admin"], &*users["kim"]), ("a b", "q\"=;"));
        assert!(plain_users("org.apache.kafka.common.security.scram.ScramLoginModule required;").is_err());
        assert!(plain_users("x.PlainLoginModule required user_a=\"b").is_err());
    }

    #[test]
    fn a_credential_is_a_line() {
        let (name, scram, credential) =
            scram_user("SCRAM-SHA-512=[name=kim lee,password=\"p\",iterations=4096]", b"salt".to_vec())
                .unwrap();
        assert_eq!((&*name, scram), ("kim lee", Scram::Sha512));
        let key = (name, scram);
        assert_eq!(parse(line((&key, &credential)).trim_end()), Some((key, credential)));
        for wrong in ["", "SCRAM-SHA-256", "PLAIN=[name=a,password=b]", "SCRAM-SHA-256=[name=a]"] {
            assert!(scram_user(wrong, Vec::new()).is_err(), "{wrong}");
        }
        assert!(scram_user("SCRAM-SHA-256=[name=a,password=b,iterations=100]", Vec::new()).is_err());
    }
}
