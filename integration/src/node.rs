//! The node: a namespace with a bridge, an uplink, and service addresses translated as kube-proxy
//! does in nftables mode.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::addresses::{GATEWAY, KUBE_DNS, KUBE_DNS_SERVICE, METADATA, NODE, ROUTER};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::process::run;

/// The node's interface to the outside.
pub const UPLINK: &str = "uplink0";
/// The bridge that pods hang on.
pub const BRIDGE: &str = "br0";

/// The node's namespace.
#[derive(Debug)]
pub struct Node {
    /// The namespace in which the agent runs.
    pub namespace: Namespace,
}

impl Node {
    /// Makes the node and plugs its uplink into `internet`.
    pub fn create(lab: &Lab, internet: &Namespace) -> Result<Self> {
        let namespace = Namespace::create(&lab.namespace("node"))?;
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
        ] {
            namespace.sysctl(key, value)?;
        }
        let (gateway, node, router) = (GATEWAY, NODE, ROUTER);
        namespace.ip(&[
            &format!("link add {BRIDGE} type bridge mcast_snooping 0"),
            &format!("addr add {}/24 dev {BRIDGE}", gateway.v4),
            &format!("addr add {}/64 dev {BRIDGE} nodad", gateway.v6),
            &format!("link set {BRIDGE} up"),
            &format!("link add {UPLINK} type veth peer name node0 netns {}", internet.name()),
            &format!("addr add {}/24 dev {UPLINK}", node.v4),
            &format!("addr add {}/64 dev {UPLINK} nodad", node.v6),
            &format!("link set {UPLINK} up"),
        ])?;
        internet.ip(&[
            &format!("addr add {}/24 dev node0", router.v4),
            &format!("addr add {}/64 dev node0 nodad", router.v6),
            "link set node0 up",
            &format!("route add 10.244.1.0/24 via {}", node.v4),
            &format!("route add fd00:10:244:1::/64 via {}", node.v6),
        ])?;
        namespace.ip(&[
            &format!("route add default via {}", router.v4),
            &format!("route add default via {}", router.v6),
            &format!("route add {METADATA}/32 via {} dev {UPLINK}", router.v4),
        ])?;
        let node = Self { namespace };
        node.translate_services(lab)?;
        Ok(node)
    }

    fn translate_services(&self, lab: &Lab) -> Result<()> {
        let (service, backend) = (KUBE_DNS_SERVICE, KUBE_DNS);
        let rules = format!(
            "table inet services {{
  chain translate {{
    ip daddr {} meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {}
    ip6 daddr {} meta l4proto {{ tcp, udp }} th dport 53 dnat ip6 to {}
  }}
  chain prerouting {{ type nat hook prerouting priority -100; jump translate; }}
  chain output {{ type nat hook output priority -100; jump translate; }}
  chain postrouting {{
    type nat hook postrouting priority 100;
    ct status dnat masquerade
  }}
}}\n",
            service.v4, backend.v4, service.v6, backend.v6
        );
        let file = lab.file("services.nft");
        std::fs::write(&file, rules)?;
        let mut command: Command = self.namespace.command("nft");
        run(command.arg("-f").arg(&file), Duration::from_secs(10))?
            .success()
            .context("cannot load the service translation")?;
        Ok(())
    }
}
