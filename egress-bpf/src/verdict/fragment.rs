//! Fragments: the first is judged and remembered, the later ones follow it.
//!
//! Each endpoint has a few places of its own for datagrams in pieces, so that none can push out what
//! another's pieces wait for.

use super::service::mix;
use super::{Case, Maps, Scene, Verdict, Way};
use crate::abi::{Address, Direction, DropReason, FRAGMENTS_EACH, FragmentKey, Pass};

/// How long the pieces of a datagram are waited for; Linux gives up after 30 s.
const REASSEMBLY_NS: u64 = 30_000_000_000;

/// The verdict on a later fragment.
#[inline(always)]
pub(super) fn later<M: Maps>(
    maps: &M,
    scene: &Scene,
    case: &mut Case,
) -> Result<Verdict, DropReason> {
    let key = describe(scene, case);
    let Some(first) = maps.fragment(&key) else {
        return Err(DropReason::UnknownFragment);
    };
    let is_current = scene.now_ns < first.deadline_ns && first.generation == case.generation;
    if !is_current || !first.is_of(&case.fragment) {
        return Err(DropReason::UnknownFragment);
    }
    if !first.target.is(&Address::UNSPECIFIED) {
        case.target = first.target;
        case.way = match scene.direction {
            Direction::Egress => Way::ToBackend,
            Direction::Ingress => Way::FromBackend,
        };
    }
    Ok(case.let_through(Pass::Fragment))
}

/// Remembers that a first fragment is let through.
#[inline(always)]
pub(super) fn remember<M: Maps>(
    maps: &mut M,
    scene: &Scene,
    case: &mut Case,
) -> Result<(), DropReason> {
    let key = describe(scene, case);
    let first = &mut case.fragment;
    first.deadline_ns = scene.now_ns.saturating_add(REASSEMBLY_NS);
    first.generation = case.generation;
    first.target = if let Way::Straight = case.way { Address::UNSPECIFIED } else { case.target };
    maps.put_fragment(&key, &case.fragment).map_err(|super::Full| DropReason::FragmentsFull)
}

/// Leaves in the case what tells its datagram from others, and finds the place that it has.
#[inline(always)]
fn describe(scene: &Scene, case: &mut Case) -> FragmentKey {
    let (headers, piece) = (&case.headers, &mut case.fragment);
    // As every piece carries them, translated or not.
    (piece.local, piece.remote) = match scene.direction {
        Direction::Egress => (headers.source, headers.destination),
        Direction::Ingress => (headers.destination, headers.source),
    };
    piece.epoch = case.epoch;
    piece.identification = headers.identification;
    piece.protocol = headers.protocol;
    piece.direction = scene.direction as u8;
    let (a, b) = piece.remote.halves();
    let (c, d) = piece.local.halves();
    let rest =
        (piece.identification as u64) << 16 | (piece.protocol as u64) << 8 | piece.direction as u64;
    let place = mix(a ^ mix(b ^ mix(c ^ mix(d ^ mix(rest))))) as u32 % FRAGMENTS_EACH;
    FragmentKey { ifindex: scene.ifindex, place }
}
