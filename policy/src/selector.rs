//! Label selectors as Kubernetes means them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// The labels of an object.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// A label selector: every requirement must hold (NP-10); without any, everything is selected.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    requirements: BTreeSet<Requirement>,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: Arc<str>,
    /// What must hold for its value.
    pub condition: Condition,
}

/// What a requirement asks of a label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// The label is there with one of these values.
    In(BTreeSet<Arc<str>>),
    /// The label is absent, or has none of these values.
    NotIn(BTreeSet<Arc<str>>),
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl Selector {
    /// The selector that selects everything.
    pub const EVERYTHING: Self = Self { requirements: BTreeSet::new() };

    /// Whether no requirement narrows the selector.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether `labels` are selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.requirements
            .iter()
            .all(|requirement| requirement.condition.holds(labels.get(&requirement.key)))
    }

    /// Its requirements in stable order.
    pub fn requirements(&self) -> impl Iterator<Item = &Requirement> {
        self.requirements.iter()
    }
}

impl FromIterator<Requirement> for Selector {
    fn from_iter<I: IntoIterator<Item = Requirement>>(requirements: I) -> Self {
        Self { requirements: requirements.into_iter().collect() }
    }
}

impl Requirement {
    /// The requirement that `key` has exactly `value`.
    pub fn equals(key: &str, value: &str) -> Self {
        Self { key: key.into(), condition: Condition::In(BTreeSet::from([value.into()])) }
    }
}

impl Condition {
    /// Whether the condition holds for a label's value, `None` where the label is absent.
    pub fn holds(&self, value: Option<&Arc<str>>) -> bool {
        match (self, value) {
            (Self::In(values), Some(value)) => values.contains(value),
            (Self::NotIn(values), Some(value)) => !values.contains(value),
            (Self::Exists, Some(_)) | (Self::NotIn(_) | Self::DoesNotExist, None) => true,
            (Self::In(_) | Self::Exists, None) | (Self::DoesNotExist, Some(_)) => false,
        }
    }
}

impl fmt::Display for Selector {
    /// The form that `kubectl -l` takes; `<everything>` without requirements.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("<everything>");
        }
        for (index, Requirement { key, condition }) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match condition {
                Condition::In(values) if values.len() == 1 => {
                    write!(f, "{key}={}", Joined(values))?;
                }
                Condition::In(values) => write!(f, "{key} in ({})", Joined(values))?,
                Condition::NotIn(values) => write!(f, "{key} notin ({})", Joined(values))?,
                Condition::Exists => write!(f, "{key}")?,
                Condition::DoesNotExist => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

struct Joined<'a>(&'a BTreeSet<Arc<str>>);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, value) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(values: &[&str]) -> BTreeSet<Arc<str>> {
        values.iter().map(|&value| value.into()).collect()
    }

    #[test]
    fn conditions_hold_as_np_10_says() {
        let labels = Labels::from([("app".into(), "db".into()), ("tier".into(), "".into())]);
        for (key, condition, expected, why) in [
            ("app", Condition::In(values(&["db", "web"])), true, "In with the value"),
            ("app", Condition::In(values(&["web"])), false, "In without the value"),
            ("gone", Condition::In(values(&["db"])), false, "In without the key"),
            ("app", Condition::NotIn(values(&["db"])), false, "NotIn with the value"),
            ("app", Condition::NotIn(values(&["web"])), true, "NotIn without the value"),
            ("gone", Condition::NotIn(values(&["db"])), true, "NP-10: NotIn without the key"),
            ("tier", Condition::Exists, true, "Exists with an empty value"),
            ("gone", Condition::Exists, false, "Exists without the key"),
            ("gone", Condition::DoesNotExist, true, "NP-10: DoesNotExist without the key"),
            ("app", Condition::DoesNotExist, false, "DoesNotExist with the key"),
        ] {
            let key = key.into();
            let selector = Selector::from_iter([Requirement { key, condition }]);
            assert_eq!(selector.matches(&labels), expected, "{why}");
        }
    }

    #[test]
    fn requirements_are_anded_and_none_selects_all() {
        let labels = Labels::from([("app".into(), "db".into())]);
        assert!(Selector::EVERYTHING.matches(&labels));
        assert!(Selector::EVERYTHING.matches(&Labels::new()));
        let both = Selector::from_iter([
            Requirement::equals("app", "db"),
            Requirement::equals("env", "prod"),
        ]);
        assert!(!both.matches(&labels), "NP-10: all must hold");
        assert_eq!(both.to_string(), "app=db,env=prod");
    }
}
