//! `namegate endpoints`, `identities`, `policies`, `names` and `flows`: what the running agent holds.

use std::fmt::Display;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::client::{AskArgs, Client, Format};
use super::subject;
use super::table::{Cell, Table, Tone, print};
use crate::admin::{EndpointItem, FlowItem, IdentityItem, NameItem, PolicyItem};

/// Options of the lists that have no others.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Only of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

/// Options of `namegate flows`.
#[derive(Debug, Args)]
pub struct PodArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Only of this pod
    #[arg(long, value_name = "NAMESPACE/POD", value_parser = subject::pod)]
    pod: Option<String>,
    /// Only of pods of this namespace
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "pod")]
    namespace: Option<String>,
}

/// Options of `namegate names`.
#[derive(Debug, Args)]
pub struct NamesArgs {
    #[command(flatten)]
    of: PodArgs,
    /// Only names that contain this
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
}

impl ListArgs {
    fn is_wanted(&self, namespace: Option<&str>) -> bool {
        self.namespace.is_none() || self.namespace.as_deref() == namespace
    }
}

impl PodArgs {
    fn is_wanted(&self, pod: &str) -> bool {
        subject::is_in(self.namespace.as_deref(), pod)
    }
}

pub(super) fn endpoints(args: &ListArgs) -> anyhow::Result<()> {
    let mut items: Vec<EndpointItem> = Client::new(&args.ask).get("/v1/endpoints")?;
    items.retain(|item| args.is_wanted(Some(&item.namespace)));
    show(&args.ask, &items, &["POD", "INTERFACE", "IDENTITY", "ADDRESSES"], |item| {
        vec![
            format!("{}/{}", item.namespace, item.pod).into(),
            Cell::from(&item.interface),
            item.identity.to_string().into(),
            joined(&item.addresses).into(),
        ]
    })
}

pub(super) fn identities(args: &ListArgs) -> anyhow::Result<()> {
    let mut items: Vec<IdentityItem> = Client::new(&args.ask).get("/v1/identities")?;
    items.retain(|item| args.is_wanted(Some(&item.namespace)));
    let header = ["IDENTITY", "NAMESPACE", "LABELS", "PODS", "LEARNED", "POLICIES"];
    show(&args.ask, &items, &header, |item| {
        let labels = item.labels.iter().map(|(key, value)| format!("{key}={value}"));
        let policies = if item.policies.is_empty() {
            Cell::new("none: all is open", Tone::Odd)
        } else {
            joined(&item.policies).into()
        };
        vec![
            item.identity.to_string().into(),
            Cell::from(&item.namespace),
            joined(labels).into(),
            joined(&item.pods).into(),
            item.learned.to_string().into(),
            policies,
        ]
    })
}

pub(super) fn policies(args: &ListArgs) -> anyhow::Result<()> {
    let mut items: Vec<PolicyItem> = Client::new(&args.ask).get("/v1/policies")?;
    items.retain(|item| args.is_wanted(item.namespace.as_deref()));
    if args.ask.output == Format::Json {
        return json(&items);
    }
    let mut table = Table::new(&["POLICY", "RULE", "WAY", "PODS", "FLOWS", "LAST MATCH"]);
    for item in &items {
        let name = item.namespace.as_ref().map_or_else(
            || format!("{} {}", item.kind, item.name),
            |namespace| format!("{} {namespace}/{}", item.kind, item.name),
        );
        if item.rules.is_empty() {
            let nobody = Cell::new("selects no pod of this node", Tone::Faint);
            table.row([Cell::from(&name), nobody, "".into(), "0".into(), "0".into(), "".into()]);
        }
        for (place, rule) in item.rules.iter().enumerate() {
            let is_first = place == 0;
            let last = match &rule.last_match {
                Some(at) => Cell::from(at.get(..19).unwrap_or(at)),
                None => Cell::new("never", Tone::Odd),
            };
            table.row([
                if is_first { Cell::from(&name) } else { "".into() },
                rule.rule.as_deref().unwrap_or("(isolation)").into(),
                Cell::from(&rule.direction),
                if is_first { item.endpoints.to_string().into() } else { "".into() },
                rule.hits.to_string().into(),
                last,
            ]);
        }
    }
    Ok(table.print()?)
}

