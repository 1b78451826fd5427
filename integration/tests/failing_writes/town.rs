//! What happens on a node, step by step, and what each step must leave closed.

/// A step: objects that come or change, and those that go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) upserts: &'static str,
    /// Kind, namespace and name.
    pub(crate) removals: &'static [(&'static str, &'static str, &'static str)],
    /// Addresses that a name is answered with to the first pod.
    pub(crate) learned: &'static [[u8; 4]],
    /// Remotes that the step is about: at no time are these open where they are not in the end.
    pub(crate) about: &'static [[u8; 4]],
}

pub(crate) const DB: [u8; 4] = [10, 244, 2, 6];
pub(crate) const FRIEND: [u8; 4] = [10, 244, 2, 7];
pub(crate) const EVIL: [u8; 4] = [10, 244, 2, 9];
pub(crate) const WORSE: [u8; 4] = [10, 244, 2, 10];
pub(crate) const WORST: [u8; 4] = [10, 244, 2, 11];
pub(crate) const OLD_PEER: [u8; 4] = [203, 0, 113, 5];
pub(crate) const NEW_PEER: [u8; 4] = [203, 0, 114, 5];
pub(crate) const API: [u8; 4] = [198, 51, 100, 7];
pub(crate) const SERVICE: [u8; 4] = [10, 96, 0, 80];
pub(crate) const DNS: [u8; 4] = [10, 96, 0, 10];
pub(crate) const NODE: [u8; 4] = [192, 0, 2, 1];

const NOTHING: Step = Step { name: "", upserts: "", removals: &[], learned: &[], about: &[] };

/// The first pod, what it may reach, and whom nobody may. Port 80 and lookups are open to all that no
/// rule denies, so that whoever is not recognised is let through.
const BASE: &str = r#"
- {apiVersion: v1, kind: Namespace, metadata: {name: shop}}
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {namegate.dev/interface: lo}}, status: {podIPs: [{ip: 10.244.1.5}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, status: {podIPs: [{ip: 10.244.2.6}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: friend, namespace: shop, labels: {app: friend}}, status: {podIPs: [{ip: 10.244.2.7}]}}
- apiVersion: policy.networking.k8s.io/v1alpha2
  kind: ClusterNetworkPolicy
  metadata: {name: quarantine}
  spec:
    tier: Admin
    priority: 1
    subject: {namespaces: {}}
    egress: [{action: Deny, to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {tier: evil}}}}]}]
    ingress: [{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {tier: evil}}}}]}]
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: any, namespace: shop}
  spec:
    podSelector: {matchLabels: {app: web}}
    policyTypes: [Egress, Ingress]
    egress:
    - {ports: [{port: 80, protocol: TCP}, {port: 53, protocol: UDP}]}
    - {to: [{podSelector: {matchLabels: {app: friend}}}]}
    ingress:
    - {from: [{podSelector: {matchLabels: {app: friend}}}]}
    - {ports: [{port: 80, protocol: TCP}]}
- apiVersion: namegate.dev/v1alpha1
  kind: EgressPolicy
  metadata: {name: api, namespace: shop}
  spec: {podSelector: {matchLabels: {app: web}}, egress: [{to: [{fqdn: api.example.com}], ports: [{protocol: TCP, port: 443}]}]}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: peers, namespace: shop}
  spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: 5432}]}]}
"#;

pub(crate) const STEPS: [Step; 10] = [
    Step { name: "a pod and its policies", upserts: BASE, ..NOTHING },
    Step {
        name: "a pod that is denied by its labels",
        upserts: "- {apiVersion: v1, kind: Pod, metadata: {name: evil, namespace: shop, labels: {tier: evil}}, status: {podIPs: [{ip: 10.244.2.9}]}}",
        about: &[EVIL],
        ..NOTHING
    },
    Step {
        name: "an address that changes hands",
        upserts: "- {apiVersion: v1, kind: Pod, metadata: {name: stranger, namespace: shop, labels: {tier: evil, app: stranger}}, status: {podIPs: [{ip: 10.244.2.7}]}}",
        removals: &[("Pod", "shop", "friend")],
        about: &[FRIEND],
        ..NOTHING
    },
    Step {
        name: "another policy, and another pod that is denied",
        upserts: r"
- {apiVersion: v1, kind: Pod, metadata: {name: worse, namespace: shop, labels: {tier: evil, app: worse}}, status: {podIPs: [{ip: 10.244.2.10}]}}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: peers, namespace: shop}
  spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.114.0/24}}], ports: [{port: 5432}]}]}
",
        about: &[WORSE],
        ..NOTHING
    },
    Step { name: "a name that is learned", learned: &[API], ..NOTHING },
    Step {
        name: "a service of whom nobody may reach, and a resolver",
        upserts: r"
- {apiVersion: v1, kind: Service, metadata: {name: pay, namespace: shop}, spec: {clusterIP: 10.96.0.80, type: NodePort, ports: [{name: http, port: 80, nodePort: 30080}]}}
- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: pay-1, namespace: shop, labels: {kubernetes.io/service-name: pay}}, addressType: IPv4, endpoints: [{addresses: [10.244.2.9]}], ports: [{name: http, port: 80}]}
- {apiVersion: v1, kind: Service, metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}, spec: {clusterIP: 10.96.0.10, ports: [{name: dns, port: 53, protocol: UDP}]}}
",
        about: &[SERVICE, DNS],
        ..NOTHING
    },
    Step {
        name: "other labels of the pod, and one more that is denied",
        upserts: r"
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web, canary: 'yes'}, annotations: {namegate.dev/interface: lo}}, status: {podIPs: [{ip: 10.244.1.5}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: worst, namespace: shop, labels: {tier: evil, app: worst}}, status: {podIPs: [{ip: 10.244.2.11}]}}
",
        about: &[WORST],
        ..NOTHING
    },
    Step {
        name: "another pod on the node",
        upserts: "- {apiVersion: v1, kind: Pod, metadata: {name: second, namespace: shop, labels: {app: second}, annotations: {namegate.dev/interface: second}}, status: {podIPs: [{ip: 10.244.1.6}]}}",
        ..NOTHING
    },
    Step {
        name: "a learned name that no rule means any more",
        upserts: r"
- apiVersion: namegate.dev/v1alpha1
  kind: EgressPolicy
  metadata: {name: api, namespace: shop}
  spec: {podSelector: {matchLabels: {app: web}}, egress: [{to: [{fqdn: www.example.com}], ports: [{protocol: TCP, port: 443}]}]}
",
        ..NOTHING
    },
    Step {
        name: "all of it undone",
        upserts: BASE,
        removals: &[
            ("Pod", "shop", "evil"),
            ("Pod", "shop", "stranger"),
            ("Pod", "shop", "worse"),
            ("Pod", "shop", "worst"),
            ("Pod", "shop", "second"),
            ("Service", "shop", "pay"),
            ("EndpointSlice", "shop", "pay-1"),
            ("Service", "kube-system", "kube-dns"),
        ],
        ..NOTHING
    },
];
