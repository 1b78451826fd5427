//! What an agent says of a cluster that it cannot read, and that enforcement goes on as it was.

use std::time::Duration;

use anyhow::Result;
use namegate_integration::agent;
use namegate_integration::cluster::{Cluster, TOWN_NODE};

/// How long after a fault everything must work again: the longest backoff and a little.
const RECOVERY: Duration = Duration::from_secs(45);

#[test]
fn an_agent_that_cannot_read_the_cluster_says_why() -> Result<()> {
    let test = "an_agent_that_cannot_read_the_cluster_says_why";
    let Some(cluster) = Cluster::for_test(test)? else { return Ok(()) };
    let (node, lab) = (&cluster.town.node.namespace, &cluster.town.lab);
    let kubeconfig = cluster.kubeconfig.display().to_string();
    let pins = lab.pins().join(TOWN_NODE).display().to_string();
    let broken = lab.file("broken-kubeconfig");
    std::fs::write(&broken, "apiVersion: v1\nkind: Config\n")?;
    let broken = broken.display().to_string();
    for (arguments, words) in [
        (&["--kubeconfig", "/no/such/file"][..], &["/no/such/file"][..]),
        (&["--kubeconfig", &broken], &["broken-kubeconfig", "context"]),
        (&["--node-name", "town"], &["KUBERNETES_SERVICE_HOST", "--kubeconfig"]),
        (
            &["--kubeconfig", &kubeconfig, "--node-name", "nowhere"],
            &["no Node nowhere", "outpost, town", "NODE_NAME"],
        ),
    ] {
        let pins = ["--pin-dir", &pins, "--log-level", "warn"];
        let finished = agent::run_to_end(node, &[arguments, &pins].concat(), RECOVERY)?;
        assert_eq!(finished.code(), 1, "{finished:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "one clear message: {finished:?}");
        for word in words {
            assert!(finished.stderr.contains(word), "{word}: {finished:?}");
        }
    }

    for (what, words) in [
        ("down", &["no answer from the API server", "https://192.0.2.1:6443"][..]),
        ("401", &["does not accept the agent's credentials", "token"]),
        ("403", &["may not", "networkpolicies.networking.k8s.io", "ClusterRole"]),
    ] {
        cluster.api.faults(|faults| match what {
            "down" => faults.is_down = true,
            "401" => faults.fail_with = Some(401),
            _ => {
                faults.forbidden.insert("list", vec!["networkpolicies"]);
                faults.forbidden.insert("watch", vec!["networkpolicies"]);
            }
        });
        let waiting = cluster.spawn_town()?;
        for word in words {
            waiting.expect_log(word)?;
        }
        assert_eq!(waiting.warnings(), 1, "{what}: one clear message:\n{}", waiting.log());
        cluster.api.faults(|faults| *faults = Default::default());
        waiting.expect_ready()?.kill()?;
    }
    Ok(())
}
