//! The clauses of one identity in order of precedence.

use std::sync::Arc;

use super::resolve::Resolved;
use super::{CLAUSES_MAX, Clause, ClauseAction, ClausePeers, ClausePorts, ClauseTier, TableError};
use crate::identity::WorkloadLabels;
use crate::rule::{Action, Direction, Mode, Origin, Policy, PolicyKind, PortRange, Tier};

/// A policy that selects the identity, with its rules resolved.
#[derive(Clone, Copy)]
pub(super) struct Selecting<'a> {
    pub(super) policy: &'a Policy,
    pub(super) resolved: &'a Resolved,
    /// Different for each wording of each policy, and each part of it.
    pub(super) wording: (u64, usize),
}

/// A clause, and where the names are that open addresses for it.
pub(super) struct Step {
    pub(super) clause: Clause,
    /// A position among the selecting policies, and one among that policy's rules.
    pub(super) names: Option<(usize, usize)>,
}

/// Puts the policies that select one identity in order: within a tier the priority decides, then the
/// name, so that ties are deterministic.
pub(super) fn sort(selecting: &mut [Selecting<'_>]) {
    selecting.sort_by(|a, b| {
        (a.policy.tier, &a.policy.reference).cmp(&(b.policy.tier, &b.policy.reference))
    });
}

/// The clauses of one direction, from sorted policies.
pub(super) fn climb(
    selecting: &[Selecting<'_>],
    labels: &WorkloadLabels,
    direction: Direction,
) -> Result<Vec<Step>, TableError> {
    Ladder { selecting, labels, direction, steps: Vec::new() }.build()
}

/// A clause that matches every flow.
pub(super) fn everything(action: ClauseAction, tier: ClauseTier, origins: Arc<[Origin]>) -> Clause {
    let peers = ClausePeers { any: true, ..ClausePeers::default() };
    Clause { action, tier, peers, ports: ClausePorts::Any, origins }
}

struct Ladder<'a> {
    selecting: &'a [Selecting<'a>],
    labels: &'a WorkloadLabels,
    direction: Direction,
    steps: Vec<Step>,
}

