//! Patches: as a merge (RFC 7396), or applied by an owner of fields.
//!
//! Of server-side apply there is what one owner sees of it: what is missing is made, lists of
//! conditions go by type, and another object of the same name is refused. Fields that an owner stops
//! to name stay, and no two owners meet.

use serde_json::{Map, Value};

use super::resources::Resource;
use super::store::{Part, Place, Refusal, Store};

/// What a patch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Merge,
    Apply,
}

impl How {
    /// Writes what `patch` says.
    pub(super) fn write(
        self,
        store: &mut Store,
        resource: Resource,
        place: &Place,
        patch: Value,
        part: Part,
    ) -> Result<(u16, Value), Refusal> {
        let mut object = match store.get(resource, place) {
            Ok(object) => object.clone(),
            Err(_) if self == Self::Apply && part == Part::Spec => {
                return Ok((201, store.create(resource, place, patch)?));
            }
            Err(refusal) => return Err(refusal),
        };
        let uid = patch.pointer("/metadata/uid");
        if uid.is_some_and(|uid| object.pointer("/metadata/uid") != Some(uid)) {
            let message = "metadata.uid: Invalid value: field is immutable";
            return Err(Refusal::new(422, "Invalid", message));
        }
        let before = object.clone();
        self.join(&mut object, &patch);
        if object == before {
            return Ok((200, object));
        }
        Ok((200, store.replace(resource, place, object, part)?))
    }

    fn join(self, target: &mut Value, patch: &Value) {
        match patch {
            Value::Object(patch) => self.join_maps(target, patch),
            Value::Array(patch) if self == Self::Apply && is_by_type(patch) => {
                join_by_type(target, patch);
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => *target = patch.clone(),
        }
    }

    fn join_maps(self, target: &mut Value, patch: &Map<String, Value>) {
        if !target.is_object() {
            *target = Value::Object(Map::new());
        }
        let Value::Object(target) = target else { return };
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                self.join(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

/// Whether these are conditions.
fn is_by_type(list: &[Value]) -> bool {
    !list.is_empty() && list.iter().all(|entry| entry.get("lastTransitionTime").is_some())
}

fn join_by_type(target: &mut Value, patch: &[Value]) {
    let mut all = target.as_array().cloned().unwrap_or_default();
    for entry in patch {
        match all.iter_mut().find(|found| found.get("type") == entry.get("type")) {
            Some(found) => *found = entry.clone(),
            None => all.push(entry.clone()),
        }
    }
    *target = all.into();
}
