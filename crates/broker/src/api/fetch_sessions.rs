//! Incremental fetch sessions (KIP-227): the broker remembers which partitions a client reads, so that a request says
//! only what is different from the last, and an answer only what is new. Pure: time and ids come in.

use std::collections::{HashMap, HashSet};

use kafka_protocol::{
    ResponseError,
    messages::{FetchRequest, TopicName, fetch_request::*},
    protocol::StrBytes,
};
use uuid::Uuid;

use super::fetch_answer::TopicAnswer;

/// A session that was not used for so long gives way to a new one, in ms.
const EVICT_AFTER_MS: u64 = 120_000;
/// The most partitions that all sessions watch together. One takes some 200 bytes.
const MAX_WATCHED: usize = 1 << 19;
/// The epoch of a request that wants no session, and ends the one it names.
const FINAL: i32 = -1;
/// The epoch of a request that names all partitions, and begins a session.
const INITIAL: i32 = 0;

/// A topic by its id, or by its name before version 13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TopicKey {
    id: Uuid,
    name: TopicName,
}

impl TopicKey {
    fn of(id: Uuid, name: &TopicName) -> TopicKey {
        // A copy: what was decoded keeps the whole request.
        TopicKey { id, name: TopicName(StrBytes::from_string(name.to_string())) }
    }
}

/// A partition as the client reads it, and what the client was last told about it.
#[derive(Clone, Debug)]
struct Watched {
    topic: TopicKey,
    wanted: FetchPartition,
    /// −1 if it was not told, or was told of an error.
    high_watermark: i64,
    log_start: i64,
}

#[derive(Debug)]
struct Session {
    /// The epoch that the next request has to have.
    epoch: i32,
    by_id: bool,
    /// In the order in which they are read. Never empty.
    partitions: Vec<Watched>,
    used_at: u64,
}

/// All sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    slots: usize,
    sessions: HashMap<i32, Session>,
    /// Partitions of all sessions.
    watched: usize,
}

/// What a request means for its answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// Everything is answered, and nothing remembered.
    Plain,
    /// Everything is answered, and a session begins if there is room for it.
    Full,
    /// What is new in a session is answered.
    Incremental(i32),
}

impl Sessions {
    /// Keeps so many at most.
    pub(crate) fn new(slots: usize) -> Sessions {
        Sessions { slots, sessions: HashMap::new(), watched: 0 }
    }

    /// Takes a request in, and puts all partitions into it that it means.
    pub(super) fn begin(
        &mut self,
        request: &mut FetchRequest,
        by_id: bool,
        now: u64,
    ) -> Result<Begun, ResponseError> {
        let id = request.session_id;
        if matches!(request.session_epoch, FINAL | INITIAL) {
            self.close(id);
            return Ok(if request.session_epoch == FINAL { Begun::Plain } else { Begun::Full });
        }
        let session = self.sessions.get_mut(&id).ok_or(ResponseError::FetchSessionIdNotFound)?;
        if session.epoch != request.session_epoch {
            return Err(ResponseError::InvalidFetchSessionEpoch);
        }
        if session.by_id != by_id {
            return Err(ResponseError::FetchSessionTopicIdError);
        }
        session.used_at = now;
        session.epoch = after(session.epoch);
        let before = session.partitions.len();
        session.watch(std::mem::take(&mut request.topics));
        session.forget(&request.forgotten_topics_data);
        request.topics = session.request();
        let watches = session.partitions.len();
        self.watched = self.watched - before + watches;
        if self.watched > MAX_WATCHED {
            // The client begins again, without a session.
            self.close(id);
            return Err(ResponseError::FetchSessionIdNotFound);
        }
        if watches == 0 {
            self.close(id);
            return Ok(Begun::Plain);
        }
        Ok(Begun::Incremental(id))
    }

    fn close(&mut self, id: i32) {
        if let Some(session) = self.sessions.remove(&id) {
            self.watched -= session.partitions.len();
        }
    }

