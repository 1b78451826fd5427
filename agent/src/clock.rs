//! The clocks of the agent: the monotonic one that deadlines live on, and wall time for records.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use namegate_policy::time::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// The present on the clock that the kernel program reads.
pub fn monotonic_now() -> Timestamp {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Timestamp::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// How far the wall clock may run from the monotonic one between two looks without having been set.
const DRIFT: Duration = Duration::from_secs(2);

/// Notices that the wall clock was set. Deadlines live on the monotonic one: nothing opens or closes by
/// it, and times in records are others.
#[derive(Debug)]
pub struct WallWatch {
    now: Timestamp,
    wall: SystemTime,
}

impl WallWatch {
    /// Begins with what both clocks say.
    pub fn begin() -> Self {
        Self { now: monotonic_now(), wall: SystemTime::now() }
    }

    /// Looks at both clocks, and warns where the wall clock was set since the last look.
    pub fn look(&mut self) {
        let Some(step) = self.step(monotonic_now(), SystemTime::now()) else { return };
        tracing::warn!(
            "the node's clock was set {step}: times in records jump by that; names and connections go by another clock, and what is in force stays"
        );
    }

    fn step(&mut self, now: Timestamp, wall: SystemTime) -> Option<String> {
        let expected = self.wall + now.since(self.now);
        (self.now, self.wall) = (now, wall);
        let (by, direction) = match wall.duration_since(expected) {
            Ok(by) => (by, "forward"),
            Err(error) => (error.duration(), "back"),
        };
        (by > DRIFT).then(|| format!("{direction} by {} s", by.as_secs()))
    }
}

/// Wall time of `at`, given what both clocks say.
pub fn wall_time(at: Timestamp, now: Timestamp, wall: SystemTime) -> SystemTime {
    if at > now {
        wall + at.since(now)
    } else {
        wall.checked_sub(now.since(at)).unwrap_or(UNIX_EPOCH)
    }
}

/// `at` in UTC as RFC 3339 writes it, with microseconds. Written by hand: each record has one.
pub fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    let fields = [(0..4, year), (5..7, month), (8..10, day), (11..13, hour), (14..16, minute)];
    let fine = [(17..19, second), (20..26, u64::from(since.subsec_micros()))];
    for (place, mut number) in fields.into_iter().chain(fine) {
        for digit in text[place].iter_mut().rev() {
            *digit += u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
        }
    }
    text.into_iter().map(char::from).collect()
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years are
/// counted from March so that the leap day is a year's last.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    const DAYS_TO_EPOCH: u64 = 719_468;
    let shifted = days + DAYS_TO_EPOCH;
    let (era, of_era) = (shifted / DAYS_OF_400_YEARS, shifted % DAYS_OF_400_YEARS);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3339_knows_the_calendar() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
            (1_735_689_600, "2025-01-01T00:00:00.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
        let micros = UNIX_EPOCH + Duration::from_nanos(1_234_567);
        assert_eq!(rfc3339(micros), "1970-01-01T00:00:00.001234Z");
    }

    #[test]
    fn wall_time_follows_the_distance_between_the_clocks() {
        let now = Timestamp::from_nanos(10_000_000_000);
        let wall = UNIX_EPOCH + Duration::from_secs(100);
        let at =
            |seconds: u64| wall_time(Timestamp::from_nanos(seconds * 1_000_000_000), now, wall);
        assert_eq!(at(7), UNIX_EPOCH + Duration::from_secs(97));
        assert_eq!(at(12), UNIX_EPOCH + Duration::from_secs(102));
    }

    #[test]
    fn a_clock_that_is_set_is_told_of_once() {
        let at = |seconds: u64| Timestamp::from_nanos(seconds * 1_000_000_000);
        let wall = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
        let mut watch = WallWatch { now: at(10), wall: wall(1_000) };
        assert_eq!(watch.step(at(11), wall(1_001)), None);
        assert_eq!(watch.step(at(12), wall(1_003)), None, "it is slewed");
        assert_eq!(watch.step(at(13), wall(4_604)).as_deref(), Some("forward by 3600 s"));
        assert_eq!(watch.step(at(14), wall(4_605)), None);
        assert_eq!(watch.step(at(15), wall(606)).as_deref(), Some("back by 4000 s"));
        assert_eq!(watch.step(at(75), wall(666)), None, "however long nobody looked");
    }

    #[test]
    fn monotonic_clock_moves_forward() {
        let first = monotonic_now();
        assert!(monotonic_now() >= first);
    }
}
