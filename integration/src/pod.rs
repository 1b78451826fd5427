//! A pod: a namespace on the node's bridge, and what one does from inside of it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::addresses::{GATEWAY, KUBE_DNS_SERVICE, Pair};
use crate::dns::{Query, Reply};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::node::{BRIDGE, Node};
use crate::process::{Daemon, Finished, run};

/// How long a probe waits before it says that nothing comes back.
pub const PROBE: Duration = Duration::from_millis(700);

/// One pod.
#[derive(Debug)]
pub struct Pod {
    /// The pod's network namespace.
    pub namespace: Namespace,
    /// The pod's addresses.
    pub addresses: Pair,
    /// The name of its interface on the node.
    pub interface: String,
    servers: Vec<Daemon>,
}

impl Pod {
    /// Makes the pod and plugs it into the node's bridge.
    pub fn create(lab: &Lab, node: &Node, name: &str, addresses: Pair) -> Result<Self> {
        let pod = Self::plug(lab, &node.namespace, name, addresses)?;
        pod.join_bridge(node)?;
        Ok(pod)
    }

    fn join_bridge(&self, node: &Node) -> Result<()> {
        node.namespace.ip(&[&format!("link set {} master {BRIDGE} up", self.interface)])?;
        self.namespace.ip(&[
            &format!("addr add {}/24 dev eth0", self.addresses.v4),
            &format!("addr add {}/64 dev eth0 nodad", self.addresses.v6),
            "link set eth0 up",
            &format!("route add default via {}", GATEWAY.v4),
            &format!("route add default via {}", GATEWAY.v6),
        ])
    }

    /// Takes its interface away, and gives it another on the bridge of the same number, name, MAC and
    /// addresses.
    pub fn replug(&self, node: &Node) -> Result<()> {
        let (interface, pod) = (&self.interface, self.namespace.name());
        let number = node.namespace.interface_index(interface)?;
        let link = ["ip", "-o", "link", "show", "dev", "eth0"];
        let link = self.namespace.run(&link, Duration::from_secs(5))?.success()?;
        let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
        let mac = words.nth(1).with_context(|| format!("no MAC in {link:?}"))?;
        node.namespace.ip(&[
            &format!("link del {interface}"),
            &format!(
                "link add name {interface} index {number} type veth \
                 peer name eth0 address {mac} netns {pod}"
            ),
        ])?;
        self.join_bridge(node)
    }

    /// Makes the pod with an interface into `node`; neither end is configured.
    pub fn plug(lab: &Lab, node: &Namespace, name: &str, addresses: Pair) -> Result<Self> {
        let namespace = Namespace::create(&lab.namespace(name))?;
        let interface = format!("veth-{name}");
        namespace.set_resolver(&format!(
            "nameserver {}\nsearch default.svc.cluster.local svc.cluster.local cluster.local\n\
             options ndots:1 timeout:2 attempts:1\n",
            KUBE_DNS_SERVICE.v4
        ))?;
        let pod = Self { namespace, addresses, interface, servers: Vec::new() };
        pod.plug_into(node)?;
        Ok(pod)
    }

    /// Gives it its interface into `node`.
    pub fn plug_into(&self, node: &Namespace) -> Result<()> {
        let (interface, pod) = (&self.interface, self.namespace.name());
        node.ip(&[&format!("link add {interface} type veth peer name eth0 netns {pod}")])
    }

    /// Starts servers that send back what they get, TCP and UDP, both families.
    pub fn serve_echo(&mut self, lab: &Lab, port: u16) -> Result<()> {
        let hosts = [IpAddr::V4(self.addresses.v4), IpAddr::V6(self.addresses.v6)];
        self.servers.extend(echo_servers(&self.namespace, lab, &hosts, port)?);
        Ok(())
    }

    /// Opens a TCP connection.
    pub fn connect(&self, to: SocketAddr) -> Result<io::Result<TcpStream>> {
        self.namespace.within(|| TcpStream::connect_timeout(&to, PROBE))
    }

    /// Whether a TCP connection to `to` opens, with a reason where it does not.
    pub fn try_tcp(&self, to: SocketAddr) -> Result<io::Result<()>> {
        Ok(self.connect(to)?.map(drop))
    }

