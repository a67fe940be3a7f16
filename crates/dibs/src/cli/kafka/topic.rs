//! `dibs topic …`: what `kafka-topics.sh` does.

use anyhow::Context;
use clap::Subcommand;
use data_encoding::BASE64URL_NOPAD;
use dibs_client::{Cluster, ConfigChange, ConfigEntry, NewTopic, ResponseError, Topic};
use serde_json::{Value, json};

use super::{
    Misconfigured, Reach, block_on, existing, explain, misused, print, print_json, refused, split_pair,
    unknown_topic,
};

/// `dibs topic …`
#[derive(Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic
    Create(Create),
    /// List topics by name
    List {
        /// Only topics whose whole name matches this regular expression
        #[arg(long, value_name = "REGEX")]
        topic: Option<String>,
        /// Leave out Kafka's own topics, such as __consumer_offsets
        #[arg(long)]
        exclude_internal: bool,
    },
    /// Show partitions, leaders, replicas and settings
    Describe(Describe),
    /// Add partitions, and change settings
    Alter(Alter),
    /// Delete a topic and all its records
    Delete {
        /// The topic; or a regular expression that whole names match
        #[arg(long, value_name = "TOPIC")]
        topic: String,
        /// It is no error if there is none
        #[arg(long)]
        if_exists: bool,
    },
}

/// `dibs topic create`
#[derive(clap::Args)]
pub(crate) struct Create {
    /// Its name
    #[arg(long, value_name = "TOPIC")]
    topic: String,
    /// How many partitions [default: the broker's num.partitions]
    #[arg(long, value_name = "N")]
    partitions: Option<i32>,
    /// How many copies of each [default: the broker's default.replication.factor]
    #[arg(long, value_name = "N")]
    replication_factor: Option<i16>,
    /// The brokers of each partition's copies, such as 1:2,2:3 for two partitions
    #[arg(long, value_name = "IDS", conflicts_with_all = ["partitions", "replication_factor"])]
    replica_assignment: Option<String>,
    /// A setting, such as retention.ms=86400000; may be given many times
    #[arg(long, value_name = "NAME=VALUE")]
    config: Vec<String>,
    /// It is no error if it exists already
    #[arg(long)]
    if_not_exists: bool,
}

/// `dibs topic describe`
#[derive(clap::Args)]
pub(crate) struct Describe {
    /// The topic; or a regular expression that whole names match [default: all]
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// It is no error if there is none
    #[arg(long)]
    if_exists: bool,
    /// Leave out Kafka's own topics, such as __consumer_offsets
    #[arg(long)]
    exclude_internal: bool,
    /// Only partitions with copies that are not in sync
    #[arg(long, group = "health")]
    under_replicated_partitions: bool,
    /// Only partitions without a leader
    #[arg(long, group = "health")]
    unavailable_partitions: bool,
    /// Only partitions with fewer copies in sync than min.insync.replicas
    #[arg(long, group = "health")]
    under_min_isr_partitions: bool,
    /// Only partitions with exactly min.insync.replicas copies in sync
    #[arg(long, group = "health")]
    at_min_isr_partitions: bool,
    /// Only topics with settings of their own, without their partitions
    #[arg(long)]
    topics_with_overrides: bool,
}

/// `dibs topic alter`
#[derive(clap::Args)]
pub(crate) struct Alter {
    /// The topic; or a regular expression that whole names match
    #[arg(long, value_name = "TOPIC")]
    topic: String,
    /// How many partitions it shall have; there is no way back to fewer
    #[arg(long, value_name = "N")]
    partitions: Option<i32>,
    /// The brokers of each partition's copies, the existing partitions' first
    #[arg(long, value_name = "IDS", requires = "partitions")]
    replica_assignment: Option<String>,
    /// A setting to set; may be given many times
    #[arg(long, value_name = "NAME=VALUE")]
    config: Vec<String>,
    /// A setting to put back to the broker's default; may be given many times
    #[arg(long, value_name = "NAME")]
    delete_config: Vec<String>,
    /// It is no error if there is none
    #[arg(long)]
    if_exists: bool,
}

