//! How long pods' interfaces were there before their policy was.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::endpoints::Town;

/// The interfaces that came since the agent's start.
#[derive(Debug, Default)]
pub(super) struct Windows(BTreeMap<u32, Window>);

#[derive(Debug)]
struct Window {
    told_at: Instant,
    is_open: bool,
}

impl Windows {
    /// Takes the interfaces that are there, and when the kernel told of each.
    pub(super) fn note(&mut self, town: &Town) {
        self.0.retain(|index, window| town.told_at.get(index) == Some(&window.told_at));
        for (index, told_at) in &town.told_at {
            self.0.entry(*index).or_insert(Window { told_at: *told_at, is_open: true });
        }
    }

    /// Closes the windows of those interfaces on which a policy is in force; says which, and how long
    /// each was open.
    pub(super) fn close(
        &mut self,
        is_in_force: impl Fn(u32) -> bool,
        now: Instant,
    ) -> Vec<(u32, Duration)> {
        let mut closed = Vec::new();
        for (index, window) in self.0.iter_mut().filter(|(_, window)| window.is_open) {
            if is_in_force(*index) {
                window.is_open = false;
                closed.push((*index, now.saturating_duration_since(window.told_at)));
            }
        }
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_town(told_at: &[(u32, Instant)]) -> Town {
        Town { told_at: told_at.iter().copied().collect(), ..Town::default() }
    }

    #[test]
    fn a_window_is_measured_once_for_each_interface_that_came() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut windows = Windows::default();
        windows.note(&mk_town(&[(7, began), (8, began)]));
        assert_eq!(windows.close(|_| false, after(1)), []);
        assert_eq!(windows.close(|index| index == 7, after(2)), [(7, Duration::from_secs(2))]);
        windows.note(&mk_town(&[(7, began), (8, began)]));
        assert_eq!(
            windows.close(|index| index == 7, after(3)),
            [],
            "a change of its policy is none"
        );

        windows.note(&mk_town(&[(8, began)]));
        windows.note(&mk_town(&[(7, after(5)), (8, began)]));
        let closed = windows.close(|_| true, after(6));
        let expected = [(7, Duration::from_secs(1)), (8, Duration::from_secs(6))];
        assert_eq!(closed, expected, "another interface of the same number");
    }
}
