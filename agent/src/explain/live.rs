//! What becomes of a flow under the tables in force: the rows of one endpoint, as the agent wrote
//! them, in memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use namegate_egress_bpf::abi::{Address, Direction, EventVerdict};
use namegate_egress_bpf::compile::{NameBook, NameWrites, TableRows};
use namegate_policy::identity::Identity;
use namegate_policy::oracle::{Circumstances, Flow};
use namegate_policy::rule::{Origin, Protocol};
use namegate_policy::table::{Clause, ClauseAction, ClausePorts, ClauseTier, PolicyTable};
use namegate_policy::time::Timestamp;

use super::world::Bench;
use super::{EngineError, Simulated};
use crate::apply::EndpointRow;
use crate::state::{EndpointSpec, NameRules};

/// The number of the only table.
const TABLE: u32 = 1;

/// An endpoint and what judges it.
#[derive(Clone, Debug)]
pub struct LiveEndpoint {
    /// The endpoint.
    pub spec: EndpointSpec,
    /// The table in force.
    pub table: Arc<PolicyTable>,
}

/// The other end, as the endpoint's table sees it.
#[derive(Clone, Copy, Debug)]
pub struct LiveRemote {
    /// Its address.
    pub address: IpAddr,
    /// Who it is, where the kernel is told.
    pub identity: Option<Identity>,
    /// What the address opens, where the endpoint's identity learned it.
    pub names: Option<NameRules>,
}

/// What becomes of a flow at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveVerdict {
    /// `forwarded`, `dropped`, `audit`, or `lookup` where it goes to the proxy.
    pub verdict: &'static str,
    /// Why, in a word.
    pub reason: &'static str,
    /// Who says so.
    pub origins: Vec<Origin>,
}

/// A rule of the table, and what of it means the flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    /// Who says so; several for isolation.
    pub origins: Arc<[Origin]>,
    /// What it does to flows that it means.
    pub action: ClauseAction,
    /// Whether it means the other end.
    pub means_peer: bool,
    /// Whether it means the port.
    pub means_port: bool,
}

impl LiveEndpoint {
    /// Judges the first packet of `flow`, which the endpoint opens or gets.
    pub fn judge(
        &self,
        direction: Direction,
        remote: &LiveRemote,
        flow: &Flow,
        circumstances: &Circumstances,
        now: Timestamp,
    ) -> Result<LiveVerdict, EngineError> {
        let mut kernel = Simulated::new(circumstances);
        self.furnish(&mut kernel, remote, circumstances, now).map_err(EngineError::run)?;
        let crossing = kernel.cross(INTERFACE, direction, flow, false).map_err(EngineError::run)?;
        let crossing = crossing.ok_or(EngineError::Families)?;
        if crossing.is_lookup {
            let (verdict, reason) = ("lookup", "to-proxy");
            return Ok(LiveVerdict { verdict, reason, origins: Vec::new() });
        }
        let event = crossing.event.ok_or(EngineError::NoRecord)?;
        let (verdict, clause) = match event.verdict {
            EventVerdict::Forwarded => ("forwarded", event.clause),
            EventVerdict::Dropped => ("dropped", event.clause),
            EventVerdict::Audit => ("audit", event.audit),
        };
        let origins = clause.and_then(|clause| self.clauses(direction).get(usize::from(clause)));
        let origins = origins.map(|clause| clause.origins.to_vec()).unwrap_or_default();
        Ok(LiveVerdict { verdict, reason: event.reason.as_str(), origins })
    }

    /// The rules of the table in their order, with what of them means the flow.
    pub fn consider(
        &self,
        direction: Direction,
        remote: &LiveRemote,
        flow: &Flow,
    ) -> Vec<Considered> {
        let clauses = self.clauses(direction).iter().enumerate();
        let is_named = |place: usize| {
            let place = u16::try_from(place).ok();
            remote.names.zip(place).is_some_and(|(names, place)| names.fresh.contains(place))
        };
        clauses
            .filter(|(_, clause)| clause.tier != ClauseTier::Open)
            .map(|(place, clause)| Considered {
                origins: Arc::clone(&clause.origins),
                action: clause.action,
                means_peer: means_peer(clause, remote) || is_named(place),
                means_port: means_port(clause, flow.protocol, flow.port),
            })
            .collect()
    }

    fn clauses(&self, direction: Direction) -> &[Clause] {
        match direction {
            Direction::Egress => &self.table.egress,
            Direction::Ingress => &self.table.ingress,
        }
    }

    /// Writes what the kernel has of this endpoint and the other end.
    fn furnish<K: Bench>(
        &self,
        kernel: &mut K,
        remote: &LiveRemote,
        circumstances: &Circumstances,
        now: Timestamp,
    ) -> Result<(), K::Error> {
        kernel.set_now(now)?;
        kernel.install(TABLE, &TableRows::compile(TABLE, &self.table))?;
        let mut known: BTreeMap<IpAddr, Identity> =
            self.spec.addresses.iter().map(|own| (*own, self.spec.identity)).collect();
        known.extend(remote.identity.map(|identity| (remote.address, identity)));
        kernel.put_identities(&known)?;
        let resolvers = (0..).zip(circumstances.resolvers.iter().copied()).collect();
        kernel.set_resolvers(&resolvers)?;
        if let Some(names) = remote.names {
            let mut book = NameBook::new(self.spec.identity.number(), TABLE);
            let mut writes = NameWrites::default();
            let address = Address::from(remote.address);
            // One address takes two classes, and there are many more.
            let _ = book.set(
                address,
                names.deadline.as_nanos(),
                &names.fresh,
                &names.live,
                &mut writes,
            );
            kernel.write_names(&writes)?;
        }
        let is_governed = |clause: &Clause| clause.tier != ClauseTier::Open;
        kernel.set_endpoint(&EndpointRow {
            ifindex: INTERFACE,
            identity: self.spec.identity,
            table: TABLE,
            generation: 1,
            epoch: 1,
            is_dns_governed: self.table.names.is_governed(),
            is_translated: self.table.egress.iter().any(is_governed),
            mac: None,
            addresses: self.spec.addresses.clone(),
        })
    }
}

/// The loopback is the first interface everywhere.
const INTERFACE: u32 = 2;

fn means_peer(clause: &Clause, remote: &LiveRemote) -> bool {
    let peers = &clause.peers;
    let identity = remote.identity.unwrap_or(Identity::WORLD);
    peers.any
        || peers.identities.contains(identity)
        || peers.cidrs.iter().any(|cidr| cidr.contains(remote.address))
}

fn means_port(clause: &Clause, protocol: Protocol, port: u16) -> bool {
    match &clause.ports {
        ClausePorts::Any => true,
        ClausePorts::Of(ports) => {
            ports.iter().any(|(of, range)| *of == protocol && range.contains(port))
        }
    }
}
