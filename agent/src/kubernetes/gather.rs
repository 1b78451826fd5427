//! Changes of all kinds that wait for the state's owner: of each object the last word.

use std::collections::BTreeMap;
use std::sync::Arc;

use namegate_policy::object::{Object, ObjectKind, ObjectRef};
use namegate_policy::rule::PolicyRef;

use super::held::Update;
use crate::source::{Changes, Version};

/// What changed since the owner took the last changes.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// `None` for an object that is gone.
    objects: BTreeMap<ObjectRef, Option<Arc<Object>>>,
    versions: BTreeMap<PolicyRef, Version>,
}

impl Gathered {
    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.versions.is_empty()
    }

    pub(super) fn add(&mut self, update: Update) {
        for reference in update.removals {
            if let ObjectKind::Policy(kind) = reference.kind {
                let (namespace, name) = (reference.namespace.clone(), Arc::clone(&reference.name));
                self.versions.remove(&PolicyRef { kind, namespace, name });
            }
            self.objects.insert(reference, None);
        }
        let upserts = update.upserts.into_iter();
        self.objects.extend(upserts.map(|object| (object.reference(), Some(object))));
        self.versions.extend(update.versions);
    }

    /// Everything that waits, as one.
    pub(super) fn take(&mut self) -> Changes {
        let versions = std::mem::take(&mut self.versions).into_iter().collect();
        let mut changes = Changes { versions, ..Changes::default() };
        for (reference, object) in std::mem::take(&mut self.objects) {
            match object {
                Some(object) => changes.upserts.push(object),
                None => changes.removals.push(reference),
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mk_namespace(name: &str) -> Arc<Object> {
        let written = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        Arc::new(namegate_policy::object::parse(written).unwrap())
    }

    #[test]
    fn the_last_word_counts() {
        let (a, b) = (mk_namespace("a"), mk_namespace("b"));
        let mut gathered = Gathered::default();
        let come = |object: &Arc<Object>| Update {
            upserts: vec![Arc::clone(object)],
            ..Update::default()
        };
        let go = |object: &Arc<Object>| Update {
            removals: vec![object.reference()],
            ..Update::default()
        };
        for update in [come(&a), go(&a), go(&b), come(&b)] {
            gathered.add(update);
        }
        let changes = gathered.take();
        assert_eq!(changes.removals, [a.reference()]);
        assert_eq!(changes.upserts, [b]);
        assert!(gathered.is_empty());
    }
}
