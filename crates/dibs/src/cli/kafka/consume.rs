//! `dibs consume`: what `kafka-console-consumer.sh` does.

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
    ops::ControlFlow,
    time::Duration,
};

use dibs_client::{
    At, ClientError, Cluster, Fetched, Fetcher, FetcherConfig, GroupMember, Isolation, MemberConfig,
    Properties, Rebalance, Reset, ResponseError, Topic, TopicPartition,
    batch::{Batch, Record},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{
    Interrupts, Reach, block_on, existing, explain,
    format::Format,
    misused,
    print::Printer,
    refused, set_all,
    topic::{partitions_of, pattern},
};

/// `dibs consume`
#[derive(clap::Args)]
pub(crate) struct Consume {
    /// The topic
    #[arg(long, value_name = "TOPIC", required_unless_present = "include")]
    topic: Option<String>,

    /// All topics whose whole name matches this regular expression, those made later too
    #[arg(long, aliases = ["whitelist"], value_name = "REGEX", conflicts_with = "topic")]
    include: Option<String>,

    /// Begin at the first record rather than after the last; in a group, where it has committed nothing yet
    #[arg(long)]
    from_beginning: bool,

    /// End after so many records
    #[arg(long, value_name = "N")]
    max_messages: Option<u64>,

    /// End when there is nothing to read for so long, in ms
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,

    /// Only this partition
    #[arg(long, value_name = "N", requires = "topic", conflicts_with = "group")]
    partition: Option<i32>,

    /// Begin at this offset, at `earliest` or at `latest`
    #[arg(long, value_name = "OFFSET", requires = "partition", allow_hyphen_values = true)]
    offset: Option<String>,

    /// Read as a member of this consumer group, and commit what was printed
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,

    /// Which records of transactions are seen: read_uncommitted or read_committed
    #[arg(long, value_name = "LEVEL")]
    isolation_level: Option<String>,

    /// What is printed: print.key=true, print.value, print.timestamp, print.partition, print.offset,
    /// print.headers, print.epoch, key.separator, line.separator, headers.separator, null.literal,
    /// key.deserializer, value.deserializer; may be given many times
    #[arg(long, alias = "formatter-property", value_name = "NAME=VALUE")]
    property: Vec<String>,

    /// How keys are shown
    #[arg(long, value_enum)]
    key_format: Option<Format>,

    /// How values are shown
    #[arg(long, value_enum)]
    value_format: Option<Format>,

    /// A Java deserializer for keys, such as …LongDeserializer, instead of --key-format
    #[arg(long, value_name = "CLASS", conflicts_with = "key_format")]
    key_deserializer: Option<String>,

    /// A Java deserializer for values, instead of --value-format
    #[arg(long, value_name = "CLASS", conflicts_with = "value_format")]
    value_deserializer: Option<String>,

    /// Pass over a record that its format does not fit, rather than end
    #[arg(long)]
    skip_message_on_error: bool,

    /// Print each record as a line of JSON, with all there is to it
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    reach: Reach,
}

pub(crate) fn run(args: &Consume) -> anyhow::Result<()> {
    let mut properties = args.reach.properties()?;
    let isolation = args.isolation_level.as_deref().map(str::parse::<Isolation>);
    let mut fetching =
        FetcherConfig::new(&mut properties, isolation.transpose().map_err(explain)?).map_err(explain)?;
    if args.from_beginning {
        fetching.reset = Reset::Earliest;
    }
    let start = start(args, fetching.reset)?;
    let group =
        args.group.clone().or_else(|| properties.take("group.id").filter(|_| args.partition.is_none()));
    let member =
        group.map(|group| MemberConfig::new(&group, &mut properties)).transpose().map_err(explain)?;
    let commit_every = millis(&mut properties, "auto.commit.interval.ms", 5_000)?;
    let look_every = millis(&mut properties, "metadata.max.age.ms", 60_000)?;
    let printer = printer(args)?;
    let include = args.include.as_deref().map(pattern).transpose()?;
    block_on(async {
        let cluster = args.reach.connect(properties).await?;
        let mut session = Session {
            fetcher: Fetcher::new(cluster.clone(), fetching),
            cluster,
            out: BufWriter::with_capacity(1 << 16, io::stdout()),
            printer,
            left: args.max_messages,
            idle: args.timeout_ms.map(Duration::from_millis),
            skip_errors: args.skip_message_on_error,
            count: 0,
            read: BTreeMap::new(),
            source: Source { topic: args.topic.clone(), include, partition: args.partition },
            commit_every,
            look_every,
            interrupts: Interrupts::new()?,
        };
        let done = match member {
            Some(config) => session.as_member(config).await,
            None => session.alone(start).await,
        };
        let flushed = session.out.flush();
        eprintln!("Processed a total of {} messages", session.count);
        done?;
        gone_is_fine(flushed)
    })
}

fn millis(properties: &mut Properties, name: &str, default: u64) -> anyhow::Result<Duration> {
    let ms: u64 = properties.take_as(name).map_err(explain)?.unwrap_or(default);
    Ok(Duration::from_millis(ms.max(1)))
}

/// Where to begin without a group.
fn start(args: &Consume, reset: Reset) -> anyhow::Result<Result<i64, At>> {
    Ok(match args.offset.as_deref() {
        Some("earliest") => Err(At::Earliest),
        Some("latest") => Err(At::Latest),
        Some(offset) => match offset.parse() {
            Ok(offset) if offset >= 0 => Ok(offset),
            _ => return Err(misused(format!("--offset {offset} is not an offset, earliest or latest"))),
        },
        None if reset == Reset::Earliest => Err(At::Earliest),
        None => Err(At::Latest),
    })
}

fn printer(args: &Consume) -> anyhow::Result<Printer> {
    let mut properties = Properties::default();
    set_all(&mut properties, &args.property, "--property")?;
    let mut format = |flag: Option<Format>, class: &Option<String>, name: &str| {
        let class = class.clone().or(properties.take(name));
        match (flag, class) {
            (Some(format), _) => Ok(format),
            (None, Some(class)) => Format::of_class(&class).ok_or_else(|| {
                misused(format!("{name} {class} is not known here; see --key-format and --value-format"))
            }),
            (None, None) => Ok(Format::String),
        }
    };
    let key = format(args.key_format, &args.key_deserializer, "key.deserializer")?;
    let value = format(args.value_format, &args.value_deserializer, "value.deserializer")?;
    let printer = Printer::new(&mut properties, (key, value), args.json).map_err(explain)?;
    for name in properties.names() {
        eprintln!("dibs: warning: --property {name} is not known here and has no effect");
    }
    Ok(printer)
}

/// Which topics are read.
struct Source {
    topic: Option<String>,
    include: Option<regex::Regex>,
    partition: Option<i32>,
}

impl Source {
    /// The topics that there are.
    async fn topics(&self, cluster: &Cluster) -> anyhow::Result<Vec<Topic>> {
        if let Some(name) = &self.topic {
            return Ok(vec![existing(cluster, name).await?]);
        }
        let all = cluster.topics(None, false).await.map_err(explain)?;
        let included = |t: &Topic| self.include.as_ref().is_some_and(|p| p.is_match(&t.name));
        Ok(all.into_iter().flatten().filter(included).collect())
    }

    async fn partitions(&self, cluster: &Cluster) -> anyhow::Result<Vec<TopicPartition>> {
        if let (Some(topic), Some(partition)) = (&self.topic, self.partition) {
            let one = partitions_of(cluster, &format!("{topic}:{partition}")).await?;
            return Ok(one.into_iter().map(|(t, p)| TopicPartition::new(t, p)).collect());
        }
        let of =
            |t: Topic| t.partitions.into_iter().map(move |p| TopicPartition::new(t.name.clone(), p.index));
        Ok(self.topics(cluster).await?.into_iter().flat_map(of).collect())
    }
}

struct Session {
    cluster: Cluster,
    fetcher: Fetcher,
    out: BufWriter<io::Stdout>,
    printer: Printer,
    /// How many records are still wanted.
    left: Option<u64>,
    idle: Option<Duration>,
    skip_errors: bool,
    count: u64,
    /// The offset after the last printed record of each partition, not committed yet.
    read: BTreeMap<TopicPartition, i64>,
    source: Source,
    commit_every: Duration,
    look_every: Duration,
    interrupts: Interrupts,
}

/// What ended the reading for now.
enum Pause {
    /// All that was wanted, nothing for too long, Ctrl-C, or nobody reads what is printed.
    End,
    Commit,
    /// There may be other topics or partitions now.
    Look,
    Rebalance(Rebalance),
}

impl Session {
    /// Reads all partitions, and says nothing to anybody.
    async fn alone(&mut self, start: Result<i64, At>) -> anyhow::Result<()> {
        let mut known = self.source.partitions(&self.cluster).await?;
        self.fetcher.assign(known.iter().map(|tp| (tp.clone(), start)));
        loop {
            match self.read(None).await? {
                Pause::End => return Ok(()),
                Pause::Look => {}
                Pause::Commit | Pause::Rebalance(_) => continue,
            }
            let now = self.source.partitions(&self.cluster).await?;
            if now == known {
                continue;
            }
            // What is new is read from its start: it did not exist when we began.
            let begin = |tp: &TopicPartition| match self.read.get(tp) {
                Some(next) => Ok(*next),
                None if known.contains(tp) => start,
                None => Err(At::Earliest),
            };
            let assignment: Vec<_> = now.iter().map(|tp| (tp.clone(), begin(tp))).collect();
            self.fetcher.assign(assignment);
            known = now;
        }
    }

    /// Reads what the group gives us.
    async fn as_member(&mut self, config: MemberConfig) -> anyhow::Result<()> {
        let group = config.group.clone();
        let mut member = GroupMember::new(self.cluster.clone(), config);
        let ended = self.generations(&mut member, &group).await;
        // Whatever ended it: what was printed counts, and the others need not wait for us.
        let _ = self.out.flush();
        let committed = self.commit(&member).await;
        let left = member.leave().await;
        ended?;
        match committed {
            Err(error) if must_rejoin(&error) => {
                eprintln!(
                    "dibs: warning: the last offsets were not committed, for the group is rebalancing: {error}"
                );
            }
            committed => committed.map_err(explain)?,
        }
        left.or_else(|e| if e.kafka().is_some() { Ok(()) } else { Err(explain(e)) })
    }

    async fn generations(&mut self, member: &mut GroupMember, group: &str) -> anyhow::Result<()> {
        loop {
            let topics = self.source.topics(&self.cluster).await?;
            let shape = |topics: &[Topic]| -> Vec<(String, usize)> {
                topics.iter().map(|t| (t.name.clone(), t.partitions.len())).collect()
            };
            let known = shape(&topics);
            let names: Vec<String> = topics.into_iter().map(|t| t.name).collect();
            let assigned = tokio::select! {
                joined = member.join(&names) => joined.map_err(explain)?,
                () = self.interrupts.next() => return Ok(()),
            };
            self.read.clear();
            let committed = self.cluster.committed(group, Some(&assigned)).await.map_err(explain)?;
            let reset = self.fetcher.config().reset;
            let begin = |tp: &TopicPartition| match (committed.get(tp), reset) {
                (Some(committed), _) => Ok(Ok(committed.offset)),
                (None, Reset::Earliest) => Ok(Err(At::Earliest)),
                (None, Reset::Latest) => Ok(Err(At::Latest)),
                (None, Reset::Never) => Err(refused(format!("the group has committed nothing for {tp}"))),
            };
            let starts: anyhow::Result<Vec<_>> =
                assigned.iter().map(|tp| Ok((tp.clone(), begin(tp)?))).collect();
            self.fetcher.assign(starts?);
            loop {
                match self.read(Some(member)).await? {
                    Pause::End => return Ok(()),
                    Pause::Commit => match self.commit(member).await {
                        Ok(()) => {}
                        Err(error) if must_rejoin(&error) => break,
                        Err(error) => return Err(explain(error)),
                    },
                    Pause::Look => {
                        if shape(&self.source.topics(&self.cluster).await?) != known {
                            let _ = self.commit(member).await;
                            break;
                        }
                    }
                    Pause::Rebalance(Rebalance::Wanted) => {
                        let _ = self.commit(member).await;
                        break;
                    }
                    Pause::Rebalance(Rebalance::Lost) => break,
                    Pause::Rebalance(Rebalance::Failed(error)) => return Err(explain(error)),
                }
            }
        }
    }

    async fn commit(&mut self, member: &GroupMember) -> Result<(), ClientError> {
        if self.read.is_empty() {
            return Ok(());
        }
        member.commit(&self.read).await?;
        self.read.clear();
        Ok(())
    }

    /// Prints what comes, until something else is to be done.
    async fn read(&mut self, mut member: Option<&mut GroupMember>) -> anyhow::Result<Pause> {
        let mut commit = interval(self.commit_every);
        let mut look = interval(self.look_every);
        for ticks in [&mut commit, &mut look] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks.tick().await;
        }
        let mut last = Instant::now();
        let in_group = member.is_some();
        loop {
            if self.left == Some(0) {
                return Ok(Pause::End);
            }
            let deadline = last + self.idle.unwrap_or_default();
            tokio::select! {
                biased;
                () = self.interrupts.next() => return Ok(Pause::End),
                rebalance = rebalance(&mut member) => return Ok(Pause::Rebalance(rebalance)),
                _ = commit.tick(), if in_group => return Ok(Pause::Commit),
                _ = look.tick() => return Ok(Pause::Look),
                fetched = self.fetcher.next() => {
                    if !self.print(&fetched.map_err(explain)?)? {
                        return Ok(Pause::End);
                    }
                    last = Instant::now();
                }
                () = sleep_until(deadline), if self.idle.is_some() => return Ok(Pause::End),
            }
        }
    }

    /// Prints batches; false if nobody reads it any more.
    fn print(&mut self, fetched: &Fetched) -> anyhow::Result<bool> {
        let mut wrong: Option<anyhow::Error> = None;
        let mut broken = Ok(());
        // The next to be read: after the last batch, markers included, unless something ends it before.
        let mut next = fetched.next;
        let mut each = |batch: &Batch<'_>, record: &Record<'_>| {
            if self.left == Some(0) {
                return ControlFlow::Break(());
            }
            match self.printer.print(&fetched.partition, batch, record, &mut self.out) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    broken = Err(error);
                    return ControlFlow::Break(());
                }
                Err(what) => {
                    let place = format!("{} at offset {}", fetched.partition, record.offset);
                    if !self.skip_errors {
                        wrong = Some(refused(format!("{place}: {what}")));
                        return ControlFlow::Break(());
                    }
                    eprintln!("dibs: {place}: {what}");
                }
            }
            self.count += 1;
            self.left = self.left.map(|left| left - 1);
            ControlFlow::Continue(())
        };
        let until_break = |batch: &Batch<'_>, record: &Record<'_>| {
            let flow = each(batch, record);
            if flow.is_break() {
                next = record.offset as i64;
            }
            flow
        };
        fetched.for_each(until_break).map_err(explain)?;
        self.read.insert(fetched.partition.clone(), next);
        if let Some(wrong) = wrong {
            let _ = self.out.flush();
            return Err(wrong);
        }
        match broken.and_then(|()| self.out.flush()) {
            Ok(()) => Ok(true),
            Err(error) => gone_is_fine(Err(error)).map(|()| false),
        }
    }
}

/// Completes when the member has to join again; never without one.
pub(super) async fn rebalance(member: &mut Option<&mut GroupMember>) -> Rebalance {
    match member {
        Some(member) => member.rebalance().await,
        None => std::future::pending().await,
    }
}

/// Whether a commit failed because the group has gone on without us.
pub(super) fn must_rejoin(error: &ClientError) -> bool {
    matches!(
        error.kafka(),
        Some(
            ResponseError::RebalanceInProgress
                | ResponseError::IllegalGeneration
                | ResponseError::UnknownMemberId
        )
    )
}

/// A reader that has gone away (`| head`) is the end, and no error.
fn gone_is_fine(written: io::Result<()>) -> anyhow::Result<()> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
