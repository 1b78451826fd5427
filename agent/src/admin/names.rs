//! `GET /v1/names`: what each identity learned, until when it counts, and what it opens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use namegate_egress_bpf::abi::{FLOW_REVOKED, ROLE_PLAIN, ROLE_TRANSLATED};
use namegate_policy::identity::Identity;
use namegate_policy::learned::{Lease, Place};
use namegate_policy::name::DnsName;
use namegate_policy::table::PolicyTable;
use namegate_policy::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Context, Failure, View};
use crate::clock;

/// Rows of an answer at most.
const ROWS_MAX: usize = 100_000;

/// Addresses that one look at the state takes at most.
const PAGE: usize = 1_024;

/// Why a name opens nothing that no rule is about.
pub(super) const NO_RULE: &str = "no-rule";

/// Which names.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Wanted {
    /// Those of this pod, as `NAMESPACE/NAME`.
    pod: Option<String>,
    /// Those that contain this.
    name: Option<String>,
}

/// A name and one of its addresses, as one identity learned them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct NameItem {
    /// Whose.
    pub identity: u32,
    /// The pods of this node that have it, as `NAMESPACE/NAME`.
    pub pods: BTreeSet<String>,
    /// The name, hostile octets as `\DDD`.
    pub name: String,
    /// The address that it answered with.
    pub address: IpAddr,
    /// For how many seconds it has been known; `null` where nobody can say, as after an earlier version.
    #[serde(default)]
    pub age_s: Option<u64>,
    /// For how many seconds new flows may start; `null` where none may: the name is past its time, and
    /// kept for flows that live.
    pub open_for_s: Option<u64>,
    /// For how many seconds it has been past its time.
    pub past_for_s: Option<u64>,
    /// Why the name does not open this address, in a word; `null` where it does.
    #[serde(default)]
    pub not_opened: Option<String>,
    /// Flows of the identity to the address.
    pub flows: u64,
    /// The rules that the name belongs to; empty where it resolves and opens nothing.
    pub rules: Vec<String>,
}

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/names", get(list))
}

async fn list(
    State(context): State<Context>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Vec<NameItem>>, Failure> {
    let pod = wanted.pod.clone();
    let identities = context.desk.ask(move |view| identities(view, pod.as_deref())).await?;
    if identities.is_empty()
        && let Some(pod) = &wanted.pod
    {
        return Err(Failure::Absent(format!(
            "no endpoint {pod} on this node; see `namegate endpoints`"
        )));
    }
    let flows = live_flows(&context).await?;
    let mut items = Vec::new();
    for (identity, pods) in identities {
        let mut after = None;
        loop {
            let name = wanted.name.clone();
            let from = after;
            let page =
                context.desk.ask(move |view| page(view, identity, from, name.as_deref())).await?;
            let Page { rows, last } = page;
            let finish = |row: NameItem| NameItem {
                pods: pods.clone(),
                flows: flows.get(&(identity, row.address)).copied().unwrap_or(0),
                ..row
            };
            items.extend(rows.into_iter().map(finish));
            if items.len() >= ROWS_MAX || last.is_none() {
                break;
            }
            after = last;
        }
    }
    items.truncate(ROWS_MAX);
    Ok(Json(items))
}

/// Some rows, and where to go on.
struct Page {
    rows: Vec<NameItem>,
    last: Option<IpAddr>,
}

/// The identities with endpoints here, or that of one pod, each with its pods.
fn identities(view: View<'_>, pod: Option<&str>) -> BTreeMap<Identity, BTreeSet<String>> {
    let mut identities: BTreeMap<Identity, BTreeSet<String>> = BTreeMap::new();
    for spec in view.state.endpoints().values() {
        identities.entry(spec.identity).or_default().insert(spec.pod.to_string());
    }
    identities.retain(|_, pods| pod.is_none_or(|pod| pods.contains(pod)));
    identities
}

fn page(view: View<'_>, identity: Identity, after: Option<IpAddr>, part: Option<&str>) -> Page {
    let now = clock::monotonic_now();
    let learned = view.state.learned().read();
    let is_next = |address: &IpAddr| after.is_none_or(|after| *address > after);
    let addresses: Vec<IpAddr> = learned.addresses(identity).filter(is_next).take(PAGE).collect();
    let table = view.state.tables().get(&identity);
    let mut rows = Vec::new();
    for address in &addresses {
        for (name, lease) in learned.leases((identity, *address)) {
            let text = name.to_string();
            if part.is_some_and(|part| !text.contains(part)) {
                continue;
            }
            let (open_for_s, past_for_s) = times(lease, now);
            let since = learned.learned_at((identity, *address), name);
            rows.push(NameItem {
                identity: identity.number(),
                pods: BTreeSet::new(),
                rules: table.map(|table| rules(table, name)).unwrap_or_default(),
                name: text,
                address: *address,
                age_s: since.map(|since| now.since(since).as_secs()),
                open_for_s,
                past_for_s,
                not_opened: not_opened(view, (identity, *address), name),
                flows: 0,
            });
        }
    }
    let last = addresses.last().copied().filter(|_| addresses.len() == PAGE);
    Page { rows, last }
}

/// Why a name does not open an address that it led to.
pub(super) fn not_opened(
    view: View<'_>,
    (identity, address): Place,
    name: &DnsName,
) -> Option<String> {
    match view.state.opens(identity, address, name) {
        Ok(true) => None,
        Ok(false) => Some(NO_RULE.to_owned()),
        Err(reason) => Some(reason.as_str().to_owned()),
    }
}

fn times(lease: Lease, now: Timestamp) -> (Option<u64>, Option<u64>) {
    match lease {
        Lease::Fresh { deadline } if deadline > now => (Some(deadline.since(now).as_secs()), None),
        Lease::Fresh { deadline: since } | Lease::Lingering { since } => {
            (None, Some(now.since(since).as_secs()))
        }
    }
}

/// The rules of a table that a name belongs to.
fn rules(table: &PolicyTable, name: &DnsName) -> Vec<String> {
    let clauses = table.names.clauses(name);
    let clauses = clauses.iter().filter_map(|place| table.egress.get(usize::from(*place)));
    clauses.flat_map(|clause| clause.origins.iter()).map(described).collect()
}

/// An origin in one line.
pub(super) fn described(origin: &namegate_policy::rule::Origin) -> String {
    match &origin.rule {
        Some(rule) => format!("{} {rule}", origin.policy),
        None => origin.policy.to_string(),
    }
}

/// How many live flows each identity has to each address.
async fn live_flows(context: &Context) -> Result<BTreeMap<Place, u64>, Failure> {
    let registry = Arc::clone(&context.registry);
    let flows = context.read(|kernel| kernel.flows()).await?.unwrap_or_default();
    let mut count: BTreeMap<Place, u64> = BTreeMap::new();
    for (key, flow) in flows {
        let remote = match flow.role {
            ROLE_PLAIN => key.remote,
            ROLE_TRANSLATED => flow.peer,
            _ => continue,
        };
        let is_own = flow.may_be_own() && flow.state != FLOW_REVOKED;
        if let Some((_, Some(identity))) = registry.endpoint(key.ifindex).filter(|_| is_own) {
            *count.entry((identity, remote.into())).or_default() += 1;
        }
    }
    Ok(count)
}
