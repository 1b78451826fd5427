//! Input that is wrong: one clear message each, the rest keeps working.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use namegate_integration::addresses::{EVIL, KUBE_DNS_SERVICE, STRIPE};
use namegate_integration::agent::{self, Agent};
use namegate_integration::manifests::Manifests;
use namegate_integration::patience::wait_until;
use namegate_integration::scene::Scene;
use namegate_integration::town::Town;

const LIMIT: Duration = Duration::from_secs(15);

/// Name of the case, the manifest, and the words that its one message must have.
const BAD_OBJECTS: [(&str, &str, &[&str]); 7] = [
    (
        "malformed-yaml",
        "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {name: x, namespace: shop\n",
        &["malformed-yaml.yaml"],
    ),
    (
        "misspelt-field",
        "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\n\
         metadata: {name: misspelt, namespace: shop}\nspec: {podSelector: {}, egres: []}\n",
        &["misspelt-field.yaml", "misspelt", "egres"],
    ),
    (
        "bad-pattern",
        "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\n\
         metadata: {name: pattern, namespace: shop}\n\
         spec: {podSelector: {}, egress: [{to: [{fqdn: \"api.*.com\"}]}]}\n",
        &["bad-pattern.yaml", "EgressPolicy shop/pattern", "spec.egress[0].to[0].fqdn", "star"],
    ),
    (
        "bad-cidr",
        "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\n\
         metadata: {name: cidr, namespace: shop}\n\
         spec: {podSelector: {}, egress: [{to: [{cidr: 10.0.0.0/33}]}]}\n",
        &["bad-cidr.yaml", "EgressPolicy shop/cidr", "spec.egress[0].to[0].cidr"],
    ),
    (
        "missing-netns",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: lost, namespace: shop, \
         annotations: {namegate.dev/netns: /run/netns/no-such-namespace}}\n\
         status: {phase: Running, podIPs: [{ip: 10.244.1.77}]}\n",
        &["lost", "/run/netns/no-such-namespace"],
    ),
    (
        "no-addresses",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: nowhere, namespace: shop, \
         annotations: {namegate.dev/interface: spare0}}\nstatus: {phase: Running}\n",
        &["nowhere", "podIPs"],
    ),
    (
        "same-address",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: twin, namespace: shop, \
         annotations: {namegate.dev/interface: spare0}}\n\
         status: {phase: Running, podIPs: [{ip: 10.244.1.10}]}\n",
        &["twin", "10.244.1.10"],
    ),
];

#[test]
fn bad_object_is_reported_and_changes_nothing_else() -> Result<()> {
    let Some(mut scene) = Scene::for_test("bad_object_is_reported_and_changes_nothing_else", &[])?
    else {
        return Ok(());
    };
    scene
        .town
        .node
        .namespace
        .ip(&["link add spare0 type veth peer name spare1", "link set spare0 up"])?;
    for (case, text, words) in BAD_OBJECTS {
        let before = scene.agent.log().len();
        scene.manifests.write(&format!("{case}.yaml"), text)?;
        wait_until(&format!("a message for {case}"), Duration::from_secs(5), || {
            let log = scene.agent.log();
            let said = log.get(before..).unwrap_or_default();
            Ok(said.lines().any(|line| words.iter().all(|word| line.contains(word))))
        })
        .map_err(|error| anyhow::anyhow!("{error:#}; the agent said:\n{}", scene.agent.log()))?;
        works(&scene, case)?;
        scene.manifests.remove(&format!("{case}.yaml"))?;
    }
    scene.agent.check()
}

#[test]
fn policy_that_turns_invalid_keeps_its_last_good_version() -> Result<()> {
    let test = "policy_that_turns_invalid_keeps_its_last_good_version";
    let Some(scene) = Scene::for_test(test, &[])? else {
        return Ok(());
    };
    scene.manifests.edit("checkout-apis.yaml", "fqdn: api.stripe.com", "fqdn: api.*.com")?;
    scene.agent.expect_log("last_good_version_stays=true")?;
    works(&scene, "after the edit")
}