pub(crate) fn run(command: &TopicCommand, reach: &Reach, json: bool) -> anyhow::Result<()> {
    // What is wrong with the arguments is said before anybody is asked.
    let prepared = match command {
        TopicCommand::Create(create) => Some(create.topic()?),
        TopicCommand::Alter(alter) => {
            alter.changes()?;
            None
        }
        _ => None,
    };
    let properties = reach.properties()?;
    block_on(async {
        let cluster = reach.connect(properties).await?;
        match command {
            TopicCommand::Create(create) => create.run(&cluster, &prepared.unwrap_or_default(), json).await,
            TopicCommand::List { topic, exclude_internal } => {
                list(&cluster, topic.as_deref(), *exclude_internal, json).await
            }
            TopicCommand::Describe(describe) => describe.run(&cluster, json).await,
            TopicCommand::Alter(alter) => alter.run(&cluster, json).await,
            TopicCommand::Delete { topic, if_exists } => delete(&cluster, topic, *if_exists, json).await,
        }
    })
}

impl Create {
    fn topic(&self) -> anyhow::Result<NewTopic> {
        let configs = self.config.iter().map(|pair| {
            split_pair(pair, "--config").map(|(name, value)| (name.to_owned(), value.to_owned()))
        });
        if self.partitions.is_some_and(|n| n < 1) || self.replication_factor.is_some_and(|n| n < 1) {
            return Err(misused("--partitions and --replication-factor are at least 1"));
        }
        Ok(NewTopic {
            name: self.topic.clone(),
            partitions: self.partitions,
            replication_factor: self.replication_factor,
            assignment: assignment(self.replica_assignment.as_deref())?,
            configs: configs.collect::<Result<_, _>>()?,
        })
    }

    async fn run(&self, cluster: &Cluster, topic: &NewTopic, json: bool) -> anyhow::Result<()> {
        if self.topic.contains(['.', '_']) {
            eprintln!(
                "dibs: warning: topics whose names differ only in '.' and '_' collide in Kafka's metrics; use \
                 one of the two throughout"
            );
        }
        let created = match cluster.create_topic(topic).await {
            Err(error) if self.if_not_exists && error.kafka() == Some(ResponseError::TopicAlreadyExists) => {
                false
            }
            done => done.map(|()| true).map_err(explain)?,
        };
        if json {
            return print_json(&json!({ "topic": self.topic, "created": created }));
        }
        if created { print(&format!("Created topic {}.\n", self.topic)) } else { Ok(()) }
    }
}

/// `1:2,2:3` as brokers by partition.
fn assignment(text: Option<&str>) -> anyhow::Result<Vec<Vec<i32>>> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let partition = |part: &str| part.split(':').map(|id| id.trim().parse()).collect::<Result<Vec<i32>, _>>();
    let parsed: Result<Vec<_>, _> = text.split(',').map(partition).collect();
    parsed
        .with_context(|| format!("--replica-assignment {text} is not such as 1:2,2:3"))
        .context(Misconfigured)
}

/// The topics that are meant: one by its name, else all whose whole name matches.
async fn meant(cluster: &Cluster, topic: &str, if_exists: bool) -> anyhow::Result<Vec<Topic>> {
    let all: Vec<Topic> = cluster.topics(None, false).await.map_err(explain)?.into_iter().flatten().collect();
    if let Some(one) = all.iter().find(|t| t.name == topic) {
        return Ok(vec![one.clone()]);
    }
    let matched = if is_pattern(topic) {
        let pattern = pattern(topic)?;
        all.into_iter().filter(|t| pattern.is_match(&t.name)).collect()
    } else {
        Vec::new()
    };
    if matched.is_empty() && !if_exists {
        return Err(unknown_topic(cluster, topic).await);
    }
    Ok(matched)
}

