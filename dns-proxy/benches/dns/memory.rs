//! What the agent takes: idle, with names learned, and after names without end.

use crate::load::{self, Names};
use crate::subject::{Memory, Subject};
use crate::town::Town;

/// Names that the agent is filled with.
const FILL: u32 = 100_000;
/// Names until every table of the agent has taken on its size: more than it keeps.
const WARM: u32 = 300_000;

/// An agent over pods that nobody asked anything, and when it has learned [`FILL`] names.
pub(crate) struct Filled {
    pub(crate) idle: Memory,
    pub(crate) names: u32,
    pub(crate) full: Memory,
}

/// Fills an agent that keeps what it learns.
pub(crate) fn fill(town: &Town) -> Option<Filled> {
    let agent = Subject::agent(town, &["--dns-client-rate", "0", "--min-ttl", "1h"])?;
    let idle = agent.memory();
    let filled = load::saturate(agent.address, 0, FILL, Names::Unique);
    Some(Filled { idle, names: filled.answered, full: agent.memory() })
}

/// An agent that was asked for names that never repeat.
pub(crate) struct Flooded {
    pub(crate) warm: Memory,
    pub(crate) names: u32,
    pub(crate) after: Memory,
}

/// Asks for [`WARM`] names, and for `names` more.
pub(crate) fn flood(town: &Town, names: u32) -> Option<Flooded> {
    let agent = Subject::agent(town, &["--dns-client-rate", "0"])?;
    load::saturate(agent.address, 1, WARM, Names::Unique);
    let warm = agent.memory();
    let mut answered = 0;
    // A name's number has to be unique within its tag.
    for (tag, begin) in (2..).zip((0..names).step_by(1_000_000)) {
        let some = (names - begin).min(1_000_000);
        answered += load::saturate(agent.address, tag, some, Names::Unique).answered;
    }
    Some(Flooded { warm, names: answered, after: agent.memory() })
}
