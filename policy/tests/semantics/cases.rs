//! The numbered lines of the semantics, as data: each case names the lines that it shows, is read
//! from the same documents as users write, and is decided by the oracle and by policy tables.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use namegate_policy::dns::{NameDecision, RefuseWith};
use namegate_policy::name::DnsName;
use namegate_policy::object::{self, Object, ObjectError};
use namegate_policy::oracle::{Flow, LookupRuling, Oracle, Ruling, Verdict};
use namegate_policy::resource::PodRef;
use namegate_policy::rule::{Direction, Protocol};
use namegate_policy::testing::Case;
use namegate_policy::time::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::engine::{Compiled, circumstances, lessons};

const TOWN: &str = include_str!("cases/town.yaml");

/// What one entry of a file says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// What is shown, beginning with the numbers of the lines.
    claim: String,
    /// Policies, beside the objects of the town.
    #[serde(default)]
    objects: Vec<Value>,
    /// Objects that are refused, with a part of the message.
    #[serde(default)]
    refused: Vec<Refused>,
    /// Objects that are refused, and for which something else is in force.
    #[serde(default)]
    stand_ins: Vec<Refused>,
    /// The remarks on the policies, each after the policy's name; all of them where one is given.
    #[serde(default)]
    notes: Vec<String>,
    #[serde(default)]
    learned: Vec<Learned>,
    #[serde(default)]
    flows: Vec<ExpectedFlow>,
    #[serde(default)]
    queries: Vec<ExpectedQuery>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refused {
    object: Value,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Learned {
    pod: String,
    name: String,
    /// The first of `count` addresses in a row.
    address: IpAddr,
    #[serde(default = "one")]
    count: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedFlow {
    from: String,
    to: String,
    #[serde(default = "tcp")]
    protocol: String,
    #[serde(default)]
    port: u16,
    /// `none` for an end that is no pod.
    #[serde(default)]
    egress: Option<String>,
    #[serde(default)]
    ingress: Option<String>,
    /// The objects and rules that decide, at the end that is asked about.
    #[serde(default)]
    by: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedQuery {
    pod: String,
    name: String,
    /// `ungoverned`, `allowed`, `audit`, `search-miss`, `refused`, `nxdomain` or `empty`.
    answer: String,
    /// Whether its addresses are opened for some rule.
    #[serde(default)]
    opens: bool,
}

fn one() -> u8 {
    1
}

fn tcp() -> String {
    "TCP".to_owned()
}

#[test]
fn network_policy_cases_hold() {
    check("network_policy", include_str!("cases/network_policy.yaml"));
}

#[test]
fn egress_policy_cases_hold() {
    check("egress_policy", include_str!("cases/egress_policy.yaml"));
}

#[test]
fn cluster_network_policy_cases_hold() {
    check("cluster_network_policy", include_str!("cases/cluster_network_policy.yaml"));
}

#[test]
fn cilium_cases_hold() {
    check("cilium", include_str!("cases/cilium.yaml"));
}

#[test]
fn stand_in_cases_hold() {
    check("stand_in", include_str!("cases/stand_in.yaml"));
}

#[test]
fn precedence_cases_hold() {
    check("precedence", include_str!("cases/precedence.yaml"));
}

#[test]
fn where_nobody_can_say_whom_an_object_is_about_nothing_stands_in() {
    let cases: Vec<Written> = serde_saphyr::from_str(include_str!("cases/stand_in.yaml")).unwrap();
    for refused in cases.iter().flat_map(|case| &case.refused) {
        assert_eq!(refuse("stand_in", refused).stand_in, None, "{}", refused.object);
    }
}

fn check(file: &str, text: &str) {
    let cases: Vec<Written> =
        serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{file}: {error}"));
    let town: Vec<Value> = serde_saphyr::from_str(TOWN).unwrap();
    for written in cases {
        let claim = format!("{file}: {}", written.claim);
        let documents = town.iter().chain(&written.objects).cloned();
        let mut objects: Vec<Object> = documents
            .map(|document| parse(document).unwrap_or_else(|error| panic!("{claim}: {error}")))
            .collect();
        for refused in &written.refused {
            refuse(&claim, refused);
        }
        for refused in &written.stand_ins {
            let policy = refuse(&claim, refused).stand_in;
            let policy = policy.unwrap_or_else(|| panic!("{claim}: nothing stands in"));
            assert!(policy.stands_in(), "{claim}");
            objects.push(Object::Policy(*policy));
        }
        if !written.notes.is_empty() {
            check_notes(&claim, &written.notes, &objects);
        }
        check_case(&claim, &written, objects);
    }
}

fn parse(document: Value) -> Result<Object, ObjectError> {
    object::parse(document)
}

/// The error that an object is refused with.
fn refuse(claim: &str, Refused { object, message }: &Refused) -> ObjectError {
    let error = parse(object.clone()).err().unwrap_or_else(|| panic!("{claim}: accepted"));
    assert!(error.to_string().contains(message), "{claim}: {error}");
    error
}

fn check_notes(claim: &str, expected: &[String], objects: &[Object]) {
    let policies = objects
        .iter()
        .filter_map(|object| if let Object::Policy(policy) = object { Some(policy) } else { None });
    let found: Vec<String> = policies
        .flat_map(|policy| policy.notes.iter().map(|n| format!("{}: {n}", policy.reference.name)))
        .collect();
    let is_as_said = expected.len() == found.len()
        && expected.iter().zip(&found).all(|(expected, found)| found.starts_with(expected));
    assert!(is_as_said, "{claim}: {found:#?}");
}

fn check_case(claim: &str, written: &Written, objects: Vec<Object>) {
    let case = Case {
        own_addresses: BTreeSet::from(["192.0.2.1".parse().unwrap()]),
        ranges: vec!["10.244.0.0/16".parse().unwrap(), "10.96.0.0/16".parse().unwrap()],
        learned: written.learned.iter().flat_map(addresses).collect(),
        flows: Vec::new(),
        objects,
    };
    let compiled = Compiled::new(&case);
    let (circumstances, lessons) = (circumstances(&case), lessons(&case));
    let oracle = Oracle {
        objects: &case.objects,
        circumstances: &circumstances,
        lessons: &lessons,
        now: Timestamp::from_nanos(1),
    };
    for expected in &written.flows {
        check_flow(claim, &case, &compiled, &oracle, expected);
    }
    for expected in &written.queries {
        let name = DnsName::parse(&expected.name).unwrap();
        let found = compiled.decide_name(&pod_ref(&expected.pod), &name);
        let pod = oracle.pods().find(|pod| pod.reference == pod_ref(&expected.pod)).unwrap();
        let plainly = oracle.ask(pod, &name);
        assert_eq!(as_ruling(found.clone()), plainly, "{claim}: {} asks for {name}", expected.pod);
        let shown = (answer(found.as_ref()), opens(found.as_ref()));
        let wanted = (expected.answer.as_str(), expected.opens);
        assert_eq!(shown, wanted, "{claim}: {} asks for {name}", expected.pod);
    }
}

/// What a pod learned, an address at a time.
fn addresses(one: &Learned) -> impl Iterator<Item = (PodRef, IpAddr, DnsName)> {
    let (pod, name) = (pod_ref(&one.pod), DnsName::parse(&one.name).unwrap());
    let mut addresses: Vec<IpAddr> = vec![one.address];
    if let IpAddr::V4(first) = one.address {
        let following = (1..u32::from(one.count)).map(|step| first.to_bits() + step);
        addresses.extend(following.map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))));
    }
    addresses.into_iter().map(move |address| (pod.clone(), address, name.clone()))
}

