//! The slow obvious decision about a flow or a lookup, straight from the objects.
//!
//! Nothing is interned, indexed or ordered beforehand: for each question every object is looked at.
//! It shares only the parsed objects with what builds policy tables, not even the methods that match
//! them, so that tests can hold one against the other. [`Oracle::trace`] also says what was
//! considered on the way, which is what `explain` shows.

mod lookup;
mod peer;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::name::DnsName;
use crate::object::Object;
use crate::opening::{ClusterRanges, RebindingGuard};
use crate::resource::{Pod, PodRef};
use crate::rule::{Action, Direction, Mode, Origin, Policy, PolicyKind, Protocol, Rule, Tier};
use crate::time::Timestamp;

pub use lookup::LookupRuling;
pub(crate) use lookup::is_named;
pub use peer::Party;
pub(crate) use peer::{has_labels, has_port, is_in};

/// The objects that decide, what was learned, and when the question is asked.
#[derive(Clone, Copy, Debug)]
pub struct Oracle<'a> {
    /// Every object, policies included.
    pub objects: &'a [Object],
    /// What no object says.
    pub circumstances: &'a Circumstances,
    /// The answers that pods got.
    pub lessons: &'a [Lesson],
    /// When the question is asked.
    pub now: Timestamp,
}

/// What decides beside objects.
#[derive(Clone, Debug)]
pub struct Circumstances {
    /// The addresses of the node that the decision is made on.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Ranges of pods, services and nodes: what has an address of the first two and is no pod is
    /// unmanaged.
    pub ranges: ClusterRanges,
    /// Resolvers beside those that objects show.
    pub resolvers: BTreeSet<IpAddr>,
    /// The domain whose names always resolve (EP-6).
    pub domain: DnsName,
    /// Search suffixes of pods beside those below `domain` (EP-7).
    pub search: Vec<DnsName>,
    /// Whether names open private addresses (EP-9).
    pub guard: RebindingGuard,
    /// The shortest time that an answer counts for (EP-10).
    pub min_ttl: Duration,
    /// The time after an answer's TTL during which flows may start (EP-10).
    pub grace: Duration,
}

/// An address that a pod got as an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lesson {
    /// Who asked.
    pub pod: PodRef,
    /// For what.
    pub name: DnsName,
    /// What the answer was.
    pub address: IpAddr,
    /// How long it is good for.
    pub ttl: Duration,
    /// When it arrived.
    pub at: Timestamp,
}

/// The first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who opens it.
    pub source: IpAddr,
    /// Whom it is opened to, behind every service.
    pub destination: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// The destination's port, or the message type for ICMP.
    pub port: u16,
}

/// What becomes of a flow at one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It goes through.
    Forward,
    /// It goes through, and only Audit policies would have dropped it.
    Audit,
    /// It is dropped.
    Drop,
}

/// What becomes of a flow at one end, and who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling {
    /// The verdict.
    pub verdict: Verdict,
    /// The rule that decided, or every policy that isolates; empty where nothing concerns the flow.
    pub origins: Vec<Origin>,
}

impl Ruling {
    /// Nothing concerns the flow.
    pub const OPEN: Self = Self { verdict: Verdict::Forward, origins: Vec::new() };
}

/// What becomes of a flow; `None` for an end that is no pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// At the end that opens the flow.
    pub egress: Option<Ruling>,
    /// At the other end.
    pub ingress: Option<Ruling>,
}

/// A flow as one of its ends sees it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Whether the subject opens the flow.
    pub direction: Direction,
    /// The pod whose policies are asked.
    pub subject: &'a Pod,
    /// The other end.
    pub remote: IpAddr,
    /// Who that is.
    pub party: Party<'a>,
    /// The flow's protocol.
    pub protocol: Protocol,
    /// The destination's port.
    pub port: u16,
}

/// A ruling, and all that was considered for it.
#[derive(Clone, Debug)]
pub struct Trace<'a> {
    /// What it came to.
    pub ruling: Ruling,
    /// What kind of thing decided.
    pub cause: Cause,
    /// Every rule and isolation that concerns the subject in this direction, in the order of
    /// precedence; empty where no rule is asked.
    pub steps: Vec<(Step<'a>, Outcome)>,
}

/// What kind of thing decided about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A step of the trace.
    Step(usize),
    /// Nothing: the subject is open.
    Open,
    /// The subject's own node opens the flow (NP-22, CH-4).
    OwnNode,
    /// The subject talks to itself (NP-23).
    Itself,
    /// A lookup, which the node's proxy answers (EP-2).
    Lookup,
}

/// Something that can decide about a flow.
#[derive(Clone, Debug)]
pub enum Step<'a> {
    /// A rule.
    Rule(&'a Policy, &'a Rule),
    /// What no rule allowed is refused by this and those, which are of one mode.
    Isolation(&'a Policy, Vec<&'a Policy>),
}

