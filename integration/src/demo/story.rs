//! The steps of the story. Each one does what a person would do, checks what came of it, and shows
//! the audit line that says why.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::questions::why_and_what_then;
use super::stage::Stage;
use crate::addresses::{AUTHORITY, DB, DB_PORT, EVIL, METADATA, RELEASES, ROUTER, STRIPE};
use crate::capture::{Capture, sent_by};
use crate::dns::Query;
use crate::node::UPLINK;
use crate::patience::wait_until;
use crate::pod::Pod;
use crate::process::{Daemon, Finished};
use crate::scene::Scene;

/// curl's exit code when the connection does not open in time.
const TIMED_OUT: i32 = 28;
/// curl's exit code when a name does not resolve.
const UNRESOLVED: i32 = 6;
/// The site sends a piece several times a second.
const SILENCE: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(10);

type Play = fn(&Stage, &mut Scene) -> Result<String>;

/// One step.
pub(super) struct Step {
    /// What it claims.
    pub(super) title: &'static str,
    why: &'static str,
    play: Play,
}

impl Step {
    pub(super) fn tell(&self, number: u32, stage: &Stage, scene: &mut Scene) -> Result<String> {
        stage.step(&format!("{number}. {}", self.title), self.why);
        scene.agent.check()?;
        (self.play)(stage, scene)
    }
}

/// The whole story, in order.
pub(super) const STEPS: [Step; 10] = [
    Step {
        title: "an address that nobody asked for is closed",
        why: "The policy allows api.stripe.com, by name. Its address alone opens nothing.",
        play: bare_address,
    },
    Step {
        title: "the same site by its name works",
        why: "The node's proxy sees the question, writes the answer's addresses into the kernel's \
              map, and only then lets the answer go.",
        play: by_name,
    },
    Step {
        title: "another name is refused",
        why: "No rule allows evil.example: its name does not resolve, its address does not answer.",
        play: refused,
    },
    Step {
        title: "what one pod learned opens nothing for another",
        why: "shop/web may reach api.stripe.com too, but has not asked for it.",
        play: second_pod,
    },
    Step {
        title: "an expired address is closed, a live download goes on",
        why: "The name's life is over in a moment (here 1 s, and 1 s of grace). New connections \
              must ask again; the one that is running stays.",
        play: expiry,
    },
    Step {
        title: "a policy edited live cuts a running connection",
        why: "The download still runs. Removing its rule from the file ends it.",
        play: revocation,
    },
    Step {
        title: "pods are isolated from each other",
        why: "A NetworkPolicy lets the checkout into the database, and nobody else.",
        play: pod_isolation,
    },
    Step {
        title: "the metadata address stays closed",
        why: "shop/web has a rule for 169.254.0.0/16 by mistake; the denial of the metadata \
              address wins. For shop/checkout an allowed name points there: it opens nothing.",
        play: metadata,
    },
    Step {
        title: "nothing leaves the node on other ways",
        why: "Another resolver, UDP, ICMP, IPv6, bare addresses: tcpdump watches the outside \
              interface.",
        play: nothing_leaves,
    },
    Step {
        title: "the agent says why, and what would let it through",
        why: "Commands ask the running agent over its socket; the operator does what the answer says.",
        play: why_and_what_then,
    },
];

fn bare_address(stage: &Stage, scene: &mut Scene) -> Result<String> {
    for address in [STRIPE.v4.to_string(), format!("[{}]", STRIPE.v6)] {
        let mark = scene.agent.audit.mark()?;
        let resolve = format!("api.stripe.com:443:{address}");
        let arguments =
            ["--connect-timeout", "0.5", "--resolve", &resolve, "https://api.stripe.com/"];
        let finished = curl(stage, scene, "shop/checkout", &scene.town.checkout, &arguments)?;
        expect_code(&finished, TIMED_OUT, "it got through")?;
        let plain = address.trim_matches(['[', ']']);
        show(
            stage,
            scene,
            mark,
            &[
                ("kind", "flow"),
                ("verdict", "dropped"),
                ("source.pod", "checkout"),
                ("destination.address", plain),
            ],
        )?;
    }
    Ok("dropped, IPv4 and IPv6".to_owned())
}

