//! What can be wrong with a field of an object, in words for whoever wrote it.

use std::borrow::Cow;
use std::fmt;

use ipnet::IpNet;

pub use crate::misspelt::distance;
use crate::misspelt::nearest;
use crate::pattern::PatternError;

/// A problem and the path of the field that has it, such as `spec.egress[0].to[1].fqdn`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// The path; empty where the document as a whole is wrong.
    pub field: String,
    /// What is wrong.
    pub problem: Problem,
}

impl FieldError {
    /// The problem `problem` at `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<Problem>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The document is a list, text, a number or nothing.
    #[error("the document is not an object")]
    NotAnObject,
    /// A kind that nothing here reads.
    #[error("{} {} is not a kind that namegate reads", Shown(api_version), Shown(kind))]
    UnsupportedKind {
        /// As written.
        api_version: String,
        /// As written.
        kind: String,
    },
    /// A field that must be there.
    #[error("the field is missing")]
    Missing,
    /// A field that the kind does not have.
    #[error("the field is unknown")]
    UnknownField {
        /// A field of a policy that looks like it.
        suggestion: Option<&'static str>,
    },
    /// A value of the wrong type.
    #[error("{message}")]
    Shape {
        /// What was found, and what was expected.
        message: String,
    },
    /// A value that the field does not take.
    #[error("`{}` is not a value of this field", Shown(value))]
    NotOneOf {
        /// As written.
        value: String,
        /// What it takes: values, commas between them and `or` before the last.
        expected: Cow<'static, str>,
    },
    /// An address or a prefix where a name belongs.
    #[error("{net} is no name but an address, and nothing looks it up", net = bare(net))]
    AddressAsName {
        /// As a prefix.
        net: IpNet,
    },
    /// Text that is no domain pattern.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// Text that is no prefix.
    #[error("`{}` is not a CIDR", Shown(text))]
    NotACidr {
        /// As written.
        text: String,
    },
    /// Text that is no address.
    #[error("`{}` is not an IP address", Shown(text))]
    NotAnAddress {
        /// As written.
        text: String,
    },
    /// An exception that does not lie strictly inside its prefix.
    #[error("{except} does not lie strictly inside {net}")]
    ExceptOutside {
        /// The exception.
        except: IpNet,
        /// The prefix.
        net: IpNet,
    },
    /// A port number outside 1 to 65535.
    #[error("{port} is not a port; ports are 1 to 65535")]
    NotAPort {
        /// As written.
        port: i64,
    },
    /// Text that is no port name.
    #[error("`{}` is not a port name", Shown(name))]
    NotAPortName {
        /// As written.
        name: String,
    },
    /// `endPort` without a numeric `port`.
    #[error("endPort needs a numeric port beside it")]
    EndPortAlone,
    /// `endPort` below `port`.
    #[error("endPort {end} is below port {start}")]
    EndPortBelow {
        /// The first port.
        start: u16,
        /// The last port.
        end: i64,
    },
    /// Fields of which only some can be set together.
    #[error("{fields} cannot be set together")]
    Together {
        /// Their names.
        fields: &'static str,
    },
    /// A peer that says nothing.
    #[error("the peer is empty")]
    EmptyPeer {
        /// What a peer can be.
        expected: &'static str,
    },
    /// A list that is there and empty.
    #[error("the list is empty")]
    EmptyList {
        /// What leaving the field out means.
        absent_means: &'static str,
    },
    /// A field that means nothing where it stands.
    #[error("the field only means something beside {beside}")]
    Misplaced {
        /// Where it belongs.
        beside: &'static str,
    },
    /// A name in a deny rule.
    #[error("a deny rule cannot name an fqdn: a denial by name cannot be complete")]
    DenyByName,
    /// Text that is no label key.
    #[error("`{}` is not a label key", Shown(key))]
    LabelKey {
        /// As written.
        key: String,
    },
    /// Text that is no label value.
    #[error("`{}` is not a label value", Shown(value))]
    LabelValue {
        /// As written.
        value: String,
    },
    /// An operator whose `values` do not fit it.
    #[error("{operator} {}", if *wants_values { "needs values" } else { "takes no values" })]
    SelectorValues {
        /// The operator.
        operator: String,
        /// Whether it needs some.
        wants_values: bool,
    },
    /// Text that is no name of a Kubernetes object.
    #[error("`{}` is not a name of an object", Shown(text))]
    NotAnObjectName {
        /// As written.
        text: String,
    },
    /// Something that another implementation of the API does, and this one does not.
    #[error("{feature} is not supported, and the object is not in force")]
    Unsupported {
        /// What is not.
        feature: &'static str,
        /// What to write.
        instead: &'static str,
    },
    /// A name of one label (CNP-14).
    #[error("`{}` needs at least two labels", Shown(name))]
    DomainNameTooShort {
        /// As written.
        name: String,
    },
    /// A label with a dash at an end (CNP-14).
    #[error("label `{}` begins or ends with a dash", Shown(label))]
    DomainNameDash {
        /// As written.
        label: String,
    },
    /// A range that ends where it starts, or before.
    #[error("the range ends with {end}, which is not above {start}")]
    RangeEnd {
        /// The first port.
        start: u16,
        /// The last port.
        end: u16,
    },
    /// Text that is too long.
    #[error("{length} characters are too many; {max} are possible")]
    TooLong {
        /// How many there are.
        length: usize,
        /// How many there can be.
        max: usize,
    },
    /// A list without an entry.
    #[error("the list needs at least one entry")]
    NoEntry,
    /// A list with too many entries.
    #[error("{count} entries are too many; {max} are possible")]
    TooMany {
        /// How many there are.
        count: usize,
        /// How many there can be.
        max: usize,
    },
    /// A number outside its bounds.
    #[error("{value} is above {max}")]
    TooLarge {
        /// As written.
        value: u64,
        /// The largest that is allowed.
        max: u64,
    },
}

