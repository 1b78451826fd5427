//! Deadlines that pass: a million live addresses of 100 identities, of names that nobody asks for again.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use namegate_policy::identity::Identity;
use namegate_policy::learned::{Learned, LearnedLimits, Look};
use namegate_policy::name::DnsName;
use namegate_policy::time::Timestamp;

use crate::report::{Report, timed};

const GROUP: &str = "deadlines: 1,000,000 live addresses, five minutes each";
const ADDRESSES: u32 = 1_000_000;
const IDENTITIES: u32 = 100;
const TTL: Duration = Duration::from_secs(300);
/// How often the agent looks at deadlines and at live flows, and how many addresses it ends at once.
const STEP: Duration = Duration::from_millis(20);
const SWEEP: Duration = Duration::from_secs(3);
const PORTION: usize = 256;
const MEASURED: Duration = Duration::from_secs(60);

pub(crate) fn run(report: &mut Report) {
    let mut learned = Learned::new(LearnedLimits {
        addresses_total: 2 * ADDRESSES as usize,
        octets_total: usize::MAX,
        ..LearnedLimits::default()
    });
    let steps = |time: Duration| (time.as_millis() / STEP.as_millis()) as u32;
    let each = ADDRESSES.div_ceil(steps(TTL));
    let mut now = Timestamp::from_nanos(1);
    let mut numbers = 0..;
    let mut learn = |learned: &mut Learned, now: Timestamp| {
        for number in numbers.by_ref().take(each as usize) {
            let identity = Identity::new(256 + number % IDENTITIES).unwrap();
            let name = DnsName::parse(&format!("name{number}.example")).unwrap();
            let address = IpAddr::from(Ipv4Addr::from(0x1400_0000 + number));
            let deadline = now.saturating_add(TTL);
            learned.learn(identity, &name, &BTreeSet::from([address]), deadline).unwrap();
        }
    };
    for _ in 0..steps(TTL) {
        learn(&mut learned, now);
        now = now.saturating_add(STEP);
    }
    let mut pauses = Vec::new();
    let (mut ended, mut look) = (0, None);
    for step in 0..steps(MEASURED) {
        if step % steps(SWEEP) == 0 {
            look.get_or_insert_with(|| Look::new(now, BTreeSet::new()));
        }
        let (places, took) = timed(|| {
            let mut places = learned.expire(now, PORTION);
            if let Some(found) = look.take_if(|_| places.len() < PORTION) {
                let (idle, rest) = learned.release(found, PORTION - places.len());
                places.extend(idle);
                look = rest;
            }
            places.len()
        });
        ended += places;
        pauses.push(took.as_secs_f64());
        learn(&mut learned, now);
        now = now.saturating_add(STEP);
    }
    let share = pauses.iter().sum::<f64>() / MEASURED.as_secs_f64() * 100.0;
    pauses.sort_unstable_by(f64::total_cmp);
    let pause = |place: usize| pauses[place] * 1e6;
    report.add(GROUP, "live", learned.address_count() as f64, "addresses");
    report.add(GROUP, "ended and given up, a second", ended as f64 / MEASURED.as_secs_f64(), "");
    report.add(GROUP, "of one processor", share, "%");
    report.add(GROUP, "pause, median", pause(pauses.len() / 2), "µs");
    report.add(GROUP, "pause, p99", pause(pauses.len() * 99 / 100), "µs");
    report.add(GROUP, "pause, longest", pause(pauses.len() - 1), "µs");
}