fn check_flow(
    claim: &str,
    case: &Case,
    compiled: &Compiled,
    oracle: &Oracle<'_>,
    expected: &ExpectedFlow,
) {
    let (source, destination) = ends(case, expected);
    let protocol = match expected.protocol.as_str() {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        "ICMP" => Protocol::Icmp,
        "ICMPv6" => Protocol::Icmpv6,
        other => panic!("{claim}: {other} is no protocol"),
    };
    let flow = Flow { source, destination, protocol, port: expected.port };
    let what = format!("{claim}: {} to {} {}", expected.from, expected.to, expected.port);
    let decision = oracle.decide(&flow);
    for (direction, found, wanted) in [
        (Direction::Egress, &decision.egress, &expected.egress),
        (Direction::Ingress, &decision.ingress, &expected.ingress),
    ] {
        let (local, remote) = match direction {
            Direction::Egress => (source, destination),
            Direction::Ingress => (destination, source),
        };
        if let Some(by_table) = compiled.decide(direction, local, remote, &flow) {
            assert_eq!(Some(&by_table), found.as_ref(), "{what}: {direction:?}, table and oracle");
        }
        let Some(wanted) = wanted else { continue };
        assert_eq!(verdict(found.as_ref()), wanted, "{what}: {direction:?}");
        if let (Some(by), Some(found)) = (&expected.by, found) {
            assert_eq!(*by, origins(found), "{what}: {direction:?}");
        }
    }
}

