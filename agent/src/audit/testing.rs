//! Records for tests.

use std::sync::Arc;

use super::{
    AnsweredAddress, DnsRecord, EndpointLabel, FlowDirection, FlowRecord, FlowVerdict,
    LookupVerdict, Peer, PolicyLabel, Query, Record, Transport,
};

pub(super) fn mk_endpoint(pod: &str) -> EndpointLabel {
    EndpointLabel {
        namespace: Some("shop".into()),
        pod: Some(pod.into()),
        workload: Some(pod.into()),
        identity: Some(256),
        labels: Arc::new([("app".into(), pod.into())].into()),
    }
}

pub(crate) fn mk_policy(namespace: &str, name: &str) -> PolicyLabel {
    PolicyLabel {
        kind: "EgressPolicy".into(),
        namespace: Some(namespace.into()),
        name: name.into(),
        rule: Some("payments".into()),
    }
}

pub(super) fn mk_dns(verdict: LookupVerdict, name: &str) -> Record {
    mk_dns_of("checkout", verdict, name)
}

pub(super) fn mk_dns_of(pod: &str, verdict: LookupVerdict, name: &str) -> Record {
    let endpoint = mk_endpoint(pod);
    Record::Dns(Box::new(DnsRecord { endpoint, ..mk_dns_record(verdict, name) }))
}

/// Of a lookup of the checkout's.
pub(crate) fn mk_dns_record(verdict: LookupVerdict, name: &str) -> DnsRecord {
    DnsRecord {
        verdict,
        reason: "no-rule".into(),
        endpoint: mk_endpoint("checkout"),
        query: Some(Query { name: name.to_owned(), kind: "A".into() }),
        rcode: Some("REFUSED".into()),
        addresses: vec![AnsweredAddress { address: "203.0.113.1".parse().unwrap(), ttl: 60 }],
        addresses_omitted: 0,
        not_opened: Vec::new(),
        policy: None,
        policies: Vec::new(),
        policies_omitted: 0,
        resolver: Some("10.96.0.10".parse().unwrap()),
        transport: Transport::Udp,
        cached: false,
        latency_us: 7,
    }
}

pub(super) fn mk_flow(verdict: FlowVerdict, policy: Option<PolicyLabel>) -> Record {
    Record::Flow(Box::new(FlowRecord {
        verdict,
        reason: "judged".into(),
        direction: FlowDirection::Egress,
        protocol: "tcp".into(),
        endpoint: mk_endpoint("checkout"),
        source: Peer { port: 40_000, ..Peer::default() },
        destination: Peer {
            address: Some("203.0.113.1".parse().unwrap()),
            port: 443,
            identity: Some(4),
            entity: Some("world".into()),
            names: vec!["api.example.com".into()],
            ..Peer::default()
        },
        service: None,
        policy,
        policies: Vec::new(),
        policies_omitted: 0,
    }))
}
