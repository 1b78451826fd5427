//! Known flows.
//!
//! A flow is known under its endpoint's interface and epoch, so that no other endpoint, and no later
//! pod on the same interface, can use it. A flow judged under another generation is judged again in
//! the direction of whoever opened it, and in both where nobody saw who did.

use super::classify::Standing;
use super::service::{self, Half};
use super::{Case, Full, Maps, Question, Scene, Verdict, Way, judges_other_protocols};
use crate::abi::{
    Address, Direction, DropReason, FLOW_CLOSING, FLOW_ESTABLISHED, FLOW_OPENING, FLOW_REVOKED,
    Flow, HitKey, NO_CLAUSE, Pass, QuotaKey, ROLE_HAIRPIN, ROLE_HAIRPIN_SERVER, ROLE_PLAIN,
    ROLE_REPLY, ROLE_TRANSLATED,
};
use crate::packet::{Headers, Kind, Packet, TCP_ACK, TCP_RST, TCP_SYN, protocol};

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
    /// It was judged when it left the endpoint that it comes back to.
    Returned,
    /// It would be the first of a flow.
    Absent,
}

/// Judges a packet with ports or an echo by its flow, and leaves in the case how it is rewritten.
#[inline(always)]
pub fn track<M: Maps>(maps: &mut M, scene: &Scene, case: &mut Case) -> Result<Pass, DropReason> {
    let known = known(maps, scene, case)?;
    let (opener, standing) = match known {
        Known::Current | Known::Returned => return Ok(Pass::Known),
        Known::Stale(opener, standing) => (opener, standing),
        Known::Revoked | Known::Absent => (scene.direction, Standing::Opened),
    };
    if matches!(known, Known::Absent) {
        case.is_midway = matches!(case.headers.kind, Kind::Tcp) && !case.headers.opens();
    }
    let mut refused = Ok(());
    if matches!(known, Known::Stale(..)) {
        refused = service::refuse_resolver(maps, case);
        // Opened before the endpoint was governed: its backend is not known, and cannot be judged.
        if matches!((case.way, opener), (Way::Straight, Direction::Egress))
            && service::is_meant(maps, case)
        {
            refused = Err(DropReason::Denied);
        }
    } else {
        refuse_unopened(maps, case)?;
        if let Direction::Egress = scene.direction {
            service::choose(maps, case)?;
        }
        if case.is_midway && !matches!(case.way, Way::Straight) {
            return Err(DropReason::NoFlow);
        }
    }
    let question = Question::new(case, opener, standing);
    let outcome = match refused {
        Ok(()) => judge(maps, scene, case, question),
        Err(_) => refused,
    };
    if !matches!(question.standing(), Standing::Opened) {
        return settle(maps, scene, case, outcome);
    }
    if !matches!(outcome, Err(DropReason::NoFlow)) {
        count(maps, case);
    }
    outcome?;
    begin(maps, scene, case)
}

#[inline(always)]
fn known<M: Maps>(maps: &mut M, scene: &Scene, case: &mut Case) -> Result<Known, DropReason> {
    let Some(flow) = maps.flow(&case.key) else {
        return Ok(Known::Absent);
    };
    case.is_entered = true;
    if flow.role == ROLE_PLAIN {
        return known_by(flow, scene, case);
    }
    let (role, peer, peer_port) = (flow.role, flow.peer, flow.peer_port);
    if role == ROLE_TRANSLATED || role == ROLE_HAIRPIN {
        return match (scene.direction, role) {
            (Direction::Egress, _) => {
                case.remote = peer;
                case.remote_port = peer_port;
                case.target = peer;
                case.target_port = peer_port;
                case.way = service::way_out(flow);
                let known = known_by(flow, scene, case)?;
                if !service::takes_piece(case.way, case.headers.piece) {
                    return Err(DropReason::HairpinFragment);
                }
                if matches!(known, Known::Absent | Known::Revoked) {
                    // Opened anew, with the backend that the service has for it.
                    case.way = Way::Straight;
                    case.remote = case.key.remote;
                    case.remote_port = case.key.remote_port;
                }
                Ok(known)
            }
            (Direction::Ingress, ROLE_HAIRPIN) if scene.is_returned => Ok(Known::Returned),
            (Direction::Ingress, _) => Err(DropReason::NoFlow),
        };
    }
    known_from_half(maps, scene, case, role, &peer, peer_port)
}

