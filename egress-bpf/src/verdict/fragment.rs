//! Fragments: the first is judged and remembered, the later ones follow it.

use super::{Case, Maps, Scene, Verdict, Way};
use crate::abi::{Address, Direction, DropReason, Fragment, Pass};

/// How long the pieces of a datagram are waited for; Linux gives up after 30 s.
const REASSEMBLY_NS: u64 = 30_000_000_000;

/// The verdict on a later fragment.
#[inline(always)]
pub(super) fn later<M: Maps>(
    maps: &M,
    scene: &Scene,
    case: &mut Case,
) -> Result<Verdict, DropReason> {
    find_key(scene, case);
    match maps.fragment(&case.fragment) {
        Some(first) if scene.now_ns < first.deadline_ns && first.generation == case.generation => {
            if !first.target.is(&Address::UNSPECIFIED) {
                case.target = first.target;
                case.way = match scene.direction {
                    Direction::Egress => Way::ToBackend,
                    Direction::Ingress => Way::FromBackend,
                };
            }
            Ok(case.let_through(Pass::Fragment))
        }
        Some(_) | None => Err(DropReason::UnknownFragment),
    }
}

/// Remembers that a first fragment is let through.
#[inline(always)]
pub(super) fn remember<M: Maps>(
    maps: &mut M,
    scene: &Scene,
    case: &mut Case,
) -> Result<(), DropReason> {
    let first = Fragment {
        deadline_ns: scene.now_ns.saturating_add(REASSEMBLY_NS),
        generation: case.generation,
        padding: [0; 4],
        target: if let Way::Straight = case.way { Address::UNSPECIFIED } else { case.target },
    };
    find_key(scene, case);
    maps.put_fragment(&case.fragment, &first).map_err(|super::Full| DropReason::FragmentsFull)
}

#[inline(always)]
fn find_key(scene: &Scene, case: &mut Case) {
    let (headers, key) = (&case.headers, &mut case.fragment);
    // As every piece carries them, translated or not.
    (key.local, key.remote) = match scene.direction {
        Direction::Egress => (headers.source, headers.destination),
        Direction::Ingress => (headers.destination, headers.source),
    };
    key.ifindex = scene.ifindex;
    key.epoch = case.epoch;
    key.identification = headers.identification;
    key.protocol = headers.protocol;
    key.direction = scene.direction as u8;
}