/// What came of a [`Step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It decided.
    Decided,
    /// It would have refused the flow, and is only audited.
    Audited,
    /// It sent the flow to the next tier.
    Passed,
    /// It does not mean the flow.
    NoMatch,
    /// A Pass rule, by its position, skipped the rest of this tier.
    Skipped(usize),
    /// An earlier step decided.
    NotReached,
}

/// The tiers in order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Admin rules.
    Admin,
    /// Denials, allowances and isolation of the policies that add up.
    Namespaced,
    /// Baseline rules.
    Baseline,
}

impl<'a> Step<'a> {
    /// The policy, or the first of them.
    pub const fn policy(&self) -> &'a Policy {
        match self {
            Self::Rule(policy, _) | Self::Isolation(policy, _) => policy,
        }
    }

    /// Its tier.
    pub const fn stage(&self) -> Stage {
        stage(self.policy().tier)
    }

    /// Who is named where it decides.
    pub fn origins(&self) -> Vec<Origin> {
        let whole = |policy: &Policy| Origin { policy: policy.reference.clone(), rule: None };
        match self {
            Self::Rule(policy, rule) => {
                vec![Origin { policy: policy.reference.clone(), rule: Some(rule.label.clone()) }]
            }
            Self::Isolation(first, others) => {
                std::iter::once(first).chain(others).map(|policy| whole(policy)).collect()
            }
        }
    }

    /// Whether it only says what it would refuse (EP-12).
    fn is_audit(&self) -> bool {
        self.policy().mode == Mode::Audit
    }
}

impl Default for Circumstances {
    fn default() -> Self {
        Self {
            own_addresses: BTreeSet::new(),
            ranges: ClusterRanges::default(),
            resolvers: BTreeSet::new(),
            domain: DnsName::parse("cluster.local").unwrap_or_else(|_| DnsName::root()),
            search: Vec::new(),
            guard: RebindingGuard::default(),
            min_ttl: Duration::from_secs(30),
            grace: Duration::from_secs(60),
        }
    }
}

impl<'a> Oracle<'a> {
    /// Decides about `flow` at both of its ends (NP-2).
    pub fn decide(&self, flow: &Flow) -> Decision {
        let ruling = |view: Option<View<'a>>| Some(self.trace(&view?).ruling);
        let [egress, ingress] = self.views(flow);
        Decision { egress: ruling(egress), ingress: ruling(ingress) }
    }

    /// The flow as the end that opens it sees it, and as the other does; `None` for one that is no
    /// pod.
    pub fn views(&self, flow: &Flow) -> [Option<View<'a>>; 2] {
        let (source, destination) = (self.party(flow.source), self.party(flow.destination));
        let Flow { protocol, port, .. } = *flow;
        let view = |direction, subject: Party<'a>, remote, party| {
            let subject = subject.pod()?;
            Some(View { direction, subject, remote, party, protocol, port })
        };
        [
            view(Direction::Egress, source, flow.destination, destination),
            view(Direction::Ingress, destination, flow.source, source),
        ]
    }

    /// Decides at one end of a flow: the first step that means the flow and refuses, allows or
    /// passes on.
    pub fn trace(&self, view: &View<'a>) -> Trace<'a> {
        let exempt = |cause| Trace { ruling: Ruling::OPEN, cause, steps: Vec::new() };
        if view.subject.addresses.contains(&view.remote) {
            return exempt(Cause::Itself);
        }
        if view.direction == Direction::Ingress && view.party == Party::Host {
            return exempt(Cause::OwnNode);
        }
        if self.is_lookup(view) {
            return exempt(Cause::Lookup);
        }
        let mut steps = Vec::new();
        let mut decided: Option<(Ruling, usize)> = None;
        let mut audited: Option<(Vec<Origin>, usize)> = None;
        let mut passed: Option<(Stage, usize)> = None;
        for (position, step) in self.ladder(view.subject, view.direction).into_iter().enumerate() {
            let outcome = match passed {
                _ if decided.is_some() => Outcome::NotReached,
                Some((stage, by)) if stage == step.stage() => Outcome::Skipped(by),
                Some(_) | None => self.outcome(view, &step),
            };
            match outcome {
                Outcome::Decided => {
                    let verdict = if is_allowing(&step) { Verdict::Forward } else { Verdict::Drop };
                    decided = Some((Ruling { verdict, origins: step.origins() }, position));
                }
                // The first that would have refused the flow is the one that is named.
                Outcome::Audited if audited.is_none() => {
                    audited = Some((step.origins(), position));
                }
                Outcome::Passed => passed = Some((step.stage(), position)),
                Outcome::Audited | Outcome::NoMatch | Outcome::Skipped(_) | Outcome::NotReached => {
                }
            }
            steps.push((step, outcome));
        }
        let (ruling, cause) = match (decided, audited) {
            (Some((ruling, by)), None) => (ruling, Cause::Step(by)),
            (Some((ruling, by)), Some(_)) if ruling.verdict == Verdict::Drop => {
                (ruling, Cause::Step(by))
            }
            (_, Some((origins, by))) => {
                (Ruling { verdict: Verdict::Audit, origins }, Cause::Step(by))
            }
            (None, None) => (Ruling::OPEN, Cause::Open),
        };
        Trace { ruling, cause, steps }
    }

    fn outcome(&self, view: &View<'a>, step: &Step<'a>) -> Outcome {
        let (is_hit, action) = match step {
            Step::Rule(policy, rule) => (self.is_meant(view, policy, rule), rule.action),
            Step::Isolation(..) => (true, Action::Deny),
        };
        match action {
            _ if !is_hit => Outcome::NoMatch,
            Action::Deny if step.is_audit() => Outcome::Audited,
            Action::Allow | Action::Deny => Outcome::Decided,
            Action::Pass => Outcome::Passed,
        }
    }

    /// All that could decide about flows of `subject` in one direction, in the order of precedence:
    /// admin rules, denials, allowances, isolation, baseline rules.
    pub fn ladder(&self, subject: &Pod, direction: Direction) -> Vec<Step<'a>> {
        let mut selecting: Vec<&'a Policy> =
            self.policies().filter(|policy| self.selects(&policy.subject, subject)).collect();
        selecting.sort_by(|one, two| (one.tier, &one.reference).cmp(&(two.tier, &two.reference)));
        let mut steps = self.ordered(&selecting, direction, Stage::Admin);
        steps.extend(added_up(&selecting, direction));
        steps.extend(self.ordered(&selecting, direction, Stage::Baseline));
        steps
    }

    /// The rules of an ordered tier: those of one object stay in order, except that what
    /// ClusterEgressPolicies deny comes before what those of the same priority allow.
    fn ordered(
        &self,
        selecting: &[&'a Policy],
        direction: Direction,
        wanted: Stage,
    ) -> Vec<Step<'a>> {
        let mut rules = rules_of(selecting, direction, |policy, _| stage(policy.tier) == wanted);
        rules.sort_by_key(|(policy, rule)| {
            let kind = policy.reference.kind;
            let is_late = kind == PolicyKind::ClusterEgressPolicy && rule.action != Action::Deny;
            (policy.tier, kind, is_late, policy.reference.clone())
        });
        rules.into_iter().map(|(policy, rule)| Step::Rule(policy, rule)).collect()
    }

    /// Every policy, one for each subject of an object.
    pub fn policies(&self) -> impl Iterator<Item = &'a Policy> {
        let objects = self.objects.iter().filter_map(|object| {
            if let Object::Policy(policy) = object { Some(policy) } else { None }
        });
        objects.flat_map(Policy::parts)
    }
}

