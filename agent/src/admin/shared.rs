//! `GET /v1/shared`: addresses that a pod may reach by one name and that answer for others as well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use namegate_policy::identity::Identity;
use namegate_policy::table::PolicyTable;
use serde::{Deserialize, Serialize};

use super::{Context, Failure, Phase, View};
use crate::audit::PolicyLabel;
use crate::state::{SharedLearned, Sharing, find_shared};

/// How often they are counted when nobody asks.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Addresses that an answer lists at most; the rest is counted.
const ITEMS_MAX: usize = 1_000;

/// Names that an address lists at most of either sort.
const NAMES_MAX: usize = 16;

/// All of them, counted, and the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct SharedAddresses {
    /// How many there are, counted once for each identity that may reach them.
    pub count: u64,
    /// The first of them.
    pub items: Vec<SharedItem>,
}

/// An address that opens more than its names say.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct SharedItem {
    /// Who may reach it.
    pub identity: u32,
    /// The pods of this node that have the identity, as `NAMESPACE/NAME`.
    pub pods: BTreeSet<String>,
    /// The address.
    pub address: IpAddr,
    /// The names that open it, with the rule that means each.
    pub opened_by: Vec<OpeningName>,
    /// The names that the identity may not reach, and reaches by this address.
    pub also: Vec<AlsoName>,
}

/// A name that opens an address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct OpeningName {
    /// The name, hostile octets as `\DDD`.
    pub name: String,
    /// The rule.
    pub policy: Option<PolicyLabel>,
}

/// A name that an address answers for besides.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct AlsoName {
    /// The name, hostile octets as `\DDD`.
    pub name: String,
    /// The pods of this node that learned it, as `NAMESPACE/NAME`.
    pub learned_by: BTreeSet<String>,
}

/// What the search needs, taken at one moment.
struct Known {
    learned: SharedLearned,
    tables: BTreeMap<Identity, Arc<PolicyTable>>,
    pods: BTreeMap<Identity, BTreeSet<String>>,
}

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/shared", get(list))
}

async fn list(State(context): State<Context>) -> Result<Json<SharedAddresses>, Failure> {
    find(&context).await.map(Json)
}

async fn find(context: &Context) -> Result<SharedAddresses, Failure> {
    let known = context.desk.ask(look).await?;
    // It takes its time, and is in nobody's way there.
    let found = tokio::task::spawn_blocking(move || search(&known)).await;
    let found = found.map_err(|_| Failure::Ending)?;
    context.shared.store(found.count, Ordering::Relaxed);
    Ok(found)
}

/// Counts the shared addresses for as long as the agent enforces, so that no scrape has to. Takes a
/// hundredth of a processor at most.
pub async fn follow_shared(context: Context) {
    loop {
        let began = Instant::now();
        if context.phase.now() == Phase::Enforcing
            && let Err(error) = find(&context).await
        {
            tracing::warn!(%error, "shared addresses are not counted");
        }
        tokio::time::sleep(LOOK_EVERY.max(began.elapsed() * 99)).await;
    }
}

fn look(view: View<'_>) -> Known {
    let mut pods: BTreeMap<Identity, BTreeSet<String>> = BTreeMap::new();
    for spec in view.state.endpoints().values() {
        let pod = format!("{}/{}", spec.pod.namespace, spec.pod.name);
        pods.entry(spec.identity).or_default().insert(pod);
    }
    let tables = view.state.tables().clone();
    Known { learned: view.state.learned().clone(), tables, pods }
}

fn search(known: &Known) -> SharedAddresses {
    let mut shared = SharedAddresses::default();
    find_shared(&known.learned, &known.tables, |one| {
        shared.count += 1;
        if shared.items.len() < ITEMS_MAX {
            shared.items.push(item(one, &known.pods));
        }
    });
    shared
}

fn item(sharing: Sharing, pods: &BTreeMap<Identity, BTreeSet<String>>) -> SharedItem {
    let pods_of = |identity: &Identity| pods.get(identity).cloned().unwrap_or_default();
    SharedItem {
        identity: sharing.identity.number(),
        pods: pods_of(&sharing.identity),
        address: sharing.address,
        opened_by: sharing
            .opened_by
            .iter()
            .take(NAMES_MAX)
            .map(|(name, origin)| OpeningName {
                name: name.to_string(),
                policy: origin.as_ref().map(PolicyLabel::from),
            })
            .collect(),
        also: sharing
            .also
            .iter()
            .take(NAMES_MAX)
            .map(|(name, learned_by)| AlsoName {
                name: name.to_string(),
                learned_by: learned_by.iter().flat_map(pods_of).collect(),
            })
            .collect(),
    }
}