pub(super) fn names(args: &NamesArgs) -> anyhow::Result<()> {
    let ask = &args.of.ask;
    let path = path("/v1/names", [("pod", &args.of.pod), ("name", &args.name)]);
    let mut items: Vec<NameItem> = Client::new(ask).get(&path)?;
    items.retain(|item| item.pods.iter().any(|pod| args.of.is_wanted(pod)));
    show(ask, &items, &["PODS", "NAME", "ADDRESS", "AGE", "OPEN FOR", "FLOWS", "RULE"], |item| {
        let open = match (&item.not_opened, item.open_for_s, item.past_for_s) {
            _ if item.rules.is_empty() => Cell::new("opens nothing", Tone::Faint),
            (Some(why), _, _) => Cell::new(format!("never: {why}"), Tone::Odd),
            (None, Some(seconds), _) => Cell::new(duration(seconds), Tone::Good),
            (None, None, Some(past)) => {
                Cell::new(format!("ended {} ago", duration(past)), Tone::Odd)
            }
            (None, None, None) => "".into(),
        };
        vec![
            joined(&item.pods).into(),
            Cell::from(&item.name),
            item.address.to_string().into(),
            item.age_s.map(duration).unwrap_or_default().into(),
            open,
            item.flows.to_string().into(),
            joined(&item.rules).into(),
        ]
    })
}

pub(super) fn flows(args: &PodArgs) -> anyhow::Result<()> {
    let mut items: Vec<FlowItem> =
        Client::new(&args.ask).get(&path("/v1/flows", [("pod", &args.pod), ("", &None)]))?;
    items.retain(|item| args.is_wanted(&item.pod));
    items.sort_by(|one, other| {
        let place = |item: &FlowItem| (item.remote, item.remote_port, item.local_port);
        (&one.pod, &one.direction, place(one)).cmp(&(&other.pod, &other.direction, place(other)))
    });
    let header = ["POD", "WAY", "OTHER END", "PROTOCOL", "STATE", "AGE", "IDLE", "PACKETS", "RULE"];
    show(&args.ask, &items, &header, |item| {
        let tone = if item.state == "cut" { Tone::Bad } else { Tone::Plain };
        vec![
            Cell::from(&item.pod),
            Cell::from(&item.direction),
            other_end(item).into(),
            Cell::from(&item.protocol),
            Cell::new(&item.state, tone),
            duration(item.age_s).into(),
            duration(item.idle_s).into(),
            item.packets.to_string().into(),
            joined(&item.rules).into(),
        ]
    })
}

/// The other end by its name where it has one, then its address and port.
fn other_end(item: &FlowItem) -> String {
    // The endpoint's own port counts where the other end opened the flow.
    let port = if item.direction == "egress" { item.remote_port } else { item.local_port };
    let name = item.names.first().or(item.remote_pod.as_ref());
    match name {
        Some(name) => format!("{name} ({}):{port}", item.remote),
        None if item.remote.is_ipv6() => format!("[{}]:{port}", item.remote),
        None => format!("{}:{port}", item.remote),
    }
}

fn show<T: Serialize>(
    ask: &AskArgs,
    items: &[T],
    header: &[&'static str],
    row: impl Fn(&T) -> Vec<Cell>,
) -> anyhow::Result<()> {
    if ask.output == Format::Json {
        return json(items);
    }
    if items.is_empty() {
        eprintln!("namegate: nothing found");
        return Ok(());
    }
    let mut table = Table::new(header);
    for item in items {
        table.row(row(item));
    }
    Ok(table.print()?)
}

/// Prints `value` as JSON that is safe to look at.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("the answer cannot be written")?;
    Ok(print(&(ascii(&text) + "\n"))?)
}

/// JSON with everything outside printable ASCII escaped: such characters stand in strings alone.
pub(super) fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, ' '..='~' | '\n') {
            out.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

fn joined<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(",")
}

/// A path with those parameters that are given.
pub(super) fn path<'a>(
    path: &str,
    parameters: impl IntoIterator<Item = (&'a str, &'a Option<String>)>,
) -> String {
    let mut out = path.to_owned();
    for (name, value) in parameters {
        if let Some(value) = value {
            out.push(if out.contains('?') { '&' } else { '?' });
            out.push_str(name);
            out.push('=');
            for octet in value.bytes() {
                if octet.is_ascii_alphanumeric() || b"-._~/:".contains(&octet) {
                    out.push(char::from(octet));
                } else {
                    out.push_str(&format!("%{octet:02X}"));
                }
            }
        }
    }
    out
}

/// Seconds as kubectl writes ages.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        7_200..=172_799 => format!("{}h{:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_escaped() {
        let given = Some("a b&c=%\u{e9}\n".to_owned());
        let path = path("/v1/names", [("pod", &None), ("name", &given)]);
        assert_eq!(path, "/v1/names?name=a%20b%26c%3D%25%C3%A9%0A");
    }

    #[test]
    fn ages_read_like_those_of_kubectl() {
        for (seconds, text) in
            [(7, "7s"), (119, "119s"), (120, "2m00s"), (7_200, "2h00m"), (200_000, "2d07h")]
        {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn json_is_printable_and_means_the_same() {
        let hostile = "\u{1b}[2J\u{202e}\u{1f600}\n";
        let text = ascii(&serde_json::to_string(hostile).unwrap());
        assert!(text.bytes().all(|octet| matches!(octet, b' '..=b'~')), "{text}");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), hostile);
    }
}
