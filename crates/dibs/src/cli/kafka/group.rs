//! `dibs group …`: what `kafka-consumer-groups.sh` does.

use std::collections::BTreeMap;

use clap::Subcommand;
use dibs_client::{
    At, Cluster, Committed, GroupDescription, Isolation, ListedGroup, MemberDescription, TopicPartition,
};
use serde_json::{Value, json};

use super::{
    Reach, block_on, explain, misused, print, print_json, refused,
    reset::{self, ResetOffsets},
    similar,
    table::columns,
    topic::partitions_of,
};
use crate::cli::Outcome;

/// `dibs group …`
#[derive(Subcommand)]
pub(crate) enum GroupCommand {
    /// List consumer groups
    List {
        /// With their states; only those in these states, if any are named: Stable, Empty, Dead,
        /// PreparingRebalance, CompletingRebalance, Assigning, Reconciling
        #[arg(long, value_name = "STATES", num_args = 0..=1, default_missing_value = "")]
        state: Option<String>,
        /// With their types: Classic, Consumer
        #[arg(long, value_name = "TYPES", num_args = 0..=1, default_missing_value = "")]
        r#type: Option<String>,
    },
    /// Show how far groups have read, and who is in them
    Describe {
        #[command(flatten)]
        which: Which,
        /// Show the members instead of offsets; with --verbose, what each of them reads
        #[arg(long, conflicts_with = "state")]
        members: bool,
        /// Show the state instead of offsets
        #[arg(long)]
        state: bool,
        /// Show offsets (the default)
        #[arg(long)]
        offsets: bool,
    },
    /// Move the committed offsets of a group that nobody is in; only shown until --execute is given
    ResetOffsets(ResetOffsets),
    /// Delete what a group has committed for topics that it no longer reads; only shown until --execute is given
    DeleteOffsets {
        /// The group
        #[arg(long, value_name = "GROUP")]
        group: String,
        /// A topic, or some of its partitions: t or t:0,1; may be given many times
        #[arg(long, value_name = "TOPIC", required = true)]
        topic: Vec<String>,
        /// Do it
        #[arg(long)]
        execute: bool,
    },
    /// Delete groups that nobody is in, with all they have committed; only shown until --execute is given
    Delete {
        #[command(flatten)]
        which: Which,
        /// Do it
        #[arg(long)]
        execute: bool,
    },
}

/// Which groups.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// A group; may be given many times
    #[arg(long, value_name = "GROUP")]
    pub(super) group: Vec<String>,
    /// All groups
    #[arg(long)]
    pub(super) all_groups: bool,
}

impl Which {
    /// The groups that are meant. Each of them exists.
    pub(super) async fn groups(&self, cluster: &Cluster) -> anyhow::Result<Vec<String>> {
        let all: Vec<String> =
            cluster.list_groups().await.map_err(explain)?.into_iter().map(|g| g.group).collect();
        if self.all_groups {
            return Ok(all);
        }
        match self.group.iter().find(|group| !all.contains(group)) {
            Some(missing) => Err(unknown_group(missing, &all)),
            None => Ok(self.group.clone()),
        }
    }
}

fn unknown_group(group: &str, all: &[String]) -> anyhow::Error {
    refused(match similar::to(group, all.iter().map(String::as_str)) {
        Some(meant) => format!("there is no consumer group {group}. Did you mean {meant}?"),
        None => format!("there is no consumer group {group}. `dibs group list` shows all"),
    })
}

