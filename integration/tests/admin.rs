//! What a running agent says over its socket, and what it says where it cannot.
#![expect(clippy::unwrap_used, reason = "a test that meets what it did not expect has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use namegate_integration::addresses::{DB, DB_PORT, EVIL, STRIPE};
use namegate_integration::agent::{Agent, binary};
use namegate_integration::patience::wait_until;
use namegate_integration::process::{resident_kib, run};
use namegate_integration::scene::Scene;
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn socket_answers_its_owner_and_goes_with_the_agent() -> Result<()> {
    let test = "socket_answers_its_owner_and_goes_with_the_agent";
    let Some(scene) = Scene::for_test(test, &["--metrics-listen", "127.0.0.1:9753"])? else {
        return Ok(());
    };
    let Scene { agent, town, .. } = scene;
    let mode = fs::metadata(agent.socket())?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for the agent's user alone");

    let pods = ask(&agent, &["endpoints"])?;
    let pods: Vec<&str> = each(&pods).filter_map(|item| item["pod"].as_str()).collect();
    assert!(pods.contains(&"checkout") && pods.contains(&"web"), "{pods:?}");

    for (path, expected) in [
        ("/readyz", "enforcing"),
        ("/healthz", "ok"),
        ("/metrics", "namegate_enforcing 1"),
        ("/v1/endpoints", "no such path"),
    ] {
        let url = format!("http://127.0.0.1:9753{path}");
        let mut curl = town.node.namespace.command("curl");
        let got = run(curl.args(["-sS", "--max-time", "5", &url]), Duration::from_secs(10))?;
        assert!(got.stdout.contains(expected), "{path}: {} {}", got.stdout, got.stderr);
    }

    let socket = agent.socket().to_owned();
    assert!(agent.stop(Signal::TERM)?.success());
    assert!(!socket.exists(), "goes with the agent");
    Ok(())
}

