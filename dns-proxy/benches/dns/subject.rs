//! The servers that are measured, each a process in the node's namespace.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::load;
use crate::town::{GATEWAY, NODE, OUTSIDE, PLAIN_POD, POD, RESOLVER, Town};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The resolver itself, asked without anybody in between.
    Direct,
    /// The bare forwarder.
    Forwarder,
    /// The agent: interception, identity, patterns, map writes, audit log.
    Namegate,
    /// Unbound as a forwarder.
    Unbound,
    /// dnsmasq.
    Dnsmasq,
    /// dnsmasq that writes addresses into an nftables set.
    DnsmasqNftset,
    /// dnsdist with a packet cache.
    Dnsdist,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] = [
        Self::Direct,
        Self::Forwarder,
        Self::Namegate,
        Self::Unbound,
        Self::Dnsmasq,
        Self::DnsmasqNftset,
        Self::Dnsdist,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Forwarder => "forwarder",
            Self::Namegate => "namegate",
            Self::Unbound => "unbound",
            Self::Dnsmasq => "dnsmasq",
            Self::DnsmasqNftset => "dnsmasq-nftset",
            Self::Dnsdist => "dnsdist",
        }
    }

    /// The pod that asks it: one is governed by the agent, the other by nobody.
    pub(crate) fn pod(self) -> &'static str {
        match self {
            Self::Namegate => POD,
            Self::Direct
            | Self::Forwarder
            | Self::Unbound
            | Self::Dnsmasq
            | Self::DnsmasqNftset
            | Self::Dnsdist => PLAIN_POD,
        }
    }
}

/// A running server; ends when dropped.
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
    child: Child,
}

/// What a server has in use, in octets.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// All that is resident.
    pub(crate) resident: u64,
    /// What of it is neither a file's nor shared.
    pub(crate) own: u64,
    /// The most that was ever resident.
    pub(crate) peak: u64,
    /// Its eBPF maps.
    pub(crate) maps: u64,
}

/// What one load cost a server.
pub(crate) struct Cost {
    pub(crate) load: load::Outcome,
    /// Processor time for each answered query.
    pub(crate) processor: Duration,
}

impl Subject {
    /// Starts a server; `None` where it is not installed or does not answer.
    pub(crate) fn start(kind: Kind, town: &Town) -> Option<Self> {
        let (address, child) = match kind {
            // Its own cost is not measured: a process that waits stands in for it.
            Kind::Direct => (SocketAddr::from((RESOLVER, 53)), sleeper()?),
            Kind::Forwarder => own(town, "forwarder", NODE, (RESOLVER, 53).into()),
            Kind::Namegate => {
                let usual = ["--dns-client-rate", "0", "--min-ttl", "1s", "--ttl-grace", "1s"];
                agent(town, &usual)?
            }
            Kind::Unbound => unbound(town)?,
            Kind::Dnsmasq => dnsmasq(town, 5_301, &[])?,
            Kind::DnsmasqNftset => {
                town.nftables(
                    "add table inet bench; add set inet bench learned { type ipv4_addr; }",
                )?;
                dnsmasq(town, 5_302, &["--nftset=/bench/4#inet#bench#learned"])?
            }
            Kind::Dnsdist => dnsdist(town)?,
        };
        let subject = Self { kind, address, child };
        town.enter(kind.pod());
        load::answers(address).then_some(subject)
    }

    /// An agent that was told `arguments`.
    pub(crate) fn agent(town: &Town, arguments: &[&str]) -> Option<Self> {
        let (address, child) = agent(town, arguments)?;
        let subject = Self { kind: Kind::Namegate, address, child };
        town.enter(POD);
        load::answers(address).then_some(subject)
    }

    /// Runs `load` and accounts the server's processor time to its answers.
    pub(crate) fn measure(&self, load: impl FnOnce() -> load::Outcome) -> Cost {
        let before = self.processor_time();
        let load = load();
        let spent = self.processor_time().saturating_sub(before);
        Cost { processor: spent / load.answered.max(1), load }
    }

    /// The memory that the process has in use, and that of its eBPF maps.
    pub(crate) fn memory(&self) -> Memory {
        let status = self.proc_file("status");
        let octets = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let kibibytes = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            kibibytes.unwrap_or(0u64) * 1024
        };
        let folder = PathBuf::from(format!("/proc/{}/fdinfo", self.child.id()));
        let mut maps = std::collections::BTreeMap::new();
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let field = |name: &str| -> Option<u64> {
                text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            };
            if let (Some(map), Some(octets)) = (field("map_id:"), field("memlock:")) {
                maps.insert(map, octets);
            }
        }
        Memory {
            resident: octets("VmRSS:"),
            own: octets("RssAnon:"),
            peak: octets("VmHWM:"),
            maps: maps.values().sum(),
        }
    }

    fn proc_file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).expect("it runs")
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
        // The agent leaves the node as it found it, for the next one to start from nothing.
        let signal = if self.kind == Kind::Namegate { "-INT" } else { "-KILL" };
        // It may have ended by itself.
        let _ = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

