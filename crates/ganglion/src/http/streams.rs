//! Streams of HTTP/2, which hyper runs as tasks of their own: each is metered as a connection is, and
//! charged to whoever its request is of.

use std::sync::Arc;

use hyper::rt::Executor;

use crate::turns::Spender;

tokio::task_local! {
    /// What the stream that is polled spends.
    static STREAM: Arc<Spender>;
}

/// Runs the streams of one connection.
#[derive(Clone, Debug)]
pub(super) struct Streams(pub(super) Arc<Spender>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let spender = self.0.of_stream();
        // Boxed, or the task would have room for it twice.
        let (of_stream, stream) = (spender.clone(), Box::pin(stream));
        let metered = async move { of_stream.metered(stream).await };
        tokio::spawn(STREAM.scope(spender, metered));
    }
}

/// What the request that is being answered spends; on HTTP/1 that is its connection's.
pub(super) fn spender(connection: &Arc<Spender>) -> Arc<Spender> {
    STREAM.try_with(Arc::clone).unwrap_or_else(|_| connection.clone())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use neuron::requests::{Admission as _, Payer};
    use tokio::sync::oneshot;

    use super::super::stage::{Stage, address};
    use super::*;

    async fn call(spender: &Spender, of: u8) {
        let ticket = spender.ticket();
        drop(ticket.turn(Payer::Account(account(of)), true).await.expect("nothing is refused"));
    }

    fn account(number: u8) -> kv4::Bucket {
        kv4::Bucket::from_stored(&format!("account {number}"))
    }

    /// A proxy's connection carries many accounts, and what one spends delays nobody else.
    #[tokio::test]
    async fn the_time_of_a_stream_is_that_of_whoever_calls_on_it() {
        let stage = Stage::new(|_| {});
        let turns = &stage.shared.turns;
        let connection = Spender::new(turns.clone(), address(1));
        let other = Spender::new(turns.clone(), address(2));
        for of in [1, 2, 3] {
            call(&other, of).await;
        }
        let streams = Streams(connection.clone());
        let (called, has_called) = oneshot::channel();
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let (finish, finished) = oneshot::channel();
        let of_stream = connection.clone();
        streams.execute(async move {
            call(&spender(&of_stream), 1).await;
            called.send(()).expect("it is awaited");
            may_go_on.await.expect("it is sent");
            std::thread::sleep(Duration::from_millis(20));
            finish.send(()).expect("it is awaited");
        });
        has_called.await.expect("it is sent");
        // Meanwhile somebody else is the last on the connection.
        let (called, has_called) = oneshot::channel();
        let of_stream = connection.clone();
        streams.execute(async move {
            call(&spender(&of_stream), 2).await;
            called.send(()).expect("it is awaited");
        });
        has_called.await.expect("it is sent");
        go_on.send(()).expect("it is awaited");
        finished.await.expect("it is sent");
        let delayed = || turns.counters.delayed.load(Ordering::Relaxed);
        call(&other, 2).await;
        assert_eq!(delayed(), 0, "another account of the connection");
        call(&other, 1).await;
        assert_eq!(delayed(), 1, "who has spent it");
    }
}
