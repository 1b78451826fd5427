//! The double's objects, their versions, and the history that watches read.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::resources::{BUILT_IN, DEFINED, Resource};
use super::selection::Selection;

/// Namespace and name; the namespace is empty for a cluster-scoped object.
pub(super) type Place = (String, String);

/// Something that happened to an object.
#[derive(Clone, Debug)]
pub(super) struct Happening {
    pub(super) version: u64,
    pub(super) resource: Resource,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub(super) kind: &'static str,
    pub(super) object: Value,
    /// The object before it; `None` where there was none.
    pub(super) before: Option<Value>,
}

/// Why a request is refused: HTTP status, reason and message, as the real one words them.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    /// That somebody else wrote since.
    pub(super) fn conflict(resource: Resource, place: &Place) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{}\": the object has been modified; please apply your changes to the latest version and try again",
            resource.plural, place.1
        );
        Self::new(409, "Conflict", message)
    }

    /// As a Status object.
    pub(super) fn status(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        })
    }
}

/// All objects.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) resources: Vec<Resource>,
    objects: BTreeMap<Resource, BTreeMap<Place, Value>>,
    history: Vec<Happening>,
    version: u64,
    /// The oldest version that a watch can begin at.
    oldest: u64,
}

/// One page of a list.
pub(super) struct Page {
    pub(super) items: Vec<Value>,
    pub(super) version: u64,
    /// Where the next page begins; `None` after the last.
    pub(super) next: Option<String>,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            resources: BUILT_IN.to_vec(),
            objects: BTreeMap::new(),
            history: Vec::new(),
            version: 1,
            oldest: 0,
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Makes every version up to the present one too old for a watch.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        // A version of its own, so that whoever knows the present one is too late as well.
        self.version += 1;
        self.oldest = self.version;
    }

    /// Makes every version before `version` too old for a watch.
    pub(super) fn forget(&mut self, version: u64) {
        self.history.retain(|happening| happening.version > version);
        self.oldest = version;
    }

    pub(super) fn get(&self, resource: Resource, place: &Place) -> Result<&Value, Refusal> {
        let found = self.objects.get(&resource).and_then(|objects| objects.get(place));
        found.ok_or_else(|| {
            let message = format!("{} \"{}\" not found", resource.plural, place.1);
            Refusal::new(404, "NotFound", message)
        })
    }

    pub(super) fn list(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        selection: &Selection,
        limit: usize,
        next: Option<&str>,
    ) -> Result<Page, Refusal> {
        let (version, after) = match next.map(parse_continue) {
            None => (self.version, None),
            Some(Some((version, _))) if version < self.oldest => {
                let message = "The provided continue parameter is too old";
                return Err(Refusal::new(410, "Expired", message));
            }
            Some(Some((version, after))) => (version, Some(after)),
            Some(None) => {
                return Err(Refusal::new(400, "BadRequest", "continue key is not valid"));
            }
        };
        let all = self.objects.get(&resource).into_iter().flatten();
        let mut rest = all
            .filter(|(_, object)| selection.selects(object))
            .filter(|(place, _)| namespace.is_none_or(|namespace| place.0 == namespace))
            .filter(|(place, _)| after.as_ref().is_none_or(|after| *place > after));
        let limit = if limit == 0 { usize::MAX } else { limit };
        let page: Vec<_> = rest.by_ref().take(limit).collect();
        let is_last = rest.next().is_none();
        let last = page.last().filter(|_| !is_last);
        let next = last.map(|((namespace, name), _)| format!("{version}:{namespace}:{name}"));
        Ok(Page {
            items: page.into_iter().map(|(_, object)| object.clone()).collect(),
            version,
            next,
        })
    }

    /// What happened to a kind after `version`; the error of a version that is too old.
    pub(super) fn since(
        &self,
        resource: Resource,
        version: u64,
    ) -> Result<Vec<Happening>, Refusal> {
        if version < self.oldest {
            let message = format!("too old resource version: {version} ({})", self.oldest);
            return Err(Refusal::new(410, "Expired", message));
        }
        let later = self.history.iter().filter(|happening| happening.version > version);
        Ok(later.filter(|happening| happening.resource == resource).cloned().collect())
    }

    /// Creates an object; what the API server sets is set.
    pub(super) fn create(
        &mut self,
        resource: Resource,
        place: &Place,
        mut object: Value,
    ) -> Result<Value, Refusal> {
        if self.get(resource, place).is_ok() {
            let message = format!("{} \"{}\" already exists", resource.plural, place.1);
            return Err(Refusal::new(409, "AlreadyExists", message));
        }
        self.version += 1;
        set_type(&mut object, resource);
        let metadata = metadata(&mut object)?;
        metadata.insert("name".to_owned(), place.1.clone().into());
        if resource.is_namespaced {
            metadata.insert("namespace".to_owned(), place.0.clone().into());
        }
        metadata.insert("uid".to_owned(), format!("uid-{}", self.version).into());
        metadata.insert("generation".to_owned(), 1.into());
        metadata.insert("resourceVersion".to_owned(), self.version.to_string().into());
        if let Some(defined) = defined(resource, &object)
            && !self.resources.contains(&defined)
        {
            self.resources.push(defined);
        }
        Ok(self.happen(resource, place, "ADDED", object))
    }

    /// Replaces an object, or its status alone.
    pub(super) fn replace(
        &mut self,
        resource: Resource,
        place: &Place,
        mut object: Value,
        part: Part,
    ) -> Result<Value, Refusal> {
        let before = self.get(resource, place)?.clone();
        let text_at = |value: &Value, key: &str| {
            value.pointer(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let told = text_at(&object, "/metadata/resourceVersion");
        if !told.is_empty() && told != text_at(&before, "/metadata/resourceVersion") {
            return Err(Refusal::conflict(resource, place));
        }
        let status_of = |from: &Value| from.get("status").cloned().unwrap_or(Value::Null);
        match part {
            Part::Status => {
                let status = status_of(&object);
                object = before.clone();
                object["status"] = status;
            }
            Part::Spec if resource.has_status => {
                object["status"] = status_of(&before);
            }
            Part::Spec | Part::Everything => {}
        }
        self.version += 1;
        set_type(&mut object, resource);
        let generation = before.pointer("/metadata/generation").and_then(Value::as_i64);
        let is_other = object.get("spec") != before.get("spec");
        let metadata = metadata(&mut object)?;
        metadata.insert("name".to_owned(), place.1.clone().into());
        if resource.is_namespaced {
            metadata.insert("namespace".to_owned(), place.0.clone().into());
        }
        metadata.insert("uid".to_owned(), text_at(&before, "/metadata/uid").into());
        let generation = generation.unwrap_or(1) + i64::from(is_other);
        metadata.insert("generation".to_owned(), generation.into());
        metadata.insert("resourceVersion".to_owned(), self.version.to_string().into());
        if let Some(since) = before.pointer("/metadata/deletionTimestamp") {
            metadata.insert("deletionTimestamp".to_owned(), since.clone());
            if !has_finalizers(&object) {
                self.remove(resource, place);
                return Ok(object);
            }
        }
        Ok(self.happen(resource, place, "MODIFIED", object))
    }

    /// Deletes an object: at once, or where somebody has to see to it first, once its last finalizer is
    /// gone. What is in a Namespace, or of a kind that is defined, goes with it.
    pub(super) fn delete(&mut self, resource: Resource, place: &Place) -> Result<Value, Refusal> {
        let mut object = self.get(resource, place)?.clone();
        self.version += 1;
        let version = self.version.to_string();
        let fields = metadata(&mut object)?;
        fields.insert("resourceVersion".to_owned(), version.into());
        if has_finalizers(&object) {
            let fields = metadata(&mut object)?;
            fields.entry("deletionTimestamp").or_insert_with(|| DELETED_AT.into());
            return Ok(self.happen(resource, place, "MODIFIED", object));
        }
        self.remove(resource, place);
        if resource.kind == "Namespace" {
            self.remove_all(|_, (namespace, _)| *namespace == place.1);
        }
        if let Some(defined) = defined(resource, &object) {
            self.remove_all(|resource, _| *resource == defined);
            self.resources.retain(|resource| *resource != defined);
        }
        Ok(object)
    }

    fn remove_all(&mut self, is_gone: impl Fn(&Resource, &Place) -> bool) {
        let all = self
            .objects
            .iter()
            .flat_map(|(resource, objects)| objects.keys().map(|place| (*resource, place.clone())));
        let gone: Vec<_> = all.filter(|(resource, place)| is_gone(resource, place)).collect();
        for (resource, place) in gone {
            self.version += 1;
            self.remove(resource, &place);
        }
    }

    fn remove(&mut self, resource: Resource, place: &Place) {
        let before = self.objects.get_mut(&resource).and_then(|objects| objects.remove(place));
        let Some(mut object) = before.clone() else { return };
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let (version, kind) = (self.version, "DELETED");
        self.history.push(Happening { version, resource, kind, object, before });
    }

    fn happen(
        &mut self,
        resource: Resource,
        place: &Place,
        kind: &'static str,
        object: Value,
    ) -> Value {
        let version = self.version;
        let objects = self.objects.entry(resource).or_default();
        let before = objects.insert(place.clone(), object.clone());
        self.history.push(Happening { version, resource, kind, object: object.clone(), before });
        object
    }
}

/// When everything was deleted that waits for its finalizers: nobody here reads it.
const DELETED_AT: &str = "2026-01-01T00:00:00Z";

fn has_finalizers(object: &Value) -> bool {
    let finalizers = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    finalizers.is_some_and(|finalizers| !finalizers.is_empty())
}

/// The kind that a definition defines, where the double knows it.
fn defined(resource: Resource, object: &Value) -> Option<Resource> {
    let spec = object.get("spec").filter(|_| resource.kind == "CustomResourceDefinition")?;
    let is_it =
        |known: &&Resource| spec["group"] == known.group && spec["names"]["kind"] == known.kind;
    DEFINED.iter().find(is_it).copied()
}

/// What of an object a request writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All but its status.
    Spec,
    /// Its status.
    Status,
    /// Both: what a controller of the cluster's own would do in several requests.
    Everything,
}