fn by_name(stage: &Stage, scene: &mut Scene) -> Result<String> {
    for (family, kind) in [("-4", "A"), ("-6", "AAAA")] {
        let mark = scene.agent.audit.mark()?;
        let arguments = [family, "https://api.stripe.com/"];
        let finished = curl(stage, scene, "shop/checkout", &scene.town.checkout, &arguments)?;
        expect_code(&finished, 0, "it did not get through")?;
        show(
            stage,
            scene,
            mark,
            &[
                ("kind", "dns"),
                ("verdict", "allowed"),
                ("query.name", "api.stripe.com"),
                ("query.type", kind),
                ("policy.name", "checkout-apis"),
            ],
        )?;
        show(
            stage,
            scene,
            mark,
            &[("kind", "flow"), ("verdict", "forwarded"), ("destination.names", "api.stripe.com")],
        )?;
    }
    Ok("answered over TLS, IPv4 and IPv6".to_owned())
}

fn refused(stage: &Stage, scene: &mut Scene) -> Result<String> {
    let mark = scene.agent.audit.mark()?;
    let checkout = &scene.town.checkout;
    let finished = curl(stage, scene, "shop/checkout", checkout, &["https://evil.example/"])?;
    expect_code(&finished, UNRESOLVED, "the name resolved")?;
    stage.asks("shop/checkout", "dig evil.example");
    let reply = checkout.resolve("evil.example")?;
    stage.happens(&format!("status: {}", reply.status));
    ensure!(reply.status == "REFUSED", "the answer was {}", reply.status);
    show(
        stage,
        scene,
        mark,
        &[("kind", "dns"), ("verdict", "denied"), ("query.name", "evil.example")],
    )?;
    let resolve = format!("evil.example:443:{}", EVIL.v4);
    let arguments = ["--connect-timeout", "0.5", "--resolve", &resolve, "https://evil.example/"];
    let finished = curl(stage, scene, "shop/checkout", checkout, &arguments)?;
    expect_code(&finished, TIMED_OUT, "its address answered")?;
    Ok("REFUSED, and its address dropped".to_owned())
}

fn second_pod(stage: &Stage, scene: &mut Scene) -> Result<String> {
    let mark = scene.agent.audit.mark()?;
    let resolve = format!("api.stripe.com:443:{}", STRIPE.v4);
    let arguments = ["--connect-timeout", "0.5", "--resolve", &resolve, "https://api.stripe.com/"];
    let finished = curl(stage, scene, "shop/web", &scene.town.web, &arguments)?;
    expect_code(&finished, TIMED_OUT, "it got through")?;
    show(stage, scene, mark, &[("kind", "flow"), ("verdict", "dropped"), ("source.pod", "web")])?;
    let arguments = ["-4", "https://api.stripe.com/"];
    let finished = curl(stage, scene, "shop/web", &scene.town.web, &arguments)?;
    expect_code(&finished, 0, "it did not get through after asking")?;
    Ok("dropped until it asked for itself".to_owned())
}

