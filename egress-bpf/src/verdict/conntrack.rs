//! Known flows.
//!
//! A flow is known under its endpoint's interface and epoch, so that no other endpoint, and no later
//! pod on the same interface, can use it. A flow judged under another generation is judged again in
//! the direction of whoever opened it.

use super::classify::{self, Standing};
use super::{Case, Full, Maps, Scene, Verdict, judges_other_protocols};
use crate::abi::{
    Direction, DropReason, ECHO_PORT_V4, ECHO_PORT_V6, FLOW_CLOSING, FLOW_ESTABLISHED,
    FLOW_OPENING, FLOW_REVOKED, Flow, FlowKey, HitKey, NO_CLAUSE, Pass, PortClass,
};
use crate::packet::{
    Embedded, Headers, Kind, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, protocol,
};

const SECOND_NS: u64 = 1_000_000_000;
const TCP_OPENING_NS: u64 = 60 * SECOND_NS;
// RFC 5382 asks for two hours and four minutes at least.
const TCP_ESTABLISHED_NS: u64 = 7_500 * SECOND_NS;
/// After the last packet of a flow that was closed or cut.
const ENDED_NS: u64 = 120 * SECOND_NS;
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
        (protocol::TCP, _) | (_, FLOW_REVOKED) => (flow.seen_ns, ENDED_NS),
        (_, FLOW_OPENING) => (flow.seen_ns, OTHER_OPENING_NS),
        _ => (flow.seen_ns, OTHER_ESTABLISHED_NS),
    };
    now_ns.saturating_sub(since_ns) >= limit_ns
}

/// What the flow table says of a packet.
#[derive(Clone, Copy)]
enum Known {
    /// Its flow was judged under the current generation.
    Current,
    /// Its flow was judged under another one, and opened by this side.
    Stale(Direction, Standing),
    /// Its flow was cut, and this packet comes from who opened it.
    Revoked,
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
    let known = known(maps, scene, case, &key)?;
    let (opener, standing) = match known {
        Known::Current => return Ok(Verdict::Forward(Pass::Known)),
        Known::Stale(opener, standing) => (opener, standing),
        Known::Revoked | Known::Absent => (scene.direction, Standing::Opened),
    };
    if !matches!(known, Known::Stale(..)) {
        refuse_unopened(maps, case)?;
    }
    let is_midway =
        matches!(known, Known::Absent) && is_tcp(&case.headers) && !is_syn(&case.headers);
    let outcome = judge(maps, scene, case, &key, opener, standing, is_midway);
    if let Known::Stale(..) = known {
        return settle(maps, scene, case, &key, outcome);
    }
    if !matches!(outcome, Err(DropReason::NoFlow)) {
        count(maps, case);
    }
    outcome?;
    begin(maps, scene, case, &key)
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
    if is_syn(&case.headers) {
        // Between the same ports a connection can only follow one that ended, except that its
        // opener may begin anew whenever it wants to. Either is judged like any other.
        let has_ended = matches!(flow.state, FLOW_CLOSING | FLOW_REVOKED);
        if is_reply && !has_ended {
            return Err(DropReason::NoFlow);
        }
        if flow.state != FLOW_OPENING {
            return Ok(Known::Absent);
        }
    }
    if flow.state == FLOW_REVOKED {
        flow.seen_ns = scene.now_ns;
        return if is_reply { Err(DropReason::Revoked) } else { Ok(Known::Revoked) };
    }
    if flow.generation != case.generation {
        let standing =
            if flow.clause == NO_CLAUSE { Standing::LiveFromNode } else { Standing::Live };
        return Ok(Known::Stale(opener, standing));
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

/// Refuses packets that cannot be the first of a flow.
#[inline(always)]
fn refuse_unopened<M: Maps>(maps: &M, case: &Case) -> Result<(), DropReason> {
    if answers(&case.headers) {
        return Err(DropReason::NoFlow);
    }
    if let Kind::Other = case.headers.kind
        && !judges_other_protocols(maps.config())
    {
        return Err(DropReason::Protocol);
    }
    Ok(())
}

/// Carries out what a changed policy says of a known flow.
#[inline(always)]
fn settle<M: Maps>(
    maps: &mut M,
    scene: &Scene,
    case: &Case,
    key: &FlowKey,
    outcome: Result<(), DropReason>,
) -> Result<Verdict, DropReason> {
    // Gone by now only if user space removed it in between: the next packet finds it absent.
    let flow = maps.flow(key).ok_or(DropReason::NoFlow)?;
    flow.generation = case.generation;
    flow.table = case.table;
    flow.clause = case.clause;
    flow.audit = case.audit;
    if outcome.is_ok() {
        note(flow, scene, case);
        return Ok(Verdict::Forward(Pass::Judged));
    }
    flow.seen_ns = scene.now_ns;
    flow.state = FLOW_REVOKED;
    Err(DropReason::Revoked)
}

/// Enters a flow whose first packet is let through.
#[inline(always)]
fn begin<M: Maps>(
    maps: &mut M,
    scene: &Scene,
    case: &mut Case,
    key: &FlowKey,
) -> Result<Verdict, DropReason> {
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
            if flow.state != FLOW_REVOKED
                && !flow_is_expired(key.protocol, flow, scene.now_ns)
                && flow.generation == case.generation =>
        {
            Ok(Verdict::Forward(Pass::Related))
        }
        Some(_) | None => Err(DropReason::Unrelated),
    }
}

/// Asks the rules about the flow. Where nobody saw it open, as when the program is attached to a
/// running endpoint, it may have been opened from either side: then the rules of both have to let it
/// through.
#[inline(always)]
fn judge<M: Maps>(
    maps: &M,
    scene: &Scene,
    case: &mut Case,
    key: &FlowKey,
    opener: Direction,
    standing: Standing,
    is_midway: bool,
) -> Result<(), DropReason> {
    let mut rounds = if is_midway { 2 } else { 1 };
    loop {
        rounds -= 1;
        case.opener = if rounds == 1 { opener.reverse() } else { opener };
        let sort = sort(key, &case.headers, case.opener);
        let outcome = classify::judge(maps, scene, case, &key.remote, sort, standing);
        if rounds == 0 {
            return outcome;
        }
        if outcome.is_err() {
            case.opener = opener;
            case.clause = NO_CLAUSE;
            case.audit = NO_CLAUSE;
            return Err(DropReason::NoFlow);
        }
    }
}

/// The port that rules are about: the destination's.
#[inline(always)]
const fn sort(key: &FlowKey, headers: &Headers, opener: Direction) -> (PortClass, u16) {
    let port = match opener {
        Direction::Egress => key.remote_port,
        Direction::Ingress => key.local_port,
    };
    match (key.protocol, headers.kind) {
        (protocol::TCP, _) => (PortClass::Tcp, port),
        (protocol::UDP, _) => (PortClass::Udp, port),
        (protocol::SCTP, _) => (PortClass::Sctp, port),
        (_, Kind::Other) => (PortClass::Other, 0),
        (protocol::ICMP, _) => (PortClass::Echo, ECHO_PORT_V4),
        _ => (PortClass::Echo, ECHO_PORT_V6),
    }
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

#[inline(always)]
const fn is_tcp(headers: &Headers) -> bool {
    matches!(headers.kind, Kind::Tcp)
}

/// Whether the packet asks for a TCP connection.
#[inline(always)]
const fn is_syn(headers: &Headers) -> bool {
    is_tcp(headers) && headers.flags & (TCP_SYN | TCP_ACK) == TCP_SYN
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
