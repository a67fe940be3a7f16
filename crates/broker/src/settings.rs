//! Settings that are changed while the broker runs: its own (KIP-226), over those that it was started with, and those
//! of groups (KIP-848).

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use data_encoding::BASE64;

use crate::{
    config::{BrokerConfig, ConfigError, TopicConfig, check_group},
    topics::{Topics, check_config},
};

/// The small file with the changes: a line `broker name value`, `brokers name value` or `group group name value`
/// each, the group and the value in base64.
const FILE: &str = "settings";

/// Whose settings are changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Whose {
    /// This broker's.
    Broker,
    /// All brokers' that say nothing else.
    Cluster,
    Group(String),
}

/// What is said, by name; never empty for anybody.
type Changes = BTreeMap<Whose, TopicConfig>;

/// All of them, and what they come to.
#[derive(Debug)]
pub(crate) struct Settings {
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    changes: Changes,
    /// The settings of the start with the changes over them.
    now: Arc<BrokerConfig>,
}

/// Why settings stay as they are.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error(transparent)]
    Broker(#[from] ConfigError),
    #[error("{0}")]
    Group(String),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Settings {
    /// Reads the file.
    pub(crate) fn open(topics: &Topics, started: &BrokerConfig) -> io::Result<Settings> {
        let mut changes = Changes::new();
        for (whose, name, value) in topics.read_lines::<_, Vec<_>>(FILE, parse)? {
            changes.entry(whose).or_default().insert(name, value);
        }
        let now = apply(&changes, started)
            .and_then(|now| topics.set_defaults(now.topic_defaults()).map(|()| now))
            .map_err(|e| io::Error::other(format!("{FILE}, what was changed while the broker ran: {e}")))?;
        Ok(Settings { state: RwLock::new(State { changes, now: Arc::new(now) }) })
    }

    /// The broker's settings as they are now.
    pub(crate) fn now(&self) -> Arc<BrokerConfig> {
        self.read().now.clone()
    }

    /// What was changed.
    pub(crate) fn of(&self, whose: &Whose) -> TopicConfig {
        self.read().changes.get(whose).cloned().unwrap_or_default()
    }

    /// The groups that say something.
    pub(crate) fn groups(&self) -> Vec<String> {
        let group = |whose: &Whose| if let Whose::Group(group) = whose { Some(group.clone()) } else { None };
        self.read().changes.keys().filter_map(group).collect()
    }

    /// A group's time of this name, if it says one: never outside the broker's bounds, which may have moved since.
    pub(crate) fn of_group(&self, group: &str, name: &str, (min, max): (i64, i64)) -> Option<i64> {
        let state = self.read();
        if state.changes.is_empty() {
            return None;
        }
        let own = state.changes.get(&Whose::Group(group.to_owned()))?;
        Some(own.get(name)?.trim().parse::<i64>().ok()?.clamp(min, max.max(min)))
    }

    /// Replaces what somebody says, durably; or, if `validate_only`, says whether it would. Reads files that settings
    /// name, and blocks on the disk.
    pub(crate) fn put(
        &self,
        topics: &Topics,
        whose: &Whose,
        own: &TopicConfig,
        validate_only: bool,
    ) -> Result<(), ChangeError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let next = changed(&state, whose, own)?;
        let defaults = next.now.topic_defaults();
        check_config(&defaults).map_err(ConfigError::Value)?;
        if validate_only {
            return Ok(());
        }
        topics.put(FILE, next.changes.iter().flat_map(lines).collect::<String>().as_bytes())?;
        topics.set_defaults(defaults)?;
        *state = next;
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn apply(changes: &Changes, broker: &BrokerConfig) -> Result<BrokerConfig, ConfigError> {
    let none = TopicConfig::new();
    let of = |whose: &Whose| changes.get(whose).unwrap_or(&none);
    broker.changed(of(&Whose::Broker), of(&Whose::Cluster))
}

/// What somebody's saying something else comes to.
fn changed(state: &State, whose: &Whose, own: &TopicConfig) -> Result<State, ChangeError> {
    if let Whose::Group(_) = whose {
        check_group(own, &state.now.consumer).map_err(ChangeError::Group)?;
    }
    let mut changes = state.changes.clone();
    match own.is_empty() {
        true => drop(changes.remove(whose)),
        false => drop(changes.insert(whose.clone(), own.clone())),
    }
    let now = match whose {
        Whose::Group(_) => state.now.clone(),
        _ => Arc::new(apply(&changes, &state.now)?),
    };
    Ok(State { changes, now })
}

fn lines((whose, own): (&Whose, &TopicConfig)) -> Vec<String> {
    let who = match whose {
        Whose::Broker => "broker".to_owned(),
        Whose::Cluster => "brokers".to_owned(),
        Whose::Group(group) => format!("group {}", BASE64.encode(group.as_bytes())),
    };
    own.iter().map(|(name, value)| format!("{who} {name} {}\n", BASE64.encode(value.as_bytes()))).collect()
}

fn parse(line: &str) -> Option<(Whose, String, String)> {
    let mut words = line.split(' ');
    let text = |word: &str| String::from_utf8(BASE64.decode(word.as_bytes()).ok()?).ok();
    let whose = match words.next()? {
        "broker" => Whose::Broker,
        "brokers" => Whose::Cluster,
        "group" => Whose::Group(text(words.next()?)?),
        _ => return None,
    };
    let (name, value) = (words.next()?.to_owned(), text(words.next()?)?);
    words.next().is_none().then_some((whose, name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let own =
            TopicConfig::from([("ssl.keystore.key".into(), "a\nb c".into()), ("x".into(), String::new())]);
        for whose in [Whose::Broker, Whose::Cluster, Whose::Group("a group".into())] {
            let written = lines((&whose, &own));
            let read: Vec<_> =
                written.iter().map(|line| parse(line.trim_end_matches('\n')).unwrap()).collect();
            assert!(read.iter().all(|(w, ..)| *w == whose));
            assert_eq!(read.into_iter().map(|(_, n, v)| (n, v)).collect::<TopicConfig>(), own);
        }
        assert_eq!(parse("somebody x eA=="), None);
        assert_eq!(parse("broker x eA== more"), None);
    }
}