fn expiry(stage: &Stage, scene: &mut Scene) -> Result<String> {
    let image = scene.town.lab.file("download");
    let path = image.display().to_string();
    let mut arguments = DOWNLOAD.to_vec();
    arguments.extend(["-o", &path]);
    stage.asks("shop/checkout", &format!("curl {} &", DOWNLOAD[0]));
    let checkout = &scene.town.checkout;
    let mut download = checkout.start_curl(&scene.town.lab, "curl.log", &arguments)?;
    wait_until("the download's first bytes", PATIENCE, || {
        download.check()?;
        Ok(size(&path) > 0)
    })?;
    let target = SocketAddr::from((RELEASES.v4, 443));
    wait_until("the address to close", PATIENCE, || {
        download.check()?;
        Ok(checkout.try_tcp(target)?.is_err())
    })?;
    stage.happens("a new connection to the same address is dropped:");
    let mark = scene.agent.audit.mark()?;
    ensure!(checkout.try_tcp(target)?.is_err(), "a new connection opened after expiry");
    show(
        stage,
        scene,
        mark,
        &[
            ("kind", "flow"),
            ("verdict", "dropped"),
            ("destination.address", &RELEASES.v4.to_string()),
        ],
    )?;
    let before = size(&path);
    wait_until("more of the download", PATIENCE, || {
        download.check()?;
        Ok(size(&path) > before)
    })?;
    stage.happens(&format!("the download goes on: {} KiB so far", size(&path) / 1024));
    scene.download = Some(download);
    Ok("new flows dropped, the download goes on".to_owned())
}

const DOWNLOAD: [&str; 3] = ["https://releases.acme.example/image.iso", "-4", "--no-buffer"];

fn revocation(stage: &Stage, scene: &mut Scene) -> Result<String> {
    let mut download = scene.download.take().context("no download is running")?;
    download.check()?;
    let mark = scene.agent.audit.mark()?;
    stage.asks("operator", "sed -i s/releases.acme.example/gone.acme.example/ checkout-apis.yaml");
    let (from, to) = ("releases.acme.example", "gone.acme.example");
    scene.manifests.edit("checkout-apis.yaml", from, to)?;
    show(
        stage,
        scene,
        mark,
        &[("kind", "flow"), ("verdict", "dropped"), ("source.pod", "checkout")],
    )?;
    let path = scene.town.lab.file("download").display().to_string();
    wait_for_silence(&mut download, &path)?;
    stage.happens(&format!("the download stands still at {} KiB", size(&path) / 1024));
    drop(download);
    scene.manifests.edit("checkout-apis.yaml", to, from)?;
    Ok("the running download stopped".to_owned())
}

/// Waits until nothing was added to the file for longer than the site ever pauses.
fn wait_for_silence(download: &mut Daemon, path: &str) -> Result<()> {
    let (mut seen, mut since) = (size(path), Instant::now());
    wait_until("the download to stop", PATIENCE, || {
        download.check()?;
        let size = size(path);
        if size != seen {
            (seen, since) = (size, Instant::now());
        }
        Ok(since.elapsed() > SILENCE)
    })
}

fn pod_isolation(stage: &Stage, scene: &mut Scene) -> Result<String> {
    for database in [SocketAddr::from((DB.v4, DB_PORT)), SocketAddr::from((DB.v6, DB_PORT))] {
        stage.asks("shop/checkout", &format!("nc -z {} {DB_PORT}", database.ip()));
        scene.town.checkout.try_tcp(database)?.context("the checkout cannot reach its database")?;
        stage.happens("open");
        let mark = scene.agent.audit.mark()?;
        stage.asks("shop/web", &format!("nc -z {} {DB_PORT}", database.ip()));
        if scene.town.web.try_tcp(database)?.is_ok() {
            bail!("shop/web reaches the database");
        }
        stage.happens("nothing comes back");
        show(
            stage,
            scene,
            mark,
            &[
                ("kind", "flow"),
                ("verdict", "dropped"),
                ("direction", "ingress"),
                ("source.pod", "web"),
                ("destination.pod", "db"),
            ],
        )?;
    }
    Ok("checkout reaches the database, web does not".to_owned())
}

