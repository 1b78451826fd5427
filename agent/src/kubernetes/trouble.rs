//! What goes wrong with the API server, said so that an operator knows what to do.

use std::error::Error;

use kube::core::Status;
use kube::runtime::watcher;

use super::kinds::Watched;

/// Something that keeps objects from being read. All of it is tried again; what was known stays in
/// force meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum Trouble {
    /// It cannot be reached.
    #[error("no answer from the API server at {server}: {why}")]
    Away {
        /// Where it should be.
        server: String,
        /// What the connection says.
        why: String,
    },
    /// It does not know the agent.
    #[error(
        "the API server at {server} does not accept the agent's credentials ({why}); check the service account's token or the kubeconfig's user"
    )]
    Unauthorized {
        /// Where it is.
        server: String,
        /// What it says.
        why: String,
    },
    /// It knows the agent and says no.
    #[error(
        "the agent may not {verb} {resource}: give its account the verb {verb} on {resource} in a ClusterRole ({why})"
    )]
    Forbidden {
        /// What was asked for.
        verb: &'static str,
        /// Of what.
        resource: String,
        /// What it says.
        why: String,
    },
    /// A kind that was there is not.
    #[error(
        "the API server has no {resource} any more; what was known of it stays in force until it is back or the agent restarts"
    )]
    Vanished {
        /// The kind's resource.
        resource: String,
    },
    /// It refuses for reasons of its own.
    #[error("the API server refuses to {verb} {resource}: {why} ({code})")]
    Refused {
        /// What was asked for.
        verb: &'static str,
        /// Of what.
        resource: String,
        /// The HTTP status.
        code: u16,
        /// What it says.
        why: String,
    },
}

impl Trouble {
    /// Whether saying both would say the same twice: connections fail in several ways at once.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Away { server, .. }, Self::Away { server: same, .. })
            | (Self::Unauthorized { server, .. }, Self::Unauthorized { server: same, .. }) => {
                server == same
            }
            _ => self == other,
        }
    }
}

/// A request: what is asked for, of what, and where.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Where.
    pub server: &'a str,
    /// The verb, as RBAC has it.
    pub verb: &'static str,
    /// The resource with its group.
    pub resource: &'a str,
}

impl Call<'_> {
    /// What an error means.
    pub fn trouble(&self, error: &kube::Error) -> Trouble {
        if let kube::Error::Api(status) = error {
            return self.refusal(status);
        }
        Trouble::Away { server: self.server.to_owned(), why: chain(error) }
    }

    fn refusal(&self, status: &Status) -> Trouble {
        let why = status.message.trim().to_owned();
        let resource = self.resource.to_owned();
        match status.code {
            401 => Trouble::Unauthorized { server: self.server.to_owned(), why },
            403 => Trouble::Forbidden { verb: self.verb, resource, why },
            404 => Trouble::Vanished { resource },
            code => Trouble::Refused { verb: self.verb, resource, code, why },
        }
    }
}

/// What an error of a watcher means; `None` where it is in the course of things: a history that was
/// cleared away makes a new list, and that is all.
pub(super) fn of_watch(server: &str, watched: &Watched, error: &watcher::Error) -> Option<Trouble> {
    let resource = watched.resource();
    let call = |verb| Call { server, verb, resource: &resource };
    Some(match error {
        watcher::Error::WatchError(status) if status.code == 410 => return None,
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410 => {
            return None;
        }
        watcher::Error::InitialListFailed(error) => call("list").trouble(error),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            call("watch").trouble(error)
        }
        watcher::Error::WatchError(status) => call("watch").refusal(status),
        watcher::Error::NoResourceVersion => Trouble::Refused {
            verb: "watch",
            resource: resource.clone(),
            code: 200,
            why: "objects come without a resourceVersion".to_owned(),
        },
    })
}

/// An error with its causes, each said once.
fn chain(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        let said = error.to_string();
        // kube's own wrappers repeat their cause.
        if next.is_some_and(|cause| said.ends_with(&cause.to_string())) || text.contains(&said) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&said);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::kinds::WATCHED;
    use super::*;

    fn mk_status(code: u16, message: &str) -> Box<Status> {
        Box::new(Status { code, message: message.to_owned(), ..Status::default() })
    }

    #[test]
    fn a_refusal_says_verb_and_resource() {
        let pods = WATCHED.iter().find(|watched| watched.kind == "Pod").unwrap();
        let error = watcher::Error::InitialListFailed(kube::Error::Api(mk_status(403, "no")));
        let text = of_watch("https://192.0.2.1:6443", pods, &error).unwrap().to_string();
        assert!(text.contains("may not list pods"), "{text}");
        assert!(text.contains("ClusterRole"), "{text}");
    }

    #[test]
    fn a_history_that_was_cleared_is_no_trouble() {
        let pods = WATCHED.iter().find(|watched| watched.kind == "Pod").unwrap();
        assert_eq!(of_watch("s", pods, &watcher::Error::WatchError(mk_status(410, "old"))), None);
        let server = watcher::Error::WatchError(mk_status(500, "etcd"));
        assert!(of_watch("s", pods, &server).is_some());
    }
}
