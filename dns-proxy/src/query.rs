//! What a pod asks: all of its message that is kept, and all that is ever forwarded.

use namegate_policy::name::DnsName;

use crate::record::QueryType;

/// An accepted query: one question in class IN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    pub(crate) question: Box<[u8]>,
    pub(crate) name: DnsName,
    pub(crate) query_type: QueryType,
    pub(crate) edns: Option<Edns>,
}

/// What the pod said in its OPT record (RFC 6891), options left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    pub(crate) payload: u16,
    pub(crate) dnssec_ok: bool,
}

impl Query {
    /// The asked name.
    pub fn name(&self) -> &DnsName {
        &self.name
    }

    /// The asked type.
    pub fn query_type(&self) -> QueryType {
        self.query_type
    }

    /// The question as the pod wrote it: name in its case, type, class.
    pub fn question(&self) -> &[u8] {
        &self.question
    }

    /// What two queries to one resolver have in common whose answers are the same: name, type, and
    /// what the resolver is told beside. Has room for the resolver.
    pub(crate) fn key(&self) -> Vec<u8> {
        let name = self.name.as_wire();
        let edns = match self.edns {
            None => 0,
            Some(Edns { dnssec_ok, .. }) => 1 + u8::from(dnssec_ok),
        };
        let mut key = Vec::with_capacity(name.len() + 11);
        key.extend_from_slice(name);
        key.extend_from_slice(&self.query_type.0.to_be_bytes());
        key.extend_from_slice(&self.flags.to_be_bytes());
        key.push(edns);
        key
    }

    /// The largest UDP answer that the pod takes.
    pub(crate) fn payload(&self) -> usize {
        self.edns.map_or(512, |edns| usize::from(edns.payload.max(512)))
    }
}
