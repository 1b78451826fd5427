//! What stands in for a refused policy lets nothing through that the policy would have stopped.

use namegate_policy::dns::NameDecision;
use namegate_policy::name::DnsName;
use namegate_policy::object::{self, Object};
use namegate_policy::oracle::Verdict;
use namegate_policy::resource::PodRef;
use namegate_policy::rule::Direction;
use namegate_policy::testing::{Case, Documents};
use serde_json::{Value, json};

use crate::engine::Compiled;

/// Towns that are looked at, one policy of each after the other refused.
const TOWNS: u64 = 300;

#[test]
fn a_stand_in_stops_what_its_policy_stops() {
    let mut refused = 0;
    for seed in 0..TOWNS {
        let town = Documents::random(seed);
        let case = town.case().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let stopped = Stopped::of(&case);
        for index in 0..town.documents.len() {
            if let Object::Policy(policy) = &case.objects[index] {
                let objects = with_stand_in(&case, index, &town.documents[index]);
                let without = Stopped::of(&Case { objects, ..case.clone() });
                stopped.must_be_in(&without, &format!("seed {seed}: {}", policy.reference));
                refused += 1;
            }
        }
    }
    assert!(refused > 500, "{refused} policies");
}

/// The objects with what stands in for the policy at `index`, refused for a field too many.
fn with_stand_in(case: &Case, index: usize, document: &Value) -> Vec<Object> {
    let mut broken = document.clone();
    broken["unexpectedField"] = json!(1);
    let stand_in = object::parse(broken).unwrap_err().stand_in;
    let mut objects = case.objects.clone();
    match stand_in {
        Some(policy) => objects[index] = Object::Policy(*policy),
        None => drop(objects.remove(index)),
    }
    objects
}

/// What does not go through.
struct Stopped {
    flows: Vec<(Direction, usize)>,
    lookups: Vec<(PodRef, DnsName)>,
}

impl Stopped {
    fn of(case: &Case) -> Self {
        let compiled = Compiled::new(case);
        let mut flows = Vec::new();
        for (index, flow) in case.flows.iter().enumerate() {
            for (direction, local, remote) in [
                (Direction::Egress, flow.source, flow.destination),
                (Direction::Ingress, flow.destination, flow.source),
            ] {
                let ruling = compiled.decide(direction, local, remote, flow);
                if ruling.is_some_and(|ruling| ruling.verdict == Verdict::Drop) {
                    flows.push((direction, index));
                }
            }
        }
        let asked = case.learned.iter().map(|(pod, _, name)| (pod.clone(), name.clone()));
        let is_refused = |(pod, name): &(PodRef, DnsName)| {
            let decision = compiled.decide_name(pod, name);
            matches!(decision, Some(NameDecision::Refused { .. } | NameDecision::SearchMiss))
        };
        Self { flows, lookups: asked.filter(is_refused).collect() }
    }

    fn must_be_in(&self, other: &Self, what: &str) {
        for flow in &self.flows {
            assert!(other.flows.contains(flow), "{what}: {flow:?} goes through");
        }
        for lookup in &self.lookups {
            assert!(other.lookups.contains(lookup), "{what}: {lookup:?} is answered");
        }
    }
}