#[test]
fn commands_tell_what_was_learned_decided_and_counted() -> Result<()> {
    let test = "commands_tell_what_was_learned_decided_and_counted";
    let Some(scene) = Scene::for_test(test, &[])? else {
        return Ok(());
    };
    let Scene { agent, town, .. } = scene;
    let site = SocketAddr::from((STRIPE.v4, 443));
    town.checkout.resolve("api.stripe.com")?;
    town.checkout.try_tcp(site)??;
    assert_eq!(town.checkout.resolve("evil.example")?.status, "REFUSED");
    assert!(town.checkout.try_tcp((EVIL.v4, 443).into())?.is_err());
    let live = town.checkout.connect((DB.v4, DB_PORT).into())??;

    let names = ask(&agent, &["names", "--pod", "shop/checkout", "--name", "stripe"])?;
    let learned = each(&names).find(|item| item["address"] == STRIPE.v4.to_string());
    let learned = learned.expect("the address that the lookup opened");
    assert_eq!(learned["name"], "api.stripe.com");
    assert!(learned["open_for_s"].as_u64().unwrap() > 0);
    assert!(learned["age_s"].as_u64().unwrap() < 600, "it was learned in this test: {learned}");
    assert!(learned["not_opened"].is_null(), "{learned}");
    let rules = learned["rules"].to_string();
    assert!(rules.contains("EgressPolicy shop/"), "{rules}");
    town.checkout.resolve("rebind.acme.example")?;
    let names = ask(&agent, &["names", "-n", "shop", "--name", "rebind"])?;
    assert_eq!(names[0]["not_opened"], "link-local", "the metadata address: {names}");
    let nobody = ask(&agent, &["names", "-n", "data"])?;
    assert_eq!(nobody, serde_json::json!([]), "of another namespace");

    let flows = ask(&agent, &["flows", "--pod", "shop/checkout"])?;
    let flow = each(&flows).find(|item| item["remote"] == DB.v4.to_string());
    let flow = flow.expect("the connection that is open");
    assert_eq!((&flow["state"], &flow["remote_port"]), (&"established".into(), &DB_PORT.into()));
    assert_eq!(flow["remote_pod"], "data/db");
    drop(live);

    let policies = ask(&agent, &["policies"])?;
    let rules = each(&policies).flat_map(|policy| each(&policy["rules"]));
    let matched = rules.clone().filter(|rule| rule["last_match"].is_string()).count();
    let hits: u64 = rules.clone().filter_map(|rule| rule["hits"].as_u64()).sum();
    assert!(matched > 0 && hits >= matched as u64, "{policies}");
    assert!(rules.into_iter().any(|rule| rule["last_match"].is_null()), "some never matched");

    let identities = ask(&agent, &["identities", "--namespace", "shop"])?;
    let checkout = each(&identities).find(|item| item["labels"]["app"] == "checkout");
    let checkout = checkout.expect("the identity of checkout");
    assert!(checkout["learned"].as_u64().unwrap() > 0, "{checkout}");

    let seen = agent.ask(&["observe", "--pod", "shop/checkout"])?;
    let has = |parts: &[&str]| {
        seen.stdout.lines().any(|line| parts.iter().all(|part| line.contains(part)))
    };
    assert!(has(&["ALLOWED", "shop/checkout -> api.stripe.com A", "rule "]), "{}", seen.stdout);
    let stripe = format!("api.stripe.com ({}):443/tcp", STRIPE.v4);
    assert!(has(&["FORWARDED", "shop/checkout -> ", &stripe, "EgressPolicy"]), "{}", seen.stdout);
    assert!(has(&["DENIED", "evil.example", "REFUSED"]), "{}", seen.stdout);
    let denied = ask_lines(&agent, &["observe", "--verdict", "denied", "--name", "evil"])?;
    assert!(!denied.is_empty() && denied.iter().all(|line| line["verdict"] == "denied"));
    let dropped = ask(&agent, &["drops", "--top", "3", "--pod", "shop/checkout"])?;
    assert!(each(&dropped).any(|kind| kind["whom"] == format!("{}:443/tcp", EVIL.v4)), "{dropped}");

    let why = |to: &str| -> Result<(i32, Value)> {
        let asked = agent.ask(&["why", "shop/checkout", to, "443", "-o", "json"])?;
        Ok((asked.code(), serde_json::from_str(&asked.stdout)?))
    };
    let (code, open) = why("api.stripe.com")?;
    assert_eq!((code, &open["verdict"]), (0, &"forwarded".into()), "{open}");
    assert_eq!(open["targets"][0]["learned"][0]["name"], "api.stripe.com");
    let (code, refused) = why("evil.example")?;
    assert_eq!((code, &refused["verdict"]), (3, &"refused".into()), "{refused}");
    assert!(refused["advice"][0].as_str().unwrap().contains("fqdn: evil.example"), "{refused}");
    let (code, bare) = why(&EVIL.v4.to_string())?;
    assert_eq!((code, &bare["verdict"]), (3, &"dropped".into()), "{bare}");

    let status = agent.ask(&["status"])?;
    assert!(status.status.success(), "{}{}", status.stdout, status.stderr);
    assert!(status.stdout.contains("healthy, enforcing"), "{}", status.stdout);
    assert!(status.stdout.contains("1 denied"), "{}", status.stdout);
    Ok(())
}

fn ask(agent: &Agent, words: &[&str]) -> Result<Value> {
    let asked = agent.ask(&[words, &["-o", "json"]].concat())?;
    assert!(asked.status.success(), "{words:?}: {}", asked.stderr);
    Ok(serde_json::from_str(&asked.stdout)?)
}

