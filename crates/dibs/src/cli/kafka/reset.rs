//! `dibs group reset-offsets`: where a group shall go on reading.

use std::collections::BTreeMap;

use anyhow::Context;
use dibs_client::{At, Cluster, Isolation, TopicPartition};
use serde_json::{Value, json};

use super::{
    Misconfigured, existing, explain,
    group::{Which, ends, hint},
    misused, print, print_json,
    produce::now_ms,
    refused,
    table::columns,
    topic::partitions_of,
    when,
};

/// `dibs group reset-offsets`
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("to").required(true))]
pub(crate) struct ResetOffsets {
    /// A group, which need not exist yet; may be given many times
    #[arg(long, value_name = "GROUP", required_unless_present = "all_groups")]
    group: Vec<String>,
    /// All groups
    #[arg(long, conflicts_with = "group")]
    all_groups: bool,
    /// A topic, or some of its partitions: t or t:0,1; may be given many times
    #[arg(long, value_name = "TOPIC")]
    topic: Vec<String>,
    /// All topics that the group has committed offsets for
    #[arg(long, conflicts_with = "topic")]
    all_topics: bool,
    /// To the first record that is there
    #[arg(long, group = "to")]
    to_earliest: bool,
    /// After the last record
    #[arg(long, group = "to")]
    to_latest: bool,
    /// To this offset, or to the nearest that is there
    #[arg(long, group = "to", value_name = "OFFSET")]
    to_offset: Option<i64>,
    /// So many records on, or back if negative
    #[arg(long, group = "to", value_name = "N", allow_hyphen_values = true)]
    shift_by: Option<i64>,
    /// To the first record of this time on: 2026-07-01T12:00:00.000 is UTC, with Z or +09:00 it is what it says
    #[arg(long, group = "to", value_name = "TIME")]
    to_datetime: Option<String>,
    /// To the first record of so long ago on, such as PT1H30M or P7D
    #[arg(long, group = "to", value_name = "DURATION")]
    by_duration: Option<String>,
    /// Where it is; with --export, to save it
    #[arg(long, group = "to")]
    to_current: bool,
    /// To what a file says: lines of TOPIC,PARTITION,OFFSET, or GROUP,TOPIC,PARTITION,OFFSET, as --export writes
    #[arg(long, group = "to", value_name = "FILE")]
    from_file: Option<std::path::PathBuf>,
    /// Do it
    #[arg(long, conflicts_with = "dry_run")]
    execute: bool,
    /// Only show it (the default)
    #[arg(long)]
    dry_run: bool,
    /// Print what --from-file reads
    #[arg(long)]
    export: bool,
}

/// Where to, once the arguments are understood.
pub(super) enum Plan {
    Find(At),
    Offset(i64),
    Shift(i64),
    Current,
    /// By group (empty for every one) and partition.
    File(BTreeMap<(String, TopicPartition), i64>),
}

impl ResetOffsets {
    /// Understands the arguments, and reads the file.
    pub(super) fn plan(&self) -> anyhow::Result<Plan> {
        let plan = if self.to_earliest {
            Plan::Find(At::Earliest)
        } else if self.to_latest {
            Plan::Find(At::Latest)
        } else if let Some(offset) = self.to_offset {
            Plan::Offset(offset)
        } else if let Some(shift) = self.shift_by {
            Plan::Shift(shift)
        } else if let Some(time) = &self.to_datetime {
            Plan::Find(At::Time(when::datetime(time).map_err(misused)?))
        } else if let Some(duration) = &self.by_duration {
            Plan::Find(At::Time(now_ms() - when::duration(duration).map_err(misused)?))
        } else if let Some(file) = &self.from_file {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))
                .context(Misconfigured)?;
            Plan::File(parse(&text).map_err(misused)?)
        } else {
            Plan::Current
        };
        if self.topic.is_empty() && !self.all_topics && !matches!(plan, Plan::File(_)) {
            return Err(misused(
                "which topics? Give --topic, or --all-topics for all that the group has read",
            ));
        }
        Ok(plan)
    }
}

/// The lines of a file.
fn parse(text: &str) -> Result<BTreeMap<(String, TopicPartition), i64>, String> {
    let mut all = BTreeMap::new();
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        let fields: Vec<&str> = line.split(',').map(|f| f.trim().trim_matches('"')).collect();
        let (group, rest) = match fields.len() {
            3 => ("", &fields[..]),
            4 => (fields[0], &fields[1..]),
            _ => return Err(format!("line {number} is not TOPIC,PARTITION,OFFSET: {line}")),
        };
        let (Ok(partition), Ok(offset)) = (rest[1].parse(), rest[2].parse()) else {
            return Err(format!("line {number} has no number where one should be: {line}"));
        };
        all.insert((group.to_owned(), TopicPartition::new(rest[0], partition)), offset);
    }
    Ok(all)
}

