//! The remote ends of a rule: one kind of field each (CL-2).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::rules::{RuleReader, pattern};
use super::selectors;
use super::written::{CidrRule, Rule as Written, ServiceRule};
use crate::field::{self, Place};
use crate::kubernetes::selector;
use crate::problem::{FieldError, Problem};
use crate::rule::{
    Action, CidrGroups, CidrGroupsPeer, CidrPeer, CidrReach, Direction, Entity, FqdnPeer, Peer,
    Peers, ServiceRef, ServicesPeer,
};

impl RuleReader<'_> {
    /// The remote ends; `None` where the rule names none, and so means any.
    pub(super) fn peers(&self, written: &Written) -> Result<Option<Peers>, FieldError> {
        let (side, endpoints, cidrs, sets, entities) = match self.direction {
            Direction::Egress => (
                "to",
                &written.to_endpoints,
                &written.to_cidr,
                &written.to_cidr_set,
                &written.to_entities,
            ),
            Direction::Ingress => (
                "from",
                &written.from_endpoints,
                &written.from_cidr,
                &written.from_cidr_set,
                &written.from_entities,
            ),
        };
        let mut kinds: Vec<Vec<Peer>> = Vec::new();
        if let Some(list) = endpoints {
            kinds.push(self.each(&format!("{side}Endpoints"), list, |path, one| {
                selectors::peer(path, self.namespace, one)
            })?);
        }
        if let Some(list) = cidrs {
            kinds.push(self.each(&format!("{side}CIDR"), list, |path, text| {
                Ok(vec![world(net(path.to_owned(), text)?, Vec::new())])
            })?);
        }
        if let Some(list) = sets {
            kinds.push(self.each(&format!("{side}CIDRSet"), list, cidr_set)?);
        }
        if let Some(list) = entities {
            kinds.push(self.each(&format!("{side}Entities"), list, |path, text| {
                Ok(entity(path, text)?.iter().copied().map(Peer::Entity).collect())
            })?);
        }
        if let Some(list) = &written.to_services {
            let read = |path: &str, one: &ServiceRule| Ok(vec![self.service(path, one)?]);
            kinds.push(self.each("toServices", list, read)?);
        }
        if let Some(list) = &written.to_fqdns {
            if self.action == Action::Deny {
                let path = Place(&self.path).field("toFQDNs");
                return Err(FieldError::new(path, Problem::DenyByName));
            }
            kinds.push(self.each("toFQDNs", list, |path, one| {
                Ok(vec![Peer::Fqdn(FqdnPeer {
                    pattern: pattern(path, one)?,
                    except: Vec::new(),
                    allow_private: false,
                    resolves: true,
                })])
            })?);
        }
        if kinds.len() > 1 {
            let fields = "endpoints, CIDRs, CIDR sets, entities, services and FQDNs";
            return Err(FieldError::new(self.path.as_str(), Problem::Together { fields }));
        }
        Ok(kinds.pop().map(Peers::Of))
    }

    /// The peers of all entries of a list.
    fn each<T>(
        &self,
        field: &str,
        list: &[T],
        read: impl Fn(&str, &T) -> Result<Vec<Peer>, FieldError>,
    ) -> Result<Vec<Peer>, FieldError> {
        let mut peers = Vec::with_capacity(list.len());
        for (index, written) in list.iter().enumerate() {
            peers.extend(read(&Place(&self.path).entry(field, index), written)?);
        }
        Ok(peers)
    }

    /// Services are those of the policy's own namespace where none is written.
    fn service(&self, path: &str, written: &ServiceRule) -> Result<Peer, FieldError> {
        let place = Place(path);
        let named = |field: &str, written: &str| {
            field::object_name(place.field(field), written).map(Arc::<str>::from)
        };
        let own = || self.namespace.map(Arc::clone);
        match (&written.k8s_service, &written.k8s_service_selector) {
            (Some(service), None) => {
                let namespace = match &service.namespace {
                    Some(written) => named("k8sService.namespace", written)?,
                    None => own().ok_or_else(|| {
                        FieldError::new(place.field("k8sService.namespace"), Problem::Missing)
                    })?,
                };
                let name = named("k8sService.serviceName", &service.service_name)?;
                Ok(Peer::Service(ServiceRef { namespace, name }))
            }
            (None, Some(selected)) => {
                let namespace = match &selected.namespace {
                    Some(written) => Some(named("k8sServiceSelector.namespace", written)?),
                    None => own(),
                };
                let path = place.field("k8sServiceSelector.selector");
                let labels = selector(&path, &selected.selector)?;
                Ok(Peer::Services(ServicesPeer { namespace, labels }))
            }
            (Some(_), Some(_)) => {
                let fields = "k8sService and k8sServiceSelector";
                Err(FieldError::new(path, Problem::Together { fields }))
            }
            (None, None) => {
                let expected = "k8sService or k8sServiceSelector";
                Err(FieldError::new(path, Problem::EmptyPeer { expected }))
            }
        }
    }
}

