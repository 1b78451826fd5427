//! The page over a thousand workloads: the agent's own map and server, and decisions that are made up.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use axum::Router;
use namegate::admin::{Context, Desk, Places, Routers, Server};
use namegate::audit::{
    AuditConfig, AuditLog, AuditWriter, DnsRecord, EndpointLabel, Entry, FlowDirection, FlowRecord,
    FlowVerdict, LookupVerdict, Peer, PolicyLabel, Query, Record, Transport,
};
use namegate::map::{Hosts, Limits, Map, router};
use namegate::registry::Registry;
use namegate_integration::process::resident_kib;

/// Workloads that talk.
pub(crate) const WORKLOADS: usize = 1_000;
const NAMESPACES: usize = 40;
const NAMES: usize = 150;

/// A name that would be markup if anything took it for that.
pub(crate) const HOSTILE: &str = "<img src=x onerror=alert(1)>\u{202e}.example";

/// A served map; it ends with this value.
pub(crate) struct Crowd {
    _server: Server,
    _writer: AuditWriter,
    address: SocketAddr,
    folder: PathBuf,
    edges: usize,
    grown_kib: u64,
}

impl Crowd {
    /// Serves it on this machine.
    pub(crate) fn serve(test: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("{test}-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let registry = Arc::new(Registry::default());
        let (log, writer) = AuditLog::start(&AuditConfig::default(), Arc::clone(&registry))?;
        let context = Context::new(Desk::new().0, registry, log);
        let map = Map::new(context, "crowded".into(), Limits::default());
        let before = resident_kib(std::process::id())?;
        let edges = fill(&map);
        let grown_kib = resident_kib(std::process::id())?.saturating_sub(before);
        // Whoever takes the port in between fails the test, and nothing else.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let hosts = Hosts::new(address, Vec::new())?;
        let places = Places {
            socket: folder.join("socket"),
            cni: folder.join("cni.socket"),
            metrics: None,
            map: Some(address),
        };
        let routers = Routers {
            socket: Router::new(),
            cni: Router::new(),
            scrape: Router::new(),
            map: router(map, hosts),
        };
        let server = Server::start(&places, routers, async {})?;
        Ok(Self { _server: server, _writer: writer, address, folder, edges, grown_kib })
    }

    /// Where the page is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// A folder that goes away with this value.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// How many edges there are.
    pub(crate) const fn edges(&self) -> usize {
        self.edges
    }

    /// What the edges take of memory, roughly.
    pub(crate) const fn grown_kib(&self) -> u64 {
        self.grown_kib
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{}: {error}", self.folder.display());
        }
    }
}

/// Has every workload talk to some names, some to each other, and some ask for what they may not.
fn fill(map: &Map) -> usize {
    let mut dice = Dice(7);
    let mut edges = 0;
    for number in 0..WORKLOADS {
        for _ in 0..=dice.below(5) {
            let name = name(dice.below(NAMES));
            map.take(&entry(&mut dice, flow(number, stranger(&name))));
            edges += 1;
        }
        if dice.below(2) == 0 {
            let other = dice.below(WORKLOADS);
            map.take(&entry(&mut dice, flow(number, pod(other))));
            edges += 1;
        }
        if dice.below(16) == 0 {
            let record = refused(number, &format!("x{}.tracker.example", dice.below(40)));
            map.take(&entry(&mut dice, record));
            edges += 1;
        }
    }
    // Whatever made it this far, the page has to take it for text.
    let time = SystemTime::now() - Duration::from_secs(600);
    map.take(&Entry { time, record: refused(0, HOSTILE) });
    edges + 1
}

fn entry(dice: &mut Dice, record: Record) -> Entry {
    let age = Duration::from_secs(dice.below(300) as u64);
    Entry { time: SystemTime::now() - age, record }
}

fn endpoint(number: usize) -> EndpointLabel {
    let work = ["api", "worker", "web", "cron", "cache", "queue", "auth", "feed"];
    let workload = format!("{}-{number}", work[number % work.len()]);
    EndpointLabel {
        namespace: Some(format!("team-{:02}", number % NAMESPACES).into()),
        pod: Some(format!("{workload}-0").into()),
        workload: Some(workload.into()),
        ..EndpointLabel::default()
    }
}

fn name(number: usize) -> String {
    if number < 10 {
        format!("api.service{number}.example")
    } else {
        format!("host{number}.vendor{}.example", number % 20)
    }
}

fn stranger(name: &str) -> Peer {
    Peer {
        address: Some([203, 0, 113, 7].into()),
        port: 443,
        entity: Some("world".into()),
        names: vec![name.to_owned().into()],
        ..Peer::default()
    }
}

fn pod(number: usize) -> Peer {
    let EndpointLabel { namespace, pod, workload, .. } = endpoint(number);
    Peer {
        address: Some([10, 244, 1, 7].into()),
        port: 8080,
        namespace,
        pod,
        workload,
        ..Peer::default()
    }
}

fn flow(number: usize, destination: Peer) -> Record {
    let endpoint = endpoint(number);
    Record::Flow(Box::new(FlowRecord {
        verdict: FlowVerdict::Forwarded,
        reason: "judged".into(),
        direction: FlowDirection::Egress,
        protocol: "tcp".into(),
        source: Peer { port: 40_000, ..Peer::default() },
        destination,
        service: None,
        policy: Some(policy(&endpoint)),
        endpoint,
        policies: Vec::new(),
        policies_omitted: 0,
    }))
}

fn refused(number: usize, name: &str) -> Record {
    let endpoint = endpoint(number);
    Record::Dns(Box::new(DnsRecord {
        verdict: LookupVerdict::Denied,
        reason: "no-rule".into(),
        query: Some(Query { name: name.to_owned(), kind: "A".into() }),
        rcode: Some("REFUSED".into()),
        addresses: Vec::new(),
        addresses_omitted: 0,
        not_opened: Vec::new(),
        policy: None,
        policies: vec![policy(&endpoint)],
        policies_omitted: 0,
        resolver: None,
        transport: Transport::Udp,
        cached: false,
        latency_us: 40,
        endpoint,
    }))
}

fn policy(endpoint: &EndpointLabel) -> PolicyLabel {
    PolicyLabel {
        kind: "EgressPolicy".into(),
        namespace: endpoint.namespace.clone(),
        name: "apis".into(),
        rule: Some("out".into()),
    }
}

/// Numbers that are the same in each run (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}
