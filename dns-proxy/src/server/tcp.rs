//! TCP from pods: a task for each connection, everything about it bounded (RFC 7766).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Duration, Instant, timeout};

use super::Slot;
use crate::clock;
use crate::exchange::{Admission, Arrival, Ask, Resolution};
use crate::frame::{self, Framer};
use crate::record::Transport;
use crate::reply;

/// Pause after the system refused a connection for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a connection may take for its first query where the proxy stops.
const LAST_QUERY: Duration = Duration::from_secs(1);

/// Starts accepting on `listener`.
pub(super) fn spawn(slot: Slot, listener: TcpListener) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut stop = slot.stop.clone();
        tokio::select! {
            () = stopped(&mut stop) => {}
            () = accept(&slot, &listener) => {}
        }
        // Before the slot: who waits for it to drain finds the port free.
        drop(listener);
    })
}

async fn accept(slot: &Slot, listener: &TcpListener) {
    let room = Arc::new(Semaphore::new(slot.core.limits.connections as usize));
    loop {
        let (stream, source) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let counters = &slot.core.counters;
        if slot.core.clients.client(source.ip()).is_none() {
            counters.dropped_unknown_client.increment();
            continue;
        }
        let permits =
            Arc::clone(&room).try_acquire_owned().ok().zip(slot.core.loads.connection(source.ip()));
        let Some(permits) = permits else {
            counters.connections_refused.increment();
            continue;
        };
        let slot = slot.clone();
        tokio::spawn(async move {
            if let Err(error) = serve(&slot, stream, source).await {
                slot.core.counters.connections_closed.increment();
                tracing::debug!(%source, %error, "connection closed");
            }
            drop(permits);
        });
    }
}

/// Serves one connection until the pod closes it, a bound is hit, or the proxy stops.
async fn serve(slot: &Slot, mut stream: TcpStream, source: SocketAddr) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let limits = &slot.core.limits;
    let timeouts = &slot.core.timeouts;
    let mut stop = slot.stop.clone();
    let mut framer = Framer::new();
    let mut under_way = JoinSet::new();
    let mut is_reading = true;
    let mut active = Instant::now();
    // When the proxy stops, whoever connected to ask and did not yet, may.
    let (mut has_asked, mut closes_at) = (false, None);
    loop {
        while under_way.len() < limits.pipelined as usize
            && let Some(message) = framer.next()
        {
            active = Instant::now();
            has_asked = true;
            is_reading &= closes_at.is_none();
            match admit(slot, &message, source) {
                Admission::Drop => {}
                Admission::Reply(reply) => write(&mut stream, &reply, timeouts.tcp_write).await?,
                Admission::Cached(ask, message) => {
                    under_way.spawn(cached(slot.clone(), *ask, message));
                }
                Admission::Resolve(ask) => {
                    under_way.spawn(resolve(slot.clone(), *ask));
                }
            }
        }
        if !is_reading && under_way.is_empty() {
            return Ok(());
        }
        let has_room = under_way.len() < limits.pipelined as usize;
        tokio::select! {
            Some(ended) = under_way.join_next() => {
                if let Some(reply) = ended.map_err(io::Error::other)? {
                    write(&mut stream, &reply, timeouts.tcp_write).await?;
                    active = Instant::now();
                }
            }
            read = stream.read_buf(framer.buffer()), if is_reading && has_room => {
                if read? == 0 {
                    is_reading = false;
                }
            }
            () = stopped(&mut stop), if is_reading && closes_at.is_none() => {
                is_reading = !has_asked;
                closes_at = Some(Instant::now() + LAST_QUERY);
            }
            () = tokio::time::sleep_until(closes_at.unwrap_or(active)), if is_reading && closes_at.is_some() => {
                is_reading = false;
            }
            () = tokio::time::sleep_until(active + timeouts.tcp_idle), if under_way.is_empty() => {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

fn admit(slot: &Slot, message: &[u8], source: SocketAddr) -> Admission {
    slot.core.admit(&Arrival {
        message,
        source,
        transport: Transport::Tcp,
        resolver: slot.resolver,
        now: clock::now(),
    })
}

async fn resolve(slot: Slot, ask: Ask) -> Option<Vec<u8>> {
    let query = reply::upstream_query(&ask.query, slot.core.limits.udp_payload);
    let outcome = match slot.upstream.ask(query, ask.query.question.clone()).await {
        Ok(message) => Resolution::Upstream(message),
        Err(failure) => Resolution::Failed(failure),
    };
    slot.release(ask, outcome).await
}

async fn cached(slot: Slot, ask: Ask, message: Vec<u8>) -> Option<Vec<u8>> {
    slot.release(ask, Resolution::Cache(message)).await
}

/// Waits for the slot to stop; one that was dropped has stopped too.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        tracing::trace!("the slot is gone");
    }
}

async fn write(stream: &mut TcpStream, reply: &[u8], limit: Duration) -> io::Result<()> {
    timeout(limit, stream.write_all(&frame::frame(reply))).await?
}
