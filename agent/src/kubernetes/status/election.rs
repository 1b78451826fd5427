//! Which agent writes status: the one that holds a Lease.
//!
//! Another takes it over when it saw the same entry for longer than the Lease lasts, by its own
//! monotonic clock: what the clocks of nodes say does not matter. Two that try at once are told apart
//! by the resourceVersion of their writes.

use std::time::{Duration, SystemTime};

use kube::api::{Api, ApiResource, PostParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::report::limited;
use crate::clock;
use crate::kubernetes::client::Connection;
use crate::kubernetes::raw::Raw;
use crate::kubernetes::trouble::{Call, Trouble};

/// The Lease's name; its namespace is that of the agents.
const NAME: &str = "namegate-status";

const RESOURCE: &str = "leases.coordination.k8s.io";

/// Part of the Lease's time in which whoever holds it stops to write although nobody else may: the
/// slack for requests under way.
const SLACK: u32 = 3;

#[derive(Debug)]
pub(super) struct Election {
    api: Api<Raw>,
    server: String,
    holder: String,
    lasts: Duration,
    /// The entry seen last, and since when it was the same.
    seen: Option<(Entry, Instant)>,
    held_until: Option<Instant>,
}

/// What makes an entry another one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    holder: String,
    renewed: String,
}

impl Election {
    pub(super) fn new(connection: &Connection, holder: &str, lasts: Duration) -> Self {
        let resource = ApiResource {
            group: "coordination.k8s.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "coordination.k8s.io/v1".to_owned(),
            kind: "Lease".to_owned(),
            plural: "leases".to_owned(),
        };
        Self {
            api: Api::namespaced_with(connection.client.clone(), &connection.namespace, &resource),
            server: connection.server.clone(),
            holder: holder.to_owned(),
            lasts,
            seen: None,
            held_until: None,
        }
    }

    /// Whether this agent may write.
    pub(super) fn is_won(&self) -> bool {
        self.held_until.is_some_and(|until| Instant::now() < until)
    }

    /// How long to wait before the next [`Election::stand`], among agents that look no more often
    /// than `pace` each.
    pub(super) fn patience(&self, pace: Duration) -> Duration {
        let often = self.lasts / SLACK;
        if self.is_won() { often } else { often.max(pace) }
    }

    /// Renews the Lease, takes it where nobody holds it, or looks who does.
    pub(super) async fn stand(&mut self) -> Result<(), Trouble> {
        let began = Instant::now();
        let found = limited(self.api.get_opt(NAME)).await;
        let Some(found) = found.map_err(|error| self.trouble("get", &error))? else {
            let made = limited(self.api.create(&PostParams::default(), &self.mk(None))).await;
            return self.settle(began, "create", made);
        };
        let text = |key: &str| {
            let text = found.value.pointer(key).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let entry =
            Entry { holder: text("/spec/holderIdentity"), renewed: text("/spec/renewTime") };
        let is_free = entry.holder.is_empty() || entry.holder == self.holder;
        let since = match &self.seen {
            Some((seen, since)) if *seen == entry => *since,
            _ => began,
        };
        self.seen = Some((entry, since));
        if !is_free && since.elapsed() < self.lasts {
            self.held_until = None;
            return Ok(());
        }
        let params = PostParams::default();
        let written = limited(self.api.replace(NAME, &params, &self.mk(Some(&found)))).await;
        self.settle(began, "update", written)
    }

    /// Gives the Lease back, so that another agent need not wait.
    pub(super) async fn resign(&mut self) {
        if self.held_until.take().is_none() {
            return;
        }
        let given_back = async {
            let found = limited(self.api.get(NAME)).await?;
            let mut lease = self.mk(Some(&found));
            lease.value["spec"]["holderIdentity"] = "".into();
            limited(self.api.replace(NAME, &PostParams::default(), &lease)).await
        };
        if let Err(error) = given_back.await {
            tracing::debug!(%error, "the Lease was not given back; it runs out");
        }
    }

    fn settle(
        &mut self,
        began: Instant,
        verb: &'static str,
        written: Result<Raw, kube::Error>,
    ) -> Result<(), Trouble> {
        match written {
            Ok(_) => {
                self.held_until = Some(began + self.lasts - self.lasts / SLACK);
                Ok(())
            }
            // Somebody else was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.held_until = None;
                Ok(())
            }
            Err(error) => Err(self.trouble(verb, &error)),
        }
    }

    fn trouble(&self, verb: &'static str, error: &kube::Error) -> Trouble {
        Call { server: &self.server, verb, resource: RESOURCE }.trouble(error)
    }

    /// The Lease with this agent as its holder.
    fn mk(&self, before: Option<&Raw>) -> Raw {
        let was = |key: &str| before.and_then(|before| before.value.pointer(key)).cloned();
        let now: Value = clock::rfc3339(SystemTime::now()).into();
        let is_same = was("/spec/holderIdentity").as_ref().and_then(Value::as_str)
            == Some(self.holder.as_str());
        let transitions = was("/spec/leaseTransitions").and_then(|count| count.as_i64());
        let transitions = transitions.map_or(0, |count| count + i64::from(!is_same));
        let acquired = was("/spec/acquireTime").filter(|_| is_same);
        let value = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {
                "name": NAME,
                "resourceVersion": was("/metadata/resourceVersion").unwrap_or_else(|| "".into()),
            },
            "spec": {
                "holderIdentity": self.holder,
                "leaseDurationSeconds": self.lasts.as_secs().max(1),
                "acquireTime": acquired.unwrap_or_else(|| now.clone()),
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        });
        Raw::from(value)
    }
}