/// Denials, allowances and isolation of the policies that add up (EP-1, EP-12, NP-1).
fn added_up<'a>(selecting: &[&'a Policy], direction: Direction) -> Vec<Step<'a>> {
    let is_ours = |policy: &Policy| policy.tier == Tier::Namespaced;
    let denying = |mode| {
        rules_of(selecting, direction, move |policy, rule| {
            is_ours(policy) && policy.mode == mode && rule.action == Action::Deny
        })
    };
    let allowing = rules_of(selecting, direction, |policy, rule| {
        is_ours(policy) && rule.action != Action::Deny
    });
    let rules = [denying(Mode::Enforce), denying(Mode::Audit), allowing].concat();
    let mut steps: Vec<Step<'a>> =
        rules.into_iter().map(|(policy, rule)| Step::Rule(policy, rule)).collect();
    let isolating = |mode| -> Vec<&'a Policy> {
        let all = selecting.iter().copied().filter(|policy| is_ours(policy));
        let all = all.filter(|policy| policy.mode == mode && policy.isolates.covers(direction));
        let mut isolating: Vec<&'a Policy> = all.collect();
        // An object with several subjects can isolate by more than one of them.
        isolating.dedup_by_key(|policy| &policy.reference);
        isolating
    };
    let isolating = [isolating(Mode::Enforce), isolating(Mode::Audit)];
    if let Some((first, others)) = isolating.iter().find_map(|policies| policies.split_first()) {
        steps.push(Step::Isolation(first, others.to_vec()));
    }
    steps
}

fn rules_of<'a>(
    selecting: &[&'a Policy],
    direction: Direction,
    is_wanted: impl Fn(&Policy, &Rule) -> bool,
) -> Vec<(&'a Policy, &'a Rule)> {
    let all = selecting.iter().flat_map(|policy| policy.rules.iter().map(|rule| (*policy, rule)));
    all.filter(|(policy, rule)| rule.direction == direction && is_wanted(policy, rule)).collect()
}

fn is_allowing(step: &Step<'_>) -> bool {
    matches!(step, Step::Rule(_, rule) if rule.action == Action::Allow)
}

/// The tier that a policy's rules are in.
pub const fn stage(tier: Tier) -> Stage {
    match tier {
        Tier::Admin { .. } => Stage::Admin,
        Tier::Namespaced => Stage::Namespaced,
        Tier::Baseline { .. } => Stage::Baseline,
    }
}
