//! A thread that owns a connection. SQLite blocks; the tasks that wait for it must not.

use std::thread;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::LedgerError;

/// Jobs that may wait; whoever brings one more waits until there is room.
const QUEUE: usize = 64;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

enum Message {
    Run(Job),
    Close(oneshot::Sender<()>),
}

/// The way to the thread. The thread ends when it is told to or when nobody can reach it any more.
#[derive(Clone, Debug)]
pub(super) struct Worker {
    messages: mpsc::Sender<Message>,
}

impl Worker {
    pub(super) fn start(name: &str, mut db: Connection) -> Worker {
        let (messages, mut inbox) = mpsc::channel(QUEUE);
        let work = move || {
            crate::give_way();
            while let Some(message) = inbox.blocking_recv() {
                match message {
                    Message::Run(job) => job(&mut db),
                    Message::Close(done) => {
                        inbox.close();
                        drop(db);
                        // The one who closes may have gone; the closing is done all the same.
                        let _ = done.send(());
                        return;
                    }
                }
            }
        };
        thread::Builder::new().name(name.into()).spawn(work).expect("the system can start one more thread");
        Worker { messages }
    }

    /// Runs a job after those that came before, and brings its result.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let (reply, answer) = oneshot::channel();
        // A caller that has gone away does not want the result.
        let job = Box::new(move |db: &mut Connection| drop(reply.send(job(db))));
        self.messages.send(Message::Run(job)).await.map_err(|_| LedgerError::Closed)?;
        // A job that is dropped unanswered was still waiting when the ledger was closed.
        answer.await.unwrap_or(Err(LedgerError::Closed))
    }

    /// Closes the connection once the jobs before are done. The second time it does nothing.
    pub(super) async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.messages.send(Message::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }
}
