//! Packets through the real stack: a pod, its node and the world beyond, one set of namespaces for each
//! firewall, so that none pays for another.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use namegate_egress_bpf::datapath::{Datapath, Events};
use namegate_integration::lab::Lab;
use namegate_integration::namespace::Namespace;
use rustix::net::sockopt::set_socket_linger;
use rustix::time::{ClockId, clock_gettime};

use crate::empty;
use crate::world::{self, PORT, Size};

/// Addresses that the firewalls allow.
pub(crate) const ALLOWED: u32 = 100_000;

/// What stands between the pod and the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Nothing,
    EmptyTcx,
    Namegate,
    NftSet,
    NftSetConntrack,
    Ipset,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] = [
        Self::Nothing,
        Self::EmptyTcx,
        Self::Namegate,
        Self::NftSet,
        Self::NftSetConntrack,
        Self::Ipset,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no firewall",
            Self::EmptyTcx => "empty tcx",
            Self::Namegate => "namegate",
            Self::NftSet => "nft set",
            Self::NftSetConntrack => "nft set, conntrack",
            Self::Ipset => "iptables, ipset, conntrack",
        }
    }
}

/// A pod behind a firewall, which goes before the network does.
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    firewall: Firewall,
    pub(crate) network: Network,
}

/// Three namespaces in a row, and sockets in them.
pub(crate) struct Network {
    pod: Namespace,
    _node: Namespace,
    _outside: Namespace,
    _sink: UdpSocket,
    sender: UdpSocket,
    _lab: Lab,
}

/// What has to be kept for as long as it is in force.
enum Firewall {
    Rules,
    Program { _program: Box<SchedClassifier> },
    Namegate { datapath: Box<Datapath>, _events: Events },
}

impl Subject {
    /// Builds it, with `names` addresses allowed; `None` where this machine has not what it is made of.
    pub(crate) fn build(kind: Kind, names: u32) -> Option<Self> {
        let lab = Lab::for_test().expect("a lab: run this as root");
        let [pod, node, outside] = ["pod", "node", "out"]
            .map(|short| Namespace::create(&lab.namespace(short)).expect("a namespace"));
        node.ip(&[
            &format!("link add pod0 type veth peer name eth0 netns {}", pod.name()),
            &format!("link add out0 type veth peer name eth0 netns {}", outside.name()),
            "addr add 10.9.0.1/24 dev pod0",
            "addr add 10.8.0.1/24 dev out0",
            "link set pod0 up",
            "link set out0 up",
            "route add 11.0.0.0/8 via 10.8.0.2",
        ])
        .expect("links");
        for (end, network) in [(&pod, "10.9.0"), (&outside, "10.8.0")] {
            end.ip(&[
                &format!("addr add {network}.2/24 dev eth0"),
                "link set eth0 up",
                &format!("route add default via {network}.1"),
            ])
            .expect("addresses");
        }
        outside.ip(&["route add local 11.0.0.0/8 dev lo"]).expect("a route");
        node.sysctl("net/ipv4/ip_forward", "1").expect("a router");
        let pins = lab.pins();
        let firewall = node.within(|| stand_up(kind, names, &node, &pins)).expect("the node")?;
        let sink = outside
            .within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))
            .expect("the world beyond")
            .expect("a sink");
        serve(&outside);
        let site = SocketAddr::from((world::site(1), PORT));
        let sender = pod
            .within(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.connect(site).map(|()| socket)
            })
            .expect("the pod")
            .expect("a socket");
        let network =
            Network { pod, _node: node, _outside: outside, _sink: sink, sender, _lab: lab };
        // The neighbours get to know each other.
        network.packets(100);
        Some(Self { kind, firewall, network })
    }

    /// The network, and the program's maps where it is the one that is measured.
    pub(crate) fn parts(&mut self) -> (&Network, Option<&mut Datapath>) {
        let datapath = match &mut self.firewall {
            Firewall::Namegate { datapath, .. } => Some(&mut **datapath),
            Firewall::Rules | Firewall::Program { .. } => None,
        };
        (&self.network, datapath)
    }
}

impl Network {
    /// Processor time of this thread for a packet of a known flow: it carries the packet all the way.
    pub(crate) fn packets(&self, count: u32) -> Duration {
        let before = processor_time();
        for _ in 0..count {
            self.sender.send(b"a packet of a known flow").expect("sent");
        }
        (processor_time() - before) / count.max(1)
    }

