//! Where it happens: a node with three pods, and a resolver beyond it, all of them namespaces.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The node's namespace, without its prefix.
pub(crate) const NODE: &str = "node";
/// The pod that the agent governs and that asks much.
pub(crate) const POD: &str = "pod";
/// Another that the agent governs.
pub(crate) const QUIET_POD: &str = "quiet";
/// The pod that nobody governs.
pub(crate) const PLAIN_POD: &str = "plain";
/// Where the resolver is, and whatever names point to.
pub(crate) const OUTSIDE: &str = "outside";

/// The node's address towards the pod that nobody governs.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 1);
/// The resolver.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);

const MANIFESTS: &str = "apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {kubernetes.io/metadata.name: default}}
---
apiVersion: v1
kind: Pod
metadata:
  name: load
  namespace: default
  labels: {app: load}
  annotations: {namegate.dev/netns: NETNS-pod}
spec: {containers: [{name: load, image: load}]}
status: {phase: Running, podIP: 10.9.0.2, podIPs: [{ip: 10.9.0.2}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: quiet
  namespace: default
  labels: {app: quiet}
  annotations: {namegate.dev/netns: NETNS-quiet}
spec: {containers: [{name: quiet, image: quiet}]}
status: {phase: Running, podIP: 10.9.3.2, podIPs: [{ip: 10.9.3.2}]}
---
apiVersion: namegate.dev/v1alpha1
kind: EgressPolicy
metadata: {name: bench, namespace: default}
spec:
  podSelector: {}
  egress:
  - {name: others, to: [{fqdn: api.example.com}, {fqdn: '*.example.org'}], ports: [{protocol: TCP, port: 443}]}
  - {name: bench, to: [{fqdn: '*.bench'}], ports: [{protocol: UDP, port: 443}, {protocol: TCP, port: 443}]}
";

/// The namespaces and a folder; all of it goes with this value.
pub(crate) struct Town {
    prefix: String,
    folder: PathBuf,
    /// Where this thread was before.
    home: File,
}

impl Town {
    /// Builds it; as root.
    pub(crate) fn build() -> Self {
        let prefix = format!("ngb{}", std::process::id());
        let folder = std::env::temp_dir().join(&prefix);
        std::fs::create_dir_all(folder.join("manifests")).expect("a temporary folder");
        let home = File::open("/proc/thread-self/ns/net").expect("a namespace");
        let town = Self { prefix, folder, home };
        let manifests = MANIFESTS.replace("NETNS", &format!("/run/netns/{}", town.prefix));
        std::fs::write(town.file("manifests/bench.yaml"), manifests).expect("a manifest");
        let name = |short: &str| format!("{}-{short}", town.prefix);
        let (node, outside) = (name(NODE), name(OUTSIDE));
        let (pod, quiet, plain) = (name(POD), name(QUIET_POD), name(PLAIN_POD));
        let mut script = String::new();
        for namespace in [&node, &pod, &quiet, &plain, &outside] {
            script += &format!("ip netns add {namespace}; ip -n {namespace} link set lo up\n");
        }
        for (interface, other, network) in [
            ("pod0", &pod, "10.9.0"),
            ("quiet0", &quiet, "10.9.3"),
            ("plain0", &plain, "10.9.1"),
            ("out0", &outside, "10.8.0"),
        ] {
            script += &format!(
                "ip -n {node} link add {interface} type veth peer name eth0 netns {other}\n\
                 ip -n {node} addr add {network}.1/24 dev {interface}\n\
                 ip -n {node} link set {interface} up\n\
                 ip -n {other} addr add {network}.2/24 dev eth0\n\
                 ip -n {other} link set eth0 up\n\
                 ip -n {other} route add default via {network}.1\n"
            );
        }
        script += &format!(
            "nsenter --net={} sysctl -qw net.ipv4.ip_forward=1\n\
             ip -n {node} route add 11.0.0.0/8 via {RESOLVER}\n\
             ip -n {outside} route add local 11.0.0.0/8 dev lo\n",
            town.netns(NODE)
        );
        town.shell(&script).expect("namespaces: run this as root");
        town
    }

    /// A command in one of the namespaces.
    pub(crate) fn command(&self, namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns(namespace))).arg("--").arg(program);
        command
    }

    /// Moves this thread into one of the namespaces: its sockets are made there from here on.
    pub(crate) fn enter(&self, namespace: &str) {
        let file = File::open(self.netns(namespace)).expect("the namespace stands");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter");
    }

    /// Carries out nftables commands on the node; `None` where it cannot.
    pub(crate) fn nftables(&self, commands: &str) -> Option<()> {
        let status = self.command(NODE, "nft").arg(commands).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success()).then_some(())
    }

    /// A file of this run.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where the agent pins its maps.
    pub(crate) fn pins(&self) -> PathBuf {
        PathBuf::from(format!("/sys/fs/bpf/{}", self.prefix))
    }

    fn netns(&self, namespace: &str) -> String {
        format!("/run/netns/{}-{namespace}", self.prefix)
    }

    fn shell(&self, script: &str) -> Option<()> {
        let mut shell = Command::new("sh").arg("-e").stdin(Stdio::piped()).spawn().ok()?;
        shell.stdin.take()?.write_all(script.as_bytes()).ok()?;
        shell.wait().is_ok_and(|status| status.success()).then_some(())
    }
}

impl Drop for Town {
    fn drop(&mut self) {
        let home = Some(LinkNameSpaceType::Network);
        if let Err(error) = move_into_link_name_space(self.home.as_fd(), home) {
            // Whatever runs in the namespaces is killed below.
            eprintln!("the namespaces {}-* are left over: {error}", self.prefix);
            return;
        }
        let prefix = &self.prefix;
        let script = format!(
            "for n in {NODE} {POD} {QUIET_POD} {PLAIN_POD} {OUTSIDE}; do \
             ip netns pids {prefix}-$n 2>/dev/null | xargs -r kill -9 2>/dev/null || true; \
             ip netns del {prefix}-$n 2>/dev/null || true; done\nrm -rf {} {}\n",
            self.pins().display(),
            self.folder.display(),
        );
        if self.shell(&script).is_none() {
            eprintln!("the namespaces {prefix}-* may be left over");
        }
    }
}
