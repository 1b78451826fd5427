//! Real namespaces and interfaces: needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::*;

/// Namespaces and interfaces of one test, removed with it.
struct Lab {
    pod: String,
    link: String,
}

impl Lab {
    /// `None` where the test cannot run; in CI that is a failure.
    fn new(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root, in CI too");
            eprintln!("SKIPPED: needs root to make network namespaces");
            return None;
        }
        let id = std::process::id();
        let lab = Self { pod: format!("ngag-{name}-{id}"), link: format!("ng{name}{id}") };
        lab.clean();
        Some(lab)
    }

    fn ip(&self, arguments: &str) {
        let words = arguments.replace("POD", &self.pod).replace("LINK", &self.link);
        let done = Command::new("ip").args(words.split(' ')).output().expect("iproute2");
        assert!(done.status.success(), "ip {words}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn make_pod(&self) {
        self.ip("netns add POD");
        self.ip("link add LINK type veth peer name eth0 netns POD");
        self.ip("-n POD addr add 10.244.1.5/24 dev eth0");
    }

    fn clean(&self) {
        for words in [["netns", "del", &self.pod], ["link", "del", &self.link]] {
            // Absent after a test that removed it.
            let _ = Command::new("ip").args(words).output();
        }
    }

    fn wanted(&self) -> Arc<Wanted> {
        let path = PathBuf::from("/run/netns").join(&self.pod);
        let addresses = BTreeSet::from(["10.244.1.5".parse().unwrap()]);
        let key = ("shop".into(), "a".into());
        Arc::new(BTreeMap::from([(key, (Attachment::Namespace(path), addresses))]))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.clean();
    }
}

/// Waits for a picture of which `is_it` holds.
async fn until(towns: &mut mpsc::Receiver<Town>, is_it: impl Fn(&Located) -> bool) -> Located {
    let found = async {
        loop {
            let town = towns.recv().await.expect("still followed");
            let located = town.pods.values().next().expect("the pod is looked for").clone();
            if is_it(&located) {
                return located;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), found).await.expect("within five seconds")
}

#[tokio::test]
async fn a_pod_is_found_when_it_appears_and_missed_when_it_goes() {
    let Some(lab) = Lab::new("a") else { return };
    let (_wanted, seen) = watch::channel(lab.wanted());
    let (send, mut towns) = mpsc::channel(4);
    let task = tokio::spawn(Watcher::new().unwrap().follow(seen, send));

    let missing = until(&mut towns, Result::is_err).await.unwrap_err();
    assert!(missing.contains(&lab.pod) && missing.contains("namegate.dev/netns"), "{missing}");

    lab.make_pod();
    let first = until(&mut towns, Result::is_ok).await.unwrap();
    assert_eq!(first.name, lab.link);
    assert!(first.pod_mac.is_some());

    lab.ip("netns del POD");
    until(&mut towns, Result::is_err).await.unwrap_err();

    lab.make_pod();
    let second = until(&mut towns, Result::is_ok).await.unwrap();
    assert_ne!(second.index, first.index, "another interface in a namespace at the same path");
    task.abort();
}

#[tokio::test]
async fn the_nodes_addresses_are_told() {
    let Some(lab) = Lab::new("b") else { return };
    lab.make_pod();
    let mut watcher = Watcher::new().unwrap();
    lab.ip("addr add 192.0.2.77/32 dev LINK");
    let town = watcher.look(&Wanted::new()).await.unwrap();
    assert!(town.host_addresses.contains(&"192.0.2.77".parse().unwrap()));
}
