//! `namegate explain` says of the files in `examples/` what the demo then shows on packets.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use namegate_integration::addresses::{EVIL, METADATA, STRIPE};
use namegate_integration::manifests::examples;
use namegate_integration::process::{Finished, run};
use namegate_integration::{agent, lab};
use serde_json::Value;

/// What is asked, the verdicts at both ends, and a word of the answer.
type Row = (&'static str, &'static str, &'static str, u16, [&'static str; 3], &'static str);

const ROWS: [Row; 10] = [
    ("the API by its name", "shop/checkout", "api.stripe.com", 443, FORWARDED, "payments"),
    ("the API on another port", "shop/checkout", "api.stripe.com", 80, DROPPED, "isolation"),
    ("a name that no rule allows", "shop/checkout", "evil.test", 443, DROPPED, "name-refused"),
    ("the metadata address", "shop/checkout", METADATA_TEXT, 80, DROPPED, "deny[0]"),
    ("a denial wins over the wider range", "shop/web", METADATA_TEXT, 80, DROPPED, "deny[0]"),
    ("the rest of that range", "shop/web", "169.254.7.7", 80, FORWARDED, "link-local-by-mistake"),
    ("the database from the checkout", "shop/checkout", "data/db", 5432, FORWARDED, "database"),
    ("the database from elsewhere", "shop/web", "data/db", 5432, NOT_LET_IN, "isolation"),
    ("the database opens nothing", "data/db", "shop/web", 80, DROPPED, "isolation"),
    ("a name that points into the house", "shop/checkout", REBIND, 443, BOTH_DROP, "pod-range"),
];
const FORWARDED: [&str; 3] = ["forwarded", "forwarded", "forwarded"];
const DROPPED: [&str; 3] = ["dropped", "dropped", "forwarded"];
const NOT_LET_IN: [&str; 3] = ["dropped", "forwarded", "dropped"];
const BOTH_DROP: [&str; 3] = ["dropped", "dropped", "dropped"];
const METADATA_TEXT: &str = "169.254.169.254";
const REBIND: &str = "rebind.acme.example";

#[test]
fn explain_says_what_the_demo_shows() -> Result<()> {
    ensure!(METADATA.to_string() == METADATA_TEXT);
    let mut engines = vec!["host", "oracle"];
    if lab::can_run("explain_says_what_the_demo_shows with the kernel")? {
        engines.push("kernel");
    }
    for engine in engines {
        for (claim, from, to, port, verdicts, word) in &ROWS {
            let port = port.to_string();
            let finished = explain(&[
                "--engine", engine, "--from", from, "--to", to, "--port", &port, "-o", "json",
            ])?;
            ensure!(finished.code() == 0, "{engine}: {claim}: {}", finished.stderr);
            let answer: Value = serde_json::from_str(&finished.stdout)?;
            let found = ["/verdict", "/egress/verdict", "/ingress/verdict"]
                .map(|path| answer.pointer(path).and_then(Value::as_str).unwrap_or_default());
            ensure!(found == *verdicts, "{engine}: {claim}: {found:?}\n{}", finished.stdout);
            ensure!(finished.stdout.contains(word), "{engine}: {claim}: no {word}");
        }
    }
    Ok(())
}

#[test]
fn bare_addresses_of_what_others_learned_stay_closed() -> Result<()> {
    let address = STRIPE.v4.to_string();
    for from in ["shop/checkout", "shop/web"] {
        let finished = explain(&["--from", from, "--to", &address, "--port", "443"])?;
        ensure!(finished.stdout.contains("no answer taught"), "{}", finished.stdout);
        ensure!(
            finished.stdout.starts_with(&format!("{from} to {address}, TCP port 443: dropped"))
        );
    }
    Ok(())
}

