use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::audit::testing::{mk_dns_record, mk_policy};
use crate::audit::{
    DnsRecord, EndpointLabel, FlowDirection, FlowRecord, FlowVerdict, LookupVerdict, LossSource,
    LostRecord, Peer, Record,
};

const SMALL: Limits = Limits { edges: 40, of_one: 16, gone: 64, batch: 10 };

fn mk_endpoint(pod: &str) -> EndpointLabel {
    EndpointLabel {
        namespace: Some("shop".into()),
        pod: Some(format!("{pod}-0").into()),
        workload: Some(pod.into()),
        ..EndpointLabel::default()
    }
}

fn at(second: u64, record: Record) -> Entry {
    Entry { time: UNIX_EPOCH + Duration::from_secs(second), record }
}

fn mk_lookup(pod: &str, name: &str, verdict: LookupVerdict) -> Record {
    Record::Dns(Box::new(DnsRecord {
        endpoint: mk_endpoint(pod),
        addresses: Vec::new(),
        policies: vec![mk_policy("shop", "apis")],
        ..mk_dns_record(verdict, name)
    }))
}

fn mk_flow(verdict: FlowVerdict, to: Peer) -> FlowRecord {
    FlowRecord {
        verdict,
        reason: "judged".into(),
        direction: FlowDirection::Egress,
        protocol: "tcp".into(),
        endpoint: mk_endpoint("checkout"),
        source: Peer { port: 40_000, ..Peer::default() },
        destination: to,
        service: None,
        policy: Some(mk_policy("shop", "apis")),
        policies: Vec::new(),
        policies_omitted: 0,
    }
}

fn stranger(names: &[&str], last: u8) -> Peer {
    Peer {
        address: Some([203, 0, 113, last].into()),
        port: 443,
        entity: Some("world".into()),
        names: names.iter().map(|name| (*name).to_owned().into()).collect(),
        ..Peer::default()
    }
}

fn taken(limits: Limits, records: impl IntoIterator<Item = Record>) -> Edges {
    let mut edges = Edges::new(limits);
    for (second, record) in records.into_iter().enumerate() {
        edges.take(&at(second as u64, record));
    }
    edges
}

/// What a reader that follows holds in the end.
#[derive(Debug, Default)]
struct Reader {
    since: u64,
    began: u64,
    held: BTreeMap<u64, u64>,
    wholes: usize,
}

impl Reader {
    fn read(&mut self, edges: &Edges) {
        loop {
            let changes = edges.since(self.since, self.began);
            if changes.is_whole {
                self.held.clear();
                self.wholes += 1;
            }
            for gone in &changes.gone {
                self.held.remove(gone);
            }
            self.held.extend(changes.edges.iter().map(|edge| (edge.id, edge.count)));
            self.since = changes.revision;
            self.began = changes.began;
            if !changes.has_more {
                return;
            }
        }
    }
}

fn all(edges: &Edges) -> BTreeMap<u64, u64> {
    let mut reader = Reader::default();
    reader.read(edges);
    reader.held
}

#[test]
fn decisions_that_are_alike_are_one_edge() {
    let lookups = (0..3).map(|_| mk_lookup("checkout", "evil.example.", LookupVerdict::Denied));
    let changes = taken(SMALL, lookups).since(0, 0);
    let [edge] = &changes.edges[..] else { panic!("{changes:?}") };
    assert_eq!((edge.count, edge.first_ms, edge.last_ms), (3, 0, 2_000));
    assert_eq!(edge.talk.to, Party::Name { name: "evil.example".into() });
    assert_eq!(edge.talk.verdict, Verdict::Denied);
    assert_eq!(edge.pod.as_deref(), Some("checkout-0"));
    assert_eq!(&*edge.selecting[0], "EgressPolicy shop/apis rule payments");
    let from = Party::Workload { namespace: "shop".into(), name: "checkout".into() };
    assert_eq!(edge.talk.from, from);
}