    /// Whether a datagram to the echo server `to` comes back.
    pub fn try_udp(&self, to: SocketAddr) -> Result<io::Result<()>> {
        let unspecified: IpAddr = match to {
            SocketAddr::V4(_) => [0, 0, 0, 0].into(),
            SocketAddr::V6(_) => [0u16; 8].into(),
        };
        let socket = self.namespace.within(|| UdpSocket::bind((unspecified, 0)))??;
        Ok(exchange(&socket, to))
    }

    /// Whether one echo request to `to` is answered.
    pub fn ping(&self, to: IpAddr) -> Result<bool> {
        let finished = self
            .namespace
            .run(&["ping", "-n", "-c", "1", "-W", "1", &to.to_string()], Duration::from_secs(5))?;
        Ok(finished.status.success())
    }

    /// Asks a resolver with `dig`.
    pub fn ask(&self, query: &Query<'_>) -> Result<Reply> {
        let finished =
            run(self.namespace.command("dig").args(query.arguments()), Duration::from_secs(15))?;
        Ok(Reply::parse(&finished.stdout))
    }

    /// Asks the cluster's resolver at its service address for the IPv4 addresses of `name`.
    pub fn resolve(&self, name: &str) -> Result<Reply> {
        self.ask(&Query::a(name))
    }

    /// Fetches with `curl`, names resolved as a program in the pod would.
    pub fn curl(&self, lab: &Lab, arguments: &[&str]) -> Result<Finished> {
        let mut command = self.curl_command(lab);
        run(command.args(arguments), Duration::from_secs(30))
    }

    /// Starts a `curl` in the background.
    pub fn start_curl(&self, lab: &Lab, log: &str, arguments: &[&str]) -> Result<Daemon> {
        let mut command = self.curl_command(lab);
        Daemon::start(command.args(arguments), &lab.file(log))
    }

    fn curl_command(&self, lab: &Lab) -> std::process::Command {
        let mut command = self.namespace.resolving_command("curl");
        command.args(["-sS", "--connect-timeout", "2", "--cacert"]).arg(lab.file("ca.pem"));
        command
    }

    /// Leaves the pod standing when this value goes.
    pub fn keep(&mut self) {
        self.namespace.keep();
        for server in self.servers.drain(..) {
            server.release();
        }
    }
}

/// Starts `socat` echo servers for each of `hosts`, TCP and UDP.
pub fn echo_servers(
    namespace: &Namespace,
    lab: &Lab,
    hosts: &[IpAddr],
    port: u16,
) -> Result<Vec<Daemon>> {
    let mut servers = Vec::new();
    for host in hosts {
        let (family, bind) = match host {
            IpAddr::V4(address) => ("4", address.to_string()),
            IpAddr::V6(address) => ("6", format!("[{address}]")),
        };
        for listen in [
            format!("TCP{family}-LISTEN:{port},bind={bind},fork,reuseaddr,backlog=1024"),
            format!("UDP{family}-RECVFROM:{port},bind={bind},fork"),
        ] {
            let log = lab.file(&format!("echo-{port}-{}.log", servers.len()));
            servers.push(
                Daemon::start(namespace.command("socat").args([&listen, "PIPE"]), &log)
                    .context("echo server")?,
            );
        }
    }
    Ok(servers)
}

/// Sends a line over an open connection and reads it back.
pub fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PROBE))?;
    stream.set_write_timeout(Some(PROBE))?;
    stream.write_all(b"hello\n")?;
    let mut answer = [0; 6];
    stream.read_exact(&mut answer)?;
    if &answer == b"hello\n" { Ok(()) } else { Err(io::Error::other("something else came back")) }
}

fn exchange(socket: &UdpSocket, to: SocketAddr) -> io::Result<()> {
    socket.set_read_timeout(Some(PROBE))?;
    socket.connect(to)?;
    socket.send(b"hello\n")?;
    let mut answer = [0; 16];
    // A machine that was stopped and continued interrupts a receive with a time-out (signal(7)).
    let length = loop {
        match socket.recv(&mut answer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => break outcome?,
        }
    };
    if answer.get(..length) == Some(b"hello\n") {
        Ok(())
    } else {
        Err(io::Error::other("something else came back"))
    }
}
