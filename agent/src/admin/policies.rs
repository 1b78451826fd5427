//! `GET /v1/policies`: what each policy and rule decided, and which never did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use namegate_egress_bpf::abi::Direction;
use namegate_policy::identity::Identity;
use namegate_policy::rule::{Origin, PolicyRef};
use serde::{Deserialize, Serialize};

use super::{Context, Failure, View};
use crate::clock;

/// A policy, and what it decided on this node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PolicyItem {
    /// Kind of the object.
    pub kind: String,
    /// Namespace of the object.
    pub namespace: Option<Arc<str>>,
    /// Name of the object.
    pub name: Arc<str>,
    /// How many pods of this node it selects.
    pub endpoints: usize,
    /// Flows that it decided about since the agent began.
    pub hits: u64,
    /// When it did last, as far as the agent looked: every ten seconds.
    pub last_match: Option<String>,
    /// Its rules.
    pub rules: Vec<RuleItem>,
}

/// A rule, and what it decided.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct RuleItem {
    /// Its name or path; `null` for what the policy as a whole decides, such as isolation.
    pub rule: Option<Arc<str>>,
    /// `egress` or `ingress`.
    pub direction: String,
    /// Flows that it decided about.
    pub hits: u64,
    /// When it did last.
    pub last_match: Option<String>,
}

/// What is known of a policy before its hits are.
#[derive(Debug, Default)]
struct Selected {
    identities: BTreeSet<Identity>,
    rules: BTreeSet<(Option<Arc<str>>, Direction)>,
}

pub(super) fn routes() -> Router<Context> {
    Router::new().route("/policies", get(list))
}

async fn list(State(context): State<Context>) -> Result<Json<Vec<PolicyItem>>, Failure> {
    context.count_hits().await?;
    let (selected, counts) = context.desk.ask(look).await?;
    let tallies = context.hits.tallies();
    let items = selected.into_iter().map(|(policy, selected)| {
        let rules: Vec<RuleItem> = selected
            .rules
            .into_iter()
            .map(|(rule, direction)| {
                let origin = Origin { policy: policy.clone(), rule: rule.clone() };
                let tally = tallies.get(&(origin, direction));
                RuleItem {
                    rule,
                    direction: way(direction).to_owned(),
                    hits: tally.map_or(0, |tally| tally.hits),
                    last_match: tally.map(|tally| clock::rfc3339(tally.last)),
                }
            })
            .collect();
        let counted = |identity| counts.get(identity).copied().unwrap_or(0);
        PolicyItem {
            kind: policy.kind.to_string(),
            namespace: policy.namespace,
            name: policy.name,
            endpoints: selected.identities.iter().map(counted).sum(),
            hits: rules.iter().map(|rule| rule.hits).sum(),
            last_match: rules.iter().filter_map(|rule| rule.last_match.clone()).max(),
            rules,
        }
    });
    Ok(Json(items.collect()))
}

/// Every policy with whom it selects here, and how many endpoints each identity has.
fn look(view: View<'_>) -> (BTreeMap<PolicyRef, Selected>, BTreeMap<Identity, usize>) {
    let policies = view.state.policies();
    let mut selected: BTreeMap<PolicyRef, Selected> =
        policies.map(|policy| (policy.reference.clone(), Selected::default())).collect();
    for (identity, table) in view.state.tables() {
        for (clauses, direction) in
            [(&table.egress, Direction::Egress), (&table.ingress, Direction::Ingress)]
        {
            for origin in clauses.iter().flat_map(|clause| clause.origins.iter()) {
                if let Some(selected) = selected.get_mut(&origin.policy) {
                    selected.identities.insert(*identity);
                    selected.rules.insert((origin.rule.clone(), direction));
                }
            }
        }
    }
    let mut counts = BTreeMap::new();
    for spec in view.state.endpoints().values() {
        *counts.entry(spec.identity).or_default() += 1;
    }
    (selected, counts)
}

/// The word for a direction.
pub(super) const fn way(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    }
}