/// Whether a text has something in it that no name has.
fn is_pattern(text: &str) -> bool {
    text.contains(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-'))
        || text.contains(".*")
}

/// A regular expression for whole names. As in Kafka's tools a comma is an "or".
pub(super) fn pattern(text: &str) -> anyhow::Result<regex::Regex> {
    let text = text.trim().trim_matches(['"', '\'']).replace(',', "|");
    regex::Regex::new(&format!("^(?:{text})$"))
        .with_context(|| format!("{text} is not a regular expression"))
        .context(Misconfigured)
}

async fn list(cluster: &Cluster, only: Option<&str>, no_internal: bool, json: bool) -> anyhow::Result<()> {
    let only = only.map(pattern).transpose()?;
    let topics = cluster.topics(None, false).await.map_err(explain)?;
    let shown = |t: &Topic| !(no_internal && t.internal) && only.as_ref().is_none_or(|p| p.is_match(&t.name));
    let names: Vec<String> = topics.into_iter().flatten().filter(shown).map(|topic| topic.name).collect();
    if json {
        return print_json(&json!(names));
    }
    print(&names.iter().map(|name| format!("{name}\n")).collect::<String>())
}

impl Describe {
    async fn run(&self, cluster: &Cluster, json: bool) -> anyhow::Result<()> {
        let topics = match &self.topic {
            Some(topic) => meant(cluster, topic, self.if_exists).await?,
            None => cluster.topics(None, false).await.map_err(explain)?.into_iter().flatten().collect(),
        };
        let mut shown = Vec::new();
        for topic in topics.iter().filter(|t| !(self.exclude_internal && t.internal)) {
            // A topic may go between two questions.
            let configs = cluster.topic_configs(&topic.name).await.map_err(explain)?;
            if let Some(one) = self.one(topic, &configs) {
                shown.push(one);
            }
        }
        if json {
            return print_json(&json!(shown));
        }
        print(&shown.iter().map(|topic| self.text(topic)).collect::<String>())
    }

    /// What is shown of a topic, if anything is.
    fn one(&self, topic: &Topic, configs: &[ConfigEntry]) -> Option<Value> {
        let setting = |name: &str| configs.iter().find(|c| c.name == name).and_then(|c| c.value.clone());
        let min_isr = setting("min.insync.replicas").and_then(|v| v.parse().ok()).unwrap_or(1_usize);
        let own: serde_json::Map<String, Value> = configs
            .iter()
            .filter(|c| c.own)
            .map(|c| (c.name.clone(), c.value.clone().unwrap_or_default().into()))
            .collect();
        let healthy_too = !(self.under_replicated_partitions
            || self.unavailable_partitions
            || self.under_min_isr_partitions
            || self.at_min_isr_partitions);
        let partitions: Vec<Value> = topic
            .partitions
            .iter()
            .filter(|p| {
                healthy_too
                    || (self.under_replicated_partitions && p.isr.len() < p.replicas.len())
                    || (self.unavailable_partitions && p.leader.is_none())
                    || (self.under_min_isr_partitions && p.isr.len() < min_isr)
                    || (self.at_min_isr_partitions && p.isr.len() == min_isr)
            })
            .map(
                |p| json!({ "partition": p.index, "leader": p.leader, "replicas": p.replicas, "isr": p.isr }),
            )
            .collect();
        if (self.topics_with_overrides && own.is_empty()) || (!healthy_too && partitions.is_empty()) {
            return None;
        }
        Some(json!({
            "topic": topic.name,
            "topic_id": topic.id.map(|id| BASE64URL_NOPAD.encode(id.as_bytes())),
            "internal": topic.internal,
            "partition_count": topic.partitions.len(),
            "replication_factor": topic.partitions.first().map_or(0, |p| p.replicas.len()),
            "configs": own,
            "partitions": if self.topics_with_overrides { Vec::new() } else { partitions },
        }))
    }

    /// The same as `kafka-topics.sh --describe` has it.
    fn text(&self, topic: &Value) -> String {
        let name = topic["topic"].as_str().unwrap_or_default();
        let mut out = String::new();
        let health = self.under_replicated_partitions
            || self.unavailable_partitions
            || self.under_min_isr_partitions
            || self.at_min_isr_partitions;
        if !health {
            let configs = topic["configs"].as_object().into_iter().flatten();
            let configs: Vec<String> = configs
                .map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default()))
                .collect();
            out = format!(
                "Topic: {name}\tTopicId: {}\tPartitionCount: {}\tReplicationFactor: {}\tConfigs: {}\n",
                topic["topic_id"].as_str().unwrap_or("none"),
                topic["partition_count"],
                topic["replication_factor"],
                configs.join(",")
            );
        }
        for p in topic["partitions"].as_array().into_iter().flatten() {
            let ids = |name: &str| {
                let ids: Vec<String> =
                    p[name].as_array().into_iter().flatten().map(Value::to_string).collect();
                ids.join(",")
            };
            let leader = p["leader"].as_i64().map_or("none".to_owned(), |id| id.to_string());
            out.push_str(&format!(
                "\tTopic: {name}\tPartition: {}\tLeader: {leader}\tReplicas: {}\tIsr: {}\n",
                p["partition"],
                ids("replicas"),
                ids("isr")
            ));
        }
        out
    }
}

