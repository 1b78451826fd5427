//! `GET /v1/why`: what becomes of a flow now, by policy, by what was learned, and by the flows that
//! are known.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use namegate_egress_bpf::abi::{Direction, ServiceKey};
use namegate_egress_bpf::packet::protocol;
use namegate_policy::dns::NameDecision;
use namegate_policy::identity::Identity;
use namegate_policy::learned::Lease;
use namegate_policy::name::DnsName;
use namegate_policy::oracle::{Circumstances, Flow};
use namegate_policy::rule::{Origin, Protocol};
use namegate_policy::table::ClauseAction;
use namegate_policy::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::names::described;
use super::{Context, Failure, FlowItem, View, flows};
use crate::audit::entity;
use crate::clock;
use crate::explain::{LiveEndpoint, LiveRemote, LiveVerdict};

/// Addresses of a name, and backends of a service, that are judged at most.
const TARGETS_MAX: usize = 16;

/// What is asked.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Asked {
    /// The pod, as `NAMESPACE/POD`.
    pod: String,
    /// A name or an address.
    to: String,
    port: u16,
    protocol: String,
}

/// Why a flow goes through or does not.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct WhyReport {
    /// `forwarded`, `audit`, `dropped`, `refused` where the name may not be asked, or `unlearned` where
    /// the pod has to ask for the name first.
    pub verdict: String,
    /// The policies that select the pod.
    pub policies: BTreeSet<String>,
    /// Where the question was about a name: what becomes of its lookup.
    pub lookup: Option<LookupReport>,
    /// One for each address, the backends of a service among them.
    pub targets: Vec<TargetReport>,
    /// What would let it through.
    pub advice: Vec<String>,
}

/// What becomes of a lookup.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LookupReport {
    /// `allowed`, `audit`, `refused`, `search-miss`, or `ungoverned` where no proxy is asked.
    pub verdict: String,
    /// The rules or policies that decide.
    pub rules: Vec<String>,
    /// The rules that the name's addresses are opened for.
    pub opens: Vec<String>,
}

/// What becomes of packets to one address.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct TargetReport {
    /// The address.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// The service that leads there.
    pub service: Option<(IpAddr, u16)>,
    /// Whose address it is: a pod, or a word.
    pub who: Option<String>,
    /// The names that the pod learned it under, with how long they open it.
    pub learned: Vec<LearnedReport>,
    /// What the pod's table says.
    pub egress: EndReport,
    /// What the other pod's table says, where it lives on this node.
    pub ingress: Option<EndReport>,
    /// Flows from the pod to there that the kernel knows.
    pub flows: Vec<FlowItem>,
}

/// A name that led to an address.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LearnedReport {
    /// The name.
    pub name: String,
    /// For how many seconds new flows may start; `null` where none may any more.
    pub open_for_s: Option<u64>,
    /// Why the name does not open the address, in a word; `null` where it does.
    #[serde(default)]
    pub not_opened: Option<String>,
}

/// What one end's table says.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct EndReport {
    /// `forwarded`, `audit`, `dropped` or `lookup`.
    pub verdict: String,
    /// Why, in a word.
    pub reason: String,
    /// The rules that decide.
    pub rules: Vec<String>,
    /// All rules of the table, in their order.
    pub considered: Vec<ConsideredReport>,
}

/// A rule, and what of it means the flow.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ConsideredReport {
    /// The rule.
    pub rule: String,
    /// `forward`, `drop`, `audit` or `pass`.
    pub action: String,
    /// Whether it means the other end.
    pub means_peer: bool,
    /// Whether it means the port.
    pub means_port: bool,
}

/// What the state's owner was asked for, to be judged elsewhere.
struct Seen {
    endpoint: LiveEndpoint,
    circumstances: Circumstances,
    lookup: Option<LookupReport>,
    targets: Vec<Target>,
    own: Option<IpAddr>,
}

struct Target {
    address: IpAddr,
    port: u16,
    service: Option<(IpAddr, u16)>,
    who: Option<String>,
    remote: LiveRemote,
    learned: Vec<LearnedReport>,
    /// The other end, where it lives here, with the pod as it sees it.
    other: Option<(LiveEndpoint, LiveRemote)>,
}

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/why", get(why))
}

