//! The internet's authoritative server: one `nsd` that serves every name of the town.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;

use crate::addresses::{
    ASSETS, AUTHORITY, ECHO, EVIL, EXAMPLE, METADATA, Pair, RELEASES, STORAGE, STRIPE,
};
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::patience::wait_until;
use crate::process::Daemon;

/// Seconds that the name of [`RELEASES`] lives.
pub const SHORT_TTL: u32 = 1;
/// How many addresses `many.acme.example` has: too many for one datagram.
pub const MANY: u8 = 60;

/// Starts `nsd` in `internet` and waits until it answers.
pub fn start(lab: &Lab, internet: &Namespace) -> Result<Daemon> {
    fs::write(lab.file("root.zone"), zone())?;
    let folder = lab.folder();
    let folder = folder.display();
    fs::write(
        lab.file("nsd.conf"),
        format!(
            "server:\n  ip-address: {}\n  ip-address: {}\n  username: \"\"\n  chroot: \"\"\n  \
             zonesdir: {folder}\n  database: \"\"\n  zonelistfile: {folder}/nsd.list\n  \
             xfrdfile: {folder}/nsd.xfrd\n  xfrdir: {folder}\n  pidfile: \"\"\n  server-count: 1\n\
             remote-control:\n  control-enable: no\n\
             zone:\n  name: .\n  zonefile: root.zone\n",
            AUTHORITY.v4, AUTHORITY.v6
        ),
    )?;
    let mut daemon = Daemon::start(
        internet.command("nsd").arg("-d").arg("-c").arg(lab.file("nsd.conf")),
        &lab.file("nsd.log"),
    )?;
    wait_listening(&mut daemon, internet, "the authoritative server", 53, AUTHORITY.v4)?;
    Ok(daemon)
}

/// Waits until something accepts TCP connections at `address` and `port` of `namespace`.
pub fn wait_listening(
    daemon: &mut Daemon,
    namespace: &Namespace,
    what: &str,
    port: u16,
    address: impl Into<IpAddr>,
) -> Result<()> {
    let to = (address.into(), port).into();
    wait_until(what, Duration::from_secs(15), || {
        daemon.check()?;
        namespace.within(|| {
            std::net::TcpStream::connect_timeout(&to, Duration::from_millis(200)).is_ok()
        })
    })
}

fn zone() -> String {
    let mut zone = format!(
        "$ORIGIN .\n$TTL 60\n. IN SOA ns.town.example. admin.town.example. 1 3600 600 86400 60\n\
         . IN NS ns.town.example.\nns.town.example. IN A {}\nns.town.example. IN AAAA {}\n",
        AUTHORITY.v4, AUTHORITY.v6
    );
    for (name, ttl, pair) in [
        ("api.stripe.com.", 60, STRIPE),
        ("releases.acme.example.", SHORT_TTL, RELEASES),
        ("edge7.cdn.example.", 60, ASSETS),
        ("*.storage.acme.example.", 60, STORAGE),
        ("storage.acme.example.", 60, STORAGE),
        ("echo.acme.example.", 60, ECHO),
        ("example.com.", 60, EXAMPLE),
        ("evil.example.", 60, EVIL),
    ] {
        add(&mut zone, name, ttl, pair);
    }
    let _infallible = writeln!(
        zone,
        "assets.acme.example. IN CNAME edge7.cdn.example.\nrebind.acme.example. IN A {METADATA}"
    );
    for last in 0..MANY {
        let _infallible = writeln!(zone, "many.acme.example. IN A 198.18.0.{last}");
    }
    zone
}

fn add(zone: &mut String, name: &str, ttl: u32, pair: Pair) {
    let _infallible =
        writeln!(zone, "{name} {ttl} IN A {}\n{name} {ttl} IN AAAA {}", pair.v4, pair.v6);
}
