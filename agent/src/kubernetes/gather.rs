//! Changes of all kinds that wait for the state's owner: of each object the last word.

use std::collections::BTreeMap;
use std::sync::Arc;

use namegate_policy::object::{Object, ObjectRef};

use super::held::Update;
use crate::source::Changes;

/// What changed since the owner took the last changes; `None` for an object that is gone.
#[derive(Debug, Default)]
pub(super) struct Gathered(BTreeMap<ObjectRef, Option<Arc<Object>>>);

impl Gathered {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, update: Update) {
        self.0.extend(update.removals.into_iter().map(|reference| (reference, None)));
        let upserts = update.upserts.into_iter();
        self.0.extend(upserts.map(|object| (object.reference(), Some(object))));
    }

    /// Everything that waits, as one.
    pub(super) fn take(&mut self) -> Changes {
        let mut changes = Changes::default();
        for (reference, object) in std::mem::take(&mut self.0) {
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
