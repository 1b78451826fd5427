//! Services by where pods of the town's node reach them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::addresses::NODE;

/// The port at every address of a service but the node's.
const PORT: u16 = 8_080;

/// Where one service is reached: cluster address, external address, a balancer's and node port, each in
/// both families.
#[derive(Clone, Copy, Debug)]
pub struct Fronts {
    name: &'static str,
    last: u8,
    /// Its port at the node's addresses.
    pub node_port: u16,
}

impl Fronts {
    /// The service `shop/{name}`, whose addresses end in `last`.
    pub const fn new(name: &'static str, last: u8, node_port: u16) -> Self {
        Self { name, last, node_port }
    }

    /// Its cluster addresses.
    pub fn cluster(self) -> [SocketAddr; 2] {
        self.pair(Ipv4Addr::new(10, 96, 0, self.last), [0xfd00, 0x10, 0x96])
    }

    fn external(self) -> [SocketAddr; 2] {
        self.pair(Ipv4Addr::new(198, 51, 100, self.last), [0x2001, 0xdb8, 0x198])
    }

    fn balancer(self) -> [SocketAddr; 2] {
        self.pair(Ipv4Addr::new(198, 18, 0, self.last), [0x2001, 0xdb8, 0x199])
    }

    /// All addresses but the node's.
    pub fn addresses(self) -> [SocketAddr; 6] {
        let ([a, b], [c, d], [e, f]) = (self.cluster(), self.external(), self.balancer());
        [a, b, c, d, e, f]
    }

    /// Everywhere that pods of the node reach it.
    pub fn all(self) -> Vec<SocketAddr> {
        let node: [IpAddr; 2] = [NODE.v4.into(), NODE.v6.into()];
        let nodes = node.map(|address| SocketAddr::from((address, self.node_port)));
        self.addresses().into_iter().chain(nodes).collect()
    }

    /// The Service, of which pods reach the ports by TCP and UDP.
    pub fn manifest(self) -> String {
        let list = |pair: [SocketAddr; 2], prefix: &str, end: &str| {
            pair.map(|at| format!("{prefix}\"{}\"{end}", at.ip())).join(", ")
        };
        let (name, node_port) = (self.name, self.node_port);
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             type: LoadBalancer\n  clusterIPs: [{}]\n  externalIPs: [{}]\n  ports:\n  \
             - {{name: stream, port: {PORT}, nodePort: {node_port}, protocol: TCP}}\n  \
             - {{name: datagram, port: {PORT}, nodePort: {node_port}, protocol: UDP}}\n\
             status: {{loadBalancer: {{ingress: [{}]}}}}\n",
            list(self.cluster(), "", ""),
            list(self.external(), "", ""),
            list(self.balancer(), "{ip: ", ", ipMode: VIP}")
        )
    }

    /// A part of its backends: one address.
    pub fn slice(self, part: &str, backend: SocketAddr) -> String {
        let (service, address, port) = (self.name, backend.ip(), backend.port());
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-{part}, \
             namespace: shop, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: {family}\n\
             endpoints: [{{addresses: [\"{address}\"], conditions: {{ready: true}}}}]\n\
             ports: [{{name: stream, port: {port}, protocol: TCP}}, {{name: datagram, port: {port}, protocol: UDP}}]\n"
        )
    }

    fn pair(self, v4: Ipv4Addr, net: [u16; 3]) -> [SocketAddr; 2] {
        let [a, b, c] = net;
        let v6 = Ipv6Addr::new(a, b, c, 0, 0, 0, 0, self.last.into());
        [(v4, PORT).into(), (v6, PORT).into()]
    }
}