#[test]
fn the_other_end_is_who_it_is_known_as() {
    let pod = Peer {
        namespace: Some("data".into()),
        pod: Some("db-0".into()),
        workload: Some("db".into()),
        ..stranger(&[], 1)
    };
    let ingress = |source: Peer| FlowRecord {
        direction: FlowDirection::Ingress,
        destination: Peer { port: 80, ..Peer::default() },
        source,
        ..mk_flow(FlowVerdict::Dropped, Peer::default())
    };
    let flow = |to| mk_flow(FlowVerdict::Forwarded, to);
    let own = || Party::Workload { namespace: "shop".into(), name: "checkout".into() };
    let address = || Party::Address { name: "203.0.113.9".into(), entity: Some("world".into()) };
    let cases = [
        (
            flow(stranger(&["a.example", "b.example"], 1)),
            own(),
            Party::Name { name: "a.example".into() },
        ),
        (flow(stranger(&[], 9)), own(), address()),
        (flow(pod), own(), Party::Workload { namespace: "data".into(), name: "db".into() }),
        (flow(Peer::default()), own(), Party::Entity { name: "unknown".into() }),
        (ingress(stranger(&[], 9)), Party::Entity { name: "world".into() }, own()),
    ];
    for (record, from, to) in cases {
        let changes = taken(SMALL, [Record::Flow(Box::new(record.clone()))]).since(0, 0);
        let talk = &changes.edges[0].talk;
        assert_eq!((&talk.from, &talk.to), (&from, &to), "{record:?}");
    }
}

#[test]
fn a_workload_that_makes_up_names_loses_edges_of_its_own() {
    let calm = mk_lookup("web", "api.example", LookupVerdict::Allowed);
    let flood =
        (0..1_000).map(|n| mk_lookup("checkout", &format!("x{n}.example"), LookupVerdict::Denied));
    let edges = taken(SMALL, [calm].into_iter().chain(flood));
    let changes = edges.since(0, 0);
    assert_eq!(changes.kept, 17, "the one of web and as many of checkout as it may have");
    assert_eq!(changes.evicted, 1_000 - 16);
    assert!(all(&edges).contains_key(&1), "the edge of web is there");
}

#[test]
fn whoever_holds_most_makes_room_for_the_others() {
    let few = |pod: &str, count: usize| {
        let pod = pod.to_owned();
        (0..count).map(move |n| mk_lookup(&pod, &format!("n{n}.example"), LookupVerdict::Allowed))
    };
    let most = few("greedy", 16);
    let others = (0..12).flat_map(|pod| few(&format!("pod{pod}"), 3));
    let edges = taken(SMALL, most.chain(others));
    let held = all(&edges);
    assert!(held.len() <= SMALL.edges, "{}", held.len());
    let of_others = held.keys().filter(|id| **id > 16).count();
    assert_eq!(of_others, 36, "nobody else lost one: {held:?}");
}

#[test]
fn a_reader_that_follows_holds_what_there_is() {
    let mut edges = Edges::new(SMALL);
    let mut reader = Reader::default();
    for n in 0..500_u64 {
        // Some come again, most are made up.
        let name = format!("n{}.example", if n % 3 == 0 { n % 7 } else { n });
        let pod = format!("pod{}", n % 5);
        edges.take(&at(n, mk_lookup(&pod, &name, LookupVerdict::Denied)));
        if n % 4 == 0 {
            reader.read(&edges);
            assert_eq!(reader.held, all(&edges), "after {n}");
        }
    }
    assert_eq!(reader.wholes, 1, "it was told of changes alone");
}

#[test]
fn a_reader_that_was_away_for_long_begins_anew() {
    let mut edges = Edges::new(SMALL);
    let mut reader = Reader::default();
    edges.take(&at(0, mk_lookup("a", "first.example", LookupVerdict::Allowed)));
    reader.read(&edges);
    for n in 0..200 {
        edges.take(&at(n, mk_lookup("a", &format!("n{n}.example"), LookupVerdict::Allowed)));
    }
    reader.read(&edges);
    assert_eq!((reader.wholes, &reader.held), (2, &all(&edges)));
    assert!(edges.since(u64::MAX, 0).is_whole, "a number that was never given");
}

#[test]
fn a_reader_gets_to_the_end_beside_a_flood() {
    let old = (0..20).map(|n| mk_lookup(&format!("pod{n}"), "api.example", LookupVerdict::Allowed));
    let flood = (0..500).map(|n| mk_lookup("a", &format!("n{n}.example"), LookupVerdict::Denied));
    let edges = taken(SMALL, old.chain(flood));
    let mut reader = Reader::default();
    reader.read(&edges);
    assert_eq!((reader.wholes, reader.held.len()), (1, 36), "more than one batch");
}

#[test]
fn what_was_not_heard_is_counted() {
    let lost = Record::Lost(LostRecord { source: LossSource::Kernel, count: 5 });
    let mut edges = taken(SMALL, [lost]);
    edges.miss(2);
    let changes = edges.since(0, 0);
    assert_eq!((changes.missed, changes.kept), (7, 0));
}
