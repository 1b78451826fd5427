//! Damaged frames: the named ones with octets changed, taken out, put in, and parts of two put together.
//!
//! Each goes through the kernel program and through the host's verdict function, which must agree on what
//! becomes of it and on every trace it leaves: nothing passes that the host refuses. Repeatable from the
//! seed alone; 200,000 frames in `make test`, five million in `make nightly`.

use anyhow::{Context as _, Result};
use namegate_egress_bpf::abi::Direction;
use namegate_integration::lab;

use crate::frames;
use crate::random::Random;
use crate::twin::Twin;
use crate::variable;

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
    let corpus: Vec<(Direction, Vec<u8>)> = frames::rows()
        .into_iter()
        .flat_map(|row| row.before.into_iter().chain([(row.direction, row.frame)]))
        .filter(|(_, frame)| frame.len() <= 400)
        .collect();
    let (mut twin, world) = (Twin::open("damaged")?, frames::world());
    let mut random = Random::new(seed.wrapping_add(0x00da_ea6e));
    let mut judged = 0;
    while judged < wanted {
        twin.enter(&world)?;
        for _ in 0..FRAMES_PER_POD {
            let (direction, mut frame) = random.pick(&corpus);
            // Some go as they are, so that there are flows for others to belong to.
            if !random.once_in(4) {
                damage(&mut frame, &corpus, &mut random);
            }
            frame.resize(frame.len().clamp(54, 600), 0);
            twin.judge(direction, &frame)
                .with_context(|| format!("seed {seed}: {direction:?} {frame:02x?}"))?;
        }
        twin.compare().with_context(|| format!("seed {seed}, after {judged} frames"))?;
        judged += FRAMES_PER_POD;
    }
    println!("{judged} damaged frames");
    twin.close()
}

fn damage(frame: &mut Vec<u8>, corpus: &[(Direction, Vec<u8>)], random: &mut Random) {
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
                let (_, other) = random.pick(corpus);
                let from = at.min(other.len());
                frame.truncate(at);
                frame.extend(&other[from..]);
            }
        }
    }
}
