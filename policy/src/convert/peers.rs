//! One remote end of a rule.

use super::{Converter, Effect};
use crate::api::{EgressPeer, Entity, LabelRequirement, LabelSelector, ServicePeer};
use crate::pattern::DomainPattern;
use crate::review::{Part, Place};
use crate::rule::{self, Action, CidrReach, Namespaces, Peer, Rule, Workloads};
use crate::selector::{Condition, Requirement, Selector};

impl Converter<'_> {
    /// A peer; `index` is its number among those by labels. `None` where it has no form.
    pub(super) fn peer(&mut self, rule: &Rule, peer: &Peer, index: usize) -> Option<EgressPeer> {
        match peer {
            Peer::Fqdn(fqdn) => self.fqdn(rule, &fqdn.pattern),
            Peer::Cidr(cidr) => Some(self.cidr(rule, cidr)),
            Peer::Workloads(workloads) => self.workloads(rule, workloads, index),
            Peer::Entity(entity) => {
                let entity = match entity {
                    rule::Entity::World => Entity::World,
                    rule::Entity::Cluster => Entity::Cluster,
                    rule::Entity::Host => Entity::Host,
                    rule::Entity::RemoteNode => Entity::RemoteNode,
                    rule::Entity::KubeApiserver => Entity::KubeApiserver,
                    rule::Entity::WorldIpv4 | rule::Entity::WorldIpv6 | rule::Entity::Unmanaged => {
                        self.lose(
                            rule,
                            Part::Whole,
                            "an entity that an EgressPolicy does not have",
                        );
                        return None;
                    }
                };
                Some(EgressPeer { entity: Some(entity), ..EgressPeer::default() })
            }
            Peer::Service(service) => {
                let namespace = Some(service.namespace.to_string());
                let service = ServicePeer { namespace, name: service.name.to_string() };
                Some(EgressPeer { service: Some(service), ..EgressPeer::default() })
            }
            Peer::Services(_) => {
                self.lose(rule, Part::Whole, "an EgressPolicy names one service at a time");
                None
            }
            Peer::CidrGroups(_) => {
                self.lose(
                    rule,
                    Part::Whole,
                    "an EgressPolicy has no CIDR groups; write the prefixes",
                );
                None
            }
            Peer::Nodes(_) => {
                self.lose(rule, Part::Whole, "an EgressPolicy does not select nodes by labels");
                None
            }
        }
    }

    fn fqdn(&mut self, rule: &Rule, pattern: &DomainPattern) -> Option<EgressPeer> {
        let written = pattern.to_string();
        let place = Part::Pattern(pattern.clone());
        let fqdn = match written.strip_prefix("**.") {
            Some(rest) => format!("*.{rest}"),
            None => written.clone(),
        };
        if DomainPattern::parse(&fqdn).is_err() {
            let message =
                format!("`{written}` has stars that an EgressPolicy does not have; list the names");
            self.lose(rule, place, &message);
            return None;
        }
        if let Some(rest) = written.strip_prefix("*.") {
            self.tell(
                Place::of(&rule.label, place),
                Effect::Wider,
                format!("`{written}` was one label before {rest}, and is one or more"),
            );
        }
        Some(EgressPeer { fqdn: Some(fqdn), ..EgressPeer::default() })
    }

    /// CL-9, CH-1.
    fn cidr(&mut self, rule: &Rule, cidr: &rule::CidrPeer) -> EgressPeer {
        if cidr.reach == CidrReach::World {
            let effect = match rule.action {
                Action::Allow => Effect::Wider,
                Action::Deny | Action::Pass => Effect::Narrower,
            };
            self.tell(
                Place::of(&rule.label, Part::Net(cidr.net)),
                effect,
                format!("{} did not mean pods and nodes in it, and does", cidr.net),
            );
        }
        EgressPeer {
            cidr: Some(cidr.net.to_string()),
            except: cidr.except.iter().map(ToString::to_string).collect(),
            ..EgressPeer::default()
        }
    }

    fn workloads(
        &mut self,
        rule: &Rule,
        workloads: &Workloads,
        index: usize,
    ) -> Option<EgressPeer> {
        if !workloads.service_accounts.is_empty() {
            let message = "an EgressPolicy does not select by service account";
            self.lose(rule, Part::Workloads(index), message);
            return None;
        }
        let own = self.policy.reference.namespace.as_ref();
        let namespace_selector = match &workloads.namespaces {
            Namespaces::Named(name) if own == Some(name) => None,
            Namespaces::Named(name) => {
                let by_name = Requirement::equals(crate::resource::NAMESPACE_NAME_LABEL, name);
                Some(selector(&Selector::from_iter([by_name])))
            }
            Namespaces::Selected(namespaces) => Some(selector(namespaces)),
        };
        Some(EgressPeer {
            namespace_selector,
            pod_selector: Some(selector(&workloads.pods)),
            ..EgressPeer::default()
        })
    }
}

/// A selector as it is written.
pub(super) fn selector(selector: &Selector) -> LabelSelector {
    let mut written = LabelSelector::default();
    for Requirement { key, condition } in selector.requirements() {
        let (operator, values) = match condition {
            Condition::In(values) => match values.first().filter(|_| values.len() == 1) {
                Some(value) if !written.match_labels.contains_key(&**key) => {
                    written.match_labels.insert(key.to_string(), value.to_string());
                    continue;
                }
                Some(_) | None => ("In", Some(values)),
            },
            Condition::NotIn(values) => ("NotIn", Some(values)),
            Condition::Exists => ("Exists", None),
            Condition::DoesNotExist => ("DoesNotExist", None),
        };
        written.match_expressions.push(LabelRequirement {
            key: key.to_string(),
            operator: operator.to_owned(),
            values: values.into_iter().flatten().map(ToString::to_string).collect(),
        });
    }
    written
}
