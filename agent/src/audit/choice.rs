//! Which records the sinks get.

use std::str::FromStr;

use super::{PolicyLabel, Record};

/// Which records of a kind of decision are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Keep {
    /// Every one.
    #[default]
    All,
    /// What was refused or failed, or would have been without Audit mode.
    Denied,
    /// None.
    None,
}

/// What to keep of the decisions of one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyChoice {
    namespace: Option<String>,
    name: String,
    keep: Keep,
}

/// Which records are kept: the first policy with a choice of its own decides, else `otherwise`.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// What policies have a choice of their own.
    pub by_policy: Vec<PolicyChoice>,
    /// What goes for all others.
    pub otherwise: Keep,
}

impl Choice {
    /// Whether every record is kept, whatever it tells.
    pub fn keeps_all(&self) -> bool {
        self.otherwise == Keep::All && self.by_policy.is_empty()
    }

    /// Whether `record` is kept; what tells of missing records always is.
    pub fn keeps(&self, record: &Record) -> bool {
        if record.endpoint().is_none() {
            return true;
        }
        let mut choices = record.policies().filter_map(|policy| {
            self.by_policy.iter().find(|choice| choice.is_about(policy)).map(|choice| choice.keep)
        });
        match choices.next().unwrap_or(self.otherwise) {
            Keep::All => true,
            Keep::Denied => record.is_refusal(),
            Keep::None => false,
        }
    }
}

impl PolicyChoice {
    fn is_about(&self, policy: &PolicyLabel) -> bool {
        self.namespace.as_deref() == policy.namespace.as_deref() && *self.name == *policy.name
    }
}

impl FromStr for PolicyChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "expected NAMESPACE/NAME=all, NAME=denied or the like".to_owned();
        let (policy, keep) = text.split_once('=').ok_or_else(form)?;
        let keep = match keep {
            "all" => Keep::All,
            "denied" => Keep::Denied,
            "none" => Keep::None,
            _ => return Err(format!("{keep:?}: expected all, denied or none")),
        };
        let (namespace, name) = match policy.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, policy),
        };
        if name.is_empty() || namespace.is_some_and(str::is_empty) {
            return Err(form());
        }
        Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned(), keep })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{mk_dns, mk_flow, mk_policy};
    use super::*;
    use crate::audit::{FlowVerdict, LookupVerdict};

    #[test]
    fn choices_are_read_as_people_write_them() {
        let choice = |namespace: Option<&str>, name: &str, keep| {
            Ok(PolicyChoice {
                namespace: namespace.map(str::to_owned),
                name: name.to_owned(),
                keep,
            })
        };
        let cases = [
            ("shop/web=all", choice(Some("shop"), "web", Keep::All)),
            ("floor=denied", choice(None, "floor", Keep::Denied)),
            ("a/b=none", choice(Some("a"), "b", Keep::None)),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<PolicyChoice>(), expected, "{text}");
        }
        for text in ["", "shop/web", "shop/web=", "shop/web=some", "/web=all", "shop/=all"] {
            assert!(text.parse::<PolicyChoice>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn first_policy_with_a_choice_of_its_own_decides() {
        let choice = Choice {
            by_policy: vec!["shop/quiet=none".parse().unwrap(), "shop/loud=all".parse().unwrap()],
            otherwise: Keep::Denied,
        };
        let cases = [
            (FlowVerdict::Forwarded, "other", false, "only denials by default"),
            (FlowVerdict::Dropped, "other", true, "a denial"),
            (FlowVerdict::Audit, "other", true, "what would be a denial"),
            (FlowVerdict::Forwarded, "loud", true, "everything of this one"),
            (FlowVerdict::Dropped, "quiet", false, "nothing of this one"),
        ];
        for (verdict, policy, kept, why) in cases {
            let record = mk_flow(verdict, Some(mk_policy("shop", policy)));
            assert_eq!(choice.keeps(&record), kept, "{why}");
        }
        assert!(!choice.keeps(&mk_dns(LookupVerdict::Allowed, "a.example")));
        assert!(choice.keeps(&mk_dns(LookupVerdict::Error, "a.example")), "failures are told");
    }
}
