//! The README's "Try it on one machine": a namespace made by hand, point to point with the node, and a
//! resolver that is named on the command line.

use std::time::Duration;

use anyhow::Result;
use namegate_integration::addresses::{AUTHORITY, EVIL, EXAMPLE, NODE};
use namegate_integration::agent::Agent;
use namegate_integration::manifests::Manifests;
use namegate_integration::namespace::Namespace;
use namegate_integration::town::Town;
use rustix::process::Signal;

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn hand_made_namespace_behaves_as_the_readme_says() -> Result<()> {
    let Some(town) = Town::for_test("hand_made_namespace_behaves_as_the_readme_says")? else {
        return Ok(());
    };
    let pod = Namespace::create(&town.lab.namespace("pod-a"))?;
    town.node.namespace.ip(&[
        &format!("link add veth-a type veth peer name eth0 netns {}", pod.name()),
        "addr add 10.9.0.1/24 dev veth-a",
        "link set veth-a up",
    ])?;
    pod.ip(&[
        "addr add 10.9.0.2/24 dev eth0",
        "link set eth0 up",
        "route add default via 10.9.0.1",
    ])?;
    town.internet.ip(&[&format!("route add 10.9.0.0/24 via {}", NODE.v4)])?;
    let resolver = AUTHORITY.v4.to_string();
    let (at, evil) = (format!("@{resolver}"), EVIL.v4.to_string());
    let ping = ["ping", "-c1", "-W1", &evil];
    assert!(pod.run(&ping, LIMIT)?.status.success(), "open before");

    let manifests = Manifests::one_machine(&town.lab)?;
    let arguments = ["--detach-on-exit", "--resolver", &resolver];
    let agent = Agent::start(&town, &manifests, &arguments)?;
    let url = "http://example.com/";
    let bare = format!("example.com:80:{}", EXAMPLE.v4);
    let curl = ["curl", "-sS", "--connect-timeout", "1", "--resolve", &bare, url];
    assert_eq!(pod.run(&curl, LIMIT)?.code(), 28, "nobody has asked for the name");
    let answer = pod.run(&["dig", "+short", &at, "example.com"], LIMIT)?.success()?;
    assert_eq!(answer.trim(), EXAMPLE.v4.to_string());
    assert!(pod.run(&curl, LIMIT)?.success()?.contains("example.com"));
    let refused = pod.run(&["dig", &at, "evil.test"], LIMIT)?.stdout;
    assert!(refused.contains("status: REFUSED"), "{refused}");
    assert!(!pod.run(&ping, LIMIT)?.status.success(), "no rule");

    assert!(agent.stop(Signal::TERM)?.success());
    assert!(pod.run(&ping, LIMIT)?.status.success(), "open after");
    Ok(())
}
