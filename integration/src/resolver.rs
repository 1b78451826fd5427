//! The cluster's resolver: `unbound` in a pod, recursive for the town's internet, authoritative for
//! `cluster.local`.

use std::fs;

use anyhow::Result;

use crate::addresses::{AUTHORITY, DB, KUBE_DNS, KUBE_DNS_SERVICE, WEB};
use crate::authority::wait_listening;
use crate::lab::Lab;
use crate::pod::Pod;
use crate::process::Daemon;

/// Starts `unbound` in `pod` and waits until it accepts connections.
pub fn start(lab: &Lab, pod: &Pod) -> Result<Daemon> {
    fs::write(lab.file("unbound.conf"), configuration(lab))?;
    let mut daemon = Daemon::start(
        pod.namespace.command("unbound").args(["-d", "-p", "-c"]).arg(lab.file("unbound.conf")),
        &lab.file("unbound.log"),
    )?;
    wait_listening(&mut daemon, &pod.namespace, "the resolver", 53, KUBE_DNS.v4)?;
    Ok(daemon)
}

fn configuration(lab: &Lab) -> String {
    let folder = lab.folder();
    let mut text = format!(
        "server:\n  interface: {}\n  interface: {}\n  access-control: 0.0.0.0/0 allow\n  \
         access-control: ::0/0 allow\n  username: \"\"\n  chroot: \"\"\n  directory: \"{}\"\n  \
         pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  module-config: \"iterator\"\n  \
         num-threads: 1\n  minimal-responses: yes\n  qname-minimisation: no\n  \
         local-zone: \"cluster.local.\" static\n  local-zone: \"10.in-addr.arpa.\" nodefault\n",
        KUBE_DNS.v4,
        KUBE_DNS.v6,
        folder.display()
    );
    for (name, pair) in [
        ("kube-dns.kube-system.svc.cluster.local.", KUBE_DNS_SERVICE),
        ("web.shop.svc.cluster.local.", WEB),
        ("db.data.svc.cluster.local.", DB),
    ] {
        text.push_str(&format!(
            "  local-data: \"{name} 5 IN A {}\"\n  local-data: \"{name} 5 IN AAAA {}\"\n",
            pair.v4, pair.v6
        ));
    }
    text.push_str(&format!(
        "remote-control:\n  control-enable: no\nstub-zone:\n  name: \".\"\n  stub-addr: {}\n",
        AUTHORITY.v4
    ));
    text
}