fn ask_lines(agent: &Agent, words: &[&str]) -> Result<Vec<Value>> {
    let asked = agent.ask(&[words, &["-o", "json"]].concat())?;
    assert!(asked.status.success(), "{words:?}: {}", asked.stderr);
    asked.stdout.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn each(list: &Value) -> impl Iterator<Item = &Value> + Clone {
    list.as_array().unwrap().iter()
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_an_agent_has() -> Result<()> {
    let test = "dashboard_and_alerts_ask_for_metrics_that_an_agent_has";
    let Some(scene) = Scene::for_test(test, &[])? else {
        return Ok(());
    };
    let Scene { agent, town, .. } = scene;
    assert_eq!(town.checkout.resolve("evil.example")?.status, "REFUSED");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "10", "http://agent/metrics", "--unix-socket"]);
    let text = run(curl.arg(agent.socket()), Duration::from_secs(15))?.stdout;
    let told = parse(&text);
    assert_eq!(told["namegate_enforcing"].1, 1);

    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/namegate/monitoring");
    for file in ["dashboard.json", "alerts.yaml"] {
        let asked = fs::read_to_string(chart.join(file))?;
        let words = asked.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names: Vec<&str> = words.filter(|word| word.starts_with("namegate_")).collect();
        assert!(names.len() > 5, "{file}");
        for name in names {
            let is_told = told.iter().any(|(known, (kind, _))| {
                name.strip_prefix(known.as_str()).is_some_and(|suffix| match kind.as_str() {
                    "counter" => suffix == "_total",
                    "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
                    _ => suffix.is_empty(),
                })
            });
            assert!(is_told, "{file} asks for {name}, which no agent tells");
        }
    }
    Ok(())
}

/// The families of an OpenMetrics text by name: each with its type and how many samples it has. Fails
/// where a line is none.
fn parse(text: &str) -> BTreeMap<String, (String, usize)> {
    let mut families: BTreeMap<String, (String, usize)> = BTreeMap::new();
    let mut current = String::new();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.last(), Some(&"# EOF"), "{text}");
    for line in &lines[..lines.len() - 1] {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            current = name.to_owned();
            let before = families.insert(current.clone(), (kind.to_owned(), 0));
            assert!(before.is_none(), "{name} is told twice");
        } else if line.starts_with("# HELP ") || line.starts_with("# UNIT ") {
            continue;
        } else {
            let (sample, value) = line.rsplit_once(' ').expect(line);
            value.parse::<f64>().expect(line);
            assert!(sample.starts_with(&current), "{line} is not of {current}");
            if let Some((_, labels)) = sample.split_once('{') {
                assert!(labels.ends_with("\"}"), "{line}");
            }
            families.get_mut(&current).expect(line).1 += 1;
        }
    }
    families
}

#[test]
fn a_reader_that_never_reads_holds_up_nobody() -> Result<()> {
    let test = "a_reader_that_never_reads_holds_up_nobody";
    let Some(scene) = Scene::for_test(test, &[])? else {
        return Ok(());
    };
    let Scene { agent, town, .. } = scene;
    let before = resident_kib(agent.process_id())?;
    let mut idle = UnixStream::connect(agent.socket())?;
    idle.write_all(b"GET /v1/records?follow=true&since_s=60 HTTP/1.1\r\nhost: a\r\n\r\n")?;
    // Each is in the record of a reader that follows, far more than its socket and the ring hold.
    let evil = town.web.namespace.within(|| UdpSocket::bind("0.0.0.0:0"))??;
    for port in 1..=30_000 {
        evil.send_to(b"x", (EVIL.v4, port))?;
        if port % 600 == 0 {
            assert_eq!(town.checkout.resolve("evil.example")?.status, "REFUSED");
        }
    }
    town.checkout.resolve("api.stripe.com")?;
    town.checkout.try_tcp((STRIPE.v4, 443).into())??;
    assert_eq!(town.checkout.resolve("last.example")?.status, "REFUSED");
    let about = ["observe", "--name", "last.example", "--verdict", "denied"];
    wait_until("another reader to be told what is new", Duration::from_secs(20), || {
        Ok(!ask_lines(&agent, &about)?.is_empty())
    })?;
    assert!(agent.ask(&["status"])?.status.success());
    let grown = resident_kib(agent.process_id())?.saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB more than before");
    drop(idle);
    Ok(())
}

#[test]
fn a_command_without_an_agent_says_what_to_do() -> Result<()> {
    let mut command = Command::new(binary()?);
    command.args(["endpoints", "--socket", "/run/namegate-nobody/none.sock"]);
    let asked = run(&mut command, Duration::from_secs(5))?;
    assert_eq!(asked.status.code(), Some(1));
    assert!(asked.stderr.contains("no agent answers on /run/namegate-nobody/none.sock"));
    assert!(asked.stdout.is_empty());
    Ok(())
}