#[test]
fn flows_are_answered_a_line_each_and_a_bad_one_costs_the_exit_code() -> Result<()> {
    let path = std::env::temp_dir().join(format!("explain-flows-{}", std::process::id()));
    let evil = EVIL.v4;
    let lines = [
        r#"{"from":"shop/checkout","to":"data/db","port":5432,"protocol":"TCP"}"#.to_owned(),
        "not json".to_owned(),
        format!(r#"{{"from":"shop/checkout","to":"{evil}","port":443}}"#),
        r#"{"from":"shop/checkout","to":"echo.acme.example","protocol":"ICMP"}"#.to_owned(),
        r#"{"from":"shop/checkout","to":"api.stripe.com","port":443}"#.to_owned(),
        // What the line before taught opens nothing here.
        format!(r#"{{"from":"shop/checkout","to":"{}","port":443}}"#, STRIPE.v4),
        // A name is asked for as often as flows go to it, by whoever opens them.
        r#"{"from":"shop/web","to":"api.stripe.com","port":443}"#.to_owned(),
        r#"{"from":"shop/checkout","to":"api.stripe.com","port":443}"#.to_owned(),
        r#"{"from":"shop/web","to":"api.stripe.com","port":443}"#.to_owned(),
        r#"{"from":"shop/web","to":"data/db","port":"postgres"}"#.to_owned(),
        r#"{"from":"shop/nobody","to":"data/db","port":1}"#.to_owned(),
    ];
    fs::write(&path, lines.join("\n"))?;
    let finished = explain(&["--flows", path.to_str().context("a path in UTF-8")?])?;
    fs::remove_file(&path)?;
    ensure!(finished.code() == 1, "{}", finished.stderr);
    let verdicts: Vec<String> = finished
        .stdout
        .lines()
        .map(|line| {
            let answer: Value = serde_json::from_str(line)?;
            let word = answer.get("verdict").or_else(|| answer.get("line"));
            Ok(word.map(Value::to_string).unwrap_or_default())
        })
        .collect::<Result<_>>()?;
    let forwarded = "\"forwarded\"";
    let dropped = "\"dropped\"";
    ensure!(
        verdicts
            == [
                forwarded, "2", dropped, forwarded, forwarded, dropped, forwarded, forwarded,
                forwarded, dropped, "11"
            ],
        "{}",
        finished.stdout
    );
    Ok(())
}

#[test]
fn what_is_asked_wrongly_is_said_with_a_way_out() -> Result<()> {
    let cases: [(&[&str], i32, &str); 6] = [
        (
            &["--from", "shop/checkot", "--to", "data/db", "--port", "1"],
            2,
            "did you mean shop/checkout?",
        ),
        (&["--from", "shop/web", "--to", "data/db"], 2, "the port is missing"),
        (
            &["--from", "shop/web", "--to", "data/db", "--protocol", "ICMP", "--port", "1"],
            2,
            "an echo (ICMP) has no port",
        ),
        (
            &["--from", "shop/web", "--to", "*.example.com", "--port", "1"],
            2,
            "a pattern is no destination",
        ),
        (
            &["--from", "shop/web", "--to", "service:shop/x", "--port", "1"],
            2,
            "there is no service shop/x",
        ),
        (
            &["--from", "shop/web", "--to", "data/db", "--port", "http"],
            2,
            "pod data/db names no TCP port http",
        ),
    ];
    for (arguments, code, words) in cases {
        let finished = explain(arguments)?;
        ensure!(
            finished.code() == code && finished.stderr.contains(words),
            "{arguments:?}: {} {}",
            finished.code(),
            finished.stderr
        );
    }
    let name = "releases.acme.example";
    let needed = explain(&["--from", "shop/checkout", "--to", name, "--port", "443"])?;
    ensure!(
        needed.code() == 1 && needed.stdout.contains("give its addresses with --dns"),
        "{}",
        needed.stdout
    );
    Ok(())
}

/// Asks about the town, with what its names resolve to.
fn explain(arguments: &[&str]) -> Result<Finished> {
    let mut command = Command::new(agent::binary()?);
    command.arg("explain").arg("--manifests").arg(examples().join("town")).args(arguments);
    command.arg("--dns").arg(format!("api.stripe.com={}", STRIPE.v4));
    command.arg("--dns").arg("rebind.acme.example=10.244.1.30");
    command.arg("--dns").arg("echo.acme.example=203.0.113.77");
    run(&mut command, Duration::from_secs(60))
}
