//! Known flows.
//!
//! A flow is known under its endpoint's interface and epoch, so that no other endpoint, and no later
//! pod on the same interface, can use it. A flow judged under another generation is judged again in
//! the direction of whoever opened it.

use super::classify::{self, Standing};
use super::{Case, Full, Maps, Scene, Verdict, judges_other_protocols};
use crate::abi::{
    Direction, DropReason, ECHO_PORT_V4, ECHO_PORT_V6, FLOW_CLOSING, FLOW_ESTABLISHED,
    FLOW_OPENING, Flow, FlowKey, HitKey, NO_CLAUSE, Pass, PortClass,
};
use crate::packet::{
    Embedded, Headers, Kind, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, protocol,
};

const SECOND_NS: u64 = 1_000_000_000;
const TCP_OPENING_NS: u64 = 60 * SECOND_NS;
const TCP_CLOSING_NS: u64 = 120 * SECOND_NS;
// RFC 5382 asks for two hours and four minutes at least.
const TCP_ESTABLISHED_NS: u64 = 7_500 * SECOND_NS;
const OTHER_OPENING_NS: u64 = 30 * SECOND_NS;
// RFC 4787 asks for two minutes at least and recommends five.
const OTHER_ESTABLISHED_NS: u64 = 300 * SECOND_NS;

/// Whether a flow counts as gone.
#[inline(always)]
pub const fn flow_is_expired(number: u8, flow: &Flow, now_ns: u64) -> bool {
    let (since_ns, limit_ns) = match (number, flow.state) {
        // Counted from the start, so that repeated SYNs do not outlive the rule that let one out.
        (protocol::TCP, FLOW_OPENING) => (flow.created_ns, TCP_OPENING_NS),
        (protocol::TCP, FLOW_ESTABLISHED) => (flow.seen_ns, TCP_ESTABLISHED_NS),
        (protocol::TCP, _) => (flow.seen_ns, TCP_CLOSING_NS),
        (_, FLOW_OPENING) => (flow.seen_ns, OTHER_OPENING_NS),
        _ => (flow.seen_ns, OTHER_ESTABLISHED_NS),
    };
    now_ns.saturating_sub(since_ns) >= limit_ns
}

/// What the flow table says of a packet.
enum Known {
    /// Its flow was judged under the current generation.
    Current,
    /// Its flow was judged before, and opened by this side.
    Stale(Direction),
    /// It would be the first of a flow.
    Absent,
}

/// The verdict on a packet with ports or an echo.
#[inline(always)]
pub(super) fn track<M: Maps>(
    maps: &mut M,
    scene: &Scene,
    case: &mut Case,
) -> Result<Verdict, DropReason> {
    let key = case.flow_key(scene);
    match known(maps, scene, case, &key)? {
        Known::Current => Ok(Verdict::Forward(Pass::Known)),
        Known::Stale(opener) => again(maps, scene, case, &key, opener),
        Known::Absent => first(maps, scene, case, &key),
    }
}

#[inline(always)]
fn known<M: Maps>(
    maps: &mut M,
    scene: &Scene,
    case: &Case,
    key: &FlowKey,
) -> Result<Known, DropReason> {
    let Some(flow) = maps.flow(key) else {
        return Ok(Known::Absent);
    };
    if flow_is_expired(key.protocol, flow, scene.now_ns) {
        return Ok(Known::Absent);
    }
    let opener = opener(flow);
    let is_reply = opener as u8 != scene.direction as u8;
    if is_syn(&case.headers) && flow.state != FLOW_OPENING {
        // A new connection between the same ports: judged like any other. From the side that did
        // not open the old one it has to wait until that ended.
        return if is_reply && flow.state == FLOW_ESTABLISHED {
            Err(DropReason::NoFlow)
        } else {
            Ok(Known::Absent)
        };
    }
    if is_reply && is_syn(&case.headers) {
        return Err(DropReason::NoFlow);
    }
    if flow.generation != case.generation {
        return Ok(Known::Stale(opener));
    }
    note(flow, scene, case);
    Ok(Known::Current)
}

/// Lets the packet leave its traces in the flow.
#[inline(always)]
fn note(flow: &mut Flow, scene: &Scene, case: &Case) {
    let side = scene.direction as usize & 1;
    flow.packets[side] = flow.packets[side].wrapping_add(1);
    flow.octets[side] = flow.octets[side].wrapping_add(case.length as u64);
    flow.seen_ns = scene.now_ns;
    if let Kind::Tcp = case.headers.kind
        && case.headers.flags & (TCP_FIN | TCP_RST) != 0
    {
        flow.state = FLOW_CLOSING;
    } else if flow.state == FLOW_OPENING && flow.initiator != scene.direction as u8 {
        flow.state = FLOW_ESTABLISHED;
    }
}

/// Judges a known flow under a changed policy.
#[inline(always)]
fn again<M: Maps>(
    maps: &mut M,
    scene: &Scene,
    case: &mut Case,
    key: &FlowKey,
    opener: Direction,
) -> Result<Verdict, DropReason> {
    case.opener = opener;
    match judge(maps, scene, case, key, Standing::Live) {
        Ok(()) => {
            // Gone by now only if another processor removed it: then the packet is a first one.
            let Some(flow) = maps.flow(key) else {
                return Err(DropReason::NoFlow);
            };
            flow.generation = case.generation;
            flow.table = case.table;
            flow.clause = case.clause;
            flow.audit = case.audit;
            note(flow, scene, case);
            Ok(Verdict::Forward(Pass::Judged))
        }
        Err(_) => {
            maps.remove_flow(key);
            Err(DropReason::Revoked)
        }
    }
}

