//! Addresses that answer for more names than a pod may reach.

use std::time::Duration;

use anyhow::{Result, ensure};
use namegate_integration::patience::wait_until;
use namegate_integration::scene::Scene;

#[test]
fn names_that_come_with_an_address_are_told_with_the_rule_that_opens_it() -> Result<()> {
    let test = "names_that_come_with_an_address_are_told_with_the_rule_that_opens_it";
    let Some(scene) = Scene::for_test(test, &[])? else { return Ok(()) };
    let told = || Ok::<_, anyhow::Error>(scene.agent.ask(&["shared"])?.stdout);
    ensure!(scene.town.checkout.resolve("eu.storage.acme.example")?.status == "NOERROR");
    ensure!(told()?.starts_with("no address is known"), "{}", told()?);
    let allowed = "- fqdn: api.stripe.com\n    - fqdn: private.storage.acme.example";
    scene.manifests.edit("web-apis.yaml", "- fqdn: api.stripe.com", allowed)?;
    wait_until("the other pod's name", Duration::from_secs(5), || {
        Ok(scene.town.web.resolve("private.storage.acme.example")?.status == "NOERROR")
    })?;
    let told = told()?;
    for part in [
        "shop/checkout reaches 203.0.113.40\n",
        "as eu.storage.acme.example by EgressPolicy shop/checkout-apis storage\n",
        "and with it private.storage.acme.example, which it may not reach (learned by shop/web)\n",
    ] {
        ensure!(told.contains(part), "{part:?} in\n{told}");
    }
    Ok(())
}
