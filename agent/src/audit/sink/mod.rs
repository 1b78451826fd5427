//! Where lines go. A sink takes a batch of whole lines, and says how many of them were lost.

mod file;
mod stream;
mod syslog;

use std::io;

pub(super) use file::RotatedFile;
pub(super) use stream::Stream;
pub(super) use syslog::Syslog;
pub use syslog::SyslogAddress;

/// Some lines of a batch were not written.
#[derive(Debug, thiserror::Error)]
#[error("{lines} lines")]
pub(super) struct Unwritten {
    /// How many.
    pub(super) lines: u64,
    /// What the system said of the last.
    #[source]
    pub(super) source: io::Error,
}

/// A place that lines go to, owned by one thread that may wait for it.
pub(super) trait Sink: Send {
    /// Writes whole lines, each with its line feed, ASCII alone. What cannot be written leaves no
    /// part of a line behind where the sink can help it.
    fn write(&mut self, batch: &Batch) -> Result<(), Unwritten>;
}

/// Lines that are written together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The lines, one after the other.
    pub(super) text: Vec<u8>,
    /// Where each ends, and whether it tells of a refusal.
    pub(super) ends: Vec<(usize, bool)>,
}

impl Batch {
    /// The lines without their line feeds, and whether each tells of a refusal.
    pub(super) fn lines(&self) -> impl Iterator<Item = (&[u8], bool)> {
        let mut start = 0;
        self.ends.iter().map(move |&(end, is_refusal)| {
            let line = &self.text[start..end];
            start = end;
            (line.strip_suffix(b"\n").unwrap_or(line), is_refusal)
        })
    }

    /// How many lines there are.
    pub(super) fn len(&self) -> u64 {
        self.ends.len() as u64
    }

    /// Forgets them.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }
}