fn metadata(stage: &Stage, scene: &mut Scene) -> Result<String> {
    let mark = scene.agent.audit.mark()?;
    let url = format!("http://{METADATA}/latest/credentials");
    let arguments = ["--connect-timeout", "0.5", &url];
    let finished = curl(stage, scene, "shop/web", &scene.town.web, &arguments)?;
    expect_code(&finished, TIMED_OUT, "the credentials are out")?;
    show(
        stage,
        scene,
        mark,
        &[
            ("kind", "flow"),
            ("verdict", "dropped"),
            ("destination.address", &METADATA.to_string()),
            ("policy.name", "web-apis"),
        ],
    )?;
    let mark = scene.agent.audit.mark()?;
    let arguments = ["--connect-timeout", "0.5", "http://rebind.acme.example/"];
    let finished = curl(stage, scene, "shop/checkout", &scene.town.checkout, &arguments)?;
    expect_code(&finished, TIMED_OUT, "the credentials are out")?;
    show(
        stage,
        scene,
        mark,
        &[("kind", "dns"), ("query.name", "rebind.acme.example"), ("query.type", "A")],
    )?;
    Ok("denied by rule, and not opened by a name".to_owned())
}

fn nothing_leaves(stage: &Stage, scene: &mut Scene) -> Result<String> {
    let town = &scene.town;
    stage.asks("node", &format!("tcpdump -i {UPLINK}"));
    let capture = Capture::start(&town.lab, &town.node.namespace, UPLINK)?;
    let checkout = &town.checkout;
    let families: [(IpAddr, IpAddr); 2] =
        [(AUTHORITY.v4.into(), EVIL.v4.into()), (AUTHORITY.v6.into(), EVIL.v6.into())];
    for (server, evil) in families {
        stage.asks("shop/checkout", &format!("dig @{server} api.stripe.com"));
        stage.asks("shop/checkout", &format!("TCP, UDP and ICMP to {evil}"));
    }
    thread::scope(|scope| {
        let attempts = families
            .map(|(server, evil)| scope.spawn(move || expect_no_way_out(checkout, server, evil)));
        attempts.into_iter().try_for_each(|attempt| {
            attempt.join().map_err(|_| anyhow!("an attempt to get out panicked"))?
        })
    })?;
    let seen = capture.finish(&town.node.namespace, ROUTER.v4.into())?;
    let own = [checkout.addresses.v4.to_string(), checkout.addresses.v6.to_string()];
    let leaked = sent_by(&seen, &own.each_ref().map(String::as_str));
    ensure!(leaked.is_empty(), "left the node: {leaked:?}");
    stage.happens("0 packets of the checkout on the outside interface");
    Ok("0 packets on the outside interface".to_owned())
}

fn expect_no_way_out(pod: &Pod, server: IpAddr, evil: IpAddr) -> Result<()> {
    let reply = pod.ask(&Query::a("api.stripe.com").at(server).within_seconds(1))?;
    ensure!(reply.status == "TIMEOUT", "{server} answered {}", reply.status);
    let target = SocketAddr::from((evil, 443));
    ensure!(pod.try_tcp(target)?.is_err(), "TCP reached {target}");
    ensure!(pod.try_udp(target)?.is_err(), "UDP reached {target}");
    ensure!(!pod.ping(evil)?, "{evil} answered a ping");
    Ok(())
}

fn curl(
    stage: &Stage,
    scene: &Scene,
    who: &str,
    pod: &Pod,
    arguments: &[&str],
) -> Result<Finished> {
    stage.asks(who, &format!("curl {}", arguments.join(" ")));
    let finished = pod.curl(&scene.town.lab, arguments)?;
    let said =
        if finished.status.success() { finished.stdout.trim() } else { finished.stderr.trim() };
    stage.happens(said);
    Ok(finished)
}

fn expect_code(finished: &Finished, code: i32, otherwise: &str) -> Result<()> {
    if finished.code() == code {
        return Ok(());
    }
    bail!("{otherwise}: curl ended with {} instead of {code}: {}", finished.code(), finished.stderr)
}

fn show(
    stage: &Stage,
    scene: &Scene,
    mark: crate::audit::Mark,
    fields: &[(&str, &str)],
) -> Result<()> {
    stage.audit(&scene.agent.audit.expect(mark, fields)?);
    Ok(())
}

fn size(path: &str) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}
