//! Services: the backend is chosen here, so that what is judged is what is reached.
//!
//! A flow of a governed endpoint to a service's address gets its backend with its first packet, is
//! judged by that backend, and is rewritten before anything else on the node could translate it. Two
//! entries stand for it: one under the service, as the endpoint sees the flow, which holds the
//! backend; and one under the backend, which leads what comes back to the first.

use super::conntrack::flow_is_expired;
use super::{Case, IDENTITY_HOST, Maps, Scene, Way, dns, is_incomplete};
use crate::abi::{
    Address, BackendKey, DropReason, FLOW_REVOKED, Flow, FlowKey, ROLE_HAIRPIN,
    ROLE_HAIRPIN_SERVER, ROLE_REPLY, ROLE_TRANSLATED, SERVICE_AFFINE, Service, ServiceKey,
};
use crate::packet::{Kind, Piece, protocol};

/// Where the entry of a flow's other half leads.
#[derive(Clone, Copy)]
pub(super) enum Half {
    /// Nowhere: the flow is over, and the entry means nothing.
    Dead,
    /// To a flow of an endpoint with a backend.
    Reply,
    /// To a flow of an endpoint with itself.
    Hairpin,
}

/// Whether the flow's other end is a service that is translated here.
#[inline(always)]
pub(super) fn is_meant<M: Maps>(maps: &M, case: &Case) -> bool {
    has_ports(case.headers.kind) && case.is_translated && find(maps, case).is_some()
}

/// Chooses the backend of a flow that is about to be opened, where its destination is a service, and
/// leaves in the case who is to be judged and how packets are rewritten.
#[inline(always)]
pub(super) fn choose<M: Maps>(maps: &M, case: &mut Case) -> Result<(), DropReason> {
    if !has_ports(case.headers.kind) || !case.is_translated {
        return Ok(());
    }
    let Some(service) = find(maps, case) else {
        // A port of the node may be that of a service that is not written.
        let is_node = || maps.identity(&case.remote) == Some(IDENTITY_HOST);
        return if is_incomplete(maps.config()) && is_node() {
            Err(DropReason::Incomplete)
        } else {
            Ok(())
        };
    };
    let is_affine = service.flags & SERVICE_AFFINE != 0;
    let place = place(&case.key, service.backends, is_affine);
    let backend = maps
        .backend(&BackendKey { list: service.list, place })
        .filter(|_| service.backends != 0)
        .ok_or(DropReason::NoBackend)?;
    if case.key.protocol == protocol::SCTP && backend.port != case.key.remote_port {
        // Its checksum covers the port, and no helper of the kernel mends it.
        return Err(DropReason::ServiceProtocol);
    }
    case.remote = backend.address;
    case.remote_port = backend.port;
    case.target = backend.address;
    case.target_port = backend.port;
    let endpoint = maps.endpoint(case.key.ifindex).ok_or(DropReason::NoEndpoint)?;
    case.way = if endpoint.has(&case.remote) { Way::HairpinOut } else { Way::ToBackend };
    refuse_resolver(maps, case)?;
    if !takes_piece(case.way, case.headers.piece) {
        return Err(DropReason::HairpinFragment);
    }
    Ok(())
}

/// Refuses a flow of lookups that would reach a resolver by way of a service, past the proxy. While
/// resolvers may be missing from the map, any backend of that port may be one.
#[inline(always)]
pub(super) fn refuse_resolver<M: Maps>(maps: &M, case: &Case) -> Result<(), DropReason> {
    let is_straight = matches!(case.way, Way::Straight);
    if is_straight || !case.is_dns_governed || case.remote_port != dns::PORT {
        return Ok(());
    }
    if maps.resolver_slot(&case.remote).is_some() {
        return Err(DropReason::HiddenResolver);
    }
    if is_incomplete(maps.config()) {
        return Err(DropReason::Incomplete);
    }
    Ok(())
}

/// The entry under which packets of a flow's other half are found.
#[inline(always)]
pub(super) fn find_other(case: &mut Case) {
    let (flow, other) = (&case.key, &mut case.twin);
    *other = *flow;
    if let Way::HairpinOut = case.way {
        other.local = case.target;
        other.local_port = case.target_port;
        other.remote_port = flow.local_port;
    } else {
        other.remote = case.target;
        other.remote_port = case.target_port;
    }
}

