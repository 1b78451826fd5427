//! The kinds that the double serves.

/// A kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version.
    pub version: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// The resource, as it stands in paths.
    pub plural: &'static str,
    /// Whether its objects live in namespaces.
    pub is_namespaced: bool,
    /// Whether its status is written apart from the rest.
    pub has_status: bool,
}

impl Resource {
    /// Group and version as a manifest writes them.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

const fn mk(
    (group, version): (&'static str, &'static str),
    kind: &'static str,
    plural: &'static str,
    is_namespaced: bool,
    has_status: bool,
) -> Resource {
    Resource { group, version, kind, plural, is_namespaced, has_status }
}

const CORE: (&str, &str) = ("", "v1");
const NAMEGATE: (&str, &str) = ("namegate.dev", "v1alpha1");
const CILIUM: (&str, &str) = ("cilium.io", "v2");

/// Kinds that every API server has.
pub const BUILT_IN: [Resource; 10] = [
    mk(
        ("apiextensions.k8s.io", "v1"),
        "CustomResourceDefinition",
        "customresourcedefinitions",
        false,
        true,
    ),
    mk(("apps", "v1"), "DaemonSet", "daemonsets", true, true),
    mk(CORE, "Namespace", "namespaces", false, true),
    mk(CORE, "Node", "nodes", false, true),
    mk(CORE, "Pod", "pods", true, true),
    mk(CORE, "Service", "services", true, true),
    mk(("discovery.k8s.io", "v1"), "EndpointSlice", "endpointslices", true, false),
    mk(("networking.k8s.io", "v1"), "NetworkPolicy", "networkpolicies", true, false),
    mk(("coordination.k8s.io", "v1"), "Lease", "leases", true, false),
    mk(("events.k8s.io", "v1"), "Event", "events", true, false),
];

/// Kinds that come with a CustomResourceDefinition.
pub const DEFINED: [Resource; 7] = [
    mk(NAMEGATE, "EgressPolicy", "egresspolicies", true, true),
    mk(NAMEGATE, "ClusterEgressPolicy", "clusteregresspolicies", false, true),
    mk(NAMEGATE, "NamegateNode", "namegatenodes", false, false),
    mk(
        ("policy.networking.k8s.io", "v1alpha2"),
        "ClusterNetworkPolicy",
        "clusternetworkpolicies",
        false,
        true,
    ),
    mk(CILIUM, "CiliumNetworkPolicy", "ciliumnetworkpolicies", true, true),
    mk(CILIUM, "CiliumClusterwideNetworkPolicy", "ciliumclusterwidenetworkpolicies", false, true),
    mk(CILIUM, "CiliumCIDRGroup", "ciliumcidrgroups", false, false),
];
