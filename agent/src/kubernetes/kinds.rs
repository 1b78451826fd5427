//! What is watched, and whether a cluster can be without it.

use kube::api::ApiResource;

/// A kind that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watched {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version that is read.
    pub version: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// The resource, as it stands in a path and in RBAC rules.
    pub plural: &'static str,
    /// Whether every API server has it.
    pub presence: Presence,
}

/// Whether a cluster can be without a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// Every API server has it.
    BuiltIn,
    /// It comes with a CustomResourceDefinition.
    Defined,
}

/// Everything that is watched.
pub const WATCHED: [Watched; 12] = [
    built_in("", "v1", "Namespace", "namespaces"),
    built_in("", "v1", "Node", "nodes"),
    built_in("", "v1", "Pod", "pods"),
    built_in("", "v1", "Service", "services"),
    built_in("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    built_in("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
    defined("namegate.dev", "v1alpha1", "EgressPolicy", "egresspolicies"),
    defined("namegate.dev", "v1alpha1", "ClusterEgressPolicy", "clusteregresspolicies"),
    defined(
        "policy.networking.k8s.io",
        "v1alpha2",
        "ClusterNetworkPolicy",
        "clusternetworkpolicies",
    ),
    defined("cilium.io", "v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies"),
    defined(
        "cilium.io",
        "v2",
        "CiliumClusterwideNetworkPolicy",
        "ciliumclusterwidenetworkpolicies",
    ),
    defined("cilium.io", "v2", "CiliumCIDRGroup", "ciliumcidrgroups"),
];

const fn built_in(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> Watched {
    Watched { group, version, kind, plural, presence: Presence::BuiltIn }
}

const fn defined(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> Watched {
    Watched { group, version, kind, plural, presence: Presence::Defined }
}

impl Watched {
    /// Group and version as a manifest writes them.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The resource with its group, as kubectl and error messages name it.
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    pub(super) fn api_resource(&self) -> ApiResource {
        ApiResource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            api_version: self.api_version(),
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }
}
