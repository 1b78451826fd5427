//! Remarks on objects that are in force: not errors, but what their author should know.

use std::fmt;

/// A remark, and the path of the field that it is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Note {
    /// The path, such as `spec.egress[0].toFQDNs`; empty for the object as a whole.
    pub field: String,
    /// What there is to know.
    pub remark: Remark,
}

impl Note {
    /// The remark `remark` on `field`.
    pub fn new(field: impl Into<String>, remark: Remark) -> Self {
        Self { field: field.into(), remark }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}", self.remark)
    }
}

/// What there is to know about a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Remark {
    /// `toFQDNs` in an object without `rules.dns` (CL-1).
    LookupsDerived,
    /// A peer or protocol of which nothing is known, in an Accept rule (CNP-7).
    UnknownMatchesNothing,
    /// The same in a Deny or Pass rule (CNP-7).
    UnknownDeniesEverything,
    /// `domainNames` in an Accept rule outside the Admin tier (CH-7).
    NamesMatchNothing,
    /// `domainNames` in a Deny or Pass rule (CH-7).
    NamesDenyEverything,
    /// A named port beside networks, nodes or domainNames (CNP-8).
    NamedPortMatchesPodsOnly,
    /// The whole object is not what was written: it was refused and had no version before.
    StandsIn,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LookupsDerived => {
                "no rules.dns says which names may be asked, so the names of toFQDNs may; \
                 this policy refuses no lookup"
            }
            Self::UnknownMatchesNothing => "nothing known is set here, so it matches nothing",
            Self::UnknownDeniesEverything => {
                "nothing known is set here, so the rule denies every flow of its direction"
            }
            Self::NamesMatchNothing => {
                "domainNames only count in an Accept rule of the Admin tier; here they match \
                 nothing"
            }
            Self::NamesDenyEverything => {
                "domainNames only count in an Accept rule of the Admin tier; a denial by name \
                 cannot be complete, so the rule denies every flow of its direction"
            }
            Self::NamedPortMatchesPodsOnly => {
                "networks, nodes and domainNames have no named ports; only pods are matched by it"
            }
            Self::StandsIn => {
                "the object is refused and had no version before: what it selects is closed in \
                 the directions that it is about"
            }
        })
    }
}
