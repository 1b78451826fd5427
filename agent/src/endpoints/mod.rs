//! Which interface belongs to which pod.
//!
//! Follows the node's interfaces and addresses, and tells the state's owner a whole picture whenever
//! it changes. Knows nothing of policies.

mod locate;
pub mod netlink;
mod picture;
mod search;
#[cfg(test)]
mod tests;
mod watch;

pub use locate::{Attachment, Interface, LocateError, locate};
pub use search::{Look, Search, Trust};
pub use watch::{Located, PodKey, Town, Wanted, Watcher};
