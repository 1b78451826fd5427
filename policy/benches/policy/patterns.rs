//! A name against all patterns of an identity, half of the names missing.

use std::collections::HashMap;
use std::hint::black_box;

use namegate_policy::name::DnsName;
use namegate_policy::pattern::{DomainPattern, PatternSeed, PatternSet};

use crate::report::{Report, median, timed};

const GROUP: &str = "patterns: one name against all of them";
/// Short rounds, so that most of them are not interrupted.
const ROUNDS: usize = 101;
/// Names of one round. No name is asked twice, so that no cache has seen it.
const NAMES: usize = 1_000;
const TOPS: [&str; 4] = ["com", "net", "org", "example.io"];

/// A domain as customers have them; different for each number.
fn domain(number: usize) -> String {
    format!("tenant-{:x}.{}", number.wrapping_mul(2_654_435_761) % (1 << 32), TOPS[number % 4])
}

/// Numbers below `end` in an order that no cache foresees.
fn scattered(count: usize, end: usize) -> impl Iterator<Item = usize> {
    let mut state = 0x1234_5678_9abc_def1_u64;
    (0..count).map(move |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % end
    })
}

pub(crate) fn run(report: &mut Report) {
    for count in [10, 1_000, 100_000, 1_000_000] {
        wildcards(report, count);
    }
    for count in [1, 100, 1_000] {
        globs(report, count);
    }
    hostile(report);
}

fn mk_set(patterns: impl Iterator<Item = DomainPattern>) -> PatternSet {
    let mut set = PatternSet::new(PatternSeed::new(0x5eed));
    let patterns: Vec<DomainPattern> = patterns.collect();
    set.reserve(patterns.len());
    for (number, pattern) in (0..).zip(&patterns) {
        set.insert(pattern, &[], number);
    }
    set
}

fn count_matches(set: &PatternSet, names: &[DnsName]) -> u64 {
    let mut count = 0;
    for name in names {
        set.for_each_match(name, |_| count += 1);
    }
    count
}

fn wildcards(report: &mut Report, count: usize) {
    let patterns: Vec<DomainPattern> = (0..count)
        .map(|number| DomainPattern::parse(&format!("*.{}", domain(number))).unwrap())
        .collect();
    let set = mk_set(patterns.iter().cloned());
    let mut by_text: HashMap<String, u32> = HashMap::with_capacity(count);
    by_text.extend((0..count).map(domain).zip(0..));
    let texts: Vec<String> = scattered(NAMES * ROUNDS, count)
        .enumerate()
        .map(|(index, number)| format!("api.{}", domain(number + index % 2 * count)))
        .collect();
    let names: Vec<DnsName> = texts.iter().map(|text| DnsName::parse(text).unwrap()).collect();
    let [mut own, mut hashed, mut linear] = [const { Vec::new() }; 3];
    for (texts, names) in texts.chunks(NAMES).zip(names.chunks(NAMES)) {
        let (found, took) = timed(|| count_matches(&set, names));
        assert_eq!(found, NAMES as u64 / 2, "half of the names are there");
        own.push(took.as_nanos() as f64 / NAMES as f64);
        let (found, took) = timed(|| texts.iter().filter(|text| walk(&by_text, text)).count());
        assert_eq!(found, NAMES / 2);
        hashed.push(took.as_nanos() as f64 / NAMES as f64);
    }
    // By itself: it reads everything there is, and would leave the others cold caches. As many names
    // as take a while, and few rounds where one does.
    for names in names.chunks((20_000 / count).clamp(2, NAMES) / 2 * 2) {
        let (found, took) = timed(|| {
            let is_match = |name: &&DnsName| patterns.iter().any(|one| one.matches(name));
            names.iter().filter(is_match).count()
        });
        assert_eq!(found, names.len() / 2);
        linear.push(took.as_nanos() as f64 / names.len() as f64);
        if linear.len() == ROUNDS || linear.len() * count > 5_000_000 {
            break;
        }
    }
    let (own, hashed, linear) = (median(own), median(hashed), median(linear));
    let name = |what: &str| format!("{count} wildcards: {what}");
    report.add(GROUP, name("pattern set"), own, "ns");
    report.add(GROUP, name("HashMap<String>, suffix by suffix"), hashed, "ns");
    report.add(GROUP, name("one pattern after the other"), linear, "ns");
    report.add(GROUP, name("HashMap / pattern set"), hashed / own, "x");
    report.add(GROUP, name("memory"), set.footprint() as f64 / count as f64, "octets/pattern");
}

/// What a first draft would do.
fn walk(by_text: &HashMap<String, u32>, name: &str) -> bool {
    let mut rest = name;
    while let Some((_, suffix)) = rest.split_once('.') {
        if by_text.contains_key(suffix) {
            return true;
        }
        rest = suffix;
    }
    false
}

/// Stars inside labels, all before the same domain.
fn globs(report: &mut Report, count: usize) {
    let patterns = (0..count)
        .map(|number| DomainPattern::parse_cilium(&format!("tenant{number}-*.aws.test")).unwrap());
    let set = mk_set(patterns);
    let names: Vec<DnsName> = scattered(20, count * 2)
        .map(|number| DnsName::parse(&format!("tenant{number}-db.aws.test")).unwrap())
        .collect();
    let rounds = (0..ROUNDS).map(|_| {
        let (found, took) = timed(|| count_matches(&set, &names));
        black_box(found);
        took.as_nanos() as f64 / names.len() as f64
    });
    let name = format!("{count} `tenant*-*.aws.test` before one domain");
    report.add(GROUP, name, median(rounds.collect()), "ns");
}

/// A name of 127 labels, where there are patterns of every depth.
fn hostile(report: &mut Report) {
    let patterns = (1..127).map(|depth| {
        DomainPattern::parse(&format!("*.{}", ["b"; 126][..depth].join("."))).unwrap()
    });
    let set = mk_set(patterns);
    for (label, what) in [("b", "all of which match"), ("a", "none of which matches")] {
        let names = vec![DnsName::parse(&[label; 127].join(".")).unwrap(); 10];
        let rounds = (0..ROUNDS).map(|_| {
            let (found, took) = timed(|| count_matches(&set, &names));
            black_box(found);
            took.as_nanos() as f64 / names.len() as f64
        });
        let name = format!("127 labels against patterns of 126 depths, {what}");
        report.add(GROUP, name, median(rounds.collect()), "ns");
    }
}