async fn why(
    State(context): State<Context>,
    Query(asked): Query<Asked>,
) -> Result<Json<WhyReport>, Failure> {
    let transport = transport(&asked.protocol)?;
    let goal = Goal::parse(&asked.to)?;
    let question = (asked.pod.clone(), goal.clone(), asked.port, transport);
    let seen = context.desk.ask(move |view| look(view, &question)).await??;
    let registry = Arc::clone(&context.registry);
    let now = clock::monotonic_now();
    let flows = context
        .read(move |kernel| {
            let flows = kernel.flows()?.into_iter();
            let of_pod = flows.filter_map(|(key, flow)| flows::item(&registry, &key, &flow, now));
            let is_asked = |item: &FlowItem| item.pod == asked.pod && item.direction == "egress";
            Ok(of_pod.filter(is_asked).collect::<Vec<FlowItem>>())
        })
        .await?;
    let report = report(seen, &goal, transport, &flows.unwrap_or_default(), now);
    report.map(Json).map_err(|error| Failure::Broken(format!("the flow cannot be judged: {error}")))
}

/// A name or an address.
#[derive(Clone, Debug)]
enum Goal {
    Name(DnsName),
    Address(IpAddr),
}

impl Goal {
    fn parse(text: &str) -> Result<Self, Failure> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        DnsName::parse(text)
            .map(Self::Name)
            .map_err(|error| Failure::Wrong(format!("{text:?} is no address and no name: {error}")))
    }
}

fn transport(text: &str) -> Result<Protocol, Failure> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => Err(Failure::Wrong(format!("{text:?} is no protocol; there are tcp, udp and sctp"))),
    }
}

fn look(
    view: View<'_>,
    (pod, goal, port, transport): &(String, Goal, u16, Protocol),
) -> Result<Seen, Failure> {
    let state = view.state;
    let spec = state.endpoints().values().find(|spec| spec.pod.to_string() == *pod);
    let endpoint = spec.and_then(|spec| live(view, spec.identity, &spec.pod));
    let Some(endpoint) = endpoint else {
        return Err(Failure::Absent(format!(
            "no endpoint {pod} on this node; see `namegate endpoints`, or ask the agent of its node"
        )));
    };
    let identity = endpoint.spec.identity;
    let (lookup, addresses) = match goal {
        Goal::Address(address) => (None, vec![*address]),
        Goal::Name(name) => {
            let learned = state.learned().read();
            let is_of = |address: &IpAddr| {
                learned.leases((identity, *address)).any(|(known, _)| known == name)
            };
            let addresses = learned.addresses(identity).filter(is_of).take(TARGETS_MAX).collect();
            (Some(ask(&endpoint, name)), addresses)
        }
    };
    let mut targets = Vec::new();
    for address in addresses {
        let number = match transport {
            Protocol::Udp => protocol::UDP,
            Protocol::Sctp => protocol::SCTP,
            Protocol::Tcp | Protocol::Icmp | Protocol::Icmpv6 => protocol::TCP,
        };
        let key = ServiceKey { address: address.into(), port: *port, protocol: number, padding: 0 };
        match state.service_at(&key) {
            Some(service) => targets.extend(service.backends.iter().take(TARGETS_MAX).map(|to| {
                target(view, &endpoint, to.address.into(), to.port, Some((address, *port)))
            })),
            None => targets.push(target(view, &endpoint, address, *port, None)),
        }
    }
    let mut circumstances = state.circumstances();
    circumstances.resolvers = view.resolvers.values().copied().collect();
    let own = endpoint.spec.addresses.first().copied();
    Ok(Seen { endpoint, circumstances, lookup, targets, own })
}

fn live(
    view: View<'_>,
    identity: Identity,
    pod: &namegate_policy::resource::PodRef,
) -> Option<LiveEndpoint> {
    let spec = view.state.endpoints().values().find(|spec| spec.pod == *pod)?.clone();
    let table = Arc::clone(view.state.tables().get(&identity)?);
    Some(LiveEndpoint { spec, table })
}

fn ask(endpoint: &LiveEndpoint, name: &DnsName) -> LookupReport {
    let table = &endpoint.table;
    let all = |origins: &[Origin]| origins.iter().map(described).collect();
    let opened = table.names.clauses(name).into_iter();
    let opens = opened.filter_map(|place| table.egress.get(usize::from(place)));
    let opens = opens.flat_map(|clause| clause.origins.iter()).map(described).collect();
    if !table.names.is_governed() {
        let verdict = "ungoverned".to_owned();
        return LookupReport { verdict, rules: Vec::new(), opens };
    }
    let (verdict, rules) = match table.names.decide(name) {
        NameDecision::Allowed { origin, audit, .. } => {
            (if audit { "audit" } else { "allowed" }, all(origin.as_slice()))
        }
        NameDecision::SearchMiss => ("search-miss", Vec::new()),
        NameDecision::Refused { filters, .. } => ("refused", all(&filters)),
    };
    LookupReport { verdict: verdict.to_owned(), rules, opens }
}