/// Judges the first packet of a flow.
#[inline(always)]
fn first<M: Maps>(
    maps: &mut M,
    scene: &Scene,
    case: &mut Case,
    key: &FlowKey,
) -> Result<Verdict, DropReason> {
    case.opener = scene.direction;
    if answers(&case.headers) {
        return Err(DropReason::NoFlow);
    }
    if let Kind::Other = case.headers.kind
        && !judges_other_protocols(maps.config())
    {
        return Err(DropReason::Protocol);
    }
    let outcome = judge(maps, scene, case, key, Standing::Opened);
    count(maps, case);
    outcome?;
    let mut flow = Flow {
        created_ns: scene.now_ns,
        seen_ns: scene.now_ns,
        packets: [0; 2],
        octets: [0; 2],
        generation: case.generation,
        table: case.table,
        clause: case.clause,
        audit: case.audit,
        initiator: scene.direction as u8,
        state: FLOW_OPENING,
        padding: [0; 2],
    };
    note(&mut flow, scene, case);
    maps.put_flow(key, &flow).map_err(|Full| DropReason::FlowsFull)?;
    case.is_first = true;
    Ok(Verdict::Forward(Pass::Judged))
}

/// The verdict on an ICMP error: it goes where a known flow does, and refreshes nothing.
#[inline(always)]
pub(super) fn related<P: Packet, M: Maps>(
    packet: &P,
    maps: &mut M,
    scene: &Scene,
    case: &mut Case,
) -> Result<Verdict, DropReason> {
    let quoted = Embedded::read(packet, &case.headers).ok_or(DropReason::Unrelated)?;
    // Whoever gets the error is who sent the quoted packet.
    if !quoted.source.is(&case.headers.destination) {
        return Err(DropReason::Unrelated);
    }
    let (local, remote, local_port, remote_port) = match scene.direction {
        Direction::Egress => {
            (quoted.destination, quoted.source, quoted.destination_port, quoted.source_port)
        }
        Direction::Ingress => {
            (quoted.source, quoted.destination, quoted.source_port, quoted.destination_port)
        }
    };
    let key = FlowKey {
        local,
        remote,
        ifindex: scene.ifindex,
        epoch: case.epoch,
        local_port,
        remote_port,
        protocol: quoted.protocol,
        padding: [0; 3],
    };
    // An error about a flow that waits to be judged again comes again after that.
    match maps.flow(&key) {
        Some(flow)
            if !flow_is_expired(key.protocol, flow, scene.now_ns)
                && flow.generation == case.generation =>
        {
            Ok(Verdict::Forward(Pass::Related))
        }
        Some(_) | None => Err(DropReason::Unrelated),
    }
}

#[inline(always)]
fn judge<M: Maps>(
    maps: &M,
    scene: &Scene,
    case: &mut Case,
    key: &FlowKey,
    standing: Standing,
) -> Result<(), DropReason> {
    let sort = match (key.protocol, case.opener) {
        (protocol::TCP, Direction::Egress) => (PortClass::Tcp, key.remote_port),
        (protocol::TCP, Direction::Ingress) => (PortClass::Tcp, key.local_port),
        (protocol::UDP, Direction::Egress) => (PortClass::Udp, key.remote_port),
        (protocol::UDP, Direction::Ingress) => (PortClass::Udp, key.local_port),
        (protocol::SCTP, Direction::Egress) => (PortClass::Sctp, key.remote_port),
        (protocol::SCTP, Direction::Ingress) => (PortClass::Sctp, key.local_port),
        _ if matches!(case.headers.kind, Kind::Other) => (PortClass::Other, 0),
        (protocol::ICMP, _) => (PortClass::Echo, ECHO_PORT_V4),
        _ => (PortClass::Echo, ECHO_PORT_V6),
    };
    classify::judge(maps, scene, case, &key.remote, sort, standing)
}

#[inline(always)]
fn count<M: Maps>(maps: &mut M, case: &Case) {
    let mut key = HitKey { table: case.table, direction: case.opener as u16, clause: case.clause };
    if case.clause != NO_CLAUSE {
        maps.hit(&key);
    }
    if case.audit != NO_CLAUSE {
        key.clause = case.audit;
        maps.hit(&key);
    }
}

#[inline(always)]
const fn opener(flow: &Flow) -> Direction {
    if flow.initiator == Direction::Egress as u8 { Direction::Egress } else { Direction::Ingress }
}

/// Whether the packet asks for a TCP connection.
#[inline(always)]
const fn is_syn(headers: &Headers) -> bool {
    matches!(headers.kind, Kind::Tcp) && headers.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

/// Whether the packet can only answer an earlier one.
#[inline(always)]
const fn answers(headers: &Headers) -> bool {
    match headers.kind {
        Kind::Tcp => {
            headers.flags & TCP_RST != 0 || headers.flags & (TCP_SYN | TCP_ACK) == TCP_SYN | TCP_ACK
        }
        Kind::EchoReply => true,
        Kind::Arp
        | Kind::Neighbour
        | Kind::Router
        | Kind::Listener
        | Kind::Udp
        | Kind::Sctp
        | Kind::EchoRequest
        | Kind::IcmpError
        | Kind::Other => false,
    }
}