pub(crate) fn run(
    command: &GroupCommand,
    reach: &Reach,
    json: bool,
    verbose: bool,
) -> anyhow::Result<Outcome> {
    let plan = match command {
        GroupCommand::ResetOffsets(args) => Some(args.plan()?),
        _ => None,
    };
    let properties = reach.properties()?;
    block_on(async {
        let cluster = reach.connect(properties).await?;
        match command {
            GroupCommand::List { state, r#type } => {
                list(&cluster, state.as_deref(), r#type.as_deref(), json).await?;
            }
            GroupCommand::Describe { which, members, state, .. } => {
                let what = match (members, state) {
                    (true, _) => Shown::Members { assignment: verbose },
                    (_, true) => Shown::State,
                    _ => Shown::Offsets,
                };
                describe(&cluster, which, what, json).await?;
            }
            GroupCommand::ResetOffsets(args) => {
                if let Some(plan) = plan {
                    reset::run(&cluster, args, &plan, json).await?;
                }
            }
            GroupCommand::DeleteOffsets { group, topic, execute } => {
                return delete_offsets(&cluster, group, topic, *execute, json).await;
            }
            GroupCommand::Delete { which, execute } => return delete(&cluster, which, *execute, json).await,
        }
        Ok(Outcome::Done)
    })
}

async fn list(
    cluster: &Cluster,
    states: Option<&str>,
    types: Option<&str>,
    json: bool,
) -> anyhow::Result<()> {
    let matches = |wanted: Option<&str>, is: &str| {
        let wanted = wanted.unwrap_or_default();
        wanted.is_empty() || wanted.split(',').any(|w| w.trim().eq_ignore_ascii_case(is))
    };
    let groups = cluster.list_groups().await.map_err(explain)?;
    let shown: Vec<&ListedGroup> = groups
        .iter()
        .filter(|g| matches!(g.protocol_type.as_str(), "consumer" | ""))
        .filter(|g| matches(states, &g.state) && matches(types, &g.kind))
        .collect();
    if json {
        let all = shown.iter().map(|g| json!({ "group": g.group, "state": g.state, "type": g.kind }));
        return print_json(&Value::Array(all.collect()));
    }
    if states.is_none() && types.is_none() {
        return print(&shown.iter().map(|g| format!("{}\n", g.group)).collect::<String>());
    }
    let rows: Vec<Vec<String>> = shown
        .iter()
        .map(|g| {
            let mut row = vec![g.group.clone()];
            row.extend(types.map(|_| g.kind.clone()));
            row.extend(states.map(|_| g.state.clone()));
            row
        })
        .collect();
    let header: Vec<&str> =
        ["GROUP"].into_iter().chain(types.map(|_| "TYPE")).chain(states.map(|_| "STATE")).collect();
    print(&columns(&header, &rows))
}

/// What of a group is shown.
#[derive(Clone, Copy)]
enum Shown {
    Offsets,
    Members { assignment: bool },
    State,
}

async fn describe(cluster: &Cluster, which: &Which, what: Shown, json: bool) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for name in which.groups(cluster).await? {
        let group = cluster.describe_group(&name).await.map_err(explain)?;
        if !json {
            note_state(&group);
        }
        let text = match what {
            Shown::Offsets => {
                let lags = lags(cluster, &group).await?;
                all.push(offsets_json(&group, &lags));
                offsets_text(&group, &lags)
            }
            Shown::Members { assignment } => {
                all.push(members_json(&group));
                members_text(&group, assignment)
            }
            Shown::State => {
                all.push(state_json(&group));
                state_text(cluster, &group)
            }
        };
        if !json {
            print(&text)?;
        }
    }
    if json { print_json(&Value::Array(all)) } else { Ok(()) }
}

/// What Kafka's tool says beside the table, for people.
fn note_state(group: &GroupDescription) {
    match group.state.as_str() {
        "Empty" | "Dead" => eprintln!("\nConsumer group '{}' has no active members.", group.group),
        "PreparingRebalance" | "CompletingRebalance" | "Assigning" | "Reconciling" => {
            eprintln!("\nWarning: Consumer group '{}' is rebalancing.", group.group);
        }
        _ => {}
    }
}

/// How far a group is in one partition.
struct Lag<'a> {
    committed: Option<i64>,
    end: Option<i64>,
    member: Option<&'a MemberDescription>,
}

impl Lag<'_> {
    fn lag(&self) -> Option<i64> {
        Some((self.end? - self.committed?).max(0))
    }
}

/// The partitions that a group has committed or reads now.
async fn lags<'a>(
    cluster: &Cluster,
    group: &'a GroupDescription,
) -> anyhow::Result<BTreeMap<TopicPartition, Lag<'a>>> {
    let committed = cluster.committed(&group.group, None).await.map_err(explain)?;
    let mut lags: BTreeMap<TopicPartition, Lag<'a>> = BTreeMap::new();
    for member in &group.members {
        for tp in &member.assignment {
            lags.insert(tp.clone(), Lag { committed: None, end: None, member: Some(member) });
        }
    }
    for (tp, Committed { offset, .. }) in committed {
        lags.entry(tp).or_insert(Lag { committed: None, end: None, member: None }).committed = Some(offset);
    }
    let partitions: Vec<TopicPartition> = lags.keys().cloned().collect();
    for (tp, end) in ends(cluster, &partitions, At::Latest).await? {
        if let Some(lag) = lags.get_mut(&tp) {
            lag.end = end;
        }
    }
    Ok(lags)
}

