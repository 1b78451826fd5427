//! Which of the kinds that a cluster can be without it has, and when one of them comes.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::Client;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::DefaultBackoff;
use tokio::sync::mpsc;

use super::client::Connection;
use super::kinds::{Presence, WATCHED, Watched};
use super::trouble::Call;
use super::watch::News;

/// Tells of every kind as soon as it is served, and that it has looked, until all are or nobody listens.
pub(super) async fn survey(connection: Connection, interval: Duration, out: mpsc::Sender<News>) {
    let mut absent: BTreeSet<Watched> =
        WATCHED.into_iter().filter(|watched| watched.presence == Presence::Defined).collect();
    let mut told = BTreeSet::new();
    let mut backoff = DefaultBackoff::default();
    while !absent.is_empty() {
        let wait = match served(&connection.client, &absent, &mut told).await {
            Ok(served) => {
                backoff.reset();
                for watched in served {
                    absent.remove(&watched);
                    if out.send(News::Appeared(watched)).await.is_err() {
                        return;
                    }
                }
                if out.send(News::Surveyed).await.is_err() {
                    return;
                }
                interval
            }
            Err(error) => {
                let call = Call { server: &connection.server, verb: "get", resource: "/apis" };
                let trouble = call.trouble(&error);
                // At the start the built-in kinds say it; later on nothing is missed by it.
                tracing::debug!(%trouble, "cannot look which kinds are served");
                backoff.next().unwrap_or(interval)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = out.closed() => return,
        }
    }
}

/// The kinds among `wanted` that are served. `told` holds what was said about other versions.
async fn served(
    client: &Client,
    wanted: &BTreeSet<Watched>,
    told: &mut BTreeSet<Watched>,
) -> Result<Vec<Watched>, kube::Error> {
    let groups = client.list_api_groups().await?.groups;
    let mut served = Vec::new();
    for watched in wanted {
        let Some(group) = groups.iter().find(|group| group.name == watched.group) else { continue };
        let versions = || group.versions.iter().map(|version| version.version.as_str());
        let version = versions().find(|version| *version == watched.version);
        let look_at = version.or_else(|| versions().next());
        let Some(look_at) = look_at else { continue };
        let api_version = format!("{}/{look_at}", watched.group);
        let resources = client.list_api_group_resources(&api_version).await?.resources;
        if !resources.iter().any(|resource| resource.name == watched.plural) {
            continue;
        }
        if version.is_some() {
            served.push(*watched);
        } else if told.insert(*watched) {
            tracing::warn!(
                served = %versions().collect::<Vec<_>>().join(", "),
                "{} objects are not read: the cluster has other versions than {}; what they say is not enforced",
                watched.kind,
                watched.api_version(),
            );
        }
    }
    Ok(served)
}
