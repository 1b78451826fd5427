//! A watch: what happened since a version, then what happens, a line each.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::faults::{Faults, StreamedLists};
use super::requests::{Body, is_true, respond_with};
use super::resources::Resource;
use super::selection::Selection;
use super::store::{Happening, Refusal};

/// Lines that wait for a slow client at most.
const LINES_MAX: usize = 16;

/// How long a watch lasts that names no time.
const WATCH_MAX: Duration = Duration::from_secs(300);

/// How often a quiet watch is told how far the history goes.
const BOOKMARK: Duration = Duration::from_secs(5);

/// What a watch was asked for.
struct Asked {
    resource: Resource,
    namespace: Option<String>,
    selection: Selection,
    /// Where the history begins; `None` for everything that exists first.
    since: Option<u64>,
    wants_bookmarks: bool,
    /// Whether a bookmark says that everything that exists was told.
    marks_end: bool,
    fails_in_stream: bool,
    lasts: Duration,
}

/// Begins a watch.
pub(super) fn begin(
    shared: &Arc<Shared>,
    resource: Resource,
    namespace: Option<String>,
    query: &BTreeMap<String, String>,
) -> Result<Response<Body>, Refusal> {
    let faults: Faults = shared.lock().faults.clone();
    let is_streamed_list = is_true(query, "sendInitialEvents");
    if is_streamed_list && faults.streamed_lists == StreamedLists::Refused {
        let message = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        return Err(Refusal::new(422, "Invalid", message));
    }
    let version: u64 =
        query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    let since = (version > 0 && !is_streamed_list).then_some(version);
    if let Some(since) = since
        && !faults.tells_gone_in_stream
    {
        shared.lock().store.since(resource, since)?;
    }
    let named = query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok());
    let lasts = named.map_or(WATCH_MAX, Duration::from_secs);
    let served = is_streamed_list && faults.streamed_lists == StreamedLists::Served;
    let asked = Asked {
        resource,
        namespace,
        selection: Selection::of(query)?,
        since,
        wants_bookmarks: is_true(query, "allowWatchBookmarks") && !faults.lacks_bookmarks,
        marks_end: served,
        fails_in_stream: is_streamed_list && faults.streamed_lists == StreamedLists::FailInStream,
        lasts: faults.watch_limit.map_or(lasts, |limit| limit.min(lasts)),
    };
    let (lines, body) = mpsc::channel(LINES_MAX);
    tokio::spawn(tell(Arc::clone(shared), asked, lines));
    let body = stream::unfold(body, |mut body| async move {
        let line: io::Result<Bytes> = body.recv().await?;
        Some((line.map(Frame::data), body))
    });
    Ok(respond_with(200, BodyExt::boxed(StreamBody::new(body))))
}

/// Tells until the time is over, the client is gone or the watches are cut.
async fn tell(shared: Arc<Shared>, asked: Asked, lines: mpsc::Sender<io::Result<Bytes>>) {
    let mut versions = shared.version.subscribe();
    let mut cuts = shared.cuts.subscribe();
    cuts.mark_unchanged();
    let cut = async {
        // The sender lives as long as the server.
        let _closed = cuts.changed().await;
    };
    tokio::select! {
        () = tell_all(&shared, &asked, &lines, &mut versions) => {}
        () = cut => {
            // Torn off in the middle, not ended.
            let _gone = lines.send(Err(io::ErrorKind::ConnectionReset.into())).await;
        }
        () = lines.closed() => {}
    }
}

async fn tell_all(
    shared: &Shared,
    asked: &Asked,
    lines: &mpsc::Sender<io::Result<Bytes>>,
    versions: &mut watch::Receiver<u64>,
) {
    let end = Instant::now() + asked.lasts;
    let mut version = match asked.since {
        Some(version) => version,
        None => {
            let Some(version) = tell_existing(shared, asked, lines).await else { return };
            version
        }
    };
    let mut bookmark = Instant::now() + BOOKMARK;
    loop {
        versions.mark_unchanged();
        let happened = shared.lock().store.since(asked.resource, version);
        let happened = match happened {
            Ok(happened) => happened,
            Err(refusal) => {
                line(lines, "ERROR", refusal.status()).await;
                return;
            }
        };
        for happening in happened {
            version = happening.version;
            let Some(kind) = asked.kind(&happening) else { continue };
            if !line(lines, kind, happening.object).await {
                return;
            }
        }
        tokio::select! {
            _ = versions.changed() => {}
            () = sleep_until(end) => return,
            () = sleep_until(bookmark), if asked.wants_bookmarks => {
                bookmark = Instant::now() + BOOKMARK;
                version = shared.lock().store.version();
                if !line(lines, "BOOKMARK", bookmark_at(asked.resource, version, false)).await {
                    return;
                }
                shared.lock().bookmarked.insert(asked.resource.plural, version);
            }
        }
    }
}

/// Tells everything that exists, and says which version that was.
async fn tell_existing(
    shared: &Shared,
    asked: &Asked,
    lines: &mpsc::Sender<io::Result<Bytes>>,
) -> Option<u64> {
    if asked.fails_in_stream {
        let message = "etcd event received with PrevKv=nil (key=\"\", modRevision=0, type=PUT)";
        line(lines, "ERROR", Refusal::new(500, "InternalError", message).status()).await;
        return None;
    }
    let page = shared.lock().store.list(
        asked.resource,
        asked.namespace.as_deref(),
        &asked.selection,
        0,
        None,
    );
    let page = page.ok()?;
    for object in page.items {
        line(lines, "ADDED", object).await.then_some(())?;
    }
    if asked.marks_end {
        line(lines, "BOOKMARK", bookmark_at(asked.resource, page.version, true))
            .await
            .then_some(())?;
    }
    Some(page.version)
}

impl Asked {
    /// What a happening is to who asked: an object that is selected no more is gone.
    fn kind(&self, happening: &Happening) -> Option<&'static str> {
        let was = happening.before.as_ref().is_some_and(|before| self.is_about(before));
        let is = happening.kind != "DELETED" && self.is_about(&happening.object);
        match (was, is) {
            (false, true) => Some("ADDED"),
            (true, true) => Some("MODIFIED"),
            (true, false) => Some("DELETED"),
            (false, false) => None,
        }
    }

    fn is_about(&self, object: &Value) -> bool {
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
        let is_there = self.namespace.is_none() || self.namespace.as_deref() == namespace;
        is_there && self.selection.selects(object)
    }
}

fn bookmark_at(resource: Resource, version: u64, marks_end: bool) -> Value {
    let mut bookmark = json!({
        "apiVersion": resource.api_version(), "kind": resource.kind,
        "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
    });
    if marks_end {
        bookmark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    bookmark
}

async fn line(lines: &mpsc::Sender<io::Result<Bytes>>, kind: &str, object: Value) -> bool {
    let mut text = json!({"type": kind, "object": object}).to_string();
    text.push('\n');
    lines.send(Ok(Bytes::from(text))).await.is_ok()
}