    /// Gives an answer its session's id, and leaves out of it what the client knows.
    pub(super) fn finish(
        &mut self,
        begun: &Begun,
        request: FetchRequest,
        by_id: bool,
        now: u64,
        fresh: impl FnMut() -> i32,
        topics: &mut Vec<TopicAnswer>,
    ) -> i32 {
        match *begun {
            Begun::Plain => 0,
            Begun::Full => self.open(request, by_id, now, fresh, topics),
            Begun::Incremental(id) => {
                // It may have given way to another while this request waited.
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.used_at = now;
                    session.thin_out(topics);
                }
                id
            }
        }
    }

    /// Begins a session for what was read; 0 if there is nothing to read, or no room.
    fn open(
        &mut self,
        request: FetchRequest,
        by_id: bool,
        now: u64,
        mut fresh: impl FnMut() -> i32,
        topics: &[TopicAnswer],
    ) -> i32 {
        let mut session = Session { epoch: after(INITIAL), by_id, partitions: Vec::new(), used_at: now };
        session.watch(request.topics);
        let watches = session.partitions.len();
        if watches == 0 || self.watched + watches > MAX_WATCHED || !self.make_room(now) {
            return 0;
        }
        let mut id = fresh();
        while id <= 0 || self.sessions.contains_key(&id) {
            id = fresh();
        }
        // The client is told everything; what it is told is remembered.
        session.thin_out(&mut topics.to_vec());
        self.watched += watches;
        self.sessions.insert(id, session);
        id
    }

    fn make_room(&mut self, now: u64) -> bool {
        if self.sessions.len() < self.slots {
            return true;
        }
        let oldest = self.sessions.iter().min_by_key(|(_, s)| s.used_at).map(|(id, s)| (*id, s.used_at));
        match oldest {
            Some((id, used_at)) if used_at + EVICT_AFTER_MS <= now => {
                self.close(id);
                true
            }
            _ => false,
        }
    }
}

impl Session {
    /// Where each partition stands.
    fn index(&self) -> HashMap<(TopicKey, i32), usize> {
        let key = |w: &Watched| (w.topic.clone(), w.wanted.partition);
        self.partitions.iter().enumerate().map(|(i, w)| (key(w), i)).collect()
    }

    fn watch(&mut self, topics: Vec<FetchTopic>) {
        let mut index = if topics.is_empty() { HashMap::new() } else { self.index() };
        for topic in topics {
            let key = TopicKey::of(topic.topic_id, &topic.topic);
            for wanted in topic.partitions {
                let at = *index.entry((key.clone(), wanted.partition)).or_insert(self.partitions.len());
                match self.partitions.get_mut(at) {
                    Some(watched) => watched.wanted = wanted,
                    None => self.partitions.push(Watched {
                        topic: key.clone(),
                        wanted,
                        high_watermark: -1,
                        log_start: -1,
                    }),
                }
            }
        }
    }

    fn forget(&mut self, topics: &[ForgottenTopic]) {
        let keys = |t: &ForgottenTopic| {
            let key = TopicKey::of(t.topic_id, &t.topic);
            t.partitions.iter().map(|p| (key.clone(), *p)).collect::<Vec<_>>()
        };
        let forgotten: HashSet<(TopicKey, i32)> = topics.iter().flat_map(keys).collect();
        if !forgotten.is_empty() {
            self.partitions.retain(|w| !forgotten.contains(&(w.topic.clone(), w.wanted.partition)));
        }
    }

    /// All partitions, as a request has them; neighbours of one topic together.
    fn request(&self) -> Vec<FetchTopic> {
        let mut topics: Vec<FetchTopic> = Vec::new();
        for watched in &self.partitions {
            let TopicKey { id, name } = &watched.topic;
            match topics.last_mut() {
                Some(last) if last.topic_id == *id && last.topic == *name => {
                    last.partitions.push(watched.wanted.clone());
                }
                _ => topics.push(
                    FetchTopic::default()
                        .with_topic(name.clone())
                        .with_topic_id(*id)
                        .with_partitions(vec![watched.wanted.clone()]),
                ),
            }
        }
        topics
    }