fn parse_continue(text: &str) -> Option<(u64, Place)> {
    let mut parts = text.splitn(3, ':');
    let version = parts.next()?.parse().ok()?;
    Some((version, (parts.next()?.to_owned(), parts.next()?.to_owned())))
}

fn set_type(object: &mut Value, resource: Resource) {
    object["apiVersion"] = resource.api_version().into();
    object["kind"] = resource.kind.into();
}

fn metadata(object: &mut Value) -> Result<&mut Map<String, Value>, Refusal> {
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
    metadata.ok_or_else(|| Refusal::new(422, "Invalid", "metadata: Required value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(kind: &str) -> Resource {
        *BUILT_IN.iter().chain(&DEFINED).find(|resource| resource.kind == kind).unwrap()
    }

    fn place(namespace: &str, name: &str) -> Place {
        (namespace.to_owned(), name.to_owned())
    }

    fn kinds(store: &Store, kind: &str) -> Vec<&'static str> {
        let happened = store.since(resource(kind), 0).unwrap();
        happened.iter().map(|happening| happening.kind).collect()
    }

    #[test]
    fn an_object_with_finalizers_goes_with_the_last_of_them() {
        let (mut store, pod, at) = (Store::new(), resource("Pod"), place("shop", "web"));
        let object = json!({"metadata": {"finalizers": ["a/b"]}, "spec": {}});
        store.create(pod, &at, object).unwrap();
        store.delete(pod, &at).unwrap();
        let mut object = store.get(pod, &at).unwrap().clone();
        assert_eq!(object["metadata"]["deletionTimestamp"], DELETED_AT);
        object["metadata"]["finalizers"] = json!([]);
        store.replace(pod, &at, object, Part::Spec).unwrap();
        assert_eq!(store.get(pod, &at).unwrap_err().code, 404);
        assert_eq!(kinds(&store, "Pod"), ["ADDED", "MODIFIED", "DELETED"]);
    }

    #[test]
    fn what_is_in_a_namespace_goes_with_it() {
        let mut store = Store::new();
        let namespace = resource("Namespace");
        for name in ["shop", "data"] {
            store.create(namespace, &place("", name), json!({"metadata": {}})).unwrap();
            let object = json!({"metadata": {}});
            store.create(resource("Pod"), &place(name, "web"), object).unwrap();
        }
        store.delete(namespace, &place("", "shop")).unwrap();
        assert_eq!(store.get(resource("Pod"), &place("shop", "web")).unwrap_err().code, 404);
        assert!(store.get(resource("Pod"), &place("data", "web")).is_ok());
        assert_eq!(kinds(&store, "Pod"), ["ADDED", "ADDED", "DELETED"]);
    }

    #[test]
    fn a_definition_serves_its_kind_until_it_goes() {
        let (mut store, policy) = (Store::new(), resource("EgressPolicy"));
        let (definition, at) = (resource("CustomResourceDefinition"), place("", "e.namegate.dev"));
        let object = json!({"metadata": {}, "spec": {
            "group": policy.group, "names": {"kind": policy.kind},
        }});
        store.create(definition, &at, object).unwrap();
        assert!(store.resources.contains(&policy));
        store.create(policy, &place("shop", "web"), json!({"metadata": {}})).unwrap();
        store.delete(definition, &at).unwrap();
        assert!(!store.resources.contains(&policy));
        assert_eq!(kinds(&store, "EgressPolicy"), ["ADDED", "DELETED"]);
    }
}
