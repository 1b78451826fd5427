//! Damaged frames: the named ones with octets changed, taken out, put in, and parts of two put together.
//!
//! Some go to services, and to the pod itself by way of one; one in four comes from somebody else than it
//! did: from the node, from another interface, from the pod itself. Each goes through the kernel program
//! and through the host's verdict function, which must agree on what becomes of it and on every trace it
//! leaves: nothing passes that the host refuses. Repeatable from the seed alone; 200,000 frames in
//! `make test`, five million in `make nightly`.

use anyhow::{Context as _, Result, ensure};
use namegate_egress_bpf::abi::Direction;
use namegate_egress_bpf::verdict::{Verdict, Way};
use namegate_integration::lab;

use crate::frames::{self, Row};
use crate::random::Random;
use crate::twin::{Origin, Twin};
use crate::variable;

/// A frame, which way it goes, and who had it before.
type Piece = (Origin, Direction, Vec<u8>);

const FRAMES: u64 = 200_000;
/// Frames that one pod sends and gets before the next has its place.
const FRAMES_PER_POD: u64 = 2_000;
/// Values that sit on an edge of something.
const EDGES: [u8; 16] = [0, 1, 2, 4, 5, 6, 8, 17, 44, 58, 0x45, 0x46, 0x60, 0x7f, 0x80, 0xff];

#[test]
fn kernel_and_host_agree_on_damaged_frames() -> Result<()> {
    if !lab::can_run("kernel_and_host_agree_on_damaged_frames")? {
        return Ok(());
    }
    let wanted = variable("NAMEGATE_DAMAGED_FRAMES")?.unwrap_or(FRAMES);
    let seed = variable("NAMEGATE_SEED")?.unwrap_or(1);
    let corpus: Vec<Piece> = frames::rows().into_iter().flat_map(pieces).collect();
    let (mut twin, world) = (Twin::open("damaged")?, frames::world());
    let mut random = Random::new(seed.wrapping_add(0x00da_ea6e));
    let mut judged = 0;
    let mut translated = [0_u64; 6];
    while judged < wanted {
        twin.enter(&world)?;
        for _ in 0..FRAMES_PER_POD {
            let (origin, direction, mut frame) = random.pick(&corpus);
            // Some go as they are, so that there are flows for others to belong to.
            if !random.once_in(4) {
                damage(&mut frame, &corpus, &mut random);
            }
            frame.resize(frame.len().clamp(54, 600), 0);
            let origin = if random.once_in(4) { Origin::any(&mut random) } else { origin };
            let (_, verdict) = twin.judge_from(origin, direction, &frame).with_context(|| {
                format!("seed {seed}: {direction:?} from {origin:?} {frame:02x?}")
            })?;
            if let Verdict::Translate { way, .. } = verdict {
                translated[way as usize] += 1;
            }
        }
        twin.compare().with_context(|| format!("seed {seed}, after {judged} frames"))?;
        judged += FRAMES_PER_POD;
    }
    println!("{judged} damaged frames, translated by way: {translated:?}");
    let ways = [Way::ToBackend, Way::FromBackend, Way::HairpinOut, Way::HairpinBack, Way::Quoted];
    let missed: Vec<Way> = ways.into_iter().filter(|way| translated[*way as usize] == 0).collect();
    ensure!(judged < FRAMES || missed.is_empty(), "no frame went {missed:?}");
    twin.close()
}

/// The row's frame and those before it, but for large ones.
fn pieces(row: Row) -> impl Iterator<Item = Piece> {
    let before = row.before.into_iter().map(|(direction, frame)| (Origin::Node, direction, frame));
    let frames = before.chain([(row.origin, row.direction, row.frame)]);
    frames.filter(|(_, _, frame)| frame.len() <= 400)
}

fn damage(frame: &mut Vec<u8>, corpus: &[Piece], random: &mut Random) {
    for _ in 0..=random.below(3) {
        // Where headers are, more often than not.
        let end = if random.once_in(4) { frame.len() } else { frame.len().min(78) };
        if end < 16 {
            return;
        }
        let at = 12 + random.below(end - 12);
        match random.below(8) {
            0 | 1 => frame[at] ^= 1 << random.below(8),
            2 => frame[at] = random.octet(),
            3 => frame[at] = random.pick(&EDGES),
            4 => frame[at] = frame[at].wrapping_add(random.pick(&[1, 255])),
            5 => {
                frame.remove(at);
            }
            6 => frame.insert(at, random.octet()),
            _ => {
                let (_, _, other) = random.pick(corpus);
                let from = at.min(other.len());
                frame.truncate(at);
                frame.extend(&other[from..]);
            }
        }
    }
}
