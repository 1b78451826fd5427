//! Agents whose maps are of different versions, one after the other on a node.

use anyhow::Result;
use namegate_integration::addresses::{DB, DB_PORT, STRIPE};
use namegate_integration::agent::Agent;
use namegate_integration::flood::Denied;
use namegate_integration::lab::say_skipped;
use namegate_integration::manifests::Manifests;
use namegate_integration::pod::echo;
use namegate_integration::rival::{self, Hook};
use namegate_integration::town::Town;

/// Nobody opens a flow to the checkout: what comes to it are replies, or nothing.
const REPLIES_ONLY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
    metadata: {name: replies-only, namespace: shop}\n\
    spec: {podSelector: {matchLabels: {app: checkout}}, policyTypes: [Ingress]}\n";

/// How many datagrams a second are denied to the checkout, and as many from it.
const DENIED_EACH_WAY: u32 = 3_000;

/// The versions that have pins.
fn versions(town: &Town) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(town.lab.pins())?;
    let mut names: Vec<String> = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

#[test]
fn another_version_takes_over_without_a_packet_unjudged() -> Result<()> {
    let test = "another_version_takes_over_without_a_packet_unjudged";
    let Some(town) = Town::for_test(test)? else { return Ok(()) };
    let manifests = Manifests::town(&town.lab)?;
    manifests.write("replies-only.yaml", REPLIES_ONLY)?;
    let start = |version| Agent::spawn_version(&town, &manifests, version, &[])?.expect_ready();
    let mut denied = Denied::both_ways(&town, DENIED_EACH_WAY)?;
    let mut agent = start(None)?;
    denied.iter_mut().try_for_each(Denied::watch)?;
    let site = (STRIPE.v4, 443).into();
    assert_eq!(town.checkout.resolve("api.stripe.com")?.status, "NOERROR");
    town.checkout.try_tcp(site)??;
    let mut live = town.checkout.connect((DB.v4, DB_PORT).into())??;
    echo(&mut live)?;
    agent.expect_remembered(&town)?;

    let mut last = versions(&town)?;
    for version in [101, 102] {
        agent.kill()?;
        agent = start(Some(version))?;
        echo(&mut live)?;
        town.checkout.try_tcp(site)??;
        assert_ne!(versions(&town)?, last);
        assert_eq!(versions(&town)?, [format!("v{version}")], "nothing is left of the other");
        last = versions(&town)?;
        let when = format!("version {version}");
        denied.iter_mut().try_for_each(|denied| denied.expect_closed(&when))?;
    }
    assert_eq!(town.checkout.resolve("evil.example")?.status, "REFUSED");
    agent.check()
}

/// What an agent leaves that is killed while it moves the pin of a link from one version's directory to its
/// own, where that takes two steps.
#[test]
fn a_link_that_two_versions_pin_stays_attached() -> Result<()> {
    let test = "a_link_that_two_versions_pin_stays_attached";
    let Some(town) = Town::for_test(test)? else { return Ok(()) };
    let manifests = Manifests::town(&town.lab)?;
    manifests.write("replies-only.yaml", REPLIES_ONLY)?;
    let mut denied = Denied::both_ways(&town, DENIED_EACH_WAY)?;
    let start = || Agent::spawn_version(&town, &manifests, Some(101), &[])?.expect_ready();
    let agent = start()?;
    denied.iter_mut().try_for_each(Denied::watch)?;
    agent.kill()?;
    let (own, other) = (town.lab.pins().join("v101/links"), town.lab.pins().join("v100/links"));
    std::fs::create_dir_all(&other)?;
    for pin in std::fs::read_dir(&own)? {
        let pin = pin?;
        std::fs::hard_link(pin.path(), other.join(pin.file_name()))?;
    }
    let mut agent = start()?;
    denied.iter_mut().try_for_each(|denied| denied.expect_closed("in the end"))?;
    assert_eq!(versions(&town)?, ["v101"], "nothing is left of the other");
    assert!(!agent.log().contains("was detached"), "{}", agent.log());
    agent.check()
}

#[test]
fn other_means_of_attaching_take_over_without_a_packet_unjudged() -> Result<()> {
    let test = "other_means_of_attaching_take_over_without_a_packet_unjudged";
    let Some(town) = Town::for_test(test)? else { return Ok(()) };
    let (node, interface) = (&town.node.namespace, &town.checkout.interface);
    let index = node.interface_index(interface)?;
    if rival::count(node, index, Hook::Ingress)?.is_none() {
        return say_skipped(test, "the kernel has no tcx, so that there are no other means");
    }
    let manifests = Manifests::town(&town.lab)?;
    let start = |means, version| {
        Agent::spawn_version(&town, &manifests, version, &["--attach", means])?.expect_ready()
    };
    manifests.write("replies-only.yaml", REPLIES_ONLY)?;
    let mut denied = Denied::both_ways(&town, DENIED_EACH_WAY)?;
    let mut agent = start("tcx", None)?;
    denied.iter_mut().try_for_each(Denied::watch)?;
    for (means, version, linked) in
        [("clsact", None, 0), ("tcx", None, 1), ("clsact", Some(101), 0), ("tcx", Some(102), 1)]
    {
        agent.kill()?;
        agent = start(means, version)?;
        for hook in [Hook::Ingress, Hook::Egress] {
            assert_eq!(rival::count(node, index, hook)?, Some(linked), "{means} {hook:?}");
            let filters = rival::filters(node, interface, hook)?.matches("namegate:").count();
            assert_eq!(filters, usize::from(linked == 0), "{means} {hook:?}");
        }
        denied.iter_mut().try_for_each(|denied| denied.expect_closed(means))?;
    }
    let qdiscs = node.run(&["tc", "qdisc"], std::time::Duration::from_secs(5))?.success()?;
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
    denied.iter_mut().try_for_each(|denied| denied.expect_closed("in the end"))?;
    agent.check()
}
