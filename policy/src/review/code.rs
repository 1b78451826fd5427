//! The names of what can be found.

use std::fmt;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Probably not what was meant.
    Warning,
    /// Worth knowing.
    Hint,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Hint => "hint",
        })
    }
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $severity:ident, $about:literal;)+) => {
        /// What a finding is about. The name of a code does not change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Code {
            /// Every code, in order of the families.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name that programs read.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// How much it matters, where the case is not milder.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)+ }
            }

            /// What it means, in a line.
            pub const fn about(self) -> &'static str {
                match self { $(Self::$variant => $about,)+ }
            }
        }
    };
}

codes! {
    /// NP-32.
    DnsUnreachable = "dns-unreachable", Warning,
        "egress is closed, and nothing lets lookups out (a hint where nothing at all is let out)";
    /// NP-32.
    DnsUdpOnly = "dns-udp-only", Hint,
        "lookups go out over UDP and not over TCP, which long answers need";
    /// CL-1.
    FqdnWithoutDnsRule = "fqdn-without-dns-rule", Hint,
        "toFQDNs without rules.dns: namegate derives the rule, Cilium learns nothing";
    /// EP-6, EP-9.
    FqdnClusterName = "fqdn-cluster-name", Warning,
        "a name of the cluster as a domain name: it resolves and opens nothing";
    /// EP-7.
    FqdnSingleLabel = "fqdn-single-label", Warning,
        "a name of one label: pods ask for it with a search suffix";
    /// EP-4.
    PatternAny = "pattern-any", Warning,
        "`*` as a pattern: every name opens its addresses";
    /// EP-4.
    PatternTopLevel = "pattern-top-level", Warning,
        "a star right before a top-level domain: names of strangers match";
    /// SEMANTICS of both dialects differ.
    WildcardDepth = "wildcard-depth", Hint,
        "`*.` is one label in Cilium, one or more elsewhere";
    /// A star inside a label.
    WildcardGlued = "wildcard-glued", Warning,
        "a star glued to a domain: names of strangers match";
    /// EP-5, NP-12.
    ExceptIdle = "except-idle", Warning,
        "an exception that takes nothing away";
    /// EP-5.
    ExceptEverything = "except-everything", Warning,
        "exceptions that leave nothing of their pattern or prefix";
    /// CH-1.
    CidrOverlapsPods = "cidr-overlaps-pods", Warning,
        "a prefix that pods have addresses in: it opens them too";
    /// Everything.
    CidrAny = "cidr-any", Warning,
        "an allow rule for every address of a family";
    /// EP-9.
    CidrMetadata = "cidr-metadata", Warning,
        "an allow rule for the cloud's metadata address";
    /// RFC 4291 section 2.5.5.2.
    CidrMapped = "cidr-mapped", Warning,
        "an IPv4-mapped IPv6 prefix: no packet carries such an address";
    /// A prefix with bits beyond its length.
    CidrHostBits = "cidr-host-bits", Hint,
        "a prefix with bits set beyond its length";
    /// A selector without a pod.
    SelectsNothing = "selects-nothing", Warning,
        "a selector that selects none of the given pods";
    /// NP-9.
    PeerEverywhere = "peer-everywhere", Hint,
        "an empty namespaceSelector: every pod of every namespace";
    /// NP-8.
    PeersOr = "peers-or", Hint,
        "namespaceSelector and podSelector in two entries: either is enough";
    /// Precedence.
    RuleShadowed = "rule-shadowed", Warning,
        "a rule that an earlier or a stronger rule always decides before";
    /// CL-3.
    RuleMatchesNothing = "rule-matches-nothing", Warning,
        "a rule with an empty list: it matches nothing";
    /// NP-6.
    AllowsEverything = "allows-everything", Hint,
        "a rule without peers and ports: it undoes the isolation of its direction";
    /// NP-1.
    OneDirection = "one-direction", Hint,
        "only one direction is closed, and nothing else closes the other";
    /// NP-5.
    RulesIgnored = "rules-ignored", Warning,
        "rules of a direction that policyTypes leaves out";
    /// NP-4.
    EgressNotClosed = "egress-not-closed", Warning,
        "an empty egress list without policyTypes: egress stays open";
    /// CNP-7.
    UnknownField = "unknown-field", Warning,
        "a peer or protocol of which nothing known is set: it fails closed";
    /// CNP-13.
    NamesMisplaced = "names-misplaced", Warning,
        "domainNames outside an Accept rule of the Admin tier";
    /// CNP-8.
    NamedPortPodsOnly = "named-port-pods-only", Warning,
        "a named port beside peers that are no pods";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