pub(super) async fn run(
    cluster: &Cluster,
    args: &ResetOffsets,
    plan: &Plan,
    json: bool,
) -> anyhow::Result<()> {
    let groups = if args.all_groups {
        Which { group: Vec::new(), all_groups: true }.groups(cluster).await?
    } else {
        args.group.clone()
    };
    let mut moves: Vec<(String, BTreeMap<TopicPartition, i64>)> = Vec::new();
    for group in groups {
        let state = cluster.describe_group(&group).await.map_err(explain)?.state;
        if !matches!(state.as_str(), "Empty" | "Dead") {
            return Err(refused(format!(
                "offsets can only be reset while nobody is in the group {group}, and its state is {state}"
            )));
        }
        let targets = targets(cluster, args, plan, &group).await?;
        moves.push((group, targets));
    }
    if args.execute {
        for (group, targets) in &moves {
            cluster.commit(group, None, targets).await.map_err(explain)?;
        }
    }
    if args.export {
        return print(&csv(&moves));
    }
    if json {
        let all: Vec<Value> = moves.iter().map(as_json).collect();
        return print_json(&json!({ "executed": args.execute, "groups": all }));
    }
    let rows: Vec<Vec<String>> = moves
        .iter()
        .flat_map(|(group, targets)| {
            targets.iter().map(move |(tp, offset)| {
                vec![group.clone(), tp.topic.clone(), tp.partition.to_string(), offset.to_string()]
            })
        })
        .collect();
    print(&columns(&["GROUP", "TOPIC", "PARTITION", "NEW-OFFSET"], &rows))?;
    hint(args.execute);
    Ok(())
}

fn as_json((group, targets): &(String, BTreeMap<TopicPartition, i64>)) -> Value {
    let offset = |(tp, offset): (&TopicPartition, &i64)| json!({ "topic": tp.topic, "partition": tp.partition, "new_offset": offset });
    json!({ "group": group, "offsets": targets.iter().map(offset).collect::<Vec<_>>() })
}

/// One group's lines do not name it, so that they can be used for another.
fn csv(moves: &[(String, BTreeMap<TopicPartition, i64>)]) -> String {
    let mut out = String::new();
    for (group, targets) in moves {
        for (tp, offset) in targets {
            if moves.len() > 1 {
                out.push_str(&format!("\"{group}\","));
            }
            out.push_str(&format!("\"{}\",{},{offset}\n", tp.topic, tp.partition));
        }
    }
    out
}

/// The new offset of each partition in question.
async fn targets(
    cluster: &Cluster,
    args: &ResetOffsets,
    plan: &Plan,
    group: &str,
) -> anyhow::Result<BTreeMap<TopicPartition, i64>> {
    let committed = cluster.committed(group, None).await.map_err(explain)?;
    let partitions: Vec<TopicPartition> = match plan {
        Plan::File(file) => {
            file.keys().filter(|(g, _)| g.is_empty() || g == group).map(|(_, tp)| tp.clone()).collect()
        }
        _ if args.all_topics => committed.keys().cloned().collect(),
        _ => {
            let mut all = Vec::new();
            for scope in &args.topic {
                all.extend(
                    partitions_of(cluster, scope).await?.into_iter().map(|(t, p)| TopicPartition::new(t, p)),
                );
            }
            all
        }
    };
    let mut names: Vec<&str> = partitions.iter().map(|tp| tp.topic.as_str()).collect();
    names.dedup();
    for name in names {
        existing(cluster, name).await?;
    }
    let earliest = ends(cluster, &partitions, At::Earliest).await?;
    let latest = ends(cluster, &partitions, At::Latest).await?;
    let found = match plan {
        Plan::Find(at) => {
            let asked: Vec<_> = partitions.iter().map(|tp| (tp.clone(), *at)).collect();
            cluster.offsets(&asked, Isolation::ReadUncommitted).await.map_err(explain)?
        }
        _ => Default::default(),
    };
    let mut targets = BTreeMap::new();
    for tp in partitions {
        let end = |ends: &BTreeMap<TopicPartition, Option<i64>>| ends.get(&tp).copied().flatten();
        let (Some(first), Some(last)) = (end(&earliest), end(&latest)) else {
            return Err(refused(format!("there is no partition {tp}")));
        };
        let current = committed.get(&tp).map(|c| c.offset);
        let wanted = match plan {
            // Younger than every record is after the last.
            Plan::Find(_) => found.get(&tp).copied().flatten().map_or(last, |f| f.offset),
            Plan::Offset(offset) => *offset,
            Plan::Shift(by) => {
                let Some(current) = current else {
                    return Err(refused(format!(
                        "group {group} has committed nothing for {tp} to shift from"
                    )));
                };
                current.saturating_add(*by)
            }
            Plan::Current => current.unwrap_or(last),
            Plan::File(file) => {
                let own = file.get(&(group.to_owned(), tp.clone()));
                own.or_else(|| file.get(&(String::new(), tp.clone()))).copied().unwrap_or(last)
            }
        };
        let nearest = wanted.clamp(first, last);
        if nearest != wanted {
            eprintln!("dibs: warning: {tp} has offsets {first} to {last}; {wanted} becomes {nearest}");
        }
        targets.insert(tp, nearest);
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exported_is_read() {
        let t = |p| TopicPartition::new("t", p);
        let one = vec![("g".to_owned(), BTreeMap::from([(t(0), 5), (t(1), 7)]))];
        assert_eq!(csv(&one), "\"t\",0,5\n\"t\",1,7\n");
        let read = parse(&csv(&one)).unwrap();
        assert_eq!(read[&(String::new(), t(1))], 7);
        let two = vec![one[0].clone(), ("h".to_owned(), BTreeMap::from([(t(0), 1)]))];
        let read = parse(&csv(&two)).unwrap();
        assert_eq!((read[&("g".to_owned(), t(0))], read[&("h".to_owned(), t(0))]), (5, 1));
        for wrong in ["t,0", "t,x,1", "t,0,y", "a,b,c,d,e"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
