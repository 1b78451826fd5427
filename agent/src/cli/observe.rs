//! `namegate observe` and `namegate drops`: decisions as they are made, and what was refused most.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::Serialize;

use super::client::{AskArgs, Client, Format};
use super::duration;
use super::lists::{ascii, json, path};
use super::subject;
use super::table::{Cell, Screen, Table, Tone, print};
use super::told::{Told, told};
use crate::admin::{VERDICTS, reasons};
use crate::audit::Line;

/// Options of `namegate observe`.
#[derive(Debug, Args)]
pub struct ObserveArgs {
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    sieve: SieveArgs,
    /// Go on with what comes, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
}

/// Options of `namegate drops`.
#[derive(Debug, Args)]
pub struct DropsArgs {
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    sieve: SieveArgs,
    /// How many kinds of refusals to list, the most frequent first
    #[arg(long, value_name = "NUMBER", default_value = "10", value_parser = subject::count)]
    top: NonZeroUsize,
}

/// Which records.
#[derive(Debug, Args)]
pub struct SieveArgs {
    /// Only the last so long, as far as the agent remembers: 4,096 records
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    since: Option<Duration>,
    /// Only these verdicts, separated by commas
    #[arg(long, value_name = "VERDICT", value_delimiter = ',', value_parser = VERDICTS)]
    verdict: Vec<String>,
    /// Only about this pod, at either end; `NAMESPACE/` for any of a namespace
    #[arg(long, value_name = "NAMESPACE/POD", value_parser = subject::pod_or_namespace)]
    pod: Option<String>,
    /// Only about pods of this namespace, at either end
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "pod")]
    namespace: Option<String>,
    /// Only names that contain this
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Only what this policy decided, or did not allow
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    policy: Option<String>,
    /// Only for this reason, such as no-rule; a wrong one lists them all
    #[arg(long, value_name = "REASON", value_parser = PossibleValuesParser::new(reasons()), hide_possible_values = true)]
    reason: Option<String>,
}

impl SieveArgs {
    fn path(&self, verdicts: &[String], follows: bool) -> String {
        let since = self.since.map(|age| age.as_secs().to_string());
        let verdict = (!verdicts.is_empty()).then(|| verdicts.join(","));
        let follow = follows.then(|| "true".to_owned());
        let pods_of = self.namespace.as_ref().map(|namespace| format!("{namespace}/"));
        let pod = self.pod.clone().or(pods_of);
        path(
            "/v1/records",
            [
                ("since_s", &since),
                ("follow", &follow),
                ("verdict", &verdict),
                ("pod", &pod),
                ("name", &self.name),
                ("policy", &self.policy),
                ("reason", &self.reason),
            ],
        )
    }
}

pub(super) fn observe(args: &ObserveArgs) -> anyhow::Result<()> {
    let asked = args.sieve.path(&args.sieve.verdict, args.follow);
    let screen = Screen::stdout();
    let mut outcome = Ok(());
    Client::new(&args.ask).lines(&asked, |line| {
        let text = match args.ask.output {
            Format::Json => ascii(line) + "\n",
            Format::Table => match serde_json::from_str::<Line<'_>>(line) {
                Ok(line) => shown(&line, screen),
                // Of an agent that knows more.
                Err(_) => ascii(line) + "\n",
            },
        };
        outcome = print(&text);
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(outcome?)
}

/// The line of a decision: time, who, whom, what became of it, and why.
fn shown(line: &Line<'_>, screen: Screen) -> String {
    let time = line.time.get(11..23).unwrap_or(&line.time);
    let told = told(&line.record);
    let (verdict, tone) = (told.verdict.to_ascii_uppercase(), tone(told.verdict));
    let time = screen.paint(time, Tone::Faint);
    let verdict = screen.paint(format!("{verdict:<9}"), tone);
    let what = Cell::new(format!("{} -> {}", told.who, told.whom), Tone::Plain);
    let why = screen.paint(&told.why, Tone::Faint);
    format!("{time} {verdict} {} {why}\n", what.text())
}

fn tone(verdict: &str) -> Tone {
    match verdict {
        "allowed" | "forwarded" => Tone::Good,
        "audit" => Tone::Odd,
        _ => Tone::Bad,
    }
}

/// One kind of refusal.
#[derive(Clone, Debug, Serialize)]
struct Refusal {
    count: u64,
    last: String,
    #[serde(flatten)]
    told: Told,
}

pub(super) fn drops(args: &DropsArgs) -> anyhow::Result<()> {
    let refused = ["denied", "dropped", "error"].map(str::to_owned);
    let verdicts = if args.sieve.verdict.is_empty() { &refused[..] } else { &args.sieve.verdict };
    let asked = args.sieve.path(verdicts, false);
    let mut kinds: BTreeMap<Told, (u64, String)> = BTreeMap::new();
    let mut unread = 0_u64;
    Client::new(&args.ask).lines(&asked, |line| {
        match serde_json::from_str::<Line<'_>>(line) {
            Ok(line) => {
                let kind = kinds.entry(told(&line.record)).or_default();
                *kind = (kind.0 + 1, line.time.into_owned());
            }
            Err(_) => unread += 1,
        }
        ControlFlow::Continue(())
    })?;
    let mut refusals: Vec<Refusal> =
        kinds.into_iter().map(|(told, (count, last))| Refusal { count, last, told }).collect();
    refusals.sort_by_key(|refusal| Reverse(refusal.count));
    refusals.truncate(args.top.get());
    if args.ask.output == Format::Json {
        return json(&refusals);
    }
    let mut table = Table::new(&["COUNT", "LAST", "FROM", "TO", "VERDICT", "WHY"]);
    for Refusal { count, last, told } in &refusals {
        table.row([
            count.to_string().into(),
            last.get(11..19).unwrap_or(last).into(),
            Cell::from(&told.who),
            Cell::from(&told.whom),
            Cell::new(told.verdict, tone(told.verdict)),
            Cell::from(&told.why),
        ]);
    }
    table.print()?;
    if unread > 0 {
        eprintln!("namegate: {unread} records of an agent of another version were left out");
    }
    Ok(())
}
