//! Settings of a group: what it says itself, else what the broker says (KIP-848).

use super::{TopicConfig, broker::ConsumerGroupConfig, check, value::Type};

/// One setting that a group can have.
#[derive(Debug)]
pub(crate) struct GroupSetting {
    pub(crate) name: &'static str,
    pub(crate) kind: Type,
    pub(crate) doc: &'static str,
    /// What groups have that say nothing.
    pub(crate) default: fn(&ConsumerGroupConfig) -> String,
}

const POSITIVE: Type = Type::Int(1, i32::MAX as i64);

/// How often members of a group are to be heard of.
pub(crate) const HEARTBEAT: &str = "consumer.heartbeat.interval.ms";
/// When a silent member is taken for gone.
pub(crate) const SESSION: &str = "consumer.session.timeout.ms";

/// All settings of a group, by name. Those of share and streams groups, which there are none of here, are kept for who
/// sets them.
pub(crate) const GROUP_SETTINGS: &[GroupSetting] = &[
    GroupSetting {
        name: HEARTBEAT,
        kind: POSITIVE,
        doc: "How often members of the consumer protocol are to be heard of, in ms.",
        default: |consumer| consumer.heartbeat_ms.to_string(),
    },
    GroupSetting {
        name: SESSION,
        kind: POSITIVE,
        doc: "A member of the consumer protocol that is silent so long, in ms, is taken for gone.",
        default: |consumer| consumer.session_ms.to_string(),
    },
    unused("share.auto.offset.reset", Type::Text, |_| "latest".into()),
    unused("share.heartbeat.interval.ms", POSITIVE, |_| "5000".into()),
    unused("share.isolation.level", Type::OneOf(&["read_committed", "read_uncommitted"]), |_| {
        "read_uncommitted".into()
    }),
    unused("share.record.lock.duration.ms", Type::Int(1000, i32::MAX as i64), |_| "30000".into()),
    unused("share.session.timeout.ms", POSITIVE, |_| "45000".into()),
    unused("streams.heartbeat.interval.ms", POSITIVE, |_| "5000".into()),
    unused("streams.num.standby.replicas", Type::Int(0, i32::MAX as i64), |_| "0".into()),
    unused("streams.session.timeout.ms", POSITIVE, |_| "45000".into()),
];

const fn unused(name: &'static str, kind: Type, default: fn(&ConsumerGroupConfig) -> String) -> GroupSetting {
    GroupSetting { name, kind, default, doc: "For groups of a kind that there are none of here." }
}

/// Checks what somebody wants a group to say; the error is Kafka's sentence.
pub(crate) fn check_group(own: &TopicConfig, broker: &ConsumerGroupConfig) -> Result<(), String> {
    for (name, value) in own {
        let setting = GROUP_SETTINGS.iter().find(|s| s.name == name);
        let setting = setting.ok_or_else(|| format!("Unknown group config name: {name}"))?;
        check(name, setting.kind, value)?;
    }
    let of = |name, default: i64| own.get(name).and_then(|v| v.trim().parse().ok()).unwrap_or(default);
    let heartbeat = of(HEARTBEAT, i64::from(broker.heartbeat_ms));
    let session = of(SESSION, broker.session_ms as i64);
    for (name, value, (min, max)) in
        [(HEARTBEAT, heartbeat, broker.heartbeat_bounds), (SESSION, session, broker.session_bounds)]
    {
        let (kind, what) = name.split_once('.').unwrap_or_default();
        if value < min {
            return Err(format!("{name} must be greater than or equal to group.{kind}.min.{what}"));
        }
        if value > max {
            return Err(format!("{name} must be less than or equal to group.{kind}.max.{what}"));
        }
    }
    if session <= heartbeat {
        return Err(format!("{SESSION} must be greater than {HEARTBEAT}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BrokerConfig;

    #[test]
    fn a_groups_times_keep_to_the_brokers_bounds() {
        let broker = BrokerConfig::default().consumer;
        let of = |pairs: &[(&str, &str)]| {
            let own = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            check_group(&own, &broker)
        };
        assert_eq!(of(&[(HEARTBEAT, "6000"), (SESSION, "50000")]), Ok(()));
        assert_eq!(of(&[("share.isolation.level", "read_committed")]), Ok(()));
        let wrong = |pairs: &[(&str, &str)], word: &str| {
            let why = of(pairs).unwrap_err();
            assert!(why.contains(word), "{why}");
        };
        wrong(&[(SESSION, "1")], "group.consumer.min.session.timeout.ms");
        wrong(&[(SESSION, "60001")], "group.consumer.max.session.timeout.ms");
        wrong(&[(HEARTBEAT, "4999")], "group.consumer.min.heartbeat.interval.ms");
        wrong(&[(HEARTBEAT, "soon")], "Not a number of type INT");
        wrong(&[("nope", "1")], "Unknown group config name: nope");
    }
}
