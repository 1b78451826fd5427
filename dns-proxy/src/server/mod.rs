//! The proxy as a running thing: listeners for each resolver slot, started, added, removed, drained.

mod listen;
mod tcp;
mod thread;
mod udp;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::cache::Cache;
use crate::clients::Clients;
use crate::config::{Config, ResolverSlot, StartError};
use crate::counters::Counters;
use crate::exchange::Core;
use crate::learner::Learner;
use crate::limits::Loads;
use crate::record::DecisionLog;
use crate::resolve::servers::Servers;
use crate::resolve::tcp::TcpUpstream;
use crate::server::thread::WorkerThread;

/// What the proxy works with: the node's endpoints, the kernel's maps, the audit log.
#[derive(Clone)]
pub struct Services {
    /// Who asks.
    pub clients: Arc<dyn Clients>,
    /// Who opens addresses.
    pub learner: Arc<dyn Learner>,
    /// Who takes the records.
    pub log: Arc<dyn DecisionLog>,
}

/// The running proxy. Dropping it ends it at once; [`Proxy::shutdown`] lets queries under way end.
pub struct Proxy {
    core: Arc<Core>,
    slots: Mutex<BTreeMap<u8, Running>>,
    worker: WorkerThread,
}

/// The listeners of one slot.
struct Running {
    listening: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    drained: mpsc::Receiver<Guard>,
}

/// Held by what is under way; nothing is ever sent through the channel, its closing is the event.
enum Guard {}

/// What the tasks of one slot share.
#[derive(Clone)]
struct Slot {
    core: Arc<Core>,
    worker: Handle,
    tasks: Handle,
    resolver: SocketAddr,
    servers: Arc<Servers>,
    upstream: Arc<TcpUpstream>,
    stop: watch::Receiver<bool>,
    _guard: mpsc::Sender<Guard>,
}

impl Proxy {
    /// Starts listening for every resolver of `config`; inside a tokio runtime with IO and time.
    pub async fn start(config: Config, services: Services) -> Result<Self, StartError> {
        let core = Arc::new(Core {
            clients: services.clients,
            learner: services.learner,
            log: services.log,
            counters: Arc::new(Counters::default()),
            loads: Loads::new(&config.limits),
            cache: Cache::new(&config.cache),
            limits: config.limits,
            timeouts: config.timeouts,
            shuffles_case: config.shuffles_case,
        });
        let worker = WorkerThread::start()?;
        let proxy = Self { core, slots: Mutex::new(BTreeMap::new()), worker };
        for resolver in config.resolvers {
            proxy.add_resolver(resolver).await?;
        }
        Ok(proxy)
    }

    /// Starts standing in for one more resolver.
    pub async fn add_resolver(&self, resolver: ResolverSlot) -> Result<(), StartError> {
        let mut slots = self.slots.lock().await;
        if slots.contains_key(&resolver.slot) {
            return Err(StartError::SlotTaken { slot: resolver.slot });
        }
        // Everything is bound before anything runs, so that an error leaves nothing behind.
        let pairs = resolver
            .listen
            .iter()
            .map(|address| listen::bind(*address, self.worker.handle()))
            .collect::<Result<Vec<_>, _>>()?;
        let servers = Arc::new(Servers::new(resolver.resolver, &resolver.alternatives));
        let (stop, stopped) = watch::channel(false);
        let (guard, drained) = mpsc::channel(1);
        let slot = Slot {
            core: Arc::clone(&self.core),
            worker: self.worker.handle().clone(),
            tasks: Handle::current(),
            resolver: resolver.resolver,
            upstream: Arc::new(TcpUpstream::new(Arc::clone(&self.core), &servers)),
            servers,
            stop: stopped,
            _guard: guard,
        };
        let mut running = Running { listening: Vec::new(), stop, tasks: Vec::new(), drained };
        for pair in pairs {
            running.listening.push(pair.address);
            running.tasks.push(udp::spawn(slot.clone(), pair.udp));
            running.tasks.push(tcp::spawn(slot.clone(), pair.tcp));
        }
        tracing::info!(slot = resolver.slot, resolver = %resolver.resolver, listening = ?running.listening, "standing in for a resolver");
        slots.insert(resolver.slot, running);
        Ok(())
    }

    /// Stops standing in for the resolver of `slot` and lets its queries end; says whether there was
    /// one.
    pub async fn remove_resolver(&self, slot: u8) -> bool {
        let Some(running) = self.slots.lock().await.remove(&slot) else {
            return false;
        };
        running.drain(self.core.timeouts.drain).await;
        tracing::info!(slot, "no longer standing in for a resolver");
        true
    }

    /// Where the proxy listens for the resolver of `slot`, UDP and TCP alike.
    pub async fn listening(&self, slot: u8) -> Vec<SocketAddr> {
        let slots = self.slots.lock().await;
        slots.get(&slot).map(|running| running.listening.clone()).unwrap_or_default()
    }

    /// What the proxy counts.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.core.counters)
    }

    /// Takes no more queries, lets those under way end, and ends.
    pub async fn shutdown(self) {
        let slots = std::mem::take(&mut *self.slots.lock().await);
        for running in slots.values() {
            running.stop.send_replace(true);
        }
        for (_, running) in slots {
            running.drain(self.core.timeouts.drain).await;
        }
    }
}

impl Running {
    async fn drain(mut self, limit: std::time::Duration) {
        self.stop.send_replace(true);
        if timeout(limit, self.drained.recv()).await.is_err() {
            tracing::warn!(listening = ?self.listening, "queries under way were cut off");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