/// Puts the flow that an entry of another half leads to in the place of the entry: its key, who is
/// judged, and how the packet is rewritten. Not inlined, for the sake of the kernel's stack.
#[inline(never)]
pub(super) fn follow<M: Maps>(
    maps: &mut M,
    role: u8,
    peer: &Address,
    peer_port: u16,
    now_ns: u64,
    case: &mut Case,
) -> Half {
    case.twin = case.key;
    let half = if role == ROLE_REPLY {
        case.twin.remote = *peer;
        case.twin.remote_port = peer_port;
        Half::Reply
    } else {
        case.twin.local = *peer;
        case.twin.local_port = case.key.remote_port;
        case.twin.remote_port = peer_port;
        Half::Hairpin
    };
    let Some(flow) = maps.flow(&case.twin) else {
        return Half::Dead;
    };
    let is_its_half = match half {
        Half::Reply => flow.role == ROLE_TRANSLATED && flow.peer.is(&case.key.remote),
        Half::Hairpin => flow.role == ROLE_HAIRPIN && flow.peer.is(&case.key.local),
        Half::Dead => false,
    };
    let port = if let Half::Hairpin = half { case.key.local_port } else { case.key.remote_port };
    if !is_its_half || flow.peer_port != port || flow_is_expired(case.key.protocol, flow, now_ns) {
        return Half::Dead;
    }
    half
}

/// Whether the entry under `case.twin` means something to another flow than the one of `case`.
#[inline(always)]
pub(super) fn clashes<M: Maps>(maps: &mut M, scene: &Scene, case: &mut Case) -> bool {
    let Some(flow) = maps.flow(&case.twin) else {
        return false;
    };
    let (role, peer, peer_port) = (flow.role, flow.peer, flow.peer_port);
    if role != ROLE_REPLY && role != ROLE_HAIRPIN_SERVER {
        return flow.state != FLOW_REVOKED
            && !flow_is_expired(case.key.protocol, flow, scene.now_ns);
    }
    // Its own entry, of before it was opened again: the same service from the same port.
    let is_own = if role == ROLE_REPLY {
        peer.is(&case.key.remote) && peer_port == case.key.remote_port
    } else {
        peer.is(&case.key.local) && peer_port == case.key.remote_port
    };
    if is_own {
        return false;
    }
    let own = case.key;
    case.key = case.twin;
    let half = follow(maps, role, &peer, peer_port, scene.now_ns, case);
    case.twin = case.key;
    case.key = own;
    !matches!(half, Half::Dead)
}

/// The way of a flow's packets from its opener.
#[inline(always)]
pub(super) const fn way_out(flow: &Flow) -> Way {
    match flow.role {
        ROLE_TRANSLATED => Way::ToBackend,
        ROLE_HAIRPIN => Way::HairpinOut,
        _ => Way::Straight,
    }
}

/// Whether a piece may be rewritten as `way` says: what an endpoint sends itself is not followed by
/// fragments.
#[inline(always)]
pub(super) const fn takes_piece(way: Way, piece: Piece) -> bool {
    !(matches!(way, Way::HairpinOut | Way::HairpinBack) && matches!(piece, Piece::First))
}

/// The service that the flow's destination is: at that address, or at every address of the node.
#[inline(always)]
fn find<'a, M: Maps>(maps: &'a M, case: &Case) -> Option<&'a Service> {
    let mut key = ServiceKey {
        address: case.key.remote,
        port: case.key.remote_port,
        protocol: case.key.protocol,
        padding: 0,
    };
    if let Some(service) = maps.service(&key) {
        return Some(service);
    }
    key = key.at_node();
    let is_node = || maps.identity(&case.key.remote) == Some(IDENTITY_HOST);
    maps.service(&key).filter(|_| is_node())
}

#[inline(always)]
const fn has_ports(kind: Kind) -> bool {
    matches!(kind, Kind::Tcp | Kind::Udp | Kind::Sctp)
}

/// The backend's place in a list of `count`: the same for all packets that open the same flow, and
/// for an affine service for all flows of a client.
#[inline(always)]
fn place(key: &FlowKey, count: u16, is_affine: bool) -> u32 {
    let (a, b) = key.local.halves();
    let (c, d) = key.remote.halves();
    let mut hash = mix(a ^ mix(b ^ mix(c ^ mix(d))));
    if !is_affine {
        let ports = (key.local_port as u64) << 16 | key.remote_port as u64;
        hash = mix(hash ^ ports);
    }
    (((hash >> 32) * count as u64) >> 32) as u32
}

/// A step of SplitMix64's finaliser.
#[inline(always)]
pub(super) const fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
