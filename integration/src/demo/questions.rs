//! The end of the story: asking the agent why something was blocked, and what would let it through.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::stage::Stage;
use crate::addresses::{DB, DB_PORT};
use crate::agent::Agent;
use crate::patience::wait_until;
use crate::scene::Scene;

const PATIENCE: Duration = Duration::from_secs(10);

/// What the operator adds to the policy: the rule that the answer names.
const BEFORE: &str = "  - name: releases\n";
const AFTER: &str = "  - name: evil\n    to: [{fqdn: evil.example}]\n    ports: [{protocol: TCP, port: 443}]\n  - name: releases\n";

pub(super) fn why_and_what_then(stage: &Stage, scene: &mut Scene) -> Result<String> {
    let agent = &scene.agent;
    ask(stage, agent, &["status"], 0)?;
    ask(stage, agent, &["drops", "--top", "5"], 0)?;
    let refused = ask(stage, agent, &["why", "shop/checkout", "evil.example", "443"], 3)?;
    ensure!(refused.contains("fqdn: evil.example"), "no advice to name evil.example:\n{refused}");
    ask(stage, agent, &["policies"], 0)?;

    stage.asks("operator", "$EDITOR checkout-apis.yaml   # adds the rule that the answer names");
    scene.manifests.edit("checkout-apis.yaml", BEFORE, AFTER)?;
    let checkout = &scene.town.checkout;
    wait_until("the edited policy to be in force", PATIENCE, || {
        Ok(checkout.resolve("evil.example")?.status == "NOERROR")
    })?;
    let open = ask(stage, agent, &["why", "shop/checkout", "evil.example", "443"], 0)?;
    ensure!(open.contains("goes through"), "{open}");
    ask(stage, agent, &["observe", "--since", "5s", "--name", "evil.example"], 0)?;
    scene.manifests.edit("checkout-apis.yaml", AFTER, BEFORE)?;

    stage.asks("shop/web", "ncat -z 10.244.1.30 5432   # the database");
    let database = (DB.v4, DB_PORT).into();
    ensure!(scene.town.web.try_tcp(database)?.is_err(), "the database let the web front end in");
    let words = ["why", "shop/web", &DB.v4.to_string(), &DB_PORT.to_string()];
    let closed = ask(stage, agent, &words, 3)?;
    ensure!(closed.contains("NetworkPolicy data/database"), "who closed it is not said:\n{closed}");
    let words = ["suggest", "--live", "--refused", "--namespace", "data", "--since", "1m"];
    let suggested = ask(stage, agent, &words, 0)?;
    ensure!(suggested.contains("app: web"), "nothing would let the web front end in:\n{suggested}");
    Ok("the answers named the rule that opens it, and the policy that would".to_owned())
}

/// Runs a command against the running agent and shows what it says.
fn ask(stage: &Stage, agent: &Agent, words: &[&str], code: i32) -> Result<String> {
    stage.asks("operator", &format!("namegate {}", words.join(" ")));
    let asked = agent.ask(words)?;
    for line in asked.stdout.lines() {
        stage.happens(line);
    }
    ensure!(asked.code() == code, "it ended with {}: {}", asked.code(), asked.stderr);
    Some(asked.stdout).filter(|said| !said.is_empty()).context("it said nothing")
}
