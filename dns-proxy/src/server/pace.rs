//! When a worker pauses so that messages gather.
//!
//! A worker that is woken for each message pays a wake-up, four system calls and a batch of map writes
//! for it. Under load it does better to let some arrive and pay once for all: as network cards do with
//! interrupts. Below [`BUSY`] a message is worked on as soon as it is there.

use std::time::Duration;

use rustix::thread::nanosleep;

/// Turns with next to no waiting and few messages, one after the other, that make a load.
const BUSY: u8 = 4;
/// A turn that came sooner than this after the last found the worker's time well used.
const SOON: Duration = Duration::from_micros(40);
/// Few messages of a turn: a pause would bring more.
const FEW: usize = 8;
/// As many have to gather in a pause for the next one to be worth it.
const WORTH: usize = 4;
/// How long messages gather; the kernel's timers add as much again.
const PAUSE: Duration = Duration::from_micros(50);

/// How a worker's turns followed each other lately.
#[derive(Debug, Default)]
pub(super) struct Pace {
    thin: u8,
    has_paused: bool,
}

impl Pace {
    /// Takes note of a turn with so many messages, before which nothing was there for `waited`; says
    /// whether to pause before the next.
    fn note(&mut self, messages: usize, waited: Duration) -> bool {
        self.thin = match (self.has_paused, messages) {
            (true, 0..WORTH) => 0,
            (true, _) => self.thin,
            (false, 0..FEW) if waited < SOON => (self.thin + 1).min(BUSY),
            (false, _) => 0,
        };
        self.has_paused = self.thin == BUSY;
        self.has_paused
    }

    /// Lets messages gather where a load is on.
    pub(super) fn keep(&mut self, messages: usize, waited: Duration) {
        if self.note(messages, waited)
            && let Ok(pause) = PAUSE.try_into()
        {
            // A signal that ends it early does no harm.
            let _ = nanosleep(&pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_micros(150);

    #[test]
    fn messages_gather_under_load_alone() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            // A query, and its answer soon after: five thousand a second.
            assert!(!pace.note(1, LONG) && !pace.note(1, Duration::ZERO));
        }
        let turns: Vec<bool> = (0..5).map(|_| pace.note(1, Duration::ZERO)).collect();
        assert_eq!(
            turns,
            [false, false, true, false, false],
            "a pause that brings one is the last"
        );
        for _ in 0..3 {
            pace.note(1, Duration::ZERO);
        }
        assert!((0..10).all(|_| pace.note(16, Duration::ZERO)), "as long as it is worth it");
        assert!(!pace.note(0, LONG));
        assert!(!(0..10).any(|_| pace.note(64, Duration::ZERO)), "batches are full by themselves");
    }
}
