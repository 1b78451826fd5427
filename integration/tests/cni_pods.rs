//! Pods that the plugin is asked about, of shapes that a plain one has not.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use namegate_integration::addresses::{DB, DB_PORT, ECHO, ECHO_PORT, EVIL, OUTPOST};
use namegate_integration::kubelet::{SOON, Stand, Start, mk_plugins};
use namegate_integration::objects::Objects;
use namegate_integration::patience::wait_until;
use namegate_integration::process::run;
use serde_json::{Value, json};

const LIST: &str = "10-lab.conflist";

/// Where pods of these tests listen.
const PORT: u16 = 7_777;

fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let entries = result["ips"].as_array().context("a result without addresses")?;
    let address = |entry: &Value| -> Result<IpAddr> {
        let text = entry["address"].as_str().unwrap_or_default();
        Ok(text.split('/').next().unwrap_or_default().parse()?)
    };
    entries.iter().map(address).collect()
}

/// Takes connections at the pod for as long as the value is there.
fn listen(start: &Start) -> Result<TcpListener> {
    Ok(start.namespace.within(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))??)
}

#[test]
fn both_families_of_the_right_interface_are_under_policy_at_once() -> Result<()> {
    let test = "both_families_of_the_right_interface_are_under_policy_at_once";
    let Some(stand) = Stand::new(test)? else { return Ok(()) };
    let lab = &stand.cluster.town.lab;
    let mut plugins = mk_plugins("bridge", &lab.file("ipam").display().to_string());
    plugins[0]["ipam"]["ranges"] =
        json!([[{"subnet": "10.244.2.128/25"}], [{"subnet": "fd00:244:2::/64"}]]);
    stand.runtime.write_list(LIST, &plugins)?;
    let mut agent = stand.start(&[])?;
    let add = |start: &Start| -> Result<Vec<IpAddr>> {
        let result = stand.runtime.add(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;
        addresses(&result)
    };
    let free = stand.sandbox("free-1", "free", true)?;
    let to_free = add(&free)?;
    assert_eq!(to_free.len(), 2, "one of each family: {to_free:?}");

    // Another network gave the pod an interface before the cluster's own does.
    let web = stand.sandbox("web-1", "web", true)?;
    stand.cluster.outpost.node.ip(&[
        &format!("link add other0 type veth peer name net1 netns {}", web.namespace.name()),
        "link set other0 up",
    ])?;
    web.namespace.ip(&["addr add 198.51.100.7/24 dev net1", "link set net1 up"])?;
    let to_web = add(&web)?;
    let _listening = (listen(&free)?, listen(&web)?);
    for (free_address, web_address) in to_free.iter().zip(&to_web) {
        let open = SocketAddr::from((*web_address, PORT));
        free.expect_reach(open).context("the family works, or the rest shows nothing")?;
        let closed = SocketAddr::from((*free_address, PORT));
        assert!(!web.reaches(closed)?, "{closed}: no rule allows it");
    }
    stand.runtime.check(&web.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;
    agent.check()
}

#[test]
fn pods_of_the_reference_plugins_are_judged_at_both_ends_across_nodes() -> Result<()> {
    let test = "pods_of_the_reference_plugins_are_judged_at_both_ends_across_nodes";
    let Some(stand) = Stand::new(test)? else { return Ok(()) };
    let cluster = &stand.cluster;
    cluster.apply("database.yaml")?;
    cluster.api.put(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "to-web", "namespace": "shop"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "checkout"}}}]}],
        },
    }))?;
    let mut of_the_town = cluster.start_town()?;
    let folder = cluster.town.lab.file("ipam").display().to_string();
    for kind in ["bridge", "ptp"] {
        stand.runtime.write_list(LIST, &mk_plugins(kind, &folder))?;
        let mut agent = stand.start(&[])?;
        let start = |name: &str, app: &str| -> Result<(Start, IpAddr)> {
            let start = stand.sandbox(&format!("{kind}-{name}"), app, true)?;
            let added = stand.runtime.add(&start.sandbox)?;
            let result = added.map_err(|refused| anyhow!("{refused}"))?;
            stand.tell_address(&start, &result)?;
            let address = addresses(&result)?.first().copied().context("no address")?;
            Ok((start, address))
        };
        let ((checkout, _), (free, _), (web, to_web)) =
            (start("checkout", "checkout")?, start("free", "free")?, start("web", "web")?);

        let db = (DB.v4, DB_PORT);
        wait_until("the far end to know whom it lets in", SOON, || checkout.reaches(db))?;
        assert!(!free.reaches(db)?, "{kind}: denied at the far end");
        assert!(!web.reaches(db)?, "{kind}: denied at its own end");

        let _listening = listen(&web)?;
        let to_web = SocketAddr::from((to_web, PORT));
        wait_until("this end to know whom it lets in", SOON, || {
            Ok(cluster.town.checkout.try_tcp(to_web)?.is_ok())
        })?;
        assert!(checkout.reaches(to_web)?, "{kind}: from the same node as well");
        assert!(!free.reaches(to_web)?, "{kind}: denied at the end of who is asked");

        let end = |start: &Start| -> Result<()> {
            stand.runtime.del(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;
            cluster.api.delete("Pod", "shop", &start.name)
        };
        // Under the node's address it is no checkout: its own end lets it out, the other does not let it in.
        [&checkout, &free, &web].into_iter().try_for_each(end)?;
        let mut plugins = mk_plugins(kind, &folder);
        plugins[0]["ipMasq"] = true.into();
        stand.runtime.write_list(LIST, &plugins)?;
        stand.expect_chained()?;
        let (masked, _) = start("masked", "checkout")?;
        let (near, far) = (agent.audit.mark()?, of_the_town.audit.mark()?);
        assert!(!masked.reaches(db)?, "{kind}: the database takes no connection from a node");
        let (forwarded, dropped) = (("verdict", "forwarded"), ("verdict", "dropped"));
        agent.audit.expect(near, &[("kind", "flow"), forwarded, ("source.pod", &masked.name)])?;
        let node = OUTPOST.v4.to_string();
        of_the_town.audit.expect(far, &[("kind", "flow"), dropped, ("source.address", &node)])?;
        end(&masked)?;
        agent.check()?;
        agent.kill()?;
    }
    of_the_town.check()
}