fn target(
    view: View<'_>,
    endpoint: &LiveEndpoint,
    address: IpAddr,
    port: u16,
    service: Option<(IpAddr, u16)>,
) -> Target {
    let state = view.state;
    let now = clock::monotonic_now();
    let own = endpoint.spec.identity;
    let identity = state.who(address);
    let pod = state.pod_at(address);
    let who = pod.map(ToString::to_string).or_else(|| Some(entity(identity?)?.to_owned()));
    let leases = state.learned().read();
    let learned = leases.leases((own, address)).map(|(name, lease)| LearnedReport {
        name: name.to_string(),
        not_opened: super::names::not_opened(view, (own, address), name),
        open_for_s: match lease {
            Lease::Fresh { deadline } if deadline > now => Some(deadline.since(now).as_secs()),
            Lease::Fresh { .. } | Lease::Lingering { .. } => None,
        },
    });
    let learned = learned.collect();
    let other = pod.and_then(|pod| {
        let there = live(view, identity?, pod)?;
        let back = LiveRemote {
            address: endpoint.spec.addresses.first().copied()?,
            identity: Some(own),
            names: None,
        };
        Some((there, back))
    });
    let remote = LiveRemote { address, identity, names: state.name_rules(own, address) };
    Target { address, port, service, who, remote, learned, other }
}

fn report(
    seen: Seen,
    goal: &Goal,
    transport: Protocol,
    flows: &[FlowItem],
    now: Timestamp,
) -> Result<WhyReport, crate::explain::EngineError> {
    let Seen { endpoint, circumstances, lookup, targets, own } = seen;
    let mut told = Vec::new();
    for target in targets {
        let source =
            endpoint.spec.addresses.iter().find(|at| at.is_ipv4() == target.address.is_ipv4());
        let Some(source) = source.copied().or(own) else { continue };
        let flow =
            Flow { source, destination: target.address, protocol: transport, port: target.port };
        let judge = |at: &LiveEndpoint, way, remote: &LiveRemote| {
            let ruled = at.judge(way, remote, &flow, &circumstances, now)?;
            Ok(end(at, way, remote, &flow, ruled))
        };
        let egress = judge(&endpoint, Direction::Egress, &target.remote)?;
        let ingress = target.other.as_ref().map(|(at, back)| {
            let back = LiveRemote { address: source, ..*back };
            judge(at, Direction::Ingress, &back)
        });
        let is_there =
            |item: &&FlowItem| item.remote == target.address && item.remote_port == target.port;
        told.push(TargetReport {
            address: target.address,
            port: target.port,
            service: target.service,
            who: target.who,
            learned: target.learned,
            egress,
            ingress: ingress.transpose()?,
            flows: flows.iter().filter(is_there).cloned().collect(),
        });
    }
    let verdict = verdict(lookup.as_ref(), &told).to_owned();
    let policies = super::identities::policies(&endpoint.table);
    let advice = super::advice::advice(goal_text(goal), &verdict, lookup.as_ref(), &told);
    Ok(WhyReport { verdict, policies, lookup, targets: told, advice })
}

fn goal_text(goal: &Goal) -> Option<String> {
    match goal {
        Goal::Name(name) => Some(name.to_string()),
        Goal::Address(_) => None,
    }
}

fn end(
    at: &LiveEndpoint,
    way: Direction,
    remote: &LiveRemote,
    flow: &Flow,
    ruled: LiveVerdict,
) -> EndReport {
    let considered = at.consider(way, remote, flow).into_iter().map(|rule| ConsideredReport {
        rule: rule.origins.iter().map(described).collect::<Vec<_>>().join(", "),
        action: match rule.action {
            ClauseAction::Forward => "forward",
            ClauseAction::Drop => "drop",
            ClauseAction::Audit => "audit",
            ClauseAction::Pass => "pass",
        }
        .to_owned(),
        means_peer: rule.means_peer,
        means_port: rule.means_port,
    });
    EndReport {
        verdict: ruled.verdict.to_owned(),
        reason: ruled.reason.to_owned(),
        rules: ruled.origins.iter().map(described).collect(),
        considered: considered.collect(),
    }
}

/// The worst that can become of it.
fn verdict(lookup: Option<&LookupReport>, targets: &[TargetReport]) -> &'static str {
    if lookup.is_some_and(|lookup| matches!(&*lookup.verdict, "refused" | "search-miss")) {
        return "refused";
    }
    if targets.is_empty() {
        return "unlearned";
    }
    let ends = || targets.iter().flat_map(|to| [Some(&to.egress), to.ingress.as_ref()]).flatten();
    if ends().any(|end| end.verdict == "dropped") {
        "dropped"
    } else if ends().any(|end| end.verdict == "audit") {
        "audit"
    } else {
        "forwarded"
    }
}
