//! What a running agent says over its socket, and what it says where it cannot.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use namegate_integration::addresses::{DB, DB_PORT, EVIL, STRIPE};
use namegate_integration::agent::{Agent, binary};
use namegate_integration::process::run;
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
    let rules = learned["rules"].to_string();
    assert!(rules.contains("EgressPolicy shop/"), "{rules}");

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

fn each(list: &Value) -> impl Iterator<Item = &Value> + Clone {
    list.as_array().unwrap().iter()
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
