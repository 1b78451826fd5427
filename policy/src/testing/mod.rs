//! Random clusters, policies and flows, for tests that hold one engine against another.
//!
//! They are documents, as users write them, so that the parsers are part of what is tested.
//! Everything comes from a small town, so that selectors select, prefixes contain and ports hit
//! often enough to matter. The same seed makes the same town.

mod cilium;
mod dice;
mod fields;
mod native;
mod shrink;
mod standard;
mod town;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use serde_json::Value;

use crate::name::DnsName;
use crate::object::{self, Object, ObjectError};
use crate::oracle::Flow;
use crate::resource::PodRef;
use crate::rule::Protocol;

use dice::Dice;
use fields::{NAMES, PORTS};
use town::{OTHERS, OWN, PODS, WORLD};

/// Documents, what was learned, and flows to decide about.
#[derive(Clone, Debug)]
pub struct Documents {
    /// Every object as written; no two of one kind and name, no two live pods with one address.
    pub documents: Vec<Value>,
    /// The addresses of the node that decides.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Ranges of pods and services.
    pub ranges: Vec<IpNet>,
    /// Answers that pods got, the earliest first.
    pub lessons: Vec<Lesson>,
    /// Flows between the addresses of the town with the seconds at which they start, the earliest
    /// first.
    pub flows: Vec<(Flow, u64)>,
}

/// An answer that a pod got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lesson {
    /// Who asked.
    pub pod: PodRef,
    /// What was asked.
    pub name: DnsName,
    /// The address in the answer.
    pub address: IpAddr,
    /// When it came, in seconds.
    pub at: u64,
    /// How long it is good for, in seconds.
    pub ttl: u64,
}

/// Objects, what was learned, and flows to decide about, without times: everything that was learned
/// counts.
#[derive(Clone, Debug)]
pub struct Case {
    /// Every object.
    pub objects: Vec<Object>,
    /// The addresses of the node that decides.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Ranges of pods and services.
    pub ranges: Vec<IpNet>,
    /// Which pod learned which address for which name.
    pub learned: Vec<(PodRef, IpAddr, DnsName)>,
    /// Flows between the addresses of the town.
    pub flows: Vec<Flow>,
}

/// The most policies of a town.
const POLICIES_MAX: usize = 7;
/// The most flows of a town.
const FLOWS_MAX: usize = 100;
/// How long the story of a town lasts, in seconds.
const SECONDS: usize = 300;

impl Documents {
    /// The town of `seed`. Every document of it is accepted.
    pub fn random(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut documents = town::documents(&mut dice);
        documents.extend(policies(&mut dice));
        let mut ranges = vec![net("10.244.0.0/16"), net("10.96.0.0/16")];
        if dice.chance(80) {
            ranges.extend([net("fd00:244::/64"), net("fd00:96::/112")]);
        }
        let mut lessons: Vec<Lesson> = dice.list(0, 12, lesson).into_iter().flatten().collect();
        lessons.sort_by_key(|lesson| lesson.at);
        let mut flows = dice.list(1, FLOWS_MAX, |dice| (flow(dice), dice.below(SECONDS) as u64));
        flows.sort_by_key(|(_, at)| *at);
        let own_addresses = OWN.iter().map(|text| address(text)).collect();
        Self { documents, own_addresses, ranges, lessons, flows }
    }

    /// The objects, and why a document is none.
    pub fn case(&self) -> Result<Case, ObjectError> {
        let learned = |one: &Lesson| (one.pod.clone(), one.address, one.name.clone());
        Ok(Case {
            objects: self
                .documents
                .iter()
                .map(|document| object::parse(document.clone()))
                .collect::<Result<_, _>>()?,
            own_addresses: self.own_addresses.clone(),
            ranges: self.ranges.clone(),
            learned: self.lessons.iter().map(learned).collect(),
            flows: self.flows.iter().map(|(flow, _)| *flow).collect(),
        })
    }
}

/// Policies of every kind; the names differ where the kinds do not.
fn policies(dice: &mut Dice) -> Vec<Value> {
    let count = dice.below(POLICIES_MAX + 1);
    let make = |index: usize| {
        // Not in the order of the documents, so that ties are settled by name.
        let name = format!("{}-{index}", dice.pick(&["p", "q", "r"]));
        match dice.below(12) {
            0..=2 => native::egress_policy(dice, &name),
            3 | 4 => native::cluster_egress_policy(dice, &name),
            5 | 6 => standard::network_policy(dice, &name),
            7 | 8 => standard::cluster_network_policy(dice, &name),
            9 | 10 => cilium::network_policy(dice, &name),
            _ => cilium::clusterwide_network_policy(dice, &name),
        }
    };
    (0..count).map(make).collect()
}

fn lesson(dice: &mut Dice) -> Option<Lesson> {
    let (namespace, name) = town::pod_name(dice.below(PODS));
    Some(Lesson {
        pod: PodRef { namespace: namespace.into(), name: name.into() },
        name: DnsName::parse(dice.pick(&NAMES)).ok()?,
        // A name can point into the cluster too (EP-9).
        address: if dice.chance(90) { world(dice) } else { anyone(dice) },
        at: dice.below(SECONDS) as u64,
        ttl: dice.pick(&[0, 5, 60, 200]),
    })
}

fn flow(dice: &mut Dice) -> Flow {
    let source = if dice.chance(85) { pod(dice) } else { anyone(dice) };
    let mut destination = anyone(dice);
    while destination.is_ipv6() != source.is_ipv6() {
        destination = anyone(dice);
    }
    let protocol = match dice.below(12) {
        0 if source.is_ipv6() => Protocol::Icmpv6,
        0 => Protocol::Icmp,
        1..=3 => Protocol::Udp,
        4 => Protocol::Sctp,
        _ => Protocol::Tcp,
    };
    let port = match protocol {
        Protocol::Icmp => 8,
        Protocol::Icmpv6 => 128,
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp => {
            dice.pick(&PORTS) + dice.pick(&[0, 0, 0, 1])
        }
    };
    Flow { source, destination, protocol, port }
}

fn anyone(dice: &mut Dice) -> IpAddr {
    match dice.below(10) {
        0..=4 => pod(dice),
        5..=7 => world(dice),
        _ => address(dice.pick(&OTHERS)),
    }
}

fn pod(dice: &mut Dice) -> IpAddr {
    let index = dice.below(PODS);
    address(&town::pod_addresses(index)[dice.below(2)])
}

fn world(dice: &mut Dice) -> IpAddr {
    address(dice.pick(&WORLD))
}

/// The texts of the town are addresses.
fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// The texts of the town are prefixes.
fn net(text: &str) -> IpNet {
    text.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_of_a_town_is_accepted_and_the_seed_makes_it() {
        for seed in 0..500 {
            let town = Documents::random(seed);
            if let Err(error) = town.case() {
                panic!("seed {seed}: {error}");
            }
            assert_eq!(town.documents, Documents::random(seed).documents);
        }
    }
}