/// The two addresses of a flow, of one family: that of the end that is written as an address.
fn ends(case: &Case, expected: &ExpectedFlow) -> (IpAddr, IpAddr) {
    let literal = |text: &str| text.parse::<IpAddr>().ok();
    let is_v6 = [&expected.from, &expected.to]
        .iter()
        .find_map(|text| literal(text))
        .is_some_and(|address| address.is_ipv6());
    let address_of = |text: &str| {
        literal(text).unwrap_or_else(|| {
            let reference = pod_ref(text);
            let pod = case.objects.iter().find_map(|object| {
                let Object::Pod(pod) = object else { return None };
                (pod.reference == reference).then_some(pod)
            });
            let mut addresses = pod.unwrap_or_else(|| panic!("no pod {text}")).addresses.iter();
            *addresses.find(|address| address.is_ipv6() == is_v6).unwrap()
        })
    };
    (address_of(&expected.from), address_of(&expected.to))
}

fn pod_ref(text: &str) -> PodRef {
    let (namespace, name) = text.split_once('/').unwrap_or_else(|| panic!("no pod {text}"));
    PodRef { namespace: namespace.into(), name: name.into() }
}

fn verdict(found: Option<&Ruling>) -> &'static str {
    match found.map(|ruling| ruling.verdict) {
        None => "none",
        Some(Verdict::Forward) => "forward",
        Some(Verdict::Audit) => "audit",
        Some(Verdict::Drop) => "drop",
    }
}

fn origins(found: &Ruling) -> Vec<String> {
    let shown = found.origins.iter().map(|origin| match &origin.rule {
        Some(rule) => format!("{} {rule}", origin.policy),
        None => origin.policy.to_string(),
    });
    shown.collect()
}

fn answer(found: Option<&NameDecision>) -> &'static str {
    match found {
        None => "ungoverned",
        Some(NameDecision::Allowed { audit: false, .. }) => "allowed",
        Some(NameDecision::Allowed { audit: true, .. }) => "audit",
        Some(NameDecision::SearchMiss) => "search-miss",
        Some(NameDecision::Refused { with: RefuseWith::Refused, .. }) => "refused",
        Some(NameDecision::Refused { with: RefuseWith::NxDomain, .. }) => "nxdomain",
        Some(NameDecision::Refused { with: RefuseWith::Empty, .. }) => "empty",
    }
}

fn as_ruling(found: Option<NameDecision>) -> LookupRuling {
    match found {
        None => LookupRuling::Ungoverned,
        Some(NameDecision::Allowed { clauses, origin, audit }) => {
            LookupRuling::Allowed { origin, audit, opens: !clauses.is_empty() }
        }
        Some(NameDecision::SearchMiss) => LookupRuling::SearchMiss,
        Some(NameDecision::Refused { with, filters }) => LookupRuling::Refused { with, filters },
    }
}

fn opens(found: Option<&NameDecision>) -> bool {
    matches!(found, Some(NameDecision::Allowed { clauses, .. }) if !clauses.is_empty())
}
