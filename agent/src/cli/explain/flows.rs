//! Many questions, a line each, answered a line each.

use std::io::{BufRead, Write};

use namegate_policy::rule::Protocol;
use serde::{Deserialize, Serialize};

use super::cast::{self, Complaint};
use super::session::{Asked, Detail, Session};

/// Lines that are looked at together, so that their pods get places in one go.
const BATCH: usize = 4_096;
/// The longest line that is read.
const LINE_MAX: usize = 64 * 1_024;

/// A line of the input.
#[derive(Debug, Deserialize)]
struct Line {
    from: String,
    to: String,
    port: Option<WrittenPort>,
    protocol: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum WrittenPort {
    Number(u64),
    Name(String),
}

#[derive(Debug, Serialize)]
struct Failure<'a> {
    error: &'a str,
    line: usize,
}

/// Answers every line of `input`, and says how many could not be.
pub(super) fn answer(
    session: &mut Session<'_>,
    input: &mut dyn BufRead,
    output: &mut dyn Write,
) -> anyhow::Result<usize> {
    let mut failures = 0;
    let mut number = 0;
    loop {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let Some(line) = next_line(input)? else { break };
            number += 1;
            if !line.trim_ascii().is_empty() {
                batch.push((number, read(&line)));
            }
        }
        if batch.is_empty() {
            output.flush()?;
            return Ok(failures);
        }
        let questions = batch.iter().filter_map(|(_, asked)| asked.as_ref().ok());
        session.prepare(questions).map_err(anyhow::Error::msg)?;
        for (line, asked) in &batch {
            let answer = match asked {
                Ok(asked) => session.answer(asked, Detail::Verdict),
                Err(complaint) => Err(complaint.clone()),
            };
            let error = match &answer {
                Ok(answer) if answer.verdict.is_some() => None,
                Ok(answer) => answer.dns.as_ref().and_then(|dns| dns.needed.clone()),
                Err(complaint) => Some(complaint.clone()),
            };
            match (&error, &answer) {
                (None, Ok(answer)) => serde_json::to_writer(&mut *output, answer)?,
                (error, _) => {
                    failures += 1;
                    let error = error.as_deref().unwrap_or("the flow cannot be judged");
                    serde_json::to_writer(&mut *output, &Failure { error, line: *line })?;
                }
            }
            output.write_all(b"\n")?;
        }
        output.flush()?;
    }
}

/// The next line without its end; what is longer than [`LINE_MAX`] is cut, and so no JSON.
fn next_line(input: &mut dyn BufRead) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let available = input.fill_buf()?;
        if available.is_empty() {
            return Ok((!line.is_empty()).then_some(line));
        }
        let (taken, is_whole) = match available.iter().position(|octet| *octet == b'\n') {
            Some(end) => (end, true),
            None => (available.len(), false),
        };
        let room = LINE_MAX.saturating_sub(line.len());
        line.extend(available.iter().take(taken.min(room)));
        input.consume(taken + usize::from(is_whole));
        if is_whole {
            return Ok(Some(line));
        }
    }
}

fn read(line: &[u8]) -> Result<Asked, Complaint> {
    let Line { from, to, port, protocol } =
        serde_json::from_slice(line).map_err(|error| format!("not a flow: {error}"))?;
    let protocol = protocol.as_deref().map_or(Ok(Protocol::Tcp), cast::protocol)?;
    let port = match port {
        None => None,
        Some(WrittenPort::Name(name)) => Some(cast::port(&name)?),
        Some(WrittenPort::Number(0)) if protocol == Protocol::Icmp => None,
        Some(WrittenPort::Number(number)) => Some(cast::port(&number.to_string())?),
    };
    Ok(Asked { from, to, protocol, port })
}
