//! The whole pipeline over one data folder and one ledger.

use std::{
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use dibs_decide::State;
use dibs_ledger::Ledger;
use dibs_log::{PartitionLog, Store, batch::Batches};
use dibs_model::{CampaignId, CodeSource, Command};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    clock::Clock,
    codes::{Codes, ImportError, is_code},
    decider,
    intake::Unanswered,
    issuer::{IssueError, Issuer, Issuing, Throttle, check_log, fresh_state, snapshot_name},
    partition::Partition,
    receipt::Signatory,
    records::Place,
    secret::Secret,
};

/// Claims and every other command; key = campaign id.
pub const CLAIMS_TOPIC: &str = "dibs.claims";
/// Imported coupon codes; key = campaign id, value = code.
pub const CODES_TOPIC: &str = "dibs.codes";

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct FlowConfig {
    /// Partitions of `dibs.claims`, where the topic does not exist yet.
    pub partitions: u32,
    /// Coupons a second that may be written to the ledger; `None` for no limit.
    pub issue_rate: Option<u64>,
    /// Commands in flight per partition, at most; more are answered 429.
    pub in_flight: usize,
    /// How long a claim may wait at the gate before it is answered 429.
    pub hold: Duration,
    /// How long a stop waits for the ledger. What is not written by then is written at the next start.
    pub issue_grace: Duration,
    /// What stamps the log.
    pub clock: Clock,
}

impl Default for FlowConfig {
    fn default() -> Self {
        FlowConfig {
            partitions: 1,
            issue_rate: None,
            in_flight: 65_536,
            hold: Duration::from_secs(3),
            issue_grace: Duration::from_secs(10),
            clock: Clock::default(),
        }
    }
}

