//! An agent at work with as little around it as can be: two pods, a name server and a site. It is what
//! an emulated machine with another kernel has patience for.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use namegate_integration::addresses::{AUTHORITY, EVIL, EXAMPLE, NODE, ROUTER};
use namegate_integration::agent::{Agent, binary};
use namegate_integration::authority;
use namegate_integration::lab::{self, Lab};
use namegate_integration::manifests::Manifests;
use namegate_integration::namespace::Namespace;
use namegate_integration::patience::{wait_for, wait_until};
use namegate_integration::pod::{PROBE, echo};
use namegate_integration::process::{Daemon, run};

const LIMIT: Duration = Duration::from_secs(10);
const PORT: u16 = 80;

/// A pod beside the one of `examples/one-machine`, which may ask for other names.
const OTHER: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: b
  namespace: default
  labels: {app: b}
  annotations: {namegate.dev/netns: /run/netns/town-pod-b}
spec:
  containers:
  - {name: shell, image: shell}
status:
  phase: Running
  podIP: 10.9.1.2
  podIPs: [{ip: 10.9.1.2}]
---
apiVersion: namegate.dev/v1alpha1
kind: EgressPolicy
metadata:
  name: others-only
  namespace: default
spec:
  podSelector:
    matchLabels: {app: b}
  egress:
  - to:
    - fqdn: releases.acme.example
    ports: [{protocol: TCP, port: 80}]
";

/// Two pods, their node, and the world. Servers go first.
struct SmallNode {
    _authority: Daemon,
    pods: [Namespace; 2],
    node: Namespace,
    _world: Namespace,
    lab: Lab,
}

impl SmallNode {
    fn build(lab: Lab) -> Result<Self> {
        let world = Namespace::create(&lab.namespace("world"))?;
        let node = Namespace::create(&lab.namespace("node"))?;
        node.sysctl("net/ipv4/ip_forward", "1")?;
        node.ip(&[
            &format!("link add uplink0 type veth peer name node0 netns {}", world.name()),
            &format!("addr add {}/24 dev uplink0", NODE.v4),
            "link set uplink0 up",
            &format!("route add default via {}", ROUTER.v4),
        ])?;
        world.ip(&[
            &format!("addr add {}/24 dev node0", ROUTER.v4),
            "link set node0 up",
            &format!("route add 10.9.0.0/16 via {}", NODE.v4),
            &format!("addr add {}/128 dev lo nodad", AUTHORITY.v6),
            &format!("addr add {}/32 dev lo", AUTHORITY.v4),
            &format!("addr add {}/32 dev lo", EXAMPLE.v4),
            &format!("addr add {}/32 dev lo", EVIL.v4),
        ])?;
        let authority = authority::start(&lab, &world)?;
        serve_echo(world.within(|| TcpListener::bind(("0.0.0.0", PORT)))??);
        let pods = [plug(&lab, &node, "a", 0)?, plug(&lab, &node, "b", 1)?];
        Ok(Self { _authority: authority, pods, node, _world: world, lab })
    }

    fn start_agent(&self, manifests: &Manifests) -> Result<Agent> {
        let resolver = AUTHORITY.v4.to_string();
        let arguments = ["--resolver", &resolver];
        Agent::spawn_on(&self.lab, &self.node, manifests, None, &arguments)?.expect_ready()
    }
}

fn plug(lab: &Lab, node: &Namespace, name: &str, net: u8) -> Result<Namespace> {
    let pod = Namespace::create(&lab.namespace(&format!("pod-{name}")))?;
    node.ip(&[
        &format!("link add veth-{name} type veth peer name eth0 netns {}", pod.name()),
        &format!("addr add 10.9.{net}.1/24 dev veth-{name}"),
        &format!("link set veth-{name} up"),
    ])?;
    pod.ip(&[
        &format!("addr add 10.9.{net}.2/24 dev eth0"),
        "link set eth0 up",
        &format!("route add default via 10.9.{net}.1"),
    ])?;
    Ok(pod)
}

/// Sends back what connections bring, for as long as the test runs.
fn serve_echo(listener: TcpListener) {
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut octets = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut octets) {
                    if stream.write_all(octets.get(..length).unwrap_or_default()).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

fn connect(pod: &Namespace, to: impl Into<SocketAddr>) -> Result<io::Result<TcpStream>> {
    let to = to.into();
    pod.within(|| TcpStream::connect_timeout(&to, PROBE))
}

/// Connects where that must come true, however slow the machine is.
fn reach(pod: &Namespace, to: impl Into<SocketAddr>) -> Result<TcpStream> {
    let to = to.into();
    wait_for("a connection", LIMIT, || Ok(connect(pod, to)?.ok()))
}

fn dig(pod: &Namespace, name: &str) -> Result<String> {
    let at = format!("@{}", AUTHORITY.v4);
    Ok(pod.run(&["dig", "+time=5", "+tries=1", &at, name], LIMIT)?.stdout)
}

#[test]
fn an_agent_enforces_learns_and_outlives_itself_on_a_small_node() -> Result<()> {
    if !lab::can_run("an_agent_enforces_learns_and_outlives_itself_on_a_small_node")? {
        return Ok(());
    }
    let small = SmallNode::build(Lab::for_test()?)?;
    let [pod, other] = &small.pods;
    let site = (EXAMPLE.v4, PORT);
    let evil = (EVIL.v4, PORT);
    drop(reach(pod, evil)?);
    let manifests = Manifests::one_machine(&small.lab)?;
    manifests.write("other.yaml", OTHER)?;

    let agent = small.start_agent(&manifests)?;
    assert!(connect(pod, site)?.is_err(), "nobody has asked for the name");
    let answer = dig(pod, "example.com")?;
    assert!(answer.contains(&EXAMPLE.v4.to_string()), "{answer}");
    let mut live = reach(pod, site)?;
    echo(&mut live)?;
    assert!(connect(other, site)?.is_err(), "what one pod learned opens nothing for another");
    for (who, name) in [(pod, "evil.example"), (other, "example.com")] {
        let answer = dig(who, name)?;
        assert!(answer.contains("status: REFUSED"), "{answer}");
    }
    assert!(connect(pod, evil)?.is_err(), "no rule");

    agent.kill()?;
    echo(&mut live)?;
    drop(reach(pod, site)?);
    assert!(connect(pod, evil)?.is_err(), "a dead agent opens nothing");

    let mut agent = small.start_agent(&manifests)?;
    echo(&mut live)?;
    assert!(connect(pod, evil)?.is_err());
    manifests.edit("policy.yaml", "fqdn: example.com", "fqdn: storage.acme.example")?;
    wait_until("the live connection to be cut", LIMIT, || Ok(echo(&mut live).is_err()))?;
    assert!(connect(pod, site)?.is_err(), "the name is not allowed");
    agent.check()?;

    agent.kill()?;
    let mut uninstall = small.node.command(binary()?);
    uninstall.arg("uninstall").arg("--pin-dir").arg(small.lab.pins());
    uninstall.arg("--run-dir").arg(small.lab.file("run"));
    run(&mut uninstall, LIMIT)?.success()?;
    drop(reach(pod, evil)?);
    Ok(())
}
