//! Follows a directory: what changes, appears or vanishes is told at once.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::directory::{Changes, Directory};
use crate::readiness;

/// How long writes are gathered: editors make several steps of one save.
const DEBOUNCE: Duration = Duration::from_millis(60);

/// How often the directory is looked at although nothing was heard: some file systems tell nothing.
const RECHECK: Duration = Duration::from_millis(800);

/// What inotify is asked for.
const EVENTS: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ATTRIB);

/// Looks whenever something happened and hands on each difference, until the receiver is gone.
pub async fn follow(mut directory: Directory, changes: mpsc::Sender<Changes>) {
    let watcher = match Watcher::new() {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, "no file events; the manifests are looked at by intervals");
            None
        }
    };
    loop {
        let directories = directory.directories();
        if let Some(watcher) = &watcher {
            watcher.watch(&directories);
        }
        let looked = tokio::task::spawn_blocking(move || {
            let changes = directory.look();
            (directory, changes)
        });
        let Ok((looked_at, found)) = looked.await else {
            tracing::error!("reading the manifests failed; they are not followed any further");
            return;
        };
        directory = looked_at;
        if !found.is_empty() && changes.send(found).await.is_err() {
            return;
        }
        let heard = async {
            match &watcher {
                Some(watcher) => watcher.heard().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = heard => tokio::time::sleep(DEBOUNCE).await,
            () = tokio::time::sleep(RECHECK) => {}
            () = changes.closed() => return,
        }
        if let Some(watcher) = &watcher {
            watcher.drain();
        }
    }
}

struct Watcher(AsyncFd<OwnedFd>);

impl Watcher {
    fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self(readiness::of(&fd)?))
    }

    /// Watches these directories; one that is watched stays so.
    fn watch(&self, directories: &BTreeSet<PathBuf>) {
        for path in directories {
            if let Err(error) = inotify::add_watch(self.0.get_ref(), path, EVENTS) {
                tracing::debug!(path = %path.display(), %error, "cannot watch");
            }
        }
    }

    async fn heard(&self) {
        match self.0.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(error) => {
                tracing::warn!(%error, "file events ended");
                std::future::pending::<()>().await;
            }
        }
    }

    /// Takes everything that is waiting: what it says does not matter, the look finds out.
    fn drain(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.0.get_ref(), &mut buffer);
        while reader.next().is_ok() {}
    }
}
