//! `namegate shared`: addresses that open more than the names that they were learned for.

use std::io::{self, Write};

use clap::Args;

use super::client::{AskArgs, Client, Format};
use super::lists::json;
use super::subject;
use crate::admin::{SharedAddresses, SharedItem};
use crate::audit::PolicyLabel;
use crate::source::plain;

/// Options of `namegate shared`.
#[derive(Debug, Args)]
#[command(after_help = "\
A packet carries an address and no name: a pod that may reach an address by one name reaches all that
the address serves. Listed are addresses that other names, which the pod may not reach, are known to
answer with. Known is what pods of this node were answered; names that are refused are never looked up,
so there may be more.")]
pub struct SharedArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Only of pods of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

pub(super) fn run(args: &SharedArgs) -> anyhow::Result<()> {
    let mut shared: SharedAddresses = Client::new(&args.ask).get("/v1/shared")?;
    let all = shared.items.len();
    let is_wanted = |pod: &String| subject::is_in(args.namespace.as_deref(), pod);
    shared.items.retain(|item| item.pods.iter().any(is_wanted));
    // Those that are counted and not listed may be anybody's.
    shared.count -= (all - shared.items.len()) as u64;
    if args.ask.output == Format::Json {
        return json(&shared);
    }
    match write(&shared, &mut io::stdout().lock()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn write(shared: &SharedAddresses, out: &mut impl Write) -> io::Result<()> {
    if shared.count == 0 {
        return writeln!(
            out,
            "no address is known to answer for a name that its pod may not reach"
        );
    }
    for item in &shared.items {
        write_item(item, out)?;
    }
    let more = shared.count - shared.items.len() as u64;
    if more > 0 {
        writeln!(out, "and {more} more")?;
    }
    Ok(())
}

fn write_item(item: &SharedItem, out: &mut impl Write) -> io::Result<()> {
    let pods: Vec<&str> = item.pods.iter().map(String::as_str).collect();
    writeln!(out, "{} reaches {}", plain(&pods.join(", ")), item.address)?;
    for opening in &item.opened_by {
        let rule = opening.policy.as_ref().map(rule).unwrap_or_default();
        writeln!(out, "  as {}{}", plain(&opening.name), plain(&rule))?;
    }
    for also in &item.also {
        let who: Vec<&str> = also.learned_by.iter().map(String::as_str).collect();
        writeln!(
            out,
            "  and with it {}, which it may not reach (learned by {})",
            plain(&also.name),
            plain(&who.join(", "))
        )?;
    }
    Ok(())
}

fn rule(policy: &PolicyLabel) -> String {
    let PolicyLabel { kind, namespace, name, rule } = policy;
    let place = namespace.as_ref().map_or_else(|| name.to_string(), |in_| format!("{in_}/{name}"));
    format!(" by {kind} {place} {}", rule.as_deref().unwrap_or("as a whole"))
}

#[cfg(test)]
mod tests {
    use crate::admin::{AlsoName, OpeningName};

    use super::*;

    #[test]
    fn what_is_open_besides_is_said_with_the_rule_that_opens_it() {
        let item = SharedItem {
            identity: 256,
            pods: ["shop/checkout".to_owned()].into(),
            address: "203.0.113.1".parse().unwrap(),
            opened_by: vec![OpeningName {
                name: "api.example.com".to_owned(),
                policy: Some(PolicyLabel {
                    kind: "EgressPolicy".into(),
                    namespace: Some("shop".into()),
                    name: "apis".into(),
                    rule: Some("payments".into()),
                }),
            }],
            also: vec![AlsoName {
                name: "evil.test".to_owned(),
                learned_by: ["shop/web".to_owned()].into(),
            }],
        };
        let mut out = Vec::new();
        write(&SharedAddresses { count: 3, items: vec![item] }, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "shop/checkout reaches 203.0.113.1\n  as api.example.com by EgressPolicy shop/apis \
             payments\n  and with it evil.test, which it may not reach (learned by shop/web)\nand 2 \
             more\n"
        );
    }
}