impl Ladder<'_> {
    fn build(mut self) -> Result<Vec<Step>, TableError> {
        let admin = self.in_tier(|tier| matches!(tier, Tier::Admin { .. }));
        self.add_tier(&admin, ClauseTier::Admin);
        let namespaced = self.in_tier(|tier| matches!(tier, Tier::Namespaced));
        for mode in [Mode::Enforce, Mode::Audit] {
            for &place in &namespaced {
                if self.policy(place).mode == mode {
                    self.add_rules(place, ClauseTier::Namespaced, |action| action == Action::Deny);
                }
            }
        }
        for &place in &namespaced {
            self.add_rules(place, ClauseTier::Namespaced, |action| action != Action::Deny);
        }
        self.add_isolation(&namespaced);
        let baseline = self.in_tier(|tier| matches!(tier, Tier::Baseline { .. }));
        self.add_tier(&baseline, ClauseTier::Baseline);
        let closes = |policy: &Policy| {
            policy.mode == Mode::Enforce && policy.isolates.covers(self.direction)
        };
        if !namespaced.iter().any(|place| closes(self.policy(*place))) {
            let open = everything(ClauseAction::Forward, ClauseTier::Open, Arc::new([]));
            self.push(open);
        }
        self.check_limit()
    }

    fn in_tier(&self, is_it: fn(Tier) -> bool) -> Vec<usize> {
        (0..self.selecting.len()).filter(|place| is_it(self.policy(*place).tier)).collect()
    }

    fn policy(&self, place: usize) -> &Policy {
        self.selecting[place].policy
    }

    /// An ordered tier. What ClusterEgressPolicies deny comes before what those of the same priority
    /// allow; elsewhere the order inside an object counts (CNP-3).
    fn add_tier(&mut self, places: &[usize], tier: ClauseTier) {
        let selecting = self.selecting;
        let kind = |place: &usize| {
            let policy = selecting[*place].policy;
            (policy.tier, policy.reference.kind)
        };
        for equal in places.chunk_by(|a, b| kind(a) == kind(b)) {
            let is_egress_policy = |place: &usize| kind(place).1 == PolicyKind::ClusterEgressPolicy;
            let passes: &[fn(Action) -> bool] = if equal.iter().all(is_egress_policy) {
                &[|action| action == Action::Deny, |action| action != Action::Deny]
            } else {
                &[|_| true]
            };
            for wanted in passes {
                for place in equal {
                    self.add_rules(*place, tier, *wanted);
                }
            }
        }
    }

    /// The final clause of the namespaced tier: what no rule allowed is dropped where an Enforce
    /// policy isolates, and remembered where only Audit policies do (EP-12).
    fn add_isolation(&mut self, namespaced: &[usize]) {
        let direction = self.direction;
        let policies = || namespaced.iter().map(|place| self.policy(*place));
        let isolating = || policies().filter(|policy| policy.isolates.covers(direction));
        let enforced = isolating().any(|policy| policy.mode == Mode::Enforce);
        let (mode, action) = if enforced {
            (Mode::Enforce, ClauseAction::Drop)
        } else {
            (Mode::Audit, ClauseAction::Audit)
        };
        let deciding = isolating().filter(|policy| policy.mode == mode);
        let mut origins: Vec<Origin> = deciding
            .map(|policy| Origin { policy: policy.reference.clone(), rule: None })
            .collect();
        // An object with several subjects can isolate by more than one of them.
        origins.dedup();
        if !origins.is_empty() {
            self.push(everything(action, ClauseTier::Namespaced, origins.into()));
        }
    }

    fn add_rules(&mut self, place: usize, tier: ClauseTier, wanted: fn(Action) -> bool) {
        let Selecting { policy, resolved, .. } = self.selecting[place];
        for (number, (rule, resolved)) in policy.rules.iter().zip(&resolved.rules).enumerate() {
            if rule.direction != self.direction || !wanted(rule.action) {
                continue;
            }
            let action = match (rule.action, policy.mode) {
                (Action::Allow, _) => ClauseAction::Forward,
                (Action::Deny, Mode::Enforce) => ClauseAction::Drop,
                (Action::Deny, Mode::Audit) => ClauseAction::Audit,
                (Action::Pass, _) => ClauseAction::Pass,
            };
            for part in &resolved.parts {
                let mut ports = part.ports.clone();
                if let ClausePorts::Of(ports) = &mut ports {
                    ports.extend(part.own_names.iter().filter_map(|(protocol, name)| {
                        let key = (Arc::clone(name), *protocol);
                        let number = self.labels.named_ports.get(&key)?;
                        Some((*protocol, PortRange::single(*number)))
                    }));
                    if ports.is_empty() && !part.own_names.is_empty() {
                        continue;
                    }
                }
                let (peers, origins) = (part.peers.clone(), Arc::clone(&resolved.origins));
                let names = peers.names.then_some((place, number));
                let clause = Clause { action, tier, peers, ports, origins };
                self.steps.push(Step { clause, names });
            }
        }
    }

    fn push(&mut self, clause: Clause) {
        self.steps.push(Step { clause, names: None });
    }

    fn check_limit(self) -> Result<Vec<Step>, TableError> {
        let needed = self.steps.len();
        if needed <= CLAUSES_MAX {
            return Ok(self.steps);
        }
        let origins = self.steps.iter().skip(CLAUSES_MAX).flat_map(|step| &*step.clause.origins);
        // Where only the final open clause is too many, the last rule is the one that did not fit.
        let last = self.steps.iter().rev().flat_map(|step| &*step.clause.origins);
        match origins.chain(last).next() {
            Some(culprit) => Err(TableError::TooManyClauses {
                direction: self.direction,
                policy: culprit.policy.clone(),
                needed,
                limit: CLAUSES_MAX,
            }),
            None => Ok(self.steps),
        }
    }
}
