//! The files in `examples/` are what they say: valid, and in step with the town.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use namegate_integration::addresses::{CHECKOUT, DB, KUBE_DNS, KUBE_DNS_SERVICE, WEB};
use namegate_integration::agent;
use namegate_integration::manifests::examples;
use namegate_integration::process::run;
use serde_json::Value;

/// An example, a flow under it alone, and what becomes of the flow.
type Row = (&'static str, &'static str, &'static str, u16, &'static str);

const ROWS: [Row; 26] = [
    ("allow-one-api", "shop/checkout", "api.stripe.com", 443, "forwarded"),
    ("allow-one-api", "shop/checkout", "api.stripe.com", 80, "dropped"),
    ("allow-one-api", "shop/checkout", "evil.example", 443, "dropped"),
    ("allow-one-api", "shop/web", "203.0.113.66", 443, "forwarded"),
    ("audit-first", "shop/web", "203.0.113.66", 443, "audit"),
    ("deny-all-egress", "shop/web", "203.0.113.66", 443, "dropped"),
    ("deny-all-egress", "data/db", "203.0.113.66", 443, "forwarded"),
    ("isolate-database", "shop/checkout", "data/db", 5432, "forwarded"),
    ("isolate-database", "shop/web", "data/db", 5432, "dropped"),
    ("isolate-database", "data/db", "shop/web", 80, "dropped"),
    ("ranges-and-ports", "shop/web", "10.20.1.1", 8050, "forwarded"),
    ("ranges-and-ports", "shop/web", "10.20.3.1", 8050, "dropped"),
    ("ranges-and-ports", "shop/web", "10.20.1.1", 8101, "dropped"),
    ("wildcard-with-except", "shop/web", "a.b.storage.acme.example", 443, "forwarded"),
    ("wildcard-with-except", "shop/web", "private.storage.acme.example", 443, "dropped"),
    ("cluster-guardrails", "data/db", "169.254.169.254", 80, "dropped"),
    ("cluster-guardrails", "shop/web", "203.0.113.66", 25, "dropped"),
    ("cluster-guardrails", "shop/web", "203.0.113.66", 443, "forwarded"),
    ("cluster-network-policy", "shop/web", "data/db", 22, "dropped"),
    ("cluster-network-policy", "shop/web", "203.0.113.66", 22, "dropped"),
    ("cluster-network-policy", "shop/web", "203.0.113.66", 443, "forwarded"),
    ("cluster-network-policy", "data/db", "shop/web", 22, "forwarded"),
    ("cilium-to-fqdns", "shop/web", "api.stripe.com", 443, "forwarded"),
    ("cilium-to-fqdns", "shop/web", "eu.storage.acme.example", 443, "forwarded"),
    ("cilium-to-fqdns", "shop/web", "a.b.storage.acme.example", 443, "dropped"),
    ("cilium-to-fqdns", "shop/checkout", "203.0.113.66", 443, "forwarded"),
];

#[test]
fn every_example_passes_the_check() -> Result<()> {
    let mut command = Command::new(agent::binary()?);
    let finished = run(command.arg("check").arg(examples()), Duration::from_secs(20))?;
    assert_eq!(finished.code(), 0, "{}{}", finished.stdout, finished.stderr);
    Ok(())
}

#[test]
fn town_manifests_carry_the_towns_addresses() -> Result<()> {
    let text = fs::read_to_string(examples().join("town/cluster.yaml"))?;
    for pair in [CHECKOUT, WEB, DB, KUBE_DNS, KUBE_DNS_SERVICE] {
        for address in [pair.v4.to_string(), pair.v6.to_string()] {
            assert!(text.contains(&address), "{address}");
        }
    }
    Ok(())
}

#[test]
fn each_example_does_what_it_says() -> Result<()> {
    for (example, from, to, port, expected) in ROWS {
        let mut command = Command::new(agent::binary()?);
        command.args(["explain", "-o", "json", "--from", from, "--to", to]);
        command.args(["--port", &port.to_string()]);
        command.arg("--manifests").arg(examples().join("town/cluster.yaml"));
        command.arg("--manifests").arg(examples().join(format!("{example}.yaml")));
        if to.ends_with(char::is_alphabetic) && !to.contains('/') {
            command.arg("--dns").arg(format!("{to}=203.0.113.10"));
        }
        let finished = run(&mut command, Duration::from_secs(60))?;
        let answer: Value = serde_json::from_str(&finished.stdout)
            .with_context(|| format!("{example}: {}", finished.stderr))?;
        let claim = format!("{example}: {from} to {to} port {port}");
        ensure!(answer["verdict"] == expected, "{claim}: {answer:#}");
    }
    let files = fs::read_dir(examples())?
        .filter_map(|entry| entry.ok()?.path().file_stem()?.to_str().map(str::to_owned));
    for file in files.filter(|file| !["town", "one-machine"].contains(&file.as_str())) {
        ensure!(ROWS.iter().any(|(example, ..)| *example == file), "nothing is claimed of {file}");
    }
    Ok(())
}
