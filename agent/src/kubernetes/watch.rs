//! One kind, watched for good.

use std::time::Duration;

use futures_util::StreamExt;
use kube::Api;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Config, DefaultBackoff, InitialListStrategy, watcher};
use tokio::sync::mpsc;

use super::client::{CONNECT_TIMEOUT, Connection};
use super::held::{Held, Update};
use super::kinds::Watched;
use super::raw::Raw;
use super::trouble::{self, Trouble};

/// How long a streamed list may pause. API servers that know nothing of them send what there is and
/// then wait for changes, without saying that this was all.
const STREAMING_PAUSE: Duration = Duration::from_secs(20);

/// A watch that failed works again where it fails no more for so long, which is longer than a connection
/// may take to open: of a kind that does not change, an API server says nothing.
const QUIET: Duration = Duration::from_secs(CONNECT_TIMEOUT.as_secs() + 2);

/// The longest wait before the next attempt.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// What a watch has to say.
#[derive(Debug)]
pub(super) enum News {
    /// Objects changed.
    Update(Watched, Update),
    /// It does not work, and why; `None` when it works again.
    Trouble(Watched, Option<Trouble>),
    /// A kind that was absent is served.
    Appeared(Watched),
    /// Which kinds are served was found out.
    Surveyed,
}

/// Watches one kind, of which `held` is known, until nobody listens any more.
pub(super) async fn follow(
    connection: Connection,
    watched: Watched,
    held: Held,
    out: mpsc::Sender<News>,
) {
    let mut watch = Watch {
        api: Api::all_with(connection.client.clone(), &watched.api_resource()),
        server: connection.server,
        watched,
        held,
        is_streaming: true,
        failures: 0,
        backoff: DefaultBackoff::default(),
        out,
    };
    while watch.run().await {}
}

struct Watch {
    api: Api<Raw>,
    server: String,
    watched: Watched,
    held: Held,
    is_streaming: bool,
    /// Failures since it worked last.
    failures: u32,
    backoff: DefaultBackoff,
    out: mpsc::Sender<News>,
}

impl Watch {
    /// Watches until another way of listing has to be tried; `false` when nobody listens.
    async fn run(&mut self) -> bool {
        let initial_list_strategy = if self.is_streaming {
            InitialListStrategy::StreamingList
        } else {
            InitialListStrategy::ListWatch
        };
        let config = Config { initial_list_strategy, ..Config::default() };
        let mut events = Box::pin(watcher(self.api.clone(), config));
        let mut is_listing = true;
        loop {
            let event = if is_listing && self.is_streaming {
                let Ok(event) = tokio::time::timeout(STREAMING_PAUSE, events.next()).await else {
                    return self.list_plainly("it does not end");
                };
                event
            } else if !is_listing && self.failures > 0 {
                let Ok(event) = tokio::time::timeout(QUIET, events.next()).await else {
                    if !self.works().await {
                        return false;
                    }
                    continue;
                };
                event
            } else {
                events.next().await
            };
            match event {
                Some(Ok(event)) => {
                    is_listing = match event {
                        watcher::Event::Init | watcher::Event::InitApply(_) => true,
                        watcher::Event::InitDone
                        | watcher::Event::Apply(_)
                        | watcher::Event::Delete(_) => false,
                    };
                    if !is_listing {
                        self.backoff.reset();
                        if !self.works().await {
                            return false;
                        }
                    }
                    let update = self.held.take(event);
                    if !update.is_empty() && !self.send(News::Update(self.watched, update)).await {
                        return false;
                    }
                }
                Some(Err(error))
                    if self.is_streaming && is_listing && refuses_streaming(&error) =>
                {
                    return self.list_plainly("it is refused");
                }
                Some(Err(error)) => {
                    if !self.fails(&error).await {
                        return false;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(self.backoff.next().unwrap_or(BACKOFF_MAX)) => {}
                        () = self.out.closed() => return false,
                    }
                    if has_expired(&error) {
                        return true;
                    }
                }
                None => return !self.out.is_closed(),
            }
        }
    }

    fn list_plainly(&mut self, why: &str) -> bool {
        tracing::debug!(resource = %self.watched.resource(), "no streamed list: {why}");
        self.is_streaming = false;
        true
    }

    async fn works(&mut self) -> bool {
        if std::mem::take(&mut self.failures) == 0 {
            return true;
        }
        self.send(News::Trouble(self.watched, None)).await
    }

    async fn fails(&mut self, error: &watcher::Error) -> bool {
        let resource = self.watched.resource();
        tracing::debug!(%resource, %error, held = self.held.len(), "a watch failed");
        let Some(trouble) = trouble::of_watch(&self.server, &self.watched, error) else {
            return true;
        };
        self.failures = self.failures.saturating_add(1);
        // A connection that is cut and comes back is in the course of things.
        let is_passing = matches!(trouble, Trouble::Away { .. } | Trouble::Refused { .. });
        if is_passing && self.failures == 1 && self.held.len() > 0 {
            return true;
        }
        self.send(News::Trouble(self.watched, Some(trouble))).await
    }

    async fn send(&self, news: News) -> bool {
        self.out.send(news).await.is_ok()
    }
}

/// Whether a watch can never begin where the last one ended: the watcher would try for good.
fn has_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

/// Whether an error means that the API server makes no streamed lists (`sendInitialEvents`): the
/// feature is off, its storage is too old, or the parameter is unknown.
fn refuses_streaming(error: &watcher::Error) -> bool {
    let code = match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code,
        watcher::Error::WatchStartFailed(_)
        | watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => return false,
    };
    matches!(code, 400 | 405 | 422 | 500)
}