/// A prefix of one address as that address.
fn bare(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// Text of an object in a message: on one line, without control characters, and not endless.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHARACTERS_MAX: usize = 100;
        for (count, character) in self.0.chars().enumerate() {
            if count == CHARACTERS_MAX {
                return f.write_str("...");
            }
            if character.is_control() {
                write!(f, "{}", character.escape_unicode())?;
            } else {
                write!(f, "{character}")?;
            }
        }
        Ok(())
    }
}

impl Problem {
    /// What to write; `None` where the problem itself says it.
    pub fn fix(&self) -> Option<String> {
        Some(match self {
            Self::UnsupportedKind { api_version, kind } => match similar_kind(api_version, kind) {
                Some((api_version, known)) if known == kind => {
                    format!("write apiVersion: {api_version}")
                }
                Some((api_version, known)) => format!("did you mean {known} of {api_version}?"),
                None => {
                    "check apiVersion and kind for a typing error, or move it elsewhere".to_owned()
                }
            },
            Self::Missing => "add it".to_owned(),
            Self::UnknownField { suggestion: Some(name) } => format!("did you mean `{name}`?"),
            Self::UnknownField { suggestion: None } => {
                "remove it, or move it to where it belongs".to_owned()
            }
            Self::NotOneOf { value, expected } => {
                let values = expected
                    .split(", ")
                    .flat_map(|part| part.split(" or "))
                    .filter(|one| !one.contains(' '));
                match nearest(value, values) {
                    Some(value) => format!("did you mean `{value}`?"),
                    None => format!("write {expected}"),
                }
            }
            Self::EmptyPeer { expected } => format!("write {expected}"),
            Self::AddressAsName { net } => format!("write cidr: {net}"),
            Self::NotACidr { text } => match text.parse::<std::net::IpAddr>() {
                Ok(address) => format!("write {}", IpNet::from(address)),
                Err(_) => "write a prefix such as 10.0.0.0/8 or 2001:db8::/32".to_owned(),
            },
            Self::NotAnAddress { .. } => "write an address such as 10.0.0.1".to_owned(),
            Self::ExceptOutside { net, .. } => {
                format!("write a longer prefix inside {net}, or remove it")
            }
            Self::NotAPortName { .. } => {
                "write at most 15 lower-case letters, digits and single dashes, a letter among them"
                    .to_owned()
            }
            Self::EndPortAlone => "set port to the first port of the range".to_owned(),
            Self::EndPortBelow { start, .. } => format!("write {start} or more"),
            Self::Together { .. } => "write one peer for each; entries add up".to_owned(),
            Self::EmptyList { absent_means } => {
                format!("leave the field out for {absent_means}, or remove the rule")
            }
            Self::Misplaced { .. } => "remove it".to_owned(),
            Self::DenyByName => {
                "deny the addresses by cidr, or leave the name out of the allow rules".to_owned()
            }
            Self::LabelKey { .. } => {
                "write a key such as app or example.com/team, the name at most 63 characters"
                    .to_owned()
            }
            Self::LabelValue { .. } => {
                "write at most 63 letters, digits, `-`, `_` and `.`, a letter or digit at both ends"
                    .to_owned()
            }
            Self::SelectorValues { wants_values: true, .. } => "add values".to_owned(),
            Self::SelectorValues { wants_values: false, .. } => "remove values".to_owned(),
            Self::NotAnObjectName { .. } => {
                "write lower-case letters, digits, `-` and `.`".to_owned()
            }
            Self::Unsupported { instead, .. } => (*instead).to_owned(),
            Self::DomainNameDash { .. } => "write a name such as api.example.com".to_owned(),
            Self::RangeEnd { start, .. } => {
                format!("write an end above {start}, or number for one port")
            }
            Self::TooLong { .. } => "shorten it".to_owned(),
            Self::DomainNameTooShort { .. } => "write a name such as *.example.com".to_owned(),
            Self::NoEntry => "add an entry, or remove the rule".to_owned(),
            Self::TooMany { .. } => "split the object".to_owned(),
            Self::NotAnObject
            | Self::Shape { .. }
            | Self::Pattern(_)
            | Self::NotAPort { .. }
            | Self::TooLarge { .. } => return None,
        })
    }
}

/// Every kind that is read, with its apiVersion.
const KINDS: &[(&str, &str)] = &[
    ("namegate.dev/v1alpha1", "EgressPolicy"),
    ("namegate.dev/v1alpha1", "ClusterEgressPolicy"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
    ("cilium.io/v2", "CiliumNetworkPolicy"),
    ("cilium.io/v2", "CiliumClusterwideNetworkPolicy"),
    ("cilium.io/v2", "CiliumCIDRGroup"),
    ("v1", "Namespace"),
    ("v1", "Node"),
    ("v1", "Pod"),
    ("v1", "Service"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
];

/// The kind, with its apiVersion, that `written` was most likely meant to be. Other groups have kinds
/// such as Service too, so only policies are looked for under another apiVersion.
pub(crate) fn similar_kind(
    api_version: &str,
    written: &str,
) -> Option<(&'static str, &'static str)> {
    let tolerance = if written.len() < 6 { 0 } else { 2 };
    KINDS
        .iter()
        .filter(|(version, kind)| *version == api_version || kind.contains("Polic"))
        .map(|&(version, kind)| {
            (distance(&written.to_lowercase(), &kind.to_lowercase()), version, kind)
        })
        .filter(|&(distance, ..)| distance <= tolerance)
        .min()
        .map(|(_, version, kind)| (version, kind))
}