#[test]
fn an_add_whose_agent_dies_is_refused_and_the_next_one_goes_through() -> Result<()> {
    let test = "an_add_whose_agent_dies_is_refused_and_the_next_one_goes_through";
    let Some(stand) = Stand::new(test)? else { return Ok(()) };
    let folder = stand.cluster.town.lab.file("ipam").display().to_string();
    stand.runtime.write_list(LIST, &mk_plugins("ptp", &folder))?;
    let agent = stand.start(&["--cni-wait", "60s"])?;
    let evil = (EVIL.v4, 443);

    // It waits for the pod's object, its interface closed meanwhile.
    let pins = stand.cluster.town.lab.pins();
    let pinned = || {
        let mut find = Command::new("find");
        find.arg(&pins).args(["-path", "*/links/*", "-o", "-path", "*/filters/*"]);
        Ok::<_, anyhow::Error>(run(&mut find, SOON)?.success()?.lines().count())
    };
    let before = pinned()?;
    let start = stand.sandbox("cut-off", "web", false)?;
    let refused = thread::scope(|scope| -> Result<_> {
        let adding = scope.spawn(|| stand.runtime.add(&start.sandbox));
        wait_until("the pod's interface", SOON, || {
            let found = start.namespace.run(&["ip", "-4", "addr", "show", "eth0"], SOON)?;
            Ok(found.stdout.contains("inet "))
        })?;
        wait_until("the interface to have its programs", SOON, || Ok(pinned()? > before))?;
        assert!(!start.reaches(evil)?, "closed");
        assert!(!adding.is_finished(), "it waits");
        agent.kill()?;
        adding.join().map_err(|_| anyhow!("a panic"))?
    })?;
    let refused = refused.err().context("it was let through")?;
    assert_eq!(refused["code"], 11, "to be tried again: {refused}");
    assert!(!start.reaches(evil)?, "closed by what is pinned");

    // What a kubelet does next: it clears away, and tries again.
    stand.runtime.del(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;
    stand.make_pod(&start.name, "web")?;
    let mut agent = stand.start(&[])?;
    stand.runtime.add(&start.sandbox)?.map_err(|refused| anyhow!("{refused}"))?;
    assert!(!start.reaches(evil)?);
    start.expect_reach((ECHO.v4, ECHO_PORT))?;
    agent.check()
}
