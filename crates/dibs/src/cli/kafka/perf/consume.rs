//! `dibs perf consume`: reads as fast as records come, alone or as a member of a group.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use dibs_client::{
    At, Cluster, Fetched, Fetcher, FetcherConfig, GroupMember, MemberConfig, Properties, Rebalance, Reset,
    Topic, TopicPartition,
    batch::{Batch, Record},
};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{
    super::{
        Interrupts, Reach,
        consume::{must_rejoin, rebalance},
        existing, explain, print, print_json,
        produce::now_ms,
    },
    MB,
};

/// `dibs perf consume`
#[derive(clap::Args)]
pub(crate) struct Consume {
    /// The topic
    #[arg(long, value_name = "TOPIC")]
    topic: String,
    /// How many records
    #[arg(long, visible_alias = "num-records", value_name = "N")]
    messages: u64,
    /// Bytes of a partition in one fetch
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    fetch_size: i32,
    /// Begin after the last record instead of at the first
    #[arg(long)]
    from_latest: bool,
    /// End if nothing comes for so long, in ms
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    timeout: u64,
    /// Without the line that names the columns
    #[arg(long)]
    hide_header: bool,
    /// A line for each --reporting-interval
    #[arg(long)]
    show_detailed_stats: bool,
    /// Milliseconds between two lines
    #[arg(long, value_name = "MS", default_value_t = 5_000)]
    reporting_interval: u64,
    /// Read as a member of this consumer group, from what it has committed, and commit what was read; without it all
    /// partitions are read
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
}

impl Consume {
    pub(super) async fn run(
        &self,
        reach: &Reach,
        mut properties: Properties,
        json: bool,
    ) -> anyhow::Result<()> {
        let mut config = FetcherConfig::new(&mut properties, None).map_err(explain)?;
        config.partition_max_bytes = self.fetch_size;
        config.reset = if self.from_latest { Reset::Latest } else { Reset::Earliest };
        let group = self.group.clone().or_else(|| properties.take("group.id"));
        let member = group.map(|group| MemberConfig::new(&group, &mut properties));
        let member = member.transpose().map_err(explain)?;
        let cluster = reach.connect(properties).await?;
        let topic = existing(&cluster, &self.topic).await?;
        if !self.hide_header && !json {
            print(if self.show_detailed_stats {
                "time, threadId, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec\n"
            } else {
                "start.time, end.time, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, \
                 rebalance.time.ms, fetch.time.ms, fetch.MB.sec, fetch.nMsg.sec\n"
            })?;
        }
        let (begun, start) = (Instant::now(), now_ms());
        let mut reader = Reader {
            args: self,
            fetcher: Fetcher::new(cluster.clone(), config),
            cluster,
            interrupts: Interrupts::new()?,
            read: BTreeMap::new(),
            count: Count { records: 0, bytes: 0, rebalancing: Duration::ZERO },
            ended: begun,
            shown: (begun, 0, 0),
            shows: self.show_detailed_stats && !json,
        };
        match member {
            Some(config) => reader.as_member(config).await?,
            None => {
                reader.fetcher.assign(self.all_of(&topic));
                reader.read(None).await?;
            }
        }
        let Reader { count, ended, shown, .. } = &reader;
        let took = (*ended - begun).as_secs_f64().max(1e-9);
        if json {
            print_json(&count.json(took))
        } else if self.show_detailed_stats {
            print(&count.detail(shown, *ended))
        } else {
            print(&count.summary(start, took))
        }
    }

    fn begin(&self) -> At {
        if self.from_latest { At::Latest } else { At::Earliest }
    }

    /// All partitions, from one of their ends.
    fn all_of(&self, topic: &Topic) -> Vec<(TopicPartition, Result<i64, At>)> {
        let all = topic.partitions.iter();
        all.map(|p| (TopicPartition::new(&topic.name, p.index), Err(self.begin()))).collect()
    }
}

/// What reads.
struct Reader<'a> {
    args: &'a Consume,
    cluster: Cluster,
    fetcher: Fetcher,
    interrupts: Interrupts,
    /// The next offsets of what was read and not committed yet.
    read: BTreeMap<TopicPartition, i64>,
    count: Count,
    /// When the last record came.
    ended: Instant,
    shows: bool,
    /// The last line: when, how many records, how many bytes.
    shown: (Instant, u64, u64),
}

