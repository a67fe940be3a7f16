//! Producer ids: each is given out once, for ever.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use crate::topics::Topics;

/// The small file that holds the first producer id not given out.
const FILE: &str = "producer.ids";
/// Producer ids are reserved on the disk in blocks of so many.
const BLOCK: i64 = 1000;

/// Gives out producer ids.
#[derive(Debug)]
pub(crate) struct ProducerIds {
    topics: Arc<Topics>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: i64,
    /// The first one that is not reserved on the disk.
    reserved: i64,
}

impl ProducerIds {
    pub(crate) fn open(topics: Arc<Topics>) -> io::Result<ProducerIds> {
        let text = topics.read_file(FILE)?.unwrap_or_default();
        let reserved = String::from_utf8_lossy(&text).trim().parse().unwrap_or(0);
        Ok(ProducerIds { topics, state: Mutex::new(State { next: reserved, reserved }) })
    }

    /// An id that was never given out before. Blocks on the disk once for every block of them.
    pub(crate) fn next(&self) -> io::Result<i64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let id = state.next;
        if id >= state.reserved {
            let upto = id + BLOCK;
            self.topics.put(FILE, upto.to_string().as_bytes())?;
            state.reserved = upto;
        }
        state.next = id + 1;
        Ok(id)
    }
}