    /// Connections for a second of this thread's processor time, which carries all packets but the
    /// server's own; each to another of the first `names` addresses.
    pub(crate) fn connections(&self, count: u32, first: u32, names: u32) -> f64 {
        let connect = || {
            let before = processor_time();
            for number in first..first + count {
                let site = SocketAddr::from((world::site(number % names), PORT));
                let stream = TcpStream::connect(site).expect("a connection");
                set_socket_linger(&stream, Some(Duration::ZERO)).expect("no linger");
            }
            f64::from(count) / (processor_time() - before).as_secs_f64()
        };
        self.pod.within(connect).expect("the pod")
    }
}

fn stand_up(kind: Kind, names: u32, node: &Namespace, pins: &Path) -> Option<Firewall> {
    match kind {
        Kind::Nothing => Some(Firewall::Rules),
        Kind::EmptyTcx => {
            let mut program = empty::load_empty(&named(pins, "empty")).expect("the empty program");
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                let order = TcAttachOptions::TcxOrder(LinkOrder::first());
                program.attach_with_options("pod0", hook, order).expect("attached");
            }
            Some(Firewall::Program { _program: Box::new(program) })
        }
        Kind::Namegate => {
            let ifindex = index_of("pod0");
            let (mut datapath, events) = world::fill(Size::of_names(names), ifindex, Some(pins));
            datapath.attach(ifindex).expect("attached");
            Some(Firewall::Namegate { datapath: Box::new(datapath), _events: events })
        }
        Kind::NftSet => nft(node, names, ""),
        Kind::NftSetConntrack => nft(node, names, "ct state established,related accept\n"),
        Kind::Ipset => ipset(node, names),
    }
}

fn nft(node: &Namespace, names: u32, first: &str) -> Option<Firewall> {
    let mut script = format!(
        "table inet bench {{\nset allowed {{ type ipv4_addr; elements = {{ {} }} }}\n\
         chain forward {{ type filter hook forward priority 0; policy drop;\n{first}\
         iifname \"pod0\" ip daddr @allowed meta l4proto {{ tcp, udp }} th dport {PORT} accept\n\
         oifname \"pod0\" accept\n}}\n}}\n",
        addresses(names, ", ")
    );
    script.push('\n');
    feed(node.command("nft").args(["-f", "-"]), &script)
}

fn ipset(node: &Namespace, names: u32) -> Option<Firewall> {
    let mut script = format!("create allowed hash:ip maxelem {}\n", names.max(65_536));
    for number in 0..names {
        writeln!(script, "add allowed {}", world::site(number)).expect("to memory");
    }
    feed(node.command("ipset").arg("restore"), &script)?;
    let rules = format!(
        "*filter\n:FORWARD DROP [0:0]\n\
         -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n\
         -A FORWARD -i pod0 -p udp --dport {PORT} -m set --match-set allowed dst -j ACCEPT\n\
         -A FORWARD -i pod0 -p tcp --dport {PORT} -m set --match-set allowed dst -j ACCEPT\n\
         COMMIT\n"
    );
    feed(&mut node.command("iptables-restore"), &rules)
}

fn addresses(names: u32, between: &str) -> String {
    let each: Vec<String> = (0..names).map(|number| world::site(number).to_string()).collect();
    each.join(between)
}

/// Hands a script to a program; `None` where it is not installed or refuses.
fn feed(command: &mut Command, script: &str) -> Option<Firewall> {
    let mut child = command.stdin(Stdio::piped()).spawn().ok()?;
    child.stdin.take()?.write_all(script.as_bytes()).ok()?;
    child.wait().is_ok_and(|status| status.success()).then_some(Firewall::Rules)
}

/// Accepts connections for as long as the process lives.
fn serve(outside: &Namespace) {
    let listener = outside
        .within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))
        .expect("the world beyond")
        .expect("a server");
    thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream);
        }
    });
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("below a second"))
}

fn index_of(interface: &str) -> u32 {
    let any =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
    rustix::net::netdevice::name_to_index(any.expect("a socket"), interface).expect("the interface")
}

fn named(pins: &Path, name: &str) -> PathBuf {
    let mut path = pins.as_os_str().to_owned();
    path.push("-");
    path.push(name);
    PathBuf::from(path)
}