impl Reader<'_> {
    async fn as_member(&mut self, config: MemberConfig) -> anyhow::Result<()> {
        let group = config.group.clone();
        let mut member = GroupMember::new(self.cluster.clone(), config);
        let ended = self.generations(&mut member, &group).await;
        // Whatever ended it: what was read counts, and the others need not wait for us.
        let committed = self.commit(&member).await;
        let left = member.leave().await;
        ended.and(committed)?;
        left.or_else(|e| if e.kafka().is_some() { Ok(()) } else { Err(explain(e)) })
    }

    async fn generations(&mut self, member: &mut GroupMember, group: &str) -> anyhow::Result<()> {
        let topics = [self.args.topic.clone()];
        loop {
            let asked = Instant::now();
            let assigned = tokio::select! {
                joined = member.join(&topics) => joined.map_err(explain)?,
                () = self.interrupts.next() => return Ok(()),
            };
            self.count.rebalancing += asked.elapsed();
            let committed = self.cluster.committed(group, Some(&assigned)).await.map_err(explain)?;
            let begin = |tp: TopicPartition| {
                let at = committed.get(&tp).map_or(Err(self.args.begin()), |committed| Ok(committed.offset));
                (tp, at)
            };
            self.fetcher.assign(assigned.into_iter().map(begin).collect::<Vec<_>>());
            match self.read(Some(member)).await? {
                None => return Ok(()),
                Some(Rebalance::Wanted) => self.commit(member).await?,
                // Others read it again.
                Some(Rebalance::Lost) => self.read.clear(),
                Some(Rebalance::Failed(error)) => return Err(explain(error)),
            }
        }
    }

    async fn commit(&mut self, member: &GroupMember) -> anyhow::Result<()> {
        match member.commit(&std::mem::take(&mut self.read)).await {
            Err(error) if !must_rejoin(&error) => Err(explain(error)),
            _ => Ok(()),
        }
    }

    /// Reads until it is enough, nothing comes any more, or the group rebalances.
    async fn read(&mut self, mut member: Option<&mut GroupMember>) -> anyhow::Result<Option<Rebalance>> {
        let idle = Duration::from_millis(self.args.timeout);
        let mut last = Instant::now();
        while self.count.records < self.args.messages {
            tokio::select! {
                biased;
                () = self.interrupts.next() => return Ok(None),
                rebalance = rebalance(&mut member) => return Ok(Some(rebalance)),
                fetched = self.fetcher.next() => {
                    self.take(&fetched.map_err(explain)?)?;
                    last = Instant::now();
                }
                () = sleep_until(last + idle) => {
                    eprintln!(
                        "dibs: nothing came for {} ms; {} of {} records were read (see --timeout)",
                        self.args.timeout, self.count.records, self.args.messages
                    );
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    fn take(&mut self, fetched: &Fetched) -> anyhow::Result<()> {
        let mut next = fetched.next;
        let count = &mut self.count;
        let each = |_: &Batch<'_>, record: &Record<'_>| {
            count.records += 1;
            count.bytes += (record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len)) as u64;
            if count.records < self.args.messages {
                return ControlFlow::Continue(());
            }
            next = record.offset as i64 + 1;
            ControlFlow::Break(())
        };
        fetched.for_each(each).map_err(explain)?;
        self.read.insert(fetched.partition.clone(), next);
        self.ended = Instant::now();
        let since = self.ended - self.shown.0;
        if self.shows && since.as_millis() as u64 >= self.args.reporting_interval {
            print(&self.count.detail(&self.shown, self.ended))?;
            self.shown = (self.ended, self.count.records, self.count.bytes);
        }
        Ok(())
    }
}

/// What was read.
struct Count {
    records: u64,
    bytes: u64,
    /// How long the group took to form, of the whole time.
    rebalancing: Duration,
}

impl Count {
    fn json(&self, seconds: f64) -> serde_json::Value {
        json!({
            "records": self.records, "mb": self.bytes as f64 / MB, "seconds": seconds,
            "records_per_second": self.records as f64 / seconds,
            "mb_per_second": self.bytes as f64 / MB / seconds,
            "rebalance_seconds": self.rebalancing.as_secs_f64(),
        })
    }

    fn summary(&self, start: i64, seconds: f64) -> String {
        let (mb, records) = (self.bytes as f64 / MB, self.records as f64);
        let fetching = (seconds - self.rebalancing.as_secs_f64()).max(1e-9);
        format!(
            "{}, {}, {mb:.4}, {:.4}, {records}, {:.4}, {}, {}, {:.4}, {:.4}\n",
            clock(start),
            clock(start + (seconds * 1000.0) as i64),
            mb / seconds,
            records / seconds,
            self.rebalancing.as_millis(),
            (fetching * 1000.0) as i64,
            mb / fetching,
            records / fetching
        )
    }

    fn detail(&self, since: &(Instant, u64, u64), now: Instant) -> String {
        let seconds = (now - since.0).as_secs_f64().max(1e-9);
        let mb = |bytes: u64| bytes as f64 / MB;
        format!(
            "{}, 0, {:.4}, {:.4}, {}, {:.4}\n",
            clock(now_ms()),
            mb(self.bytes),
            mb(self.bytes - since.2) / seconds,
            self.records,
            (self.records - since.1) as f64 / seconds
        )
    }
}

/// A time (ms) as Kafka's tool writes it, in UTC.
fn clock(ms: i64) -> String {
    let time = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
    let time = time.to_zoned(jiff::tz::TimeZone::UTC);
    format!("{}:{:03}", time.strftime("%Y-%m-%d %H:%M:%S"), time.millisecond())
}
