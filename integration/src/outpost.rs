//! A second node beyond the internet, whose pods hang on routed interfaces: no bridge, one veth and
//! one host route for each, as point-to-point and routed CNIs make them.

use anyhow::Result;

use crate::addresses::{OUTPOST, OUTPOST_GATEWAY, OUTPOST_ROUTER, OUTPOST_TWIN, OUTPOST_WEB, Pair};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::node::UPLINK;
use crate::pod::Pod;
use crate::town::Town;

/// The second node.
#[derive(Debug)]
pub struct Outpost {
    /// Pod `shop/twin`: labels as the checkout's.
    pub twin: Pod,
    /// Pod `shop/far-web`: labels as the web's.
    pub web: Pod,
    /// The node.
    pub node: Namespace,
}

impl Outpost {
    /// Builds it and plugs its uplink into the town's internet.
    pub fn build(town: &Town) -> Result<Self> {
        let (lab, internet) = (&town.lab, &town.internet);
        let node = Namespace::create(&lab.namespace("outpost"))?;
        node.sysctl("net/ipv4/ip_forward", "1")?;
        node.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        node.ip(&[
            &format!("link add {UPLINK} type veth peer name outpost0 netns {}", internet.name()),
            &format!("addr add {}/24 dev {UPLINK}", OUTPOST.v4),
            &format!("link set {UPLINK} up"),
        ])?;
        internet.sysctl("net/ipv4/ip_forward", "1")?;
        internet.ip(&[
            &format!("addr add {}/24 dev outpost0", OUTPOST_ROUTER.v4),
            "link set outpost0 up",
            &format!("route add 10.244.2.0/24 via {}", OUTPOST.v4),
        ])?;
        node.ip(&[&format!("route add default via {}", OUTPOST_ROUTER.v4)])?;
        let twin = routed(lab, &node, "twin", OUTPOST_TWIN)?;
        let web = routed(lab, &node, "far-web", OUTPOST_WEB)?;
        Ok(Self { twin, web, node })
    }

    /// Takes a pod's interface away and gives it another one with the same addresses, as where a pod
    /// hands its address on.
    pub fn plug_again(&self, pod: &Pod) -> Result<()> {
        self.node.ip(&[&format!("link del {}", pod.interface)])?;
        pod.plug_into(&self.node)?;
        route(&self.node, pod)
    }
}

/// A pod behind an interface and a route of its own.
fn routed(lab: &Lab, node: &Namespace, name: &str, addresses: Pair) -> Result<Pod> {
    let pod = Pod::plug(lab, node, name, addresses)?;
    route(node, &pod)?;
    Ok(pod)
}

/// Configures both ends of a pod's interface.
fn route(node: &Namespace, pod: &Pod) -> Result<()> {
    let (gateway, addresses) = (OUTPOST_GATEWAY.v4, pod.addresses);
    node.ip(&[
        &format!("addr add {gateway}/32 dev {}", pod.interface),
        &format!("link set {} up", pod.interface),
        &format!("route add {}/32 dev {}", addresses.v4, pod.interface),
    ])?;
    pod.namespace.ip(&[
        &format!("addr add {}/32 dev eth0", addresses.v4),
        "link set eth0 up",
        &format!("route add {gateway} dev eth0 scope link"),
        &format!("route add default via {gateway}"),
    ])
}