impl Alter {
    fn changes(&self) -> anyhow::Result<Vec<ConfigChange>> {
        if self.partitions.is_none() && self.config.is_empty() && self.delete_config.is_empty() {
            return Err(misused("nothing to alter: give --partitions, --config or --delete-config"));
        }
        let set = self.config.iter().map(|pair| {
            split_pair(pair, "--config")
                .map(|(name, value)| ConfigChange::Set(name.to_owned(), value.to_owned()))
        });
        let delete = self.delete_config.iter().map(|name| Ok(ConfigChange::Delete(name.clone())));
        set.chain(delete).collect()
    }

    async fn run(&self, cluster: &Cluster, json: bool) -> anyhow::Result<()> {
        let (changes, brokers) = (self.changes()?, assignment(self.replica_assignment.as_deref())?);
        let topics = meant(cluster, &self.topic, self.if_exists).await?;
        for topic in &topics {
            if let Some(count) = self.partitions {
                // The brokers of the partitions that are there stay as they are.
                let added = brokers.get(topic.partitions.len()..).unwrap_or_default();
                cluster.create_partitions(&topic.name, count, added).await.map_err(explain)?;
            }
            if !changes.is_empty() {
                cluster.alter_topic_configs(&topic.name, &changes).await.map_err(explain)?;
            }
            if !json {
                print(&format!("Altered topic {}.\n", topic.name))?;
            }
        }
        let names: Vec<&str> = topics.iter().map(|t| t.name.as_str()).collect();
        if json { print_json(&json!({ "altered": names })) } else { Ok(()) }
    }
}

async fn delete(cluster: &Cluster, topic: &str, if_exists: bool, json: bool) -> anyhow::Result<()> {
    let topics = meant(cluster, topic, if_exists).await?;
    if is_pattern(topic) && topics.iter().any(|t| t.internal) {
        return Err(refused(format!("{topic} matches Kafka's own topics too; be more precise")));
    }
    for topic in &topics {
        cluster.delete_topic(&topic.name).await.map_err(explain)?;
        if !json {
            print(&format!("Deleted topic {}.\n", topic.name))?;
        }
    }
    let names: Vec<&str> = topics.iter().map(|t| t.name.as_str()).collect();
    if json { print_json(&json!({ "deleted": names })) } else { Ok(()) }
}

/// One topic's partitions, named as `t` or `t:0,1`.
pub(super) async fn partitions_of(cluster: &Cluster, scope: &str) -> anyhow::Result<Vec<(String, i32)>> {
    let (name, wanted) = match scope.rsplit_once(':') {
        Some((name, list)) => {
            let list: Result<Vec<i32>, _> = list.split(',').map(|p| p.trim().parse()).collect();
            let wrong = || format!("--topic {scope} is not TOPIC or TOPIC:0,1,2");
            (name, Some(list.with_context(wrong).context(Misconfigured)?))
        }
        None => (scope, None),
    };
    let topic = existing(cluster, name).await?;
    let all: Vec<i32> = topic.partitions.iter().map(|p| p.index).collect();
    let chosen = wanted.unwrap_or_else(|| all.clone());
    if let Some(missing) = chosen.iter().find(|p| !all.contains(p)) {
        return Err(refused(format!(
            "topic {name} has no partition {missing}: it has 0 to {}",
            all.len() - 1
        )));
    }
    Ok(chosen.into_iter().map(|p| (name.to_owned(), p)).collect())
}
