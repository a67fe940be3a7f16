//! The members of a group, with whichever protocol the group has.

use super::{Effects, classic::Classic, consumer::Consumer, record::Record};

/// A group's members, with the protocol that the group has.
#[derive(Debug)]
pub(crate) enum Members {
    Classic(Box<Classic>),
    Consumer(Box<Consumer>),
}

impl Default for Members {
    fn default() -> Members {
        Members::Classic(Box::default())
    }
}

impl Members {
    /// Whether there are none, nor any that are about to join.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Members::Classic(classic) => classic.is_empty() && classic.pending_count() == 0,
            Members::Consumer(consumer) => consumer.is_empty(),
        }
    }

    /// The generation or epoch; 0 before the first.
    pub(crate) fn generation(&self) -> i32 {
        match self {
            Members::Classic(classic) => classic.generation(),
            Members::Consumer(consumer) => consumer.epoch(),
        }
    }

    /// Kafka's name for the group's state.
    pub(crate) fn state(&self) -> &'static str {
        match self {
            Members::Classic(classic) => classic.state().name(),
            Members::Consumer(consumer) => consumer.state(),
        }
    }

    /// Kafka's name for the kind of group.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Members::Classic(_) => "classic",
            Members::Consumer(_) => "consumer",
        }
    }

    /// What the members say they are for: `consumer` for consumers.
    pub(crate) fn protocol_type(&self) -> &str {
        match self {
            Members::Classic(classic) => classic.protocol_type(),
            Members::Consumer(_) => "consumer",
        }
    }

    pub(super) fn is_subscribed(&self, topic: &str) -> bool {
        match self {
            Members::Classic(classic) => classic.is_subscribed(topic),
            Members::Consumer(consumer) => consumer.is_subscribed(topic),
        }
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        match self {
            Members::Classic(classic) => classic.deadline(),
            Members::Consumer(consumer) => consumer.deadline(),
        }
    }

    /// Since when there are none, if that is known; the offsets' own times count otherwise.
    pub(super) fn empty_since(&self) -> i64 {
        match self {
            Members::Classic(classic) => classic.empty_since().unwrap_or(i64::MIN),
            Members::Consumer(_) => i64::MIN,
        }
    }

    /// Removes what is recorded of them.
    pub(super) fn bury(&self, group: &str, fx: &mut Effects) {
        match self {
            Members::Classic(_) => fx.records.push(Record::group_gone(group)),
            Members::Consumer(consumer) => consumer.bury(group, fx),
        }
    }

    /// The consumer group of these changes; a classic group that was before is none any more.
    pub(super) fn as_consumer(&mut self) -> &mut Consumer {
        if let Members::Classic(_) = self {
            *self = Members::Consumer(Box::default());
        }
        match self {
            Members::Consumer(consumer) => consumer,
            Members::Classic(_) => unreachable!("it was just made one"),
        }
    }
}