/// An offset of each partition that still exists.
pub(super) async fn ends(
    cluster: &Cluster,
    partitions: &[TopicPartition],
    at: At,
) -> anyhow::Result<BTreeMap<TopicPartition, Option<i64>>> {
    let mut names: Vec<String> = partitions.iter().map(|tp| tp.topic.clone()).collect();
    names.dedup();
    let topics = cluster.topics(Some(&names), false).await.map_err(explain)?;
    let there: Vec<TopicPartition> = topics
        .into_iter()
        .flatten()
        .flat_map(|t| t.partitions.into_iter().map(move |p| TopicPartition::new(t.name.clone(), p.index)))
        .collect();
    let asked: Vec<_> =
        partitions.iter().filter(|tp| there.contains(tp)).map(|tp| (tp.clone(), at)).collect();
    let found = cluster.offsets(&asked, Isolation::ReadUncommitted).await.map_err(explain)?;
    Ok(found.into_iter().map(|(tp, found)| (tp, found.map(|f| f.offset))).collect())
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn offsets_text(group: &GroupDescription, lags: &BTreeMap<TopicPartition, Lag<'_>>) -> String {
    let row = |(tp, lag): (&TopicPartition, &Lag<'_>)| {
        vec![
            group.group.clone(),
            tp.topic.clone(),
            tp.partition.to_string(),
            or_dash(lag.committed),
            or_dash(lag.end),
            or_dash(lag.lag()),
            or_dash(lag.member.map(|m| &m.id)),
            or_dash(lag.member.map(|m| &m.host)),
            or_dash(lag.member.map(|m| &m.client_id)),
        ]
    };
    let header = [
        "GROUP",
        "TOPIC",
        "PARTITION",
        "CURRENT-OFFSET",
        "LOG-END-OFFSET",
        "LAG",
        "CONSUMER-ID",
        "HOST",
        "CLIENT-ID",
    ];
    format!("\n{}", columns(&header, &lags.iter().map(row).collect::<Vec<_>>()))
}

fn offsets_json(group: &GroupDescription, lags: &BTreeMap<TopicPartition, Lag<'_>>) -> Value {
    let partition = |(tp, lag): (&TopicPartition, &Lag<'_>)| {
        json!({
            "topic": tp.topic, "partition": tp.partition, "current_offset": lag.committed,
            "log_end_offset": lag.end, "lag": lag.lag(), "consumer_id": lag.member.map(|m| &m.id),
            "host": lag.member.map(|m| &m.host), "client_id": lag.member.map(|m| &m.client_id),
        })
    };
    let partitions: Vec<Value> = lags.iter().map(partition).collect();
    let total: i64 = lags.values().filter_map(Lag::lag).sum();
    json!({ "group": group.group, "state": group.state, "lag": total, "partitions": partitions })
}

/// What a member reads, as Kafka's tool writes it: `t(0,1), u(0)`.
fn assignment_text(member: &MemberDescription) -> String {
    let mut topics: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for tp in &member.assignment {
        topics.entry(&tp.topic).or_default().push(tp.partition.to_string());
    }
    let texts: Vec<String> = topics.iter().map(|(t, p)| format!("{t}({})", p.join(","))).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(", ") }
}

fn members_text(group: &GroupDescription, assignment: bool) -> String {
    let mut header = vec!["GROUP", "CONSUMER-ID", "HOST", "CLIENT-ID", "#PARTITIONS"];
    if assignment {
        header.push("ASSIGNMENT");
    }
    let row = |m: &MemberDescription| {
        let mut row = vec![
            group.group.clone(),
            m.id.clone(),
            m.host.clone(),
            m.client_id.clone(),
            m.assignment.len().to_string(),
        ];
        row.extend(assignment.then(|| assignment_text(m)));
        row
    };
    format!("\n{}", columns(&header, &group.members.iter().map(row).collect::<Vec<_>>()))
}

fn members_json(group: &GroupDescription) -> Value {
    let member = |m: &MemberDescription| {
        let assignment: Vec<Value> =
            m.assignment.iter().map(|tp| json!({ "topic": tp.topic, "partition": tp.partition })).collect();
        json!({
            "consumer_id": m.id, "group_instance_id": m.instance_id, "host": m.host, "client_id": m.client_id,
            "assignment": assignment,
        })
    };
    let members: Vec<Value> = group.members.iter().map(member).collect();
    json!({ "group": group.group, "state": group.state, "members": members })
}