/// An entry of `toCIDRSet` or `fromCIDRSet`: a prefix, or the prefixes of groups.
fn cidr_set(path: &str, written: &CidrRule) -> Result<Vec<Peer>, FieldError> {
    let place = Place(path);
    let CidrRule { cidr, except, cidr_group_ref, cidr_group_selector } = written;
    let except = || {
        let read =
            |(index, text): (usize, &String)| net(place.entry("except", index), text.as_str());
        except.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()
    };
    let groups = match (cidr, cidr_group_ref, cidr_group_selector) {
        (Some(text), None, None) => {
            let whole = net(place.field("cidr"), text)?;
            let except = except()?;
            for (index, inner) in except.iter().enumerate() {
                if !whole.contains(inner) || whole == *inner {
                    let problem = Problem::ExceptOutside { except: *inner, net: whole };
                    return Err(FieldError::new(place.entry("except", index), problem));
                }
            }
            return Ok(vec![world(whole, except)]);
        }
        (None, Some(name), None) => {
            CidrGroups::Named(field::object_name(place.field("cidrGroupRef"), name)?.into())
        }
        (None, None, Some(labels)) => {
            CidrGroups::Selected(selector(&place.field("cidrGroupSelector"), labels)?)
        }
        (None, None, None) => {
            let expected = "cidr, cidrGroupRef or cidrGroupSelector";
            return Err(FieldError::new(path, Problem::EmptyPeer { expected }));
        }
        (Some(_), _, _) | (None, Some(_), Some(_)) => {
            let fields = "cidr, cidrGroupRef and cidrGroupSelector";
            return Err(FieldError::new(path, Problem::Together { fields }));
        }
    };
    Ok(vec![Peer::CidrGroups(CidrGroupsPeer { groups, except: except()? })])
}

/// A prefix; an address alone is one of its whole length.
pub(super) fn net(path: String, text: &str) -> Result<IpNet, FieldError> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address)),
        Err(_) => field::prefix(path, text),
    }
}

/// CL-9.
fn world(net: IpNet, except: Vec<IpNet>) -> Peer {
    Peer::Cidr(CidrPeer { net, except, reach: CidrReach::World })
}

/// CL-8.
pub(super) fn entity(path: &str, text: &str) -> Result<&'static [Entity], FieldError> {
    Ok(match text {
        "all" => &[Entity::World, Entity::Cluster],
        "world" => &[Entity::World],
        "world-ipv4" => &[Entity::WorldIpv4],
        "world-ipv6" => &[Entity::WorldIpv6],
        "cluster" => &[Entity::Cluster],
        "host" => &[Entity::Host],
        "remote-node" => &[Entity::RemoteNode],
        "kube-apiserver" => &[Entity::KubeApiserver],
        "unmanaged" => &[Entity::Unmanaged],
        // Nothing is in these two: an endpoint is known with its labels or not at all.
        "init" | "none" => &[],
        other => {
            let expected = "all, world, world-ipv4, world-ipv6, cluster, host, remote-node, \
                            kube-apiserver, init, unmanaged or none";
            let problem = Problem::NotOneOf { value: other.to_owned(), expected: expected.into() };
            return Err(FieldError::new(path, problem));
        }
    })
}
