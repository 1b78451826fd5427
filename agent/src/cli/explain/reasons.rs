//! The words: what was considered on the way to a verdict, and what became of the rest.

use std::net::IpAddr;

use namegate_policy::dns::RefuseWith;
use namegate_policy::explain::{mismatch, naming, unselected};
use namegate_policy::name::DnsName;
use namegate_policy::oracle::{Flow, LookupRuling, Oracle, Outcome, Step, Trace, View};
use namegate_policy::resource::Pod;
use namegate_policy::rule::{Direction, Origin, Policy, Rule};

use super::answer::{
    AddressAnswer, Considered, DnsAnswer, EndAnswer, PatternAnswer, PolicyAnswer, Unselecting,
    action, lookup, outcome, tier,
};
use super::cast::Complaint;
use crate::explain::Ruled;

/// The oracle, asked for its reasons.
pub(super) struct Reasons<'a> {
    pub(super) oracle: Oracle<'a>,
}

impl Reasons<'_> {
    /// Adds the reasons of one end to its answer. The engine that ruled and the one that explains
    /// have to agree.
    pub(super) fn explain(
        &self,
        direction: Direction,
        flow: &Flow,
        ruled: &Ruled,
        end: &mut EndAnswer,
    ) -> Result<(), Complaint> {
        let [egress, ingress] = self.oracle.views(flow);
        let view = match direction {
            Direction::Egress => egress,
            Direction::Ingress => ingress,
        };
        let Some(view) = view else { return Ok(()) };
        let trace = self.oracle.trace(&view);
        if trace.ruling != ruled.ruling {
            return Err(format!(
                "the engines disagree about {flow:?}: this one says {:?}, the objects say {:?}; \
                 please report it with the manifests",
                ruled.ruling, trace.ruling
            ));
        }
        end.considered = self.considered(&view, &trace);
        let policies = self.oracle.policies();
        end.not_selecting = policies
            .filter_map(|policy| {
                let because = unselected(&self.oracle, policy, view.subject)?;
                Some(Unselecting { policy: whole(policy), because })
            })
            .collect();
        Ok(())
    }

    fn considered(&self, view: &View<'_>, trace: &Trace<'_>) -> Vec<Considered> {
        let names: Vec<String> =
            trace.steps.iter().map(|(step, _)| step_policy(step).short()).collect();
        let decider = trace.steps.iter().position(|(_, came)| *came == Outcome::Decided);
        let named = |position: usize| &names[position];
        let considered = |(step, came): &(Step<'_>, Outcome)| {
            let stage = tier(step.stage());
            let because = match came {
                Outcome::Decided | Outcome::Passed => others(step),
                Outcome::Audited => vec!["mode Audit: it would have refused the flow".to_owned()],
                Outcome::NoMatch => self.mismatch(view, step),
                Outcome::Skipped(by) => {
                    vec![format!("tier: {} passed over the rest of it", named(*by))]
                }
                Outcome::NotReached => match decider {
                    Some(by) if trace.steps[by].0.stage() != step.stage() => {
                        let tier = tier(trace.steps[by].0.stage());
                        vec![format!("tier: not reached, {tier} rule {} decided first", named(by))]
                    }
                    Some(by) => vec![format!("not reached, {} decided first", named(by))],
                    None => Vec::new(),
                },
            };
            Considered {
                policy: step_policy(step),
                tier: stage,
                action: match step {
                    Step::Rule(_, rule) => action(rule.action),
                    Step::Isolation(..) => "isolate",
                },
                outcome: outcome(*came),
                because,
            }
        };
        trace.steps.iter().map(considered).collect()
    }

    fn mismatch(&self, view: &View<'_>, step: &Step<'_>) -> Vec<String> {
        match step {
            Step::Rule(policy, rule) => mismatch(&self.oracle, view, policy, rule),
            Step::Isolation(..) => Vec::new(),
        }
    }

    /// What becomes of a lookup, and of the addresses that it would give.
    pub(super) fn dns(
        &self,
        asker: Option<&Pod>,
        name: &DnsName,
        ruling: Option<&LookupRuling>,
        given: &[IpAddr],
    ) -> DnsAnswer {
        let (policy, filters, rcode) = match ruling {
            Some(LookupRuling::Allowed { origin, .. }) => (origin.as_ref(), &[][..], None),
            Some(LookupRuling::Refused { with, filters }) => {
                let rcode = match with {
                    RefuseWith::Refused => "REFUSED",
                    RefuseWith::NxDomain => "NXDOMAIN",
                    RefuseWith::Empty => "NOERROR",
                };
                (None, filters.as_slice(), Some(rcode))
            }
            Some(LookupRuling::SearchMiss) => (None, &[][..], Some("NXDOMAIN")),
            Some(LookupRuling::Ungoverned) | None => (None, &[][..], None),
        };
        let meaning = asker.map(|pod| naming(&self.oracle, pod, name)).unwrap_or_default();
        let is_private_open = meaning.iter().any(|(_, _, fqdn)| fqdn.allow_private);
        let address = |address: &IpAddr| {
            let withheld = self.oracle.withheld(*address, is_private_open);
            AddressAnswer {
                address: *address,
                opened: withheld.is_none() && !meaning.is_empty(),
                not_opened: withheld.map(|why| why.as_str()),
            }
        };
        DnsAnswer {
            name: name.to_string(),
            verdict: ruling.map_or("not-asked", lookup),
            rcode,
            policy: policy.map(PolicyAnswer::from),
            patterns: meaning
                .iter()
                .map(|(policy, rule, fqdn)| PatternAnswer {
                    pattern: fqdn.pattern.to_string(),
                    policy: of_rule(policy, rule),
                })
                .collect(),
            policies: filters.iter().map(PolicyAnswer::from).collect(),
            answers: given.iter().map(address).collect(),
            needed: None,
        }
    }
}

fn step_policy(step: &Step<'_>) -> PolicyAnswer {
    match step {
        Step::Rule(policy, rule) => of_rule(policy, rule),
        Step::Isolation(policy, _) => whole(policy),
    }
}

/// Who isolates beside the first.
fn others(step: &Step<'_>) -> Vec<String> {
    match step {
        Step::Isolation(_, others) if !others.is_empty() => {
            let names: Vec<String> = others.iter().map(|one| whole(one).to_string()).collect();
            vec![format!("so do {}", names.join(", "))]
        }
        Step::Isolation(..) | Step::Rule(..) => Vec::new(),
    }
}

fn of_rule(policy: &Policy, rule: &Rule) -> PolicyAnswer {
    let rule = Some(rule.label.clone());
    PolicyAnswer::from(&Origin { policy: policy.reference.clone(), rule })
}

fn whole(policy: &Policy) -> PolicyAnswer {
    PolicyAnswer::from(&Origin { policy: policy.reference.clone(), rule: None })
}
