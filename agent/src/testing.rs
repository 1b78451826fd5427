//! What several tests need.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use namegate_policy::name::DnsName;
use namegate_policy::object::{self, Object};
use namegate_policy::opening::{ClusterRanges, RebindingGuard, Window};

use crate::endpoints::{Interface, Town};
use crate::source::yaml;
use crate::state::{Settings, State};

/// The objects of a YAML text.
pub(crate) fn mk_objects(text: &str) -> Vec<Arc<Object>> {
    let documents = yaml::documents(text.as_bytes());
    let values = documents.into_iter().map(|document| document.content.expect("good YAML"));
    values.map(|value| Arc::new(object::parse(value).expect("a good object"))).collect()
}

/// A node with the pods of the namespace `shop` on interfaces of these numbers.
pub(crate) fn mk_town(pods: &[(&str, u32)]) -> Town {
    let found = |(name, index): &(&str, u32)| {
        let interface =
            Interface { index: *index, name: format!("veth-{name}"), pod_mac: Some([2; 6]) };
        (("shop".into(), (*name).into()), Ok(interface))
    };
    Town {
        host_addresses: ["10.244.1.1", "192.0.2.1"].map(|text| text.parse().unwrap()).into(),
        pods: pods.iter().map(found).collect(),
        interfaces: pods.iter().map(|(_, index)| *index).collect(),
        ..Town::default()
    }
}

/// Nothing known, with the settings of a small cluster.
pub(crate) fn mk_state() -> State {
    State::new(mk_settings())
}

/// The settings of a small cluster, read by an agent that runs without one.
pub(crate) fn mk_settings() -> Settings {
    Settings {
        cluster_domain: DnsName::parse("cluster.local").unwrap(),
        ranges: ClusterRanges {
            pods: vec!["10.244.0.0/16".parse().unwrap()],
            ..Default::default()
        },
        guard: RebindingGuard::Relaxed,
        window: Window { min_ttl: Duration::from_secs(10), grace: Duration::from_secs(5) },
        resolvers: vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
        own_addresses: BTreeSet::new(),
        has_ipv6: false,
        node_name: None,
    }
}

/// A directory that goes away with the test.
#[derive(Debug)]
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("namegate-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let draft = self.0.join(".draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(draft, self.0.join(name)).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
