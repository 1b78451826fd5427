use std::io::Write;

use super::{Batch, Sink, Unwritten};

/// A stream without an end: standard output, or a pipe.
pub(in super::super) struct Stream<W>(pub(in super::super) W);

impl<W: Write + Send> Sink for Stream<W> {
    fn write(&mut self, batch: &Batch) -> Result<(), Unwritten> {
        let outcome = self.0.write_all(&batch.text).and_then(|()| self.0.flush());
        outcome.map_err(|source| Unwritten { lines: batch.len(), source })
    }
}
