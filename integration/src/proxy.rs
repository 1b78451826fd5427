//! A node that translates services as kube-proxy does, in each of its modes, and always to one backend.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::fronts::Fronts;
use crate::town::Town;
use anyhow::{Context as _, Result};

const LIMIT: Duration = Duration::from_secs(5);

/// How the node itself translates services, as kube-proxy does in a mode of its own.
#[derive(Clone, Copy, Debug)]
pub enum Proxy {
    /// As `--proxy-mode=nftables`.
    Nftables,
    /// As `--proxy-mode=iptables`.
    Iptables,
    /// As `--proxy-mode=ipvs`.
    Ipvs,
}

impl Proxy {
    /// Translates wherever the service is reached to the backend of the family.
    pub fn translate(self, town: &Town, fronts: Fronts, backends: &[SocketAddr; 2]) -> Result<()> {
        let backend = |at: IpAddr| backends.iter().find(|one| one.is_ipv4() == at.is_ipv4());
        let all = fronts.all().into_iter();
        let pairs: Vec<(SocketAddr, SocketAddr)> =
            all.filter_map(|front| Some((front, *backend(front.ip())?))).collect();
        match self {
            Self::Nftables => by_nftables(town, &pairs),
            Self::Iptables => {
                for protocol in ["tcp", "udp"] {
                    for (program, backend) in
                        ["iptables-legacy", "ip6tables-legacy"].into_iter().zip(backends)
                    {
                        by_iptables(town, program, protocol, fronts, *backend)?;
                    }
                }
                Ok(())
            }
            Self::Ipvs => by_ipvs(town, fronts, &pairs),
        }
    }

    /// What this machine lacks for the mode.
    pub fn lacks(self, town: &Town) -> Result<Option<&'static str>> {
        let runs = |words: &str| -> Result<bool> {
            Ok(town.node.namespace.run(&["sh", "-c", words], LIMIT)?.success().is_ok())
        };
        Ok(match self {
            Self::Nftables => None,
            Self::Iptables => (!runs("/usr/sbin/iptables-legacy -t nat -S")?)
                .then_some("no iptables-legacy, or a kernel without it"),
            // It loads the module where that is one.
            Self::Ipvs => {
                (!runs("ipvsadm -Ln")?).then_some("a kernel without IP_VS, or no ipvsadm")
            }
        })
    }
}

fn by_nftables(town: &Town, pairs: &[(SocketAddr, SocketAddr)]) -> Result<()> {
    let rule = |(front, backend): &(SocketAddr, SocketAddr)| {
        let family = if front.is_ipv4() { "ip" } else { "ip6" };
        let (address, port) = (front.ip(), front.port());
        format!(
            "    {family} daddr {address} meta l4proto {{ tcp, udp }} th dport {port} dnat {family} to {backend}\n"
        )
    };
    let rules: String = pairs.iter().map(rule).collect();
    let text = format!(
        "table inet elsewhere {{\n  chain translate {{\n    type nat hook prerouting priority -100;\n{rules}  }}\n}}\n"
    );
    let file = town.lab.file("elsewhere.nft");
    std::fs::write(&file, text)?;
    let path = file.to_str().context("a path")?;
    town.node.namespace.run(&["nft", "-f", path], LIMIT)?.success()?;
    Ok(())
}

fn by_ipvs(town: &Town, fronts: Fronts, pairs: &[(SocketAddr, SocketAddr)]) -> Result<()> {
    let node = &town.node.namespace;
    for protocol in ["-t", "-u"] {
        for (front, backend) in pairs {
            let (front, backend) = (front.to_string(), backend.to_string());
            node.run(&["ipvsadm", "-A", protocol, &front, "-s", "rr"], LIMIT)?.success()?;
            let to = ["ipvsadm", "-a", protocol, &front, "-r", &backend, "-m"];
            node.run(&to, LIMIT)?.success()?;
        }
    }
    // The addresses that a node takes packets for are its own.
    let mut lines = vec!["link add kube-ipvs0 type dummy".to_owned()];
    lines.extend(fronts.addresses().map(|front| match front.ip() {
        IpAddr::V4(v4) => format!("addr add {v4}/32 dev kube-ipvs0"),
        IpAddr::V6(v6) => format!("addr add {v6}/128 dev kube-ipvs0 nodad"),
    }));
    node.ip(&lines.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The chains of a service as kube-proxy names and orders them.
fn by_iptables(
    town: &Town,
    program: &str,
    protocol: &str,
    fronts: Fronts,
    backend: SocketAddr,
) -> Result<()> {
    let (chosen, endpoint) = (format!("KUBE-SVC-{protocol}"), format!("KUBE-SEP-{protocol}"));
    let mut rules = vec![format!("-N {chosen}"), format!("-N {endpoint}")];
    if protocol == "tcp" {
        rules.push("-N KUBE-SERVICES".into());
        rules.push("-A PREROUTING -j KUBE-SERVICES".into());
        rules.push("-A OUTPUT -j KUBE-SERVICES".into());
    }
    let of_family = |front: &SocketAddr| front.is_ipv4() == backend.is_ipv4();
    for front in fronts.addresses().into_iter().filter(of_family) {
        let (address, port) = (front.ip(), front.port());
        rules.push(format!(
            "-A KUBE-SERVICES -d {address} -p {protocol} --dport {port} -j {chosen}"
        ));
    }
    let node_port = fronts.node_port;
    rules.push(format!(
        "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -p {protocol} --dport {node_port} -j {chosen}"
    ));
    rules.push(format!("-A {chosen} -j {endpoint}"));
    rules.push(format!("-A {endpoint} -p {protocol} -j DNAT --to-destination {backend}"));
    let program = format!("/usr/sbin/{program}");
    for rule in rules {
        let mut words = vec![program.as_str(), "-w", "-t", "nat"];
        words.extend(rule.split(' '));
        town.node.namespace.run(&words, LIMIT)?.success()?;
    }
    Ok(())
}
