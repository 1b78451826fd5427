//! Numbers with names, as a table or as JSON.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// One row of the table.
struct Row {
    group: &'static str,
    name: String,
    value: f64,
    unit: &'static str,
}

#[derive(Default)]
pub(crate) struct Report(Vec<Row>);

impl Report {
    pub(crate) fn add(
        &mut self,
        group: &'static str,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
    ) {
        self.0.push(Row { group, name: name.into(), value, unit });
    }

    pub(crate) fn print(&self, is_json: bool) {
        if is_json {
            let row = |row: &Row| json!({"group": row.group, "name": row.name, "value": row.value, "unit": row.unit});
            println!("{}", Value::Array(self.0.iter().map(row).collect()));
            return;
        }
        let mut group = "";
        for row in &self.0 {
            if row.group != group {
                group = row.group;
                println!("\n{group}");
            }
            println!("  {:<58} {:>12.1} {}", row.name, row.value, row.unit);
        }
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let made = work();
    (made, began.elapsed())
}

/// A line of `/proc/self/status` in MiB.
pub(crate) fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kilobytes: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes / 1024.0
}
