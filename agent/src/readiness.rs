//! Waiting for a descriptor that tokio has no type for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Readiness of `source` for reading, through a descriptor of its own.
#[expect(
    deprecated,
    reason = "the replacement is unsafe for foreign types; an OwnedFd stays open while it is held"
)]
pub(crate) fn of(source: &impl AsFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(source.as_fd().try_clone_to_owned()?, Interest::READABLE)
}
