//! Policies that watch rather than block.

use std::net::SocketAddr;

use anyhow::Result;
use namegate_integration::addresses::{EVIL, STRIPE};
use namegate_integration::manifests::examples;
use namegate_integration::scene::Scene;

#[test]
fn audit_mode_logs_and_drops_nothing() -> Result<()> {
    let Some(scene) = Scene::without_policies("audit_mode_logs_and_drops_nothing", &[])? else {
        return Ok(());
    };
    let text = std::fs::read_to_string(examples().join("audit-first.yaml"))?;
    scene.manifests.write("audit.yaml", &text)?;
    scene.agent.expect_log("policy applied")?;
    let web = &scene.town.web;
    let mark = scene.agent.audit.mark()?;
    assert_eq!(web.resolve("evil.example")?.status, "NOERROR");
    let fields = [("kind", "dns"), ("verdict", "audit"), ("query.name", "evil.example")];
    scene.agent.audit.expect(mark, &fields)?;
    let mark = scene.agent.audit.mark()?;
    web.try_tcp((EVIL.v4, 443).into())??;
    web.try_tcp((EVIL.v6, 443).into())??;
    let fields = [
        ("kind", "flow"),
        ("verdict", "audit"),
        ("source.pod", "web"),
        ("destination.address", "203.0.113.66"),
    ];
    scene.agent.audit.expect(mark, &fields)?;
    let mark = scene.agent.audit.mark()?;
    assert_eq!(web.resolve("api.stripe.com")?.status, "NOERROR");
    web.try_tcp((STRIPE.v4, 443).into())??;
    let fields = [("kind", "flow"), ("verdict", "forwarded"), ("policy.name", "audit-first")];
    scene.agent.audit.expect(mark, &fields)?;
    Ok(())
}

#[test]
fn observing_filter_resolves_every_name_and_opens_only_allowed_ones() -> Result<()> {
    let test = "observing_filter_resolves_every_name_and_opens_only_allowed_ones";
    let Some(scene) = Scene::without_policies(test, &[])? else {
        return Ok(());
    };
    let text = std::fs::read_to_string(examples().join("allow-one-api.yaml"))?;
    let text = text.replace("spec:\n", "spec:\n  dns: {filter: Observe}\n");
    scene.manifests.write("observe.yaml", &text)?;
    scene.agent.expect_log("policy applied")?;
    let checkout = &scene.town.checkout;
    assert_eq!(checkout.resolve("evil.example")?.status, "NOERROR");
    let evil = SocketAddr::from((EVIL.v4, 443));
    assert!(checkout.try_tcp(evil)?.is_err(), "resolved, and not opened");
    assert_eq!(checkout.resolve("api.stripe.com")?.status, "NOERROR");
    checkout.try_tcp((STRIPE.v4, 443).into())??;
    Ok(())
}

#[test]
fn refusal_is_worded_as_the_policy_asks() -> Result<()> {
    let Some(scene) = Scene::without_policies("refusal_is_worded_as_the_policy_asks", &[])? else {
        return Ok(());
    };
    let text = std::fs::read_to_string(examples().join("allow-one-api.yaml"))?;
    let text = text.replace("spec:\n", "spec:\n  dns: {refuseWith: NxDomain}\n");
    scene.manifests.write("refuse.yaml", &text)?;
    scene.agent.expect_log("policy applied")?;
    assert_eq!(scene.town.checkout.resolve("evil.example")?.status, "NXDOMAIN");
    Ok(())
}
