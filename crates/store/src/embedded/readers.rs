//! A few threads that carry out reads, so that a page that has to come from the disk never stops an
//! async runtime.
//!
//! Threads of our own and not the runtime's blocking pool: the store works under any executor, the
//! number of snapshots that pin old pages is bounded, and a burst of misses becomes a queue instead
//! of hundreds of threads. Views serve warm reads; what comes here are misses, series and listings.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use redb::ReadTransaction;
use tokio::sync::{mpsc, oneshot};

use kv4::store::StoreError;

use super::committer::Request;
use super::engine::{Engine, ReadError};

/// Threads that read.
pub const READERS: usize = 2;
/// Most reads that wait; whoever comes then, waits to be let in.
pub const QUEUE_READS_MAX: usize = 1_024;

type Job = Box<dyn FnOnce(&Engine) + Send>;

#[derive(Debug)]
pub(crate) struct Readers {
    queue: mpsc::Sender<Job>,
    /// Told when a read meets a failed engine.
    committer: mpsc::WeakSender<Request>,
}

impl Readers {
    pub(crate) fn start(
        engine: &Arc<Engine>,
        committer: mpsc::WeakSender<Request>,
    ) -> io::Result<(Readers, Vec<JoinHandle<()>>)> {
        let (sender, queue) = mpsc::channel::<Job>(QUEUE_READS_MAX);
        let queue = Arc::new(Mutex::new(queue));
        let mut threads = Vec::new();
        for nth in 0..READERS {
            let (engine, queue) = (engine.clone(), queue.clone());
            let thread = thread::Builder::new().name(format!("store-read-{nth}"));
            threads.push(thread.spawn(move || {
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
                    match job {
                        Some(job) => job(&engine),
                        None => return,
                    }
                }
            })?);
        }
        Ok((Readers { queue: sender, committer }, threads))
    }

    /// Runs `read` on a snapshot taken after this call.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job = move |engine: &Engine| {
            // A caller that has gone away needs no answer.
            if !answer.is_closed() {
                let _ = answer.send(engine.read(read));
            }
        };
        let closed = || StoreError::Unavailable("it is closed".to_owned());
        self.queue.send(Box::new(job)).await.map_err(|_| closed())?;
        let result = answered.await.map_err(|_| closed())?;
        if matches!(result, Err(ReadError::Engine(_) | ReadError::Away))
            && let Some(committer) = self.committer.upgrade()
        {
            // A full queue has writers in it, who find out as well.
            let _ = committer.try_send(Request::Recover);
        }
        result.map_err(ReadError::into_store_error)
    }
}
