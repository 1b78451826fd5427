//! The same frames through a real interface: written as they are to the pod's end or to the node's, and
//! judged at the node's.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use namegate_egress_bpf::abi::Direction;
use namegate_egress_bpf::datapath::Reason;
use namegate_integration::lab::{self, Lab};
use namegate_integration::namespace::Namespace;
use namegate_integration::patience::wait_for;

use super::{Row, rows, world};
use crate::pen::Pen;
use crate::twin::{Origin, Twin};

const SOON: Duration = Duration::from_secs(5);
/// What an Ethernet device takes at all, and what its MTU lets pass.
const ON_THE_WIRE: std::ops::RangeInclusive<usize> = 14..=1_514;

/// How many of the rows cross it, so that none falls out unseen.
const SENT: usize = 537;
const GOT: usize = 125;

/// Both ends of a pod's interface.
struct Pens {
    pod: Pen,
    node: Pen,
}

impl Pens {
    const fn of(&self, direction: Direction) -> &Pen {
        match direction {
            Direction::Egress => &self.pod,
            Direction::Ingress => &self.node,
        }
    }
}

#[test]
fn frames_from_a_pod_and_to_it_become_the_same_on_the_wire() -> Result<()> {
    if !lab::can_run("frames_from_a_pod_and_to_it_become_the_same_on_the_wire")? {
        return Ok(());
    }
    let lab = Lab::for_test()?;
    let node = Namespace::create(&lab.namespace("node"))?;
    let pod = Namespace::create(&lab.namespace("pod"))?;
    // Nothing but what is written crosses it: neither end has an address to answer from.
    for namespace in [&pod, &node] {
        namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    }
    node.ip(&[
        &format!("link add pod0 type veth peer name eth0 netns {}", pod.name()),
        "link set pod0 arp off up",
    ])?;
    pod.ip(&["link set eth0 arp off up"])?;
    let pens = Pens { pod: Pen::at(&pod, "eth0")?, node: Pen::at(&node, "pod0")? };
    let ifindex = node.interface_index("pod0")?;
    node.within(|| -> Result<()> {
        let mut twin = Twin::open("wire")?.at(ifindex);
        twin.enter(&world())?;
        twin.datapath().attach(ifindex)?;
        let (mut crossed, mut wrong) = ([0; 2], Vec::new());
        for row in rows().iter().filter(|row| can_be_sent(row)) {
            let became = cross(&mut twin, &pens, row).with_context(|| row.name.clone())?;
            if became != row.becomes {
                wrong.push(format!("{}: {became}, not {}", row.name, row.becomes));
            }
            crossed[row.direction as usize] += 1;
        }
        ensure!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
        let [sent, got] = crossed;
        println!("{sent} frames from the pod crossed the wire, and {got} to it");
        ensure!(sent >= SENT && got >= GOT, "only {sent} and {got} frames crossed the wire");
        twin.close()
    })?
}

/// What an Ethernet device takes. Who writes frames to the node's end is the node.
fn can_be_sent(row: &Row) -> bool {
    ON_THE_WIRE.contains(&row.frame.len())
        && (row.direction == Direction::Egress || row.origin == Origin::Node)
}

fn cross(twin: &mut Twin, pens: &Pens, row: &Row) -> Result<&'static str> {
    twin.enter(&world())?;
    for (direction, frame) in &row.before {
        write(twin, pens, *direction, frame)?;
    }
    write(twin, pens, row.direction, &row.frame)
}

/// Writes a frame and says what it was counted as.
fn write(twin: &mut Twin, pens: &Pens, direction: Direction, frame: &[u8]) -> Result<&'static str> {
    let before = counts(twin, direction)?;
    pens.of(direction).write(frame)?;
    wait_for("a verdict", SOON, || {
        let after = counts(twin, direction)?;
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

fn counts(twin: &mut Twin, way: Direction) -> Result<Vec<(Reason, u64)>> {
    let packets = twin.datapath().counters()?.packets;
    Ok(packets
        .into_iter()
        .filter(|((direction, _), _)| *direction == way)
        .map(|((_, reason), count)| (reason, count))
        .collect())
}
