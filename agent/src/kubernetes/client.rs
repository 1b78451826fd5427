//! The way to the API server: from inside the cluster, or by a kubeconfig.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Response;
use hyper::header::RETRY_AFTER;
use kube::client::ClientBuilder;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::BoxError;
use tower::util::AndThenLayer;

/// How long a connection may take to come about.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the API server may say nothing: watches carry a bookmark every minute.
const READ_TIMEOUT: Duration = Duration::from_secs(150);

/// The longest that the API server may ask for before the next request; shorter than a list may pause.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15);

/// Set for every pod by the kubelet.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// Where the API server and the credentials for it are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The pod's service account.
    InCluster,
    /// A file as kubectl reads it.
    Kubeconfig(PathBuf),
}

/// A client, and where it connects to.
#[derive(Clone)]
pub struct Connection {
    pub(super) client: Client,
    pub(super) server: String,
    /// The namespace of the pod, or of the kubeconfig's context.
    pub(super) namespace: String,
}

impl Connection {
    /// Where the API server is.
    pub fn server(&self) -> &str {
        &self.server
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Why there is no client: trying again would not help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The process runs in no pod, and nothing else was named.
    #[error(
        "not in a cluster ({IN_CLUSTER} is not set): name a --kubeconfig, or --manifests DIR to do without an API server"
    )]
    NotInCluster,
    /// The pod's service account cannot be used.
    #[error(
        "cannot use the pod's service account; check automountServiceAccountToken of the agent's pod"
    )]
    ServiceAccount(#[source] InClusterError),
    /// The kubeconfig cannot be used.
    #[error("--kubeconfig {path}", path = path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KubeconfigError,
    },
    /// The certificates or credentials cannot be used.
    #[error("the certificates or credentials for the API server {server} cannot be used")]
    Credentials {
        /// Where it is.
        server: String,
        /// What is wrong with them.
        #[source]
        source: Box<kube::Error>,
    },
}

/// Reads the configuration. Nothing is sent yet.
pub async fn connect(access: &Access) -> Result<Connection, ConnectError> {
    let mut config = match access {
        Access::InCluster if std::env::var_os(IN_CLUSTER).is_none() => {
            return Err(ConnectError::NotInCluster);
        }
        Access::InCluster => Config::incluster().map_err(ConnectError::ServiceAccount)?,
        Access::Kubeconfig(path) => {
            let failed = |source| ConnectError::Kubeconfig { path: path.clone(), source };
            let written = Kubeconfig::read_from(path).map_err(failed)?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(written, &options).await.map_err(failed)?
        }
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // Whoever asks tries again, and says what is wrong: the client would do so by itself, at ever longer
    // intervals, and tell nobody for minutes.
    config.default_retry = false;
    let namespace = config.default_namespace.clone();
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    match ClientBuilder::try_from(config) {
        Ok(builder) => {
            let client = builder.with_layer(&AndThenLayer::new(when_it_is_time)).build();
            Ok(Connection { client, server, namespace })
        }
        Err(source) => Err(ConnectError::Credentials { server, source: Box::new(source) }),
    }
}

/// Gives an answer on; one that says when to ask again not before that, however soon whoever asked would.
async fn when_it_is_time<B>(response: Response<B>) -> Result<Response<B>, BoxError> {
    if let Some(wait) = retry_after(&response) {
        tracing::debug!(status = %response.status(), ?wait, "the API server wants to be asked later");
        tokio::time::sleep(wait).await;
    }
    Ok(response)
}

fn retry_after<B>(response: &Response<B>) -> Option<Duration> {
    let is_busy = matches!(response.status().as_u16(), 429 | 503);
    let header = response.headers().get(RETRY_AFTER).filter(|_| is_busy)?;
    let seconds = header.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_server_that_is_busy_says_when_to_ask_again() {
        for (status, header, wait) in [
            (429, Some("1"), Some(1)),
            (503, Some("7"), Some(7)),
            (429, Some("86400"), Some(15)),
            (429, None, None),
            (429, Some("soon"), None),
            (200, Some("1"), None),
            (500, Some("1"), None),
        ] {
            let mut response = Response::builder().status(status);
            if let Some(value) = header {
                response = response.header(RETRY_AFTER, value);
            }
            let found = retry_after(&response.body(()).unwrap());
            assert_eq!(found, wait.map(Duration::from_secs), "{status} {header:?}");
        }
    }
}