/// Why the pipeline cannot start, or not import codes.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
    /// The topics cannot be made.
    #[error("cannot create the topic {0}: {1}")]
    Topic(&'static str, String),
    /// The log cannot be read or written.
    #[error("the log: {0}")]
    Log(String),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// A code is not one.
    #[error(transparent)]
    Import(#[from] ImportError),
}

/// See the module.
pub struct Flow {
    partitions: Vec<Arc<Partition>>,
    codes: Arc<Codes>,
    signatory: Arc<Signatory>,
    throttle: Arc<Throttle>,
    store: Arc<Store>,
    clock: Clock,
    /// One import at a time: whoever appends a code also commits it.
    import: Mutex<()>,
    deciders: Mutex<Vec<JoinHandle<()>>>,
    issuing: watch::Sender<Issuing>,
    issue_grace: Duration,
}

impl Flow {
    /// Starts deciding, one thread per partition. Verdicts can be asked for as soon as [`Flow::is_ready`].
    pub fn start(store: Arc<Store>, secret: &Secret, config: &FlowConfig) -> Result<Flow, FlowError> {
        let flow = Flow::open(store, secret, config)?;
        let mut deciders = flow.deciders.lock().expect("no panic while locked");
        for partition in flow.partitions.iter().cloned() {
            let thread = std::thread::Builder::new().name(format!("dibs-decide-{}", partition.number));
            deciders.push(thread.spawn(move || decider::run(partition)).map_err(FlowError::Thread)?);
        }
        drop(deciders);
        Ok(flow)
    }

    /// All of it without the threads: the caller gives each partition a [`crate::Decider`] and its turns.
    pub fn open(store: Arc<Store>, secret: &Secret, config: &FlowConfig) -> Result<Flow, FlowError> {
        create_topic(&store, CLAIMS_TOPIC, config.partitions)?;
        create_topic(&store, CODES_TOPIC, 1)?;
        let codes = Arc::new(Codes::new(secret.clone()));
        load_codes(&store, &codes)?;
        let mut partitions = Vec::new();
        for place in places(&store) {
            let number = place.number;
            let log = store.partition(CLAIMS_TOPIC, number).expect("the topic has this partition");
            let state = restored(&store, number, &log).unwrap_or_else(fresh_state);
            partitions.push(Arc::new(Partition::new(place, log, state, config)));
        }
        Ok(Flow {
            partitions,
            codes,
            signatory: Arc::new(Signatory::new(secret)),
            throttle: Arc::new(Throttle::new(config.issue_rate)),
            store,
            clock: config.clock.clone(),
            import: Mutex::new(()),
            deciders: Mutex::new(Vec::new()),
            issuing: watch::Sender::new(Issuing::On),
            issue_grace: config.issue_grace,
        })
    }

    /// Starts issuing into a ledger, one task per partition, on a thread of its own that gives way to whatever
    /// answers claims. A failure is logged and ends that partition's issuing; verdicts go on.
    pub fn issue_into<L: Ledger>(&self, ledger: &Arc<L>) -> Result<(), FlowError> {
        let mut issuers = Vec::new();
        for partition in self.partitions.iter().cloned() {
            let (start, mut issuing) = (self.issuer(&partition, ledger), self.issuing.subscribe());
            issuers.push(async move {
                let ended = match start.await {
                    Ok(issuer) => issuer.run(&partition, &mut issuing).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = ended {
                    tracing::error!(partition = partition.number, %error, "issuing has ended");
                }
            });
        }
        let mut issuing = self.issuing.subscribe();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(FlowError::Thread)?;
        let work = move || {
            dibs_ledger::give_way();
            runtime.block_on(async {
                let all: JoinSet<()> = issuers.into_iter().collect();
                let cut = issuing.wait_for(|i| *i == Issuing::Cut);
                tokio::select! {
                    _ = all.join_all() => {}
                    _ = cut => {}
                }
            });
        };
        std::thread::Builder::new().name("dibs-issue".into()).spawn(work).map_err(FlowError::Thread)?;
        Ok(())
    }

    /// One partition's issuer, started from the snapshot if there is one.
    pub fn issuer<L: Ledger>(
        &self,
        partition: &Partition,
        ledger: &Arc<L>,
    ) -> impl Future<Output = Result<Issuer<L>, IssueError>> + Send + use<L> {
        let (place, log, ledger) = (partition.place, partition.log.clone(), ledger.clone());
        let (codes, throttle) = (self.codes.clone(), self.throttle.clone());
        let (store, clock) = (self.store.clone(), self.clock.clone());
        async move {
            let state = restored(&store, place.number, &log);
            Issuer::start(place, log, ledger, codes, throttle, state, Some((store, clock))).await
        }
    }

    /// Answers what is in flight, writes what was decided as far as the ledger takes it soon, seals the log.
    /// Nothing may be asked afterwards.
    pub async fn stop(&self) {
        for partition in &self.partitions {
            partition.stop();
        }
        let deciders = std::mem::take(&mut *self.deciders.lock().expect("no panic while locked"));
        let joined = tokio::task::spawn_blocking(move || deciders.into_iter().for_each(|d| drop(d.join())));
        joined.await.expect("joining does not panic");
        // The issuers' ends of the channel go with their thread.
        self.issuing.send_replace(Issuing::Finish);
        if tokio::time::timeout(self.issue_grace, self.issuing.closed()).await.is_err() {
            for partition in &self.partitions {
                let behind = partition.log.high_watermark() - partition.issuance.next_offset();
                tracing::warn!(partition = partition.number, records = behind, "issued at the next start");
            }
            self.issuing.send_replace(Issuing::Cut);
            self.issuing.closed().await;
        }
        if let Err(error) = self.store.close() {
            tracing::error!(%error, "the log was not sealed; the next start will verify it");
        }
    }

    /// Whether every partition has decided what was in the log at the start, and takes claims.
    pub fn is_ready(&self) -> bool {
        self.partitions.iter().all(|p| p.is_ready() && !p.is_broken())
    }

    /// Whether a log can be written no more until a restart.
    pub fn is_broken(&self) -> bool {
        self.partitions.iter().any(|p| p.is_broken())
    }

    /// Refuses a ledger that is newer than the log. One that cannot be read now is not refused: issuing waits
    /// for it, and checks again.
    pub async fn check_ledger<L: Ledger>(&self, ledger: &L) -> Result<(), IssueError> {
        for partition in &self.partitions {
            if let Ok(Some(next)) = ledger.next_offset(partition.number).await {
                check_log(partition.number, &partition.log, next)?;
            }
        }
        Ok(())
    }

    /// The partition that decides a campaign.
    pub fn partition(&self, campaign: &str) -> &Arc<Partition> {
        &self.partitions[partition_of(campaign, self.partitions.len() as u32) as usize]
    }

    /// All partitions.
    pub fn partitions(&self) -> &[Arc<Partition>] {
        &self.partitions
    }

    /// Rank to code and back.
    pub fn codes(&self) -> &Codes {
        &self.codes
    }

    /// Who signs receipts.
    pub fn signatory(&self) -> &Signatory {
        &self.signatory
    }

    /// Coupons a second that may be written, if limited.
    pub fn issue_rate(&self) -> Option<u64> {
        self.throttle.rate()
    }

    /// Adds partner codes to the end of a campaign's list, durably. Blocks for a disk write. Returns how many
    /// the campaign has now; codes that it had already count once.
    pub fn import_codes<'c>(
        &self,
        campaign: &CampaignId,
        codes: impl Iterator<Item = &'c str>,
    ) -> Result<u64, FlowError> {
        let codes: Vec<&str> = codes.map(str::trim).collect();
        if let Some(i) = codes.iter().position(|c| !c.is_empty() && !is_code(c)) {
            return Err(ImportError::Code { line: i + 1 }.into());
        }
        let _one_at_a_time = self.import.lock().expect("no panic while locked");
        let log = self.store.partition(CODES_TOPIC, 0).expect("the topic was created");
        for some in codes.chunks(10_000) {
            for code in some.iter().filter(|c| !c.is_empty()) {
                log.append(Some(campaign.as_str().as_bytes()), Some(code.as_bytes()))
                    .map_err(|e| FlowError::Log(e.to_string()))?;
            }
            if let Err(error) = log.commit(self.clock.now().0) {
                let _ = log.reset();
                return Err(FlowError::Log(error.to_string()));
            }
            for code in some.iter().filter(|c| !c.is_empty()) {
                self.codes.import(campaign, code);
            }
        }
        Ok(self.codes.imported(campaign))
    }

    /// Says in the log how long a campaign's list of codes has become, so that wins that came before their codes
    /// get them in the ledger too. To be called after an import and after a campaign was created, whichever
    /// comes first: without a campaign, or with nothing new to say, it does nothing.
    pub async fn announce_codes(&self, campaign: &CampaignId) -> Result<(), Unanswered> {
        let partition = self.partition(campaign.as_str());
        let imported = self.codes.imported(campaign);
        let news = partition
            .state()
            .campaign(campaign.as_str())
            .is_some_and(|c| c.spec().codes == CodeSource::Imported && c.imported_codes() < imported);
        if news {
            partition.command(campaign.as_str(), &Command::Codes { imported }).await?;
        }
        Ok(())
    }

    /// What stamps the log.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The data folder.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }
}

/// The state that a partition can start from: its snapshot, if there is one that fits the log.
fn restored(store: &Store, number: u32, log: &PartitionLog) -> Option<State> {
    let seed = std::hash::BuildHasher::hash_one(&foldhash::fast::RandomState::default(), number);
    let name = snapshot_name(number);
    let state = match store.get(&name) {
        Ok(None) => None,
        Ok(Some(bytes)) => State::restore(&bytes, seed)
            .inspect_err(|error| tracing::warn!(name, %error, "the snapshot is not used"))
            .ok(),
        Err(error) => {
            tracing::warn!(name, %error, "the snapshot cannot be read");
            None
        }
    };
    state.filter(|s| s.next_offset() <= log.high_watermark())
}

/// Reads every imported code from the log.
pub fn load_codes(store: &Store, codes: &Codes) -> Result<(), FlowError> {
    let Some(log) = store.partition(CODES_TOPIC, 0) else { return Ok(()) };
    let error = |e: &dyn std::fmt::Display| FlowError::Log(e.to_string());
    let (mut next, mut buffer) = (log.log_start_offset(), Vec::new());
    while next < log.high_watermark() {
        buffer.clear();
        log.read(next, 1024 * 1024, &mut buffer).map_err(|e| error(&e))?;
        for batch in Batches::new(&buffer) {
            for record in batch.map_err(|e| error(&e))?.records().map_err(|e| error(&e))? {
                let record = record.map_err(|e| error(&e))?;
                let text = |b: Option<&[u8]>| b.and_then(|b| std::str::from_utf8(b).ok().map(String::from));
                if let (true, Some(key), Some(code)) =
                    (record.offset >= next, text(record.key), text(record.value))
                    && let (Ok(campaign), true) = (CampaignId::new(&key), is_code(&code))
                {
                    codes.import(&campaign, &code);
                }
                next = next.max(record.offset + 1);
            }
        }
    }
    Ok(())
}

fn create_topic(store: &Store, name: &'static str, partitions: u32) -> Result<(), FlowError> {
    if partition_count(store, name) > 0 {
        return Ok(());
    }
    store.create_topic(name, partitions).map_err(|e| FlowError::Topic(name, e.to_string()))
}

fn partition_count(store: &Store, name: &str) -> u32 {
    store.topics().into_iter().find(|(n, _)| n == name).map_or(0, |(_, count)| count)
}

/// The partitions of `dibs.claims`; none if the topic is not there.
pub fn places(store: &Store) -> impl Iterator<Item = Place> + use<> {
    let partitions = partition_count(store, CLAIMS_TOPIC);
    (0..partitions).map(move |number| Place { number, partitions })
}

/// Where Kafka's default partitioner puts a key: murmur2, the sign bit cleared, modulo the partitions.
pub fn partition_of(key: impl AsRef<[u8]>, partitions: u32) -> u32 {
    (murmur2(key.as_ref()) & 0x7fff_ffff) % partitions
}

/// Kafka's murmur2 (seed 0x9747b28c), as in `org.apache.kafka.common.utils.Utils`.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = 0x9747_b28c ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        h = h.wrapping_mul(M) ^ k;
    }
    for (i, byte) in rest.iter().enumerate().rev() {
        h ^= u32::from(*byte) << (8 * i);
    }
    if !rest.is_empty() {
        h = h.wrapping_mul(M);
    }
    h = (h ^ (h >> 13)).wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that Kafka's own unit tests state for the same keys.
    #[test]
    fn murmur2_is_kafkas() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }
}
