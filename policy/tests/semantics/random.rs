//! Policy tables against the oracle, over random documents and flows.

use namegate_policy::oracle::{Flow, Oracle, Ruling};
use namegate_policy::rule::Direction;
use namegate_policy::testing::{Case, Documents};
use namegate_policy::time::Timestamp;

use crate::engine::{Compiled, circumstances, lessons};

/// Towns that are looked at: 50 flows each on average, from both ends, make 10^5 flows.
/// `NAMEGATE_CASES` asks for more.
const TOWNS: u64 = 2_000;

#[test]
fn tables_decide_as_the_oracle_does() {
    let asked = std::env::var("NAMEGATE_CASES").ok().and_then(|text| text.parse().ok());
    let towns = asked.unwrap_or(TOWNS);
    let mut flows = 0;
    for seed in 0..towns {
        let town = Documents::random(seed);
        let case = town.case().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        if disagreement(&case).is_some() {
            explain(seed, town);
        }
        flows += case.flows.len();
    }
    eprintln!("{towns} towns, {flows} flows: the tables and the oracle agree");
}

/// A flow that the two engines judge differently, with both rulings.
type Disagreement = (Direction, Flow, Ruling, Option<Ruling>);

fn disagreement(case: &Case) -> Option<Disagreement> {
    let compiled = Compiled::new(case);
    let (circumstances, lessons) = (circumstances(case), lessons(case));
    let oracle = Oracle {
        objects: &case.objects,
        circumstances: &circumstances,
        lessons: &lessons,
        now: Timestamp::from_nanos(1),
    };
    case.flows.iter().find_map(|flow| {
        let expected = oracle.decide(flow);
        [
            (Direction::Egress, flow.source, flow.destination, expected.egress),
            (Direction::Ingress, flow.destination, flow.source, expected.ingress),
        ]
        .into_iter()
        .find_map(|(direction, local, remote, expected)| {
            let found = compiled.decide(direction, local, remote, flow)?;
            (Some(&found) != expected.as_ref()).then_some((direction, *flow, found, expected))
        })
    })
}

/// Ends the test with the smallest town that shows the disagreement.
fn explain(seed: u64, town: Documents) -> ! {
    let is_disputed =
        |town: &Documents| town.case().is_ok_and(|case| disagreement(&case).is_some());
    let small = town.shrink(is_disputed);
    for document in &small.documents {
        eprintln!("- {document}");
    }
    for lesson in &small.lessons {
        eprintln!("# learned: {lesson:?}");
    }
    let (direction, flow, table, oracle) =
        small.case().ok().and_then(|c| disagreement(&c)).unwrap();
    panic!(
        "seed {seed}: {direction:?} of {flow:?}: the table says {table:?}, the oracle {oracle:?}"
    );
}