    /// Leaves what is new; partitions with records go to the end, so that each has its turn.
    fn thin_out(&mut self, topics: &mut Vec<TopicAnswer>) {
        let index = self.index();
        let mut read = HashSet::new();
        for topic in topics.iter_mut() {
            let key = TopicKey::of(topic.id, &topic.name);
            topic.partitions.retain(|data| {
                let Some(at) = index.get(&(key.clone(), data.index)) else { return true };
                let watched = &mut self.partitions[*at];
                let has_records = data.records.is_some();
                let told = (watched.high_watermark, watched.log_start);
                // After an error all is told again.
                let failed = data.error.is_some();
                watched.high_watermark = if failed { -1 } else { data.high_watermark };
                watched.log_start = if failed { -1 } else { data.log_start };
                if has_records {
                    read.insert((key.clone(), data.index));
                }
                failed || has_records || told != (data.high_watermark, data.log_start)
            });
        }
        topics.retain(|topic| !topic.partitions.is_empty());
        // Stable: the order within both halves stays.
        self.partitions.sort_by_key(|w| read.contains(&(w.topic.clone(), w.wanted.partition)));
    }
}

/// The epoch after one: they begin again at 1.
fn after(epoch: i32) -> i32 {
    if epoch == i32::MAX { 1 } else { epoch + 1 }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dibs_log::{FileRange, MemoryStorage, Storage};

    use super::*;
    use crate::api::fetch_answer::PartitionAnswer;

    fn name() -> TopicName {
        TopicName(StrBytes::from_static_str("t"))
    }

    fn request(id: i32, epoch: i32, partitions: &[i32]) -> FetchRequest {
        let partition = |p: &i32| FetchPartition::default().with_partition(*p);
        let topic = FetchTopic::default()
            .with_topic(name())
            .with_partitions(partitions.iter().map(partition).collect());
        let topics = if partitions.is_empty() { vec![] } else { vec![topic] };
        FetchRequest::default().with_session_id(id).with_session_epoch(epoch).with_topics(topics)
    }

    fn meant(request: &FetchRequest) -> Vec<i32> {
        request.topics.iter().flat_map(|t| t.partitions.iter().map(|p| p.partition)).collect()
    }

    /// Partitions with their high watermarks; those that have one over 10 come with records.
    fn answer(marks: &[(i32, i64)]) -> Vec<TopicAnswer> {
        let file = Arc::from(MemoryStorage::new(0).open("file", true).unwrap());
        let records = FileRange { file, position: 0, length: 1, until: 1 };
        let partition = |&(index, high_watermark): &(i32, i64)| PartitionAnswer {
            index,
            error: None,
            high_watermark,
            last_stable: high_watermark,
            log_start: 0,
            aborted: None,
            records: (high_watermark > 10).then(|| records.clone()),
        };
        let partitions = marks.iter().map(partition).collect();
        vec![TopicAnswer { name: name(), id: Uuid::nil(), partitions }]
    }

    fn told(topics: &[TopicAnswer]) -> Vec<i32> {
        topics.iter().flat_map(|t| t.partitions.iter().map(|p| p.index)).collect()
    }

    /// One request and its answer: the session's id, and what was told.
    fn fetch(
        sessions: &mut Sessions,
        mut request: FetchRequest,
        now: u64,
        marks: &[(i32, i64)],
    ) -> Result<(i32, Vec<i32>), ResponseError> {
        let begun = sessions.begin(&mut request, false, now)?;
        let wanted = meant(&request);
        let marks: Vec<(i32, i64)> = marks.iter().filter(|(p, _)| wanted.contains(p)).copied().collect();
        let mut topics = answer(&marks);
        let next = sessions.sessions.len() as i32 + 7;
        let id = sessions.finish(&begun, request, false, now, || next, &mut topics);
        Ok((id, told(&topics)))
    }

    #[test]
    fn an_answer_says_what_is_new() {
        let mut sessions = Sessions::new(1);
        let marks = [(0, 5), (1, 6)];
        assert_eq!(fetch(&mut sessions, request(0, 0, &[0, 1]), 0, &marks), Ok((7, vec![0, 1])));
        assert_eq!(fetch(&mut sessions, request(7, 1, &[]), 0, &marks), Ok((7, vec![])));
        // A new high watermark, a partition that is new, one with records.
        assert_eq!(
            fetch(&mut sessions, request(7, 2, &[2]), 0, &[(0, 5), (1, 7), (2, 0)]),
            Ok((7, vec![1, 2]))
        );
        assert_eq!(fetch(&mut sessions, request(7, 3, &[]), 0, &[(0, 11), (1, 7), (2, 0)]), Ok((7, vec![0])));
        assert_eq!(fetch(&mut sessions, request(7, 4, &[]), 0, &[(0, 11), (1, 7), (2, 0)]), Ok((7, vec![0])));
        // It was read, so it is read last.
        let mut again = request(7, 5, &[]);
        sessions.begin(&mut again, false, 0).unwrap();
        assert_eq!(meant(&again), [1, 2, 0]);
    }

    #[test]
    fn forgotten_partitions_are_not_read() {
        let mut sessions = Sessions::new(1);
        fetch(&mut sessions, request(0, 0, &[0, 1]), 0, &[(0, 1), (1, 1)]).unwrap();
        let forget = |p| vec![ForgottenTopic::default().with_topic(name()).with_partitions(vec![p])];
        let one = request(7, 1, &[]).with_forgotten_topics_data(forget(0));
        assert_eq!(fetch(&mut sessions, one, 0, &[(0, 2), (1, 2)]), Ok((7, vec![1])));
        // Without any left, the session ends.
        let all = request(7, 2, &[]).with_forgotten_topics_data(forget(1));
        assert_eq!(fetch(&mut sessions, all, 0, &[]), Ok((0, vec![])));
        assert!(sessions.sessions.is_empty());
    }

    #[test]
    fn who_is_out_of_step_is_told_so() {
        let mut sessions = Sessions::new(2);
        let unknown = fetch(&mut sessions, request(7, 1, &[]), 0, &[]);
        assert_eq!(unknown, Err(ResponseError::FetchSessionIdNotFound));
        fetch(&mut sessions, request(0, 0, &[0]), 0, &[(0, 1)]).unwrap();
        let skipped = fetch(&mut sessions, request(7, 2, &[]), 0, &[]);
        assert_eq!(skipped, Err(ResponseError::InvalidFetchSessionEpoch));
        let by_id = sessions.begin(&mut request(7, 1, &[]), true, 0);
        assert_eq!(by_id, Err(ResponseError::FetchSessionTopicIdError));
        // The last request ends it.
        assert_eq!(fetch(&mut sessions, request(7, -1, &[0]), 0, &[(0, 1)]), Ok((0, vec![0])));
        let ended = fetch(&mut sessions, request(7, 1, &[]), 0, &[]);
        assert_eq!(ended, Err(ResponseError::FetchSessionIdNotFound));
    }

    #[test]
    fn there_are_no_more_than_there_are_slots() {
        let mut sessions = Sessions::new(1);
        fetch(&mut sessions, request(0, 0, &[0]), 0, &[(0, 1)]).unwrap();
        // No room: everything is answered, and no session said to be there.
        let full = fetch(&mut sessions, request(0, 0, &[0]), EVICT_AFTER_MS - 1, &[(0, 1)]);
        assert_eq!(full, Ok((0, vec![0])));
        // One that nobody has used for long gives way.
        assert_eq!(fetch(&mut sessions, request(0, 0, &[0]), EVICT_AFTER_MS, &[(0, 1)]), Ok((8, vec![0])));
        assert_eq!((sessions.sessions.len(), sessions.watched), (1, 1));
        let mut none = Sessions::new(0);
        assert_eq!(fetch(&mut none, request(0, 0, &[0]), 0, &[(0, 1)]), Ok((0, vec![0])));
    }
}
