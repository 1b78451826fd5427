//! A node whose maps are too small for its cluster: what does not fit is closed, counted and named, and
//! opens by itself when there is room.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use namegate_integration::addresses::{ECHO, ECHO_PORT};
use namegate_integration::manifests::Manifests;
use namegate_integration::patience::wait_until;
use namegate_integration::scene::Scene;
use namegate_integration::town::Town;

const SOON: Duration = Duration::from_secs(15);
/// Fewer than the pods below need.
const ROWS: &str = "48";
const PODS: u8 = 60;

/// Everything is open to the checkout but pods in quarantine.
const POLICIES: &str = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
    metadata: {name: quarantine}\nspec:\n  tier: Admin\n  priority: 1\n  \
    subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: checkout}}}}\n  \
    egress: [{action: Deny, to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {tier: quarantine}}}}]}]\n";

/// A pod elsewhere with labels of its own.
fn pod(name: &str, address: &str, tier: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}, tier: {tier}}}}}\n\
         status: {{podIPs: [{{ip: {address}}}]}}\n"
    )
}

#[test]
fn a_pod_that_the_policies_have_no_room_for_is_closed_until_they_have() -> Result<()> {
    let test = "a_pod_that_the_policies_have_no_room_for_is_closed_until_they_have";
    let Some(town) = Town::for_test(test)? else { return Ok(()) };
    let manifests = Manifests::cluster(&town.lab)?;
    manifests.write("quarantine.yaml", POLICIES)?;
    let mut scene = Scene::begin(town, manifests, &["--peers-max", ROWS])?;
    let echo = (ECHO.v4, ECHO_PORT).into();
    let (checkout, web) = (&scene.town.checkout, &scene.town.web);
    checkout.try_tcp(echo)??;
    let mut crowd = String::new();
    for last in 1..=PODS {
        write!(
            crowd,
            "{}",
            pod(&format!("crowd-{last}"), &format!("10.244.9.{last}"), "quarantine")
        )?;
    }
    scene.manifests.write("crowd.yaml", &crowd)?;
    scene.agent.expect_log("PEERS is full")?;

    // It comes when there is no room left, and is denied all the same.
    let address = ECHO.v4.to_string();
    let mark = scene.agent.audit.mark()?;
    scene.manifests.write("late.yaml", &pod("late", &address, "quarantine"))?;
    wait_until("the late pod to be closed", SOON, || Ok(checkout.try_tcp(echo)?.is_err()))?;
    scene.agent.audit.expect(
        mark,
        &[
            ("verdict", "dropped"),
            ("reason", "addresses-incomplete"),
            ("source.pod", "checkout"),
            ("destination.address", &address),
        ],
    )?;
    let status = scene.agent.ask(&["status"])?;
    ensure!(status.stdout.contains("closed to new flows"), "{}", status.stdout);
    // Pods that it has nothing to do with go on.
    web.try_tcp((scene.town.db.addresses.v4, 5_432).into())??;

    // The crowd goes, and what is left fits: the late pod is denied by its labels.
    let mark = scene.agent.audit.mark()?;
    scene.manifests.remove("crowd.yaml")?;
    wait_until("the rule to deny the late pod", SOON, || {
        ensure!(checkout.try_tcp(echo)?.is_err(), "open while it heals");
        let since = scene.agent.audit.since(mark)?;
        Ok(since.iter().any(|record| record["reason"] == "denied"))
    })?;
    scene.manifests.write("late.yaml", &pod("late", &address, "released"))?;
    wait_until("the late pod to be open", SOON, || Ok(checkout.try_tcp(echo)?.is_ok()))?;
    scene.agent.check()
}