#[test]
fn garbage_on_the_dns_port_is_survived() -> Result<()> {
    let Some(mut scene) = Scene::for_test("garbage_on_the_dns_port_is_survived", &[])? else {
        return Ok(());
    };
    let resolver = SocketAddr::from((KUBE_DNS_SERVICE.v4, 53));
    let socket = scene.town.checkout.namespace.within(|| UdpSocket::bind("0.0.0.0:0"))??;
    for length in [0_usize, 1, 11, 12, 13, 40, 512, 1400] {
        for seed in 0..64_u8 {
            let bytes: Vec<u8> = (0..length)
                .map(|index| seed.wrapping_mul(31).wrapping_add((index * 97) as u8))
                .collect();
            socket.send_to(&bytes, resolver)?;
        }
    }
    let mut streams: Vec<TcpStream> = Vec::new();
    for bytes in [&b""[..], &[0][..], &[0, 0][..], &[255, 255, 1][..], &[0, 12, 1, 2, 3][..]] {
        let mut stream = scene.town.checkout.connect(resolver)??;
        std::io::Write::write_all(&mut stream, bytes)?;
        streams.push(stream);
    }
    works(&scene, "under garbage")?;
    drop(streams);
    scene.agent.check()
}

#[test]
fn agent_that_can_enforce_nothing_says_why_and_fails() -> Result<()> {
    let test = "agent_that_can_enforce_nothing_says_why_and_fails";
    let Some(town) = Town::for_test(test)? else {
        return Ok(());
    };
    let node = &town.node.namespace;
    let manifests = Manifests::town(&town.lab)?;
    let folder = manifests.folder().display().to_string();
    let pins = town.lab.pins().display().to_string();

    let missing = ["--manifests", "/no/such/folder", "--pin-dir", &pins];
    let finished = agent::run_to_end(node, &missing, LIMIT)?;
    assert_eq!(finished.code(), 2, "{finished:?}");
    assert!(finished.stderr.contains("/no/such/folder"), "{finished:?}");

    let binary = agent::binary()?.display().to_string();
    let powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", &binary];
    let no_bpf = ["unshare", "-m", "sh", "-c", "umount /sys/fs/bpf && exec \"$@\"", "sh", &binary];
    for (command, words) in [(&powerless[..], "CAP_"), (&no_bpf[..], "bpf")] {
        let agent = ["agent", "--manifests", &folder, "--pin-dir", &pins];
        let finished = node.run(&[command, &agent].concat(), LIMIT)?;
        assert_eq!(finished.code(), 1, "{finished:?}");
        assert!(finished.stderr.contains(words), "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "one clear message: {finished:?}");
    }

    let running = Agent::start(&town, &manifests, &[])?;
    let other = format!("{pins}-other");
    let second = ["--manifests", &folder, "--pin-dir", &other, "--link-name", "namegate1"];
    let finished = agent::run_to_end(node, &second, LIMIT)?;
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert!(
        finished.stderr.contains("15300") || finished.stderr.contains("namegate"),
        "{finished:?}"
    );
    let evil = SocketAddr::from((EVIL.v4, 443));
    assert!(town.checkout.try_tcp(evil)?.is_err(), "the running agent's pods stay under policy");
    drop(running);
    if std::path::Path::new(&other).exists() {
        std::fs::remove_dir_all(&other)?;
    }
    Ok(())
}

/// The town's policies are still in force, both ways.
fn works(scene: &Scene, case: &str) -> Result<()> {
    let checkout = &scene.town.checkout;
    assert_eq!(checkout.resolve("api.stripe.com")?.status, "NOERROR", "{case}");
    checkout.try_tcp((STRIPE.v4, 443).into())??;
    assert_eq!(checkout.resolve("evil.example")?.status, "REFUSED", "{case}");
    assert!(checkout.try_tcp((EVIL.v4, 443).into())?.is_err(), "{case}");
    Ok(())
}
