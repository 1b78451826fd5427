//! What the double does wrong on demand.

use std::collections::BTreeMap;
use std::time::Duration;

/// How a list as a stream of events (`sendInitialEvents`) is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamedLists {
    /// As asked.
    #[default]
    Served,
    /// Refused with 422: the feature is off.
    Refused,
    /// Accepted, then an error in the stream: the storage behind is too old.
    FailInStream,
    /// The parameter is unknown and overlooked: no bookmark says that this was all.
    Overlooked,
}

/// What goes wrong until it is put right again.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Every request gets this HTTP status.
    pub fail_with: Option<u16>,
    /// Such an answer names this time as the earliest for the next request.
    pub retry_after: Option<Duration>,
    /// The only token that is taken, in the place of the double's own.
    pub token: Option<&'static str>,
    /// Watches carry no bookmarks.
    pub lacks_bookmarks: bool,
    /// Requests are taken and not answered, until watches are cut.
    pub hangs: bool,
    /// Connections are closed as soon as they are made.
    pub is_down: bool,
    /// Verb and resource of what the account may not do.
    pub forbidden: BTreeMap<&'static str, Vec<&'static str>>,
    /// So many writes of a status meet an object that somebody else has just written.
    pub conflicts: usize,
    /// Streamed lists.
    pub streamed_lists: StreamedLists,
    /// Watches end after this time as if all were well.
    pub watch_limit: Option<Duration>,
    /// A history that was cleared is told in the stream and not as an HTTP status.
    pub tells_gone_in_stream: bool,
}
