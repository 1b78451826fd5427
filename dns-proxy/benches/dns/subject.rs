//! The servers that are measured, each a process.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use namegate_dns_proxy::clients::{Client, Clients, EndpointLabel, NameRules};
use namegate_dns_proxy::learner::{Learned, Learner, Learning, Lesson};
use namegate_dns_proxy::record::{DecisionLog, DecisionRecord};
use namegate_dns_proxy::{Config, Proxy, ResolverSlot, Services};
use namegate_policy::dns::NameDecision;
use namegate_policy::identity::Identity;
use namegate_policy::name::DnsName;

use crate::load;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Upstream,
    Forwarder,
    Proxy,
    Dnsmasq,
    Unbound,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Forwarder => "forwarder",
            Self::Proxy => "proxy",
            Self::Dnsmasq => "dnsmasq",
            Self::Unbound => "unbound",
        }
    }
}

/// A running server; ends when dropped.
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    child: Child,
}

/// What one load cost a server.
pub(crate) struct Cost {
    pub(crate) load: load::Outcome,
    /// Processor time for each answered query.
    pub(crate) processor: Duration,
}

impl Subject {
    /// Starts a server; `None` where it is not installed or does not answer.
    pub(crate) fn start(kind: Kind, upstream: Option<SocketAddr>) -> Option<Self> {
        let (address, child) = match kind {
            Kind::Upstream | Kind::Forwarder | Kind::Proxy => own(kind, upstream),
            Kind::Dnsmasq => dnsmasq(upstream?)?,
            Kind::Unbound => unbound(upstream?)?,
        };
        let subject = Self { kind, address, child };
        load::answers(address).then_some(subject)
    }

    /// Runs `load` and accounts the server's processor time to its answers.
    pub(crate) fn measure(&self, load: impl FnOnce() -> load::Outcome) -> Cost {
        let before = self.processor_time();
        let load = load();
        let spent = self.processor_time().saturating_sub(before);
        Cost { processor: spent / load.answered.max(1), load }
    }

    /// Time on a processor of all threads, from the scheduler's own accounts.
    fn processor_time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it runs");
        let nanos = tasks.filter_map(|task| {
            let account = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            account.split_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This program in another role; it prints where it listens.
fn own(kind: Kind, upstream: Option<SocketAddr>) -> (SocketAddr, Child) {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(["--serve", kind.name()]).stdout(Stdio::piped());
    if let Some(upstream) = upstream {
        command.args(["--upstream", &upstream.to_string()]);
    }
    let mut child = command.spawn().expect("this program starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped"))
        .read_line(&mut line)
        .expect("it says where it listens");
    (line.trim().parse().expect("an address"), child)
}

fn free_port() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    socket.local_addr().expect("bound")
}

fn dnsmasq(upstream: SocketAddr) -> Option<(SocketAddr, Child)> {
    let listen = free_port();
    let child = Command::new("dnsmasq")
        .args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"])
        .args(["--bind-interfaces", "--listen-address=127.0.0.1", "--cache-size=10000"])
        .args(["--dns-forward-max=10000", "--user=root", "--pid-file="])
        .arg(format!("--port={}", listen.port()))
        .arg(format!("--server={}#{}", upstream.ip(), upstream.port()))
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    Some((listen, child))
}

fn unbound(upstream: SocketAddr) -> Option<(SocketAddr, Child)> {
    let listen = free_port();
    let path = std::env::temp_dir().join(format!("namegate-bench-unbound-{}.conf", listen.port()));
    let mut file = std::fs::File::create(&path).expect("a temporary file");
    write!(
        file,
        "server:\n interface: 127.0.0.1\n port: {port}\n do-daemonize: no\n username: \"\"\n \
         chroot: \"\"\n pidfile: \"\"\n use-syslog: no\n do-not-query-localhost: no\n \
         module-config: \"iterator\"\n num-threads: 1\n verbosity: 0\n so-rcvbuf: 4m\n\
         remote-control:\n control-enable: no\n\
         forward-zone:\n name: \".\"\n forward-addr: {ip}@{upstream_port}\n",
        port = listen.port(),
        ip = upstream.ip(),
        upstream_port = upstream.port(),
    )
    .expect("a temporary file");
    let child = Command::new("unbound")
        .arg("-dp")
        .arg("-c")
        .arg(&path)
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    Some((listen, child))
}

/// Names below one suffix are allowed and open one clause.
#[derive(Debug)]
struct Rules;

impl NameRules for Rules {
    fn decide(&self, name: &DnsName) -> NameDecision {
        let is_allowed = name.as_wire().ends_with(load::SUFFIX);
        NameDecision::Allowed {
            clauses: if is_allowed { vec![1] } else { Vec::new() },
            origin: None,
            audit: !is_allowed,
        }
    }
}

struct OnePod(Arc<Client>);

impl Clients for OnePod {
    fn client(&self, _source: IpAddr) -> Option<Arc<Client>> {
        Some(Arc::clone(&self.0))
    }
}

/// Remembers addresses in a table of this process: what the kernel's table costs comes on top.
#[derive(Default)]
struct Table(Mutex<HashMap<IpAddr, u32>>);

impl Learner for Table {
    fn learn(&self, lessons: Vec<Lesson>) -> Learning {
        let mut table = self.0.lock().expect("no learner panics");
        if table.len() > 100_000 {
            table.clear();
        }
        let kept_for = Some(Duration::from_secs(90));
        let mut outcomes = Vec::with_capacity(lessons.len());
        for lesson in lessons {
            for taught in lesson.addresses {
                table.insert(taught.address, taught.ttl);
            }
            outcomes.push(Ok(Learned { kept_for, withheld: Vec::new() }));
        }
        Box::pin(std::future::ready(outcomes))
    }
}

/// Counts what it is told.
#[derive(Default)]
struct Log(Mutex<u64>);

impl DecisionLog for Log {
    fn record(&self, record: DecisionRecord) {
        *self.0.lock().expect("no log panics") += u64::from(record.rcode.0) + 1;
    }
}

/// The role of the proxy.
pub(crate) fn serve_proxy(upstream: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let client = Client {
            endpoint: EndpointLabel { namespace: "bench".into(), pod: "load".into() },
            identity: Identity::FIRST_WORKLOAD,
            names: Arc::new(Rules),
        };
        let slot = ResolverSlot {
            slot: 0,
            resolver: upstream,
            alternatives: Vec::new(),
            listen: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        };
        let config = Config { resolvers: vec![slot], ..Config::default() };
        let services = Services {
            clients: Arc::new(OnePod(Arc::new(client))),
            learner: Arc::new(Table::default()),
            log: Arc::new(Log::default()),
        };
        let proxy = Proxy::start(config, services).await.expect("the proxy starts");
        println!("{}", proxy.listening(0).await[0]);
        std::future::pending::<()>().await;
    });
}

/// The time from now to `deadline`, zero where it is past.
pub(crate) fn until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
