//! The verdict in the kernel is the verdict on the host.
//!
//! Random tables, endpoints and frames are judged by the loaded program through
//! `BPF_PROG_TEST_RUN` and by the same code over simulated maps. After each batch everything that a
//! verdict leaves behind is compared: return codes, records, packet counters, rule hits, flows.

#[path = "verdict/random.rs"]
mod random;
#[path = "verdict/twin.rs"]
mod twin;

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use namegate_egress_bpf::abi::{Direction, DropReason, Pass};
use namegate_egress_bpf::datapath::{RanVerdict, Reason};
use namegate_egress_bpf::sim::frame;
use namegate_egress_bpf::verdict::Verdict;
use namegate_integration::lab;
use random::{Random, World};
use twin::Twin;

/// Frames that are compared, unless `NAMEGATE_FRAMES` says otherwise.
const FRAMES: u64 = 1_000_000;
const FRAMES_PER_TABLE: u64 = 2_000;

#[test]
fn kernel_and_host_agree_on_random_frames_and_tables() -> Result<()> {
    if !lab::can_run("kernel_and_host_agree_on_random_frames_and_tables")? {
        return Ok(());
    }
    let wanted = variable("NAMEGATE_FRAMES")?.unwrap_or(FRAMES);
    let seed = variable("NAMEGATE_SEED")?.unwrap_or(1);
    let mut twin = Twin::open("agree")?;
    let started = Instant::now();
    let mut frames = 0;
    let mut batch = 0;
    let mut seen = BTreeSet::new();
    while frames < wanted {
        batch += 1;
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(batch));
        let verdicts = judge_batch(&mut twin, &mut random)
            .with_context(|| format!("seed {seed}, batch {batch}"))?;
        seen.extend(verdicts);
        frames += FRAMES_PER_TABLE;
    }
    println!("{frames} frames under {batch} worlds in {:.1?}", started.elapsed());
    let missed: Vec<_> = every_verdict()
        .into_iter()
        .filter(|verdict| !seen.contains(verdict) && !is_out_of_reach(verdict))
        .collect();
    ensure!(frames < FRAMES || missed.is_empty(), "no frame ended in {missed:?}");
    twin.close()
}

/// One world: its frames under one table, then the rest under another, as after a policy change.
fn judge_batch(twin: &mut Twin, random: &mut Random) -> Result<BTreeSet<(Direction, Reason)>> {
    let mut world = World::random(random);
    twin.enter(&world)?;
    for part in 0..2 {
        if part == 1 {
            world.change_policy(random);
            twin.change_policy(&world)?;
        }
        for _ in 0..FRAMES_PER_TABLE / 2 {
            let direction = random.direction();
            let frame = world.frame(random, direction);
            twin.judge(direction, &frame).with_context(|| format!("{direction:?} {frame:02x?}"))?;
        }
    }
    twin.compare()
}

fn every_verdict() -> Vec<(Direction, Reason)> {
    let passes = Pass::ALL.iter().copied().map(Reason::Pass);
    let drops = DropReason::ALL.iter().copied().map(Reason::Drop);
    passes
        .chain(drops)
        .flat_map(|reason| [(Direction::Egress, reason), (Direction::Ingress, reason)])
        .collect()
}

/// Verdicts of one direction only, and gaps that a whole world has none of: unit tests make those
/// one by one.
fn is_out_of_reach(verdict: &(Direction, Reason)) -> bool {
    matches!(
        verdict,
        (Direction::Egress, Reason::Pass(Pass::FromProxy))
            | (Direction::Egress, Reason::Drop(DropReason::Misaddressed))
            | (Direction::Ingress, Reason::Pass(Pass::ToProxy))
            | (Direction::Ingress, Reason::Drop(DropReason::NoProxy))
            | (
                _,
                Reason::Drop(
                    DropReason::NoEndpoint
                        | DropReason::NoTable
                        | DropReason::MissingRow
                        | DropReason::FlowsFull
                        | DropReason::FragmentsFull
                        | DropReason::MappedAddress
                        | DropReason::Rewrite
                )
            )
    )
}

#[test]
fn rewritten_lookups_and_answers_have_right_checksums() -> Result<()> {
    if !lab::can_run("rewritten_lookups_and_answers_have_right_checksums")? {
        return Ok(());
    }
    let mut twin = Twin::open("rewrite")?;
    let mut random = Random::new(7);
    let mut world = World::random(&mut random);
    world.govern_dns();
    twin.enter(&world)?;
    let mut seen = [0; 2];
    for round in 0..400 {
        let direction = if round % 2 == 0 { Direction::Egress } else { Direction::Ingress };
        let exchange = frame::with_checksum(world.dns_frame(&mut random, direction));
        let (ran, verdict) = twin.judge(direction, &exchange)?;
        let side = match verdict {
            Verdict::ToProxy { .. } => 0,
            Verdict::FromProxy { .. } => 1,
            Verdict::Forward(_) | Verdict::Drop(_) => continue,
        };
        seen[side] += 1;
        ensure!(frame::has_right_checksums(&exchange), "built wrong: {exchange:02x?}");
        ensure!(
            frame::has_right_checksums(&ran.frame),
            "{exchange:02x?} became {:02x?}",
            ran.frame
        );
        ensure!(ran.frame != exchange, "nothing was rewritten");
        let is_redirected = matches!(ran.verdict, RanVerdict::Redirect);
        ensure!(is_redirected == matches!(verdict, Verdict::ToProxy { .. }));
    }
    ensure!(seen.iter().all(|count| *count > 20), "only {seen:?} were rewritten");
    twin.close()
}

fn variable(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name}={text}"))?)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(error).context(name.to_owned()),
    }
}