/// What the flow table says of a packet that was found under the entry of a flow's other half.
#[inline(always)]
fn known_from_half<M: Maps>(
    maps: &mut M,
    scene: &Scene,
    case: &mut Case,
    role: u8,
    peer: &Address,
    peer_port: u16,
) -> Result<Known, DropReason> {
    let half = service::follow(maps, role, peer, peer_port, scene.now_ns, case);
    case.way = match (half, scene.direction) {
        (Half::Dead, _) => return Ok(Known::Absent),
        (Half::Reply, Direction::Ingress) => Way::FromBackend,
        (Half::Hairpin, Direction::Egress) => Way::HairpinBack,
        (Half::Hairpin, Direction::Ingress) if scene.is_returned => return Ok(Known::Returned),
        (Half::Hairpin, Direction::Ingress) => return Err(DropReason::NoFlow),
        // The endpoint speaks to the backend itself, from the port that it speaks to the service from.
        (Half::Reply, Direction::Egress) => return Err(DropReason::ServiceClash),
    };
    if !service::takes_piece(case.way, case.headers.piece) {
        return Err(DropReason::HairpinFragment);
    }
    case.target_port = case.twin.remote_port;
    // Judged is who opened the flow, and where it ends.
    if let Way::HairpinBack = case.way {
        case.target = case.twin.local;
        case.remote = case.key.local;
        case.remote_port = case.key.local_port;
    } else {
        case.target = case.twin.remote;
        case.remote = case.key.remote;
        case.remote_port = case.key.remote_port;
    }
    case.key = case.twin;
    let Some(flow) = maps.flow(&case.key) else {
        return Err(DropReason::NoFlow);
    };
    match known_by(flow, scene, case)? {
        // A flow to a service is opened from this side alone.
        Known::Absent | Known::Revoked => Err(DropReason::NoFlow),
        known @ (Known::Current | Known::Stale(..) | Known::Returned) => Ok(known),
    }
}

