//! Three engines agree: the oracle over the objects, the verdict function over compiled maps, and
//! the kernel program by test runs.
//!
//! Random towns, policies of every dialect mixed, names learned at different times. Every flow is
//! judged at both ends and every learned name asked for; verdicts, deciding rules and exemptions are
//! compared. What once disagreed is replayed first, from `engines/cases`.

#[path = "engines/compare.rs"]
mod compare;
#[path = "engines/written.rs"]
mod written;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use compare::{Disagreement, Engines, Tally};
use namegate_integration::lab;
use namegate_policy::testing::Documents;

/// Flows of an ordinary run, and of one with `NAMEGATE_NIGHTLY` set.
const FLOWS: u64 = 100_000;
const NIGHTLY_FLOWS: u64 = 1_000_000;
/// Towns that are asked when a town is made smaller.
const SHRINKING_MAX: usize = 2_000;

#[test]
fn three_engines_agree_on_what_once_divided_them() -> Result<()> {
    if !lab::can_run("three_engines_agree_on_what_once_divided_them")? {
        return Ok(());
    }
    let mut files: Vec<PathBuf> =
        fs::read_dir(cases())?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let mut engines = Engines::open();
    let mut tally = Tally::default();
    for path in &files {
        let text = fs::read_to_string(path)?;
        let town = written::read(&text).with_context(|| path.display().to_string())?;
        if let Some(disagreement) = engines.compare(&town, &mut tally)? {
            bail!("{}: {disagreement}", path.display());
        }
    }
    ensure!(!files.is_empty() && !tally.is_empty(), "nothing was compared: {} files", files.len());
    println!("{} committed cases, {tally}", files.len());
    Ok(())
}

#[test]
fn three_engines_agree_on_random_towns() -> Result<()> {
    if !lab::can_run("three_engines_agree_on_random_towns")? {
        return Ok(());
    }
    let is_nightly = std::env::var_os("NAMEGATE_NIGHTLY").is_some_and(|value| !value.is_empty());
    let ordinary = if is_nightly { NIGHTLY_FLOWS } else { FLOWS };
    let wanted = variable("NAMEGATE_FLOWS")?.unwrap_or(ordinary);
    let first = variable("NAMEGATE_SEED")?.unwrap_or(1).wrapping_mul(1_000_000_007);
    let started = Instant::now();
    let mut engines = Engines::open();
    let mut tally = Tally::default();
    let mut seed = first;
    while tally.flows < wanted {
        let town = Documents::random(seed);
        let found = engines.compare(&town, &mut tally).with_context(|| format!("seed {seed}"))?;
        if let Some(disagreement) = found {
            return report(seed, town, &disagreement);
        }
        seed = seed.wrapping_add(1);
    }
    let towns = seed.wrapping_sub(first);
    println!("{towns} towns, {tally} in {:.1?}", started.elapsed());
    tally.is_telling()
}

/// Makes the town smaller while its engines disagree, and says what to keep of it.
fn report(seed: u64, town: Documents, first: &Disagreement) -> Result<()> {
    // Fresh engines: what they disagree about must not hang on the towns before.
    let mut engines = Engines::apart(first);
    let mut left = SHRINKING_MAX;
    let mut disagrees = |town: &Documents| {
        left = left.saturating_sub(1);
        // A town that an engine refuses shows something else.
        left > 0 && matches!(engines.compare(town, &mut Tally::default()), Ok(Some(_)))
    };
    if !disagrees(&town) {
        bail!("seed {seed}: {first}; only after the towns before it, so something stays behind");
    }
    let smallest = town.shrink(disagrees);
    let last = Engines::open().compare(&smallest, &mut Tally::default())?;
    let last = last.map_or_else(|| first.to_string(), |last| last.to_string());
    let text = written::write(&smallest)?;
    let path = std::env::temp_dir().join(format!("engines-{seed}.yaml"));
    fs::write(&path, &text)?;
    bail!(
        "seed {seed}: {last}\n\n{text}\nto keep it: cp {} {}/WHAT-IT-SHOWS.yaml, with a first line \
         that says what it shows",
        path.display(),
        cases().display()
    );
}

fn cases() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engines/cases"))
}

fn variable(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name}={text}"))?)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(error).context(name.to_owned()),
    }
}
