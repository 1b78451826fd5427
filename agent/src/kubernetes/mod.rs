//! The API server as a source of objects.
//!
//! One watcher for each kind, its events trimmed on arrival and compared with what is in force, so
//! that a heartbeat costs no parse and a relist takes nothing back that still exists. What is read
//! goes through the same `policy::object::parse` as a manifest. While the API server is away,
//! refuses or tells nonsense, what was known stays in force; nothing here removes an object that the
//! API server did not say was gone. What is written there, `status` and Events, is [`status`]'s.

mod client;
mod commons;
mod daemon_set;
mod definitions;
mod discovery;
mod gather;
mod health;
mod held;
mod journal;
mod kinds;
mod raw;
mod source;
mod status;
mod trim;
mod trouble;
mod watch;

pub use client::{Access, ConnectError, Connection, connect};
pub use daemon_set::{DaemonSetFate, follow_daemon_set};
pub use definitions::definitions;
pub use health::WatchHealth;
pub use journal::{draft as journal_draft, heirs_path as heirs_journal_path, path as journal_path};
pub use kinds::{Presence, WATCHED, Watched};
pub use source::{First, Source, SourceOptions};
pub use status::{Facts, NodeView, Options as ReportOptions, Reporting};
pub use trouble::{Call, Trouble};
