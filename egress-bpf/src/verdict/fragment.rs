//! Fragments: the first is judged and remembered, the later ones follow it.

use super::{Case, Maps, Scene, Verdict};
use crate::abi::{DropReason, Fragment, FragmentKey, Pass};

/// How long the pieces of a datagram are waited for; Linux gives up after 30 s.
const REASSEMBLY_NS: u64 = 30_000_000_000;

/// The verdict on a later fragment.
#[inline(always)]
pub(super) fn later<M: Maps>(maps: &M, scene: &Scene, case: &Case) -> Result<Verdict, DropReason> {
    let key = key(scene, case);
    match maps.fragment(&key) {
        Some(first) if scene.now_ns < first.deadline_ns && first.generation == case.generation => {
            Ok(Verdict::Forward(Pass::Fragment))
        }
        Some(_) | None => Err(DropReason::UnknownFragment),
    }
}

/// Remembers that a first fragment is let through.
#[inline(always)]
pub(super) fn remember<M: Maps>(
    maps: &mut M,
    scene: &Scene,
    case: &Case,
) -> Result<(), DropReason> {
    let first = Fragment {
        deadline_ns: scene.now_ns.saturating_add(REASSEMBLY_NS),
        generation: case.generation,
        padding: [0; 4],
    };
    maps.put_fragment(&key(scene, case), &first).map_err(|super::Full| DropReason::FragmentsFull)
}

#[inline(always)]
fn key(scene: &Scene, case: &Case) -> FragmentKey {
    let flow = case.flow_key(scene);
    FragmentKey {
        local: flow.local,
        remote: flow.remote,
        ifindex: flow.ifindex,
        epoch: flow.epoch,
        identification: case.headers.identification,
        protocol: flow.protocol,
        direction: scene.direction as u8,
        padding: [0; 2],
    }
}
