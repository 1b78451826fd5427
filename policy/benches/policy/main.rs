//! What the policy core costs: matching a name against many patterns, compiling tables, and deadlines that
//! pass.
//!
//! `make bench-policy` runs it; `--json` prints the same as JSON, `--only patterns`,
//! `compile` or `deadlines` runs a part. Every number is the median of rounds in which the subjects take
//! turns, so that a busy machine slows all of them alike.

#![expect(clippy::unwrap_used, reason = "a benchmark ends where an assumption fails")]

mod compile;
mod deadlines;
mod patterns;
mod report;

use report::Report;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_json = arguments.iter().any(|argument| argument == "--json");
    let only = arguments.iter().skip_while(|argument| *argument != "--only").nth(1);
    let runs = |part: &str| only.is_none_or(|only| only == part);
    let mut report = Report::default();
    // First, while the peak of memory is its own.
    if runs("compile") {
        compile::run(&mut report);
    }
    if runs("deadlines") {
        deadlines::run(&mut report);
    }
    if runs("patterns") {
        patterns::run(&mut report);
    }
    report.print(is_json);
}
