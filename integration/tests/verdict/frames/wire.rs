//! The same frames through a real interface: written to the pod's end as they are, judged at the other.

use std::net::UdpSocket;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use namegate_egress_bpf::abi::Direction;
use namegate_egress_bpf::datapath::Reason;
use namegate_integration::lab::{self, Lab};
use namegate_integration::namespace::Namespace;
use namegate_integration::patience::wait_for;
use rustix::net::{AddressFamily, SocketType, netdevice, socket};

use super::{Row, rows, world};
use crate::twin::Twin;

const SOON: Duration = Duration::from_secs(5);
/// Where socat takes datagrams, each of which it writes to the interface as a frame.
const WRITER: &str = "127.0.0.1:5555";
/// What an Ethernet device takes at all, and what its MTU lets pass.
const ON_THE_WIRE: std::ops::RangeInclusive<usize> = 14..=1_514;

/// Ends with this value.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn frames_that_a_pod_sends_become_the_same_on_the_wire() -> Result<()> {
    if !lab::can_run("frames_that_a_pod_sends_become_the_same_on_the_wire")? {
        return Ok(());
    }
    let lab = Lab::for_test()?;
    let node = Namespace::create(&lab.namespace("node"))?;
    let pod = Namespace::create(&lab.namespace("pod"))?;
    // Nothing but what is written crosses it.
    pod.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    node.ip(&[
        &format!("link add pod0 type veth peer name eth0 netns {}", pod.name()),
        "link set pod0 up",
    ])?;
    pod.ip(&["link set eth0 arp off up"])?;
    let writer = pod
        .command("socat")
        .args(["-u", "UDP4-RECV:5555,bind=127.0.0.1", "INTERFACE:eth0"])
        .stdin(Stdio::null())
        .spawn()?;
    let _writer = Writer(writer);
    let pen = pod.within(|| -> Result<UdpSocket> {
        let pen = UdpSocket::bind("127.0.0.1:0")?;
        pen.connect(WRITER)?;
        Ok(pen)
    })??;
    node.within(|| -> Result<()> {
        let any = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        let ifindex = netdevice::name_to_index(any, "pod0")?;
        let mut twin = Twin::open("wire")?.at(ifindex);
        twin.enter(&world())?;
        twin.datapath().attach(ifindex)?;
        // A socket refuses to send while nobody listens.
        wait_for("socat", SOON, || {
            let listens = pen.send(&[0; 60]).is_ok() && pen.send(&[0; 60]).is_ok();
            let total: u64 = counts(&mut twin)?.iter().map(|(_, count)| count).sum();
            Ok((listens && total > 0).then_some(()))
        })?;
        let sent: Vec<Row> = rows().into_iter().filter(can_be_sent).collect();
        ensure!(sent.len() > 200, "{} rows", sent.len());
        let mut wrong = Vec::new();
        for row in &sent {
            let became = cross(&mut twin, &pen, row).with_context(|| row.name.clone())?;
            if became != row.becomes {
                wrong.push(format!("{}: {became}, not {}", row.name, row.becomes));
            }
        }
        ensure!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
        println!("{} frames crossed the wire", sent.len());
        twin.close()
    })?
}

fn can_be_sent(row: &Row) -> bool {
    row.direction == Direction::Egress
        && ON_THE_WIRE.contains(&row.frame.len())
        && row.before.iter().all(|(direction, _)| *direction == Direction::Egress)
}

fn cross(twin: &mut Twin, pen: &UdpSocket, row: &Row) -> Result<&'static str> {
    twin.enter(&world())?;
    for (_, frame) in &row.before {
        write(twin, pen, frame)?;
    }
    write(twin, pen, &row.frame)
}

/// Writes a frame and says what it was counted as.
fn write(twin: &mut Twin, pen: &UdpSocket, frame: &[u8]) -> Result<&'static str> {
    let before = counts(twin)?;
    pen.send(frame)?;
    wait_for("a verdict", SOON, || {
        let after = counts(twin)?;
        let count = |of: &[(Reason, u64)], which| {
            of.iter().find(|(reason, _)| *reason == which).map_or(0, |(_, count)| *count)
        };
        let grown: Vec<Reason> = after
            .iter()
            .filter(|(reason, now)| *now > count(&before, *reason))
            .map(|(reason, _)| *reason)
            .collect();
        ensure!(grown.len() < 2, "one frame was counted as {grown:?}");
        Ok(grown.first().map(|reason| reason.as_str()))
    })
}

fn counts(twin: &mut Twin) -> Result<Vec<(Reason, u64)>> {
    let packets = twin.datapath().counters()?.packets;
    Ok(packets
        .into_iter()
        .filter(|((direction, _), _)| *direction == Direction::Egress)
        .map(|((_, reason), count)| (reason, count))
        .collect())
}
