//! A flood of names that never repeat leaves the process's memory where it was.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use namegate_policy::identity::Identity;
use namegate_policy::learned::{Learned, Look};
use namegate_policy::name::DnsName;
use namegate_policy::time::Timestamp;

/// Names that come by in a second.
const PACE: u32 = 20_000;

/// Pages of memory that the process holds.
fn resident_pages() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn flood(learned: &mut Learned, numbers: std::ops::Range<u32>) {
    let at =
        |number: u32| Timestamp::from_nanos(u64::from(number) * 1_000_000_000 / u64::from(PACE));
    for number in numbers {
        let name = DnsName::parse(&format!("q{number:x}.exfiltrated.example")).unwrap();
        let address = BTreeSet::from([IpAddr::from(number.to_be_bytes())]);
        let deadline = Timestamp::from_nanos(at(number).as_nanos() + 90_000_000_000);
        learned.learn(Identity::FIRST_WORKLOAD, &name, &address, deadline).unwrap();
        if number % PACE == 0 {
            learned.expire(at(number), usize::MAX);
            learned.release(Look::new(at(number), BTreeSet::new()), usize::MAX);
        }
    }
}

/// A flood that has filled all there is takes no more, however long it goes on. As many names again as
/// fit; `NAMEGATE_FLOOD_NAMES=10000000` for a long one.
#[test]
fn memory_is_where_it_was_after_a_flood_of_names() {
    let names = std::env::var("NAMEGATE_FLOOD_NAMES").ok().map(|text| text.parse().unwrap());
    let mut learned = Learned::default();
    let full = 200_000;
    flood(&mut learned, 1..full);
    let (pages, octets) = (resident_pages(), learned.octets());
    let end = full + names.unwrap_or(150_000);
    flood(&mut learned, full..end);
    let after = resident_pages();
    println!("{pages} pages and {octets} octets, then {after} and {}", learned.octets());
    assert!(after <= pages + pages / 20, "{pages} pages, then {after}");
    assert!(learned.octets() <= octets + octets / 20, "{octets} octets, then {}", learned.octets());

    learned.expire(Timestamp::NEVER, usize::MAX);
    learned.release(Look::new(Timestamp::NEVER, BTreeSet::new()), usize::MAX);
    assert_eq!((learned.octets(), learned.address_count()), (0, 0));
}