#[inline(always)]
fn known_by(flow: &mut Flow, scene: &Scene, case: &mut Case) -> Result<Known, DropReason> {
    if flow_is_expired(case.key.protocol, flow, scene.now_ns) {
        return Ok(Known::Absent);
    }
    let opener = opener(flow);
    let is_reply = is_reply(case.way, opener, scene.direction);
    if case.headers.opens() {
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
    case.is_midway = flow.midway != 0;
    if flow.state == FLOW_REVOKED {
        flow.seen_ns = scene.now_ns;
        return if is_reply { Err(DropReason::Revoked) } else { Ok(Known::Revoked) };
    }
    if flow.generation != case.generation {
        let standing =
            if flow.clause == NO_CLAUSE { Standing::LiveFromNode } else { Standing::Live };
        return Ok(Known::Stale(opener, standing));
    }
    note(flow, is_reply, opener, case.length, scene.now_ns, case.headers.ends());
    Ok(Known::Current)
}

/// Whether a packet that opens nothing goes on with the flow, without anybody being asked.
#[inline(always)]
pub(super) const fn goes_on(flow: &Flow, number: u8, generation: u32, now_ns: u64) -> bool {
    flow.role == ROLE_PLAIN
        && flow.state != FLOW_REVOKED
        && flow.generation == generation
        && !flow_is_expired(number, flow, now_ns)
}

/// Lets such a packet leave its traces.
#[inline(always)]
pub(super) fn note_known(flow: &mut Flow, scene: &Scene, length: u32, ends: bool) {
    let opener = opener(flow);
    let is_reply = is_reply(Way::Straight, opener, scene.direction);
    note(flow, is_reply, opener, length, scene.now_ns, ends);
}

/// Whether the packet comes from who did not open the flow.
#[inline(always)]
const fn is_reply(way: Way, opener: Direction, direction: Direction) -> bool {
    matches!(way, Way::HairpinBack) || opener as u8 != direction as u8
}

/// Lets the packet leave its traces in the flow.
#[inline(always)]
fn note(flow: &mut Flow, is_reply: bool, opener: Direction, length: u32, now_ns: u64, ends: bool) {
    let side = if is_reply { opener.reverse() } else { opener } as usize & 1;
    flow.packets[side] = flow.packets[side].wrapping_add(1);
    flow.octets[side] = flow.octets[side].wrapping_add(length as u64);
    flow.seen_ns = now_ns;
    if ends {
        flow.state = FLOW_CLOSING;
    } else if flow.state == FLOW_OPENING && is_reply {
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
    outcome: Result<(), DropReason>,
) -> Result<Pass, DropReason> {
    // Nobody can say yet: the flow is neither let through nor cut before somebody can.
    if let Err(DropReason::Incomplete) = outcome {
        return Err(DropReason::Incomplete);
    }
    // Gone by now only if user space removed it in between: the next packet finds it absent.
    let flow = maps.flow(&case.key).ok_or(DropReason::NoFlow)?;
    if outcome.is_ok() {
        flow.generation = case.generation;
        flow.table = case.table;
        flow.clause = case.clause;
        flow.audit = case.audit;
        let opener = opener(flow);
        let is_reply = is_reply(case.way, opener, scene.direction);
        note(flow, is_reply, opener, case.length, scene.now_ns, case.headers.ends());
        return Ok(Pass::Judged);
    }
    // Of the generation before: another processor may be about to write the state of a packet that it let
    // through just then, and the next packet is judged again.
    flow.seen_ns = scene.now_ns;
    flow.state = FLOW_REVOKED;
    Err(DropReason::Revoked)
}

/// Enters a flow whose first packet is let through.
#[inline(always)]
fn begin<M: Maps>(maps: &mut M, scene: &Scene, case: &mut Case) -> Result<Pass, DropReason> {
    case.flow = Flow::UNKNOWN;
    case.flow.created_ns = scene.now_ns;
    case.flow.seen_ns = scene.now_ns;
    case.flow.generation = case.generation;
    case.flow.table = case.table;
    case.flow.clause = case.clause;
    case.flow.audit = case.audit;
    case.flow.initiator = scene.direction as u8;
    case.flow.midway = case.is_midway as u8;
    if !matches!(case.way, Way::Straight) {
        begin_other(maps, scene, case)?;
    }
    let (length, ends) = (case.length, case.headers.ends());
    note(&mut case.flow, false, scene.direction, length, scene.now_ns, ends);
    if !case.is_entered {
        claim(maps, case)?;
    }
    maps.put_flow(&case.key, &case.flow).map_err(|Full| DropReason::FlowsFull)?;
    case.is_first = true;
    Ok(Pass::Judged)
}

/// Takes room for an entry. An endpoint may hold as many as are left: one that takes all it can
/// leaves half of the table to the others, two leave a third, and so on.
#[inline(always)]
fn claim<M: Maps>(maps: &mut M, case: &Case) -> Result<(), DropReason> {
    let key = QuotaKey { ifindex: case.key.ifindex, epoch: case.key.epoch };
    let room = maps.config().ok_or(DropReason::MissingRow)?.flows_max as u64;
    match maps.claim_flow(&key, |own, all| own < room.saturating_sub(all)) {
        Some(true) => Ok(()),
        Some(false) => Err(DropReason::Quota),
        None => Err(DropReason::MissingRow),
    }
}

/// Enters the other half of a flow to a service: before the flow itself, without which it means
/// nothing.
#[inline(always)]
fn begin_other<M: Maps>(maps: &mut M, scene: &Scene, case: &mut Case) -> Result<(), DropReason> {
    service::find_other(case);
    if service::clashes(maps, scene, case) {
        return Err(DropReason::ServiceClash);
    }
    let is_hairpin = matches!(case.way, Way::HairpinOut);
    case.flow.role = if is_hairpin { ROLE_HAIRPIN_SERVER } else { ROLE_REPLY };
    case.flow.peer = if is_hairpin { case.key.local } else { case.key.remote };
    case.flow.peer_port = case.key.remote_port;
    if maps.flow(&case.twin).is_none() {
        claim(maps, case)?;
    }
    maps.put_flow(&case.twin, &case.flow).map_err(|Full| DropReason::FlowsFull)?;
    case.flow.role = if is_hairpin { ROLE_HAIRPIN } else { ROLE_TRANSLATED };
    case.flow.peer = case.target;
    case.flow.peer_port = case.target_port;
    Ok(())
}

/// The verdict on an ICMP error: it goes where a known flow does, and refreshes nothing.
#[inline(always)]
pub(super) fn related<P: Packet, M: Maps>(
    packet: &P,
    maps: &mut M,
    scene: &Scene,
    case: &mut Case,
) -> Result<Verdict, DropReason> {
    if !find_quoted(packet, scene.ifindex, scene.direction, case) {
        return Err(DropReason::Unrelated);
    }
    let Some(flow) = maps.flow(&case.quoted) else {
        return Err(DropReason::Unrelated);
    };
    if flow.role == ROLE_PLAIN {
        let is_live = counts(flow, scene, case);
        return if is_live {
            Ok(Verdict::Forward(Pass::Related))
        } else {
            Err(DropReason::Unrelated)
        };
    }
    let (role, peer, peer_port) = (flow.role, flow.peer, flow.peer_port);
    // What an endpoint says about packets of a service would have to be rewritten twice: no stack
    // depends on it.
    if role != ROLE_REPLY || !matches!(scene.direction, Direction::Ingress) {
        return Err(DropReason::Unrelated);
    }
    case.key = case.quoted;
    if let Half::Dead = service::follow(maps, role, &peer, peer_port, scene.now_ns, case) {
        return Err(DropReason::Unrelated);
    }
    case.target = peer;
    case.target_port = peer_port;
    case.way = Way::Quoted;
    match maps.flow(&case.twin) {
        Some(flow) if counts(flow, scene, case) => Ok(case.let_through(Pass::Related)),
        Some(_) | None => Err(DropReason::Unrelated),
    }
}

/// Whether an error about the flow may go where the flow does. One about a flow that waits to be
/// judged again comes again after that.
#[inline(always)]
fn counts(flow: &Flow, scene: &Scene, case: &Case) -> bool {
    flow.state != FLOW_REVOKED
        && !flow_is_expired(case.quoted.protocol, flow, scene.now_ns)
        && flow.generation == case.generation
}

/// Finds the flow that an ICMP error is about. Whoever gets the error has to be who sent the packet
/// that it quotes. Not inlined, for the sake of the kernel's stack.
#[inline(never)]
fn find_quoted<P: Packet>(packet: &P, ifindex: u32, direction: Direction, case: &mut Case) -> bool {
    let quoted = &mut case.embedded;
    if !quoted.read(packet, &case.headers) || !quoted.source.is(&case.headers.destination) {
        return false;
    }
    let key = &mut case.quoted;
    (key.local, key.remote, key.local_port, key.remote_port) = match direction {
        Direction::Egress => {
            (quoted.destination, quoted.source, quoted.destination_port, quoted.source_port)
        }
        Direction::Ingress => {
            (quoted.source, quoted.destination, quoted.source_port, quoted.destination_port)
        }
    };
    key.ifindex = ifindex;
    key.epoch = case.epoch;
    key.protocol = quoted.protocol;
    true
}

/// Asks the rules about the flow. Where nobody saw it open, as when the program is attached to a
/// running endpoint, it may have been opened from either side: then the rules of both have to let it
/// through.
#[inline(always)]
fn judge<M: Maps>(
    maps: &mut M,
    scene: &Scene,
    case: &mut Case,
    question: Question,
) -> Result<(), DropReason> {
    if question.is_midway() {
        case.opener = question.reversed().opener();
        let other = maps.ask(question.reversed(), scene.now_ns, scene.is_from_node, case);
        case.opener = question.opener();
        if other.is_err() {
            case.clause = NO_CLAUSE;
            case.audit = NO_CLAUSE;
            return Err(DropReason::NoFlow);
        }
    }
    case.opener = question.opener();
    maps.ask(question, scene.now_ns, scene.is_from_node, case)?;
    if !matches!(case.way, Way::HairpinOut | Way::HairpinBack) {
        return Ok(());
    }
    // The same endpoint is the server: its ingress rules have to let the flow in, too.
    let (clause, audit) = (case.clause, case.audit);
    let question = question.of_server();
    case.opener = question.opener();
    maps.ask(question, scene.now_ns, false, case)?;
    case.opener = Direction::Egress;
    case.clause = clause;
    if audit != NO_CLAUSE {
        case.audit = audit;
    }
    Ok(())
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
