//! The proxy as a running thing: listeners for each resolver slot, started, added, removed, drained.

mod fair;
mod join;
mod listen;
mod pace;
mod tcp;
mod turn;
mod worker;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::budget::NewNames;
use crate::cache::Cache;
use crate::clients::Clients;
use crate::clock;
use crate::config::{Config, ResolverSlot, StartError};
use crate::counters::Counters;
use crate::exchange::{Ask, Conclusion, Core, Resolution};
use crate::learner::{self, Learner};
use crate::limits::Loads;
use crate::record::{DecisionLog, Transport};
use crate::resolve::servers::Servers;
use crate::resolve::tcp::TcpUpstream;
use crate::resolve::under_way::UnderWay;
use crate::server::worker::{Order, Service, Worker};
use crate::stages::Stages;

pub use listen::Sockets;

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
    slots: Mutex<Slots>,
    workers: Arc<[Worker]>,
}

#[derive(Default)]
struct Slots {
    running: BTreeMap<u8, Running>,
    /// Sockets of an earlier proxy, for slots that are added later.
    adopted: BTreeMap<SocketAddr, Sockets>,
    /// The number of the next listening address.
    line: u16,
}

/// The listeners of one slot.
struct Running {
    listening: Vec<SocketAddr>,
    /// The same sockets that workers and tasks serve, for the next proxy.
    kept: Vec<Sockets>,
    lines: Vec<u16>,
    workers: Arc<[Worker]>,
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
            stages: Arc::default(),
            loads: Loads::new(&config.limits),
            new_names: NewNames::new(config.limits.client_new_names),
            cache: Cache::new(&config.cache),
            limits: config.limits,
            timeouts: config.timeouts,
            shuffles_case: config.shuffles_case,
        });
        let one_each = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let count = config.workers.unwrap_or_else(one_each);
        let workers = Worker::start(count, &core, &Handle::current())?;
        let proxy = Self { core, slots: Mutex::default(), workers };
        for resolver in config.resolvers {
            proxy.add_resolver(resolver).await?;
        }
        Ok(proxy)
    }

    /// Starts standing in for one more resolver.
    pub async fn add_resolver(&self, resolver: ResolverSlot) -> Result<(), StartError> {
        let mut slots = self.slots.lock().await;
        if slots.running.contains_key(&resolver.slot) {
            return Err(StartError::SlotTaken { slot: resolver.slot });
        }
        // Everything is bound before anything runs, so that an error leaves nothing behind.
        let (mut all, mut kept) = (Vec::new(), Vec::new());
        for address in &resolver.listen {
            let sockets = match slots.adopted.remove(address) {
                Some(sockets) => sockets.complete(self.workers.len()),
                None => listen::bind(*address, self.workers.len()),
            }?;
            kept.push(sockets.again()?);
            let tcp = TcpListener::from_std(sockets.tcp).map_err(|source| StartError::Listen {
                address: sockets.address,
                transport: Transport::Tcp,
                source,
            })?;
            all.push((sockets.address, sockets.udp, tcp));
        }
        let servers = Arc::new(Servers::new(resolver.resolver, &resolver.alternatives));
        let (stop, stopped) = watch::channel(false);
        let (guard, drained) = mpsc::channel(1);
        let slot = Slot {
            core: Arc::clone(&self.core),
            tasks: Handle::current(),
            resolver: resolver.resolver,
            upstream: Arc::new(TcpUpstream::new(Arc::clone(&self.core), &servers)),
            servers,
            stop: stopped,
            _guard: guard,
        };
        let mut running = Running {
            listening: Vec::new(),
            kept,
            lines: Vec::new(),
            workers: Arc::clone(&self.workers),
            stop,
            tasks: Vec::new(),
            drained,
        };
        for (address, udp, tcp) in all {
            running.listening.push(address);
            let mut udp = udp.into_iter().peekable();
            // Adopted ones may be more than there are workers.
            while udp.peek().is_some() {
                running.lines.push(slots.line);
                let (line, under_way) = (slots.line, Arc::<UnderWay>::default());
                for (worker, listener) in self.workers.iter().zip(udp.by_ref()) {
                    let (slot, under_way) = (slot.clone(), Arc::clone(&under_way));
                    let service = Service { line, listener, under_way, slot };
                    worker.order(Order::Serve(Box::new(service)));
                }
                slots.line = slots.line.wrapping_add(1);
            }
            running.tasks.push(tcp::spawn(slot.clone(), tcp));
        }
        tracing::info!(slot = resolver.slot, resolver = %resolver.resolver, listening = ?running.listening, "standing in for a resolver");
        slots.running.insert(resolver.slot, running);
        Ok(())
    }

    /// Takes the sockets of an earlier proxy, for slots that listen where they do.
    pub async fn adopt(&self, sockets: Vec<Sockets>) {
        let sockets = sockets.into_iter().map(|sockets| (sockets.address, sockets));
        self.slots.lock().await.adopted.extend(sockets);
    }

    /// Closes adopted sockets that no slot took.
    pub async fn forget_adopted(&self) {
        self.slots.lock().await.adopted.clear();
    }

    /// Stops standing in for the resolver of `slot` and lets its queries end; says whether there was
    /// one.
    pub async fn remove_resolver(&self, slot: u8) -> bool {
        let Some(running) = self.slots.lock().await.running.remove(&slot) else {
            return false;
        };
        running.drain(self.core.timeouts.drain).await;
        tracing::info!(slot, "no longer standing in for a resolver");
        true
    }

    /// Where the proxy listens for the resolver of `slot`, UDP and TCP alike.
    pub async fn listening(&self, slot: u8) -> Vec<SocketAddr> {
        let slots = self.slots.lock().await;
        slots.running.get(&slot).map(|running| running.listening.clone()).unwrap_or_default()
    }

    /// What the proxy counts.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.core.counters)
    }

    /// How long its stages take.
    pub fn stages(&self) -> Arc<Stages> {
        Arc::clone(&self.core.stages)
    }

    /// Takes no more queries, lets those under way end, and ends.
    pub async fn shutdown(self) {
        drop(self.hand_over().await);
    }

    /// The same, and gives its sockets to whoever is to serve them: queries that come meanwhile wait.
    pub async fn hand_over(self) -> Vec<Sockets> {
        let mut slots = std::mem::take(&mut self.slots.lock().await.running);
        let mut sockets = Vec::new();
        for running in slots.values_mut() {
            running.stop();
            sockets.append(&mut running.kept);
        }
        for (_, running) in slots {
            running.drain(self.core.timeouts.drain).await;
        }
        sockets
    }
}

impl Running {
    /// Lets nothing more in.
    fn stop(&self) {
        self.stop.send_replace(true);
        for (worker, line) in self
            .workers
            .iter()
            .flat_map(|worker| self.lines.iter().map(move |line| (worker, *line)))
        {
            worker.order(Order::Stop(line));
        }
    }

    async fn drain(mut self, limit: Duration) {
        self.stop();
        if timeout(limit, self.drained.recv()).await.is_err() {
            tracing::warn!(listening = ?self.listening, "queries under way were cut off");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Slot {
    /// The reply to one pod, once the learner is done with it.
    async fn release(&self, ask: Ask, outcome: Resolution) -> Option<Vec<u8>> {
        match self.core.conclude(ask, outcome, clock::now()) {
            Conclusion::Drop => None,
            Conclusion::Reply(reply) => Some(reply),
            Conclusion::Learn(lesson, lecture) => {
                let began = clock::now();
                let learned = learner::only(self.core.teach(vec![lesson])).await;
                let now = clock::now();
                self.core.stages.learn.note(now.since(began));
                Some(lecture.finish(&self.core, learned, now))
            }
        }
    }
}
