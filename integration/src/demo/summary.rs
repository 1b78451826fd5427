//! What came of the story: one line a step, and the exit code.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Result;

use super::stage::Stage;

/// The outcomes so far.
#[derive(Debug, Default)]
pub(super) struct Summary {
    steps: Vec<(&'static str, Result<String>)>,
}

impl Summary {
    pub(super) fn add(&mut self, title: &'static str, result: Result<String>) {
        self.steps.push((title, result));
    }

    pub(super) fn all_passed(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|(_, result)| result.is_ok())
    }

    /// A table of what was claimed and what was observed.
    pub(super) fn table(&self, took: Duration, stage: &Stage) -> String {
        let width = self.steps.iter().map(|(title, _)| title.len()).max();
        let width = width.unwrap_or_default();
        let mut table = format!("\n{}\n", stage.bold("Summary"));
        for (title, result) in &self.steps {
            let (mark, observed) = match result {
                Ok(observed) => (stage.green("ok  "), observed.clone()),
                Err(error) => (stage.red("FAIL"), format!("{error:#}")),
            };
            let first = observed.lines().next().unwrap_or_default();
            let _infallible = writeln!(table, "  {mark}  {title:width$}  {first}");
        }
        let passed = self.steps.iter().filter(|(_, result)| result.is_ok()).count();
        let _infallible = write!(
            table,
            "  {passed} of {} as they should be, in {:.1} s",
            self.steps.len(),
            took.as_secs_f64()
        );
        table
    }
}
