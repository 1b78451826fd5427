//! Observe, suggest, enforce: what real packets did under Audit mode is written down as policies by
//! `namegate suggest`, from the log or from the running agent alike; these, applied, let it through and nothing else.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use namegate_integration::addresses::{DB, DB_PORT, ECHO, ECHO_PORT, EVIL, RELEASES, STRIPE};
use namegate_integration::agent::binary;
use namegate_integration::dns::Query;
use namegate_integration::patience::wait_until;
use namegate_integration::scene::Scene;

const LIMIT: Duration = Duration::from_secs(5);

/// Whose lookups go through the proxy, whose flows are judged, and where nothing is dropped.
const OBSERVE: &str = "\
apiVersion: namegate.dev/v1alpha1
kind: ClusterEgressPolicy
metadata: {name: observe}
spec:
  namespaceSelector: {}
  mode: Audit
  egress: []
";

#[test]
fn what_was_observed_passes_under_the_suggested_policies_and_nothing_else() -> Result<()> {
    let test = "what_was_observed_passes_under_the_suggested_policies_and_nothing_else";
    let Some(scene) = Scene::without_policies(test, &[])? else { return Ok(()) };
    scene.manifests.write("observe.yaml", OBSERVE)?;
    scene.agent.expect_log("policy applied")?;
    let (checkout, web) = (&scene.town.checkout, &scene.town.web);
    let (stripe, db) = (SocketAddr::from((STRIPE.v4, 443)), SocketAddr::from((DB.v4, DB_PORT)));
    let echo = SocketAddr::from((ECHO.v6, ECHO_PORT));
    let evil = SocketAddr::from((EVIL.v4, 443));

    let mark = scene.agent.audit.mark()?;
    wait_until("lookups to go through the proxy", LIMIT, || {
        checkout.resolve("api.stripe.com")?;
        let seen = scene.agent.audit.since(mark)?;
        Ok(seen.iter().any(|record| record["query"]["name"] == "api.stripe.com"))
    })?;
    checkout.try_tcp(stripe)??;
    checkout.try_tcp(db)??;
    checkout.try_tcp(evil)??;
    checkout.ask(&Query::aaaa("echo.acme.example"))?;
    checkout.try_tcp(echo)??;
    web.resolve("idle.acme.example")?;
    web.resolve("releases.acme.example")?;
    web.try_tcp((RELEASES.v4, 443).into())??;
    for fields in [
        [("kind", "flow"), ("direction", "egress"), ("destination.address", "203.0.113.66")],
        [("kind", "flow"), ("direction", "ingress"), ("destination.pod", "db")],
        [("kind", "flow"), ("source.pod", "web"), ("destination.names", "releases.acme.example")],
        [("kind", "flow"), ("source.pod", "checkout"), ("destination.names", "echo.acme.example")],
    ] {
        scene.agent.audit.expect(mark, &fields)?;
    }

    let suggest = |namespace: &str, source: &[&str]| -> Result<String> {
        let words = [&["suggest", "--namespace", namespace][..], source].concat();
        let made = scene.agent.ask(&words)?;
        ensure!(made.status.success(), "{}\n{}", made.stdout, made.stderr);
        Ok(made.stdout)
    };
    let log = scene.agent.audit.path().to_str().context("a path")?.to_owned();
    for namespace in ["shop", "data"] {
        wait_until("the agent to say what its log says", LIMIT, || {
            Ok(suggest(namespace, &["--live"])? == suggest(namespace, &["--from", &log])?)
        })?;
    }

    let suggested = scene.town.lab.file("suggested.yaml");
    let mut text = String::new();
    for namespace in ["shop", "data"] {
        text.push_str("---\n");
        text.push_str(&suggest(namespace, &["--live"])?);
    }
    fs::write(&suggested, &text)?;
    let check = Command::new(binary()?).arg("check").arg(&suggested).output()?;
    ensure!(check.status.success(), "{}\n{}", String::from_utf8_lossy(&check.stdout), text);

    scene.manifests.write("suggested.yaml", &text)?;
    scene.manifests.remove("observe.yaml")?;
    let enforced = || Ok(checkout.resolve("evil.example")?.status == "REFUSED");
    wait_until("what was suggested to be enforced", LIMIT, enforced)
        .with_context(|| text.clone())?;

    let said = || text.clone();
    for (name, is_seen) in [("api.stripe.com", true), ("releases.acme.example", false)] {
        let status = checkout.resolve(name)?.status;
        ensure!((status == "NOERROR") == is_seen, "checkout asks for {name}: {status}\n{}", said());
    }
    checkout.try_tcp(stripe)?.with_context(said)?;
    checkout.try_tcp(db)?.with_context(said)?;
    checkout.try_tcp(evil)?.with_context(said)?;
    checkout.ask(&Query::aaaa("echo.acme.example"))?;
    checkout.try_tcp(echo)?.with_context(said)?;
    ensure!(web.resolve("releases.acme.example")?.status == "NOERROR", "{}", said());
    web.try_tcp((RELEASES.v4, 443).into())?.with_context(said)?;
    for (pod, target, why) in [
        (checkout, SocketAddr::from((STRIPE.v4, 80)), "another port of a name"),
        (checkout, SocketAddr::from((EVIL.v4, 80)), "another port of an address"),
        (checkout, SocketAddr::from((RELEASES.v4, 443)), "what another workload may reach"),
        (web, stripe, "what another workload may reach"),
        (web, db, "the database, which took flows of the checkout alone"),
    ] {
        ensure!(pod.try_tcp(target)?.is_err(), "{target}: {why}\n{}", said());
    }
    Ok(())
}