fn state_text(cluster: &Cluster, group: &GroupDescription) -> String {
    let address = cluster.nodes().into_iter().find(|n| n.id == group.coordinator).map(|n| n.address);
    let row = vec![
        group.group.clone(),
        format!("{} ({})", address.unwrap_or_default(), group.coordinator),
        if group.assignor.is_empty() { "-".to_owned() } else { group.assignor.clone() },
        group.state.clone(),
        group.members.len().to_string(),
    ];
    let header = ["GROUP", "COORDINATOR (ID)", "ASSIGNMENT-STRATEGY", "STATE", "#MEMBERS"];
    format!("\n{}", columns(&header, &[row]))
}

fn state_json(group: &GroupDescription) -> Value {
    json!({
        "group": group.group, "state": group.state, "coordinator": group.coordinator,
        "assignment_strategy": group.assignor, "members": group.members.len(),
    })
}

async fn delete_offsets(
    cluster: &Cluster,
    group: &str,
    scopes: &[String],
    execute: bool,
    json: bool,
) -> anyhow::Result<Outcome> {
    Which { group: vec![group.to_owned()], all_groups: false }.groups(cluster).await?;
    let mut partitions = Vec::new();
    for scope in scopes {
        partitions.extend(partitions_of(cluster, scope).await?);
    }
    let partitions: Vec<_> = partitions.into_iter().map(|(t, p)| TopicPartition::new(t, p)).collect();
    let mut statuses = Vec::new();
    if execute {
        for (tp, result) in cluster.delete_offsets(group, &partitions).await.map_err(explain)? {
            statuses.push((tp, result.err().map(|e| e.to_string())));
        }
    } else {
        statuses.extend(partitions.into_iter().map(|tp| (tp, None)));
    }
    let word = |error: &Option<String>| match error {
        Some(error) => format!("Error: {error}"),
        None if execute => "Successful".to_owned(),
        None => "Would be deleted".to_owned(),
    };
    let failed = statuses.iter().any(|(_, error)| error.is_some());
    if json {
        let all = statuses.iter().map(
            |(tp, error)| json!({ "topic": tp.topic, "partition": tp.partition, "deleted": execute && error.is_none(), "error": error }),
        );
        print_json(&json!({ "group": group, "executed": execute, "offsets": all.collect::<Vec<_>>() }))?;
    } else {
        let rows: Vec<Vec<String>> = statuses
            .iter()
            .map(|(tp, e)| vec![tp.topic.clone(), tp.partition.to_string(), word(e)])
            .collect();
        print(&columns(&["TOPIC", "PARTITION", "STATUS"], &rows))?;
        hint(execute);
    }
    Ok(if failed { Outcome::NotExact } else { Outcome::Done })
}

/// Says that nothing was done, and how it would be.
pub(super) fn hint(execute: bool) {
    if !execute {
        eprintln!("Nothing was changed. Run it again with --execute to do it.");
    }
}

async fn delete(cluster: &Cluster, which: &Which, execute: bool, json: bool) -> anyhow::Result<Outcome> {
    let groups = which.groups(cluster).await?;
    if groups.is_empty() && !json {
        return Err(misused("there is no group"));
    }
    let mut outcomes = Vec::new();
    for group in groups {
        let error = if execute {
            cluster.delete_group(&group).await.err().map(|e| e.to_string())
        } else {
            let members = cluster.describe_group(&group).await.map_err(explain)?.members.len();
            (members > 0).then(|| format!("group {group} has {members} members; stop them first"))
        };
        outcomes.push((group, error));
    }
    let failed = outcomes.iter().any(|(_, error)| error.is_some());
    if json {
        let one = |(group, error): &(String, Option<String>)| json!({ "group": group, "deleted": execute && error.is_none(), "error": error });
        let all: Vec<Value> = outcomes.iter().map(one).collect();
        print_json(&json!({ "executed": execute, "groups": all }))?;
    } else {
        for (group, error) in &outcomes {
            match error {
                Some(error) => eprintln!("dibs: {error}"),
                None if execute => print(&format!("Deleted group {group}.\n"))?,
                None => print(&format!("Would delete group {group}.\n"))?,
            }
        }
        hint(execute);
    }
    Ok(if failed { Outcome::NotExact } else { Outcome::Done })
}