fn sleeper() -> Option<Child> {
    Command::new("sleep").arg("infinity").spawn().ok()
}

/// This program in another role; it prints where it listens.
pub(crate) fn own(
    town: &Town,
    role: &str,
    namespace: &str,
    upstream: SocketAddr,
) -> (SocketAddr, Child) {
    let mut command =
        town.command(namespace, std::env::current_exe().expect("this program has a path"));
    command.args(["--serve", role, "--upstream", &upstream.to_string()]).stdout(Stdio::piped());
    let mut child = command.spawn().expect("this program starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped"))
        .read_line(&mut line)
        .expect("it says where it listens");
    let port = line.trim().parse::<SocketAddr>().expect("an address").port();
    let ip = if namespace == OUTSIDE { RESOLVER } else { GATEWAY };
    ((ip, port).into(), child)
}

/// The agent, over two pods and one policy with a pattern.
fn agent(town: &Town, arguments: &[&str]) -> Option<(SocketAddr, Child)> {
    let log = town.file("agent.log");
    let child = town
        .command(NODE, binary()?)
        .args(["agent", "--detach-on-exit"])
        .args(["--resolver", &RESOLVER.to_string(), "--manifests"])
        .arg(town.file("manifests"))
        .arg("--audit-log")
        .arg(town.file("audit.log"))
        .arg("--pin-dir")
        .arg(town.pins())
        .args(arguments)
        .env("NO_COLOR", "1")
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).ok()?)
        .spawn()
        .ok()?;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("enforcing") {
        if Instant::now() > deadline {
            eprintln!("the agent said: {}", std::fs::read_to_string(&log).unwrap_or_default());
            return None;
        }
        std::thread::yield_now();
    }
    Some(((RESOLVER, 53).into(), child))
}

/// `NAMEGATE_BIN`, or the `namegate` of the same build.
fn binary() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("NAMEGATE_BIN") {
        return Some(path.into());
    }
    let own = std::env::current_exe().ok()?;
    let folders = own.ancestors().skip(1).take(2);
    folders.map(|folder: &Path| folder.join("namegate")).find(|path| path.is_file())
}

fn dnsmasq(town: &Town, port: u16, arguments: &[&str]) -> Option<(SocketAddr, Child)> {
    let child = town
        .command(NODE, "dnsmasq")
        .args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null"])
        .args(["--bind-interfaces", "--cache-size=10000", "--dns-forward-max=10000"])
        .args(["--user=root", "--pid-file="])
        .arg(format!("--listen-address={GATEWAY}"))
        .arg(format!("--port={port}"))
        .arg(format!("--server={RESOLVER}"))
        .args(arguments)
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    Some(((GATEWAY, port).into(), child))
}

fn unbound(town: &Town) -> Option<(SocketAddr, Child)> {
    let port = 5_303;
    let path = town.file("unbound.conf");
    let text = format!(
        "server:\n interface: {GATEWAY}\n port: {port}\n do-daemonize: no\n username: \"\"\n \
         chroot: \"\"\n pidfile: \"\"\n use-syslog: no\n access-control: 0.0.0.0/0 allow\n \
         module-config: \"iterator\"\n num-threads: 1\n verbosity: 0\n so-rcvbuf: 4m\n\
         remote-control:\n control-enable: no\n\
         forward-zone:\n name: \".\"\n forward-addr: {RESOLVER}\n",
    );
    std::fs::write(&path, text).ok()?;
    let mut command = town.command(NODE, "unbound");
    let child = command.arg("-dp").arg("-c").arg(&path).stderr(Stdio::null()).spawn().ok()?;
    Some(((GATEWAY, port).into(), child))
}

fn dnsdist(town: &Town) -> Option<(SocketAddr, Child)> {
    let port = 5_304;
    let path = town.file("dnsdist.conf");
    let text = format!(
        "setLocal('{GATEWAY}:{port}')\nsetACL('0.0.0.0/0')\n\
         newServer({{address='{RESOLVER}', healthCheckMode='up'}})\n\
         getPool(''):setCache(newPacketCache(20000))\nsetSecurityPollSuffix('')\n",
    );
    std::fs::write(&path, text).ok()?;
    let mut command = town.command(NODE, "dnsdist");
    command.args(["--supervised", "--disable-syslog", "-C"]).arg(&path);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    Some(((GATEWAY, port).into(), child))
}

/// The time from now to `deadline`, zero where it is past.
pub(crate) fn until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// The address that everything binds to.
pub(crate) const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
