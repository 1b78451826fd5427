//! An API server as a test sees it: objects are put there, taken away and looked at.

use std::fmt::Debug;

use anyhow::{Context, Result};
use serde_json::Value;

/// The objects of a cluster; kinds are those of [`crate::apiserver::BUILT_IN`] and
/// [`crate::apiserver::DEFINED`].
pub trait Objects: Debug {
    /// Serves a kind from now on, where it was not served.
    fn define(&self, kind: &str) -> Result<()>;

    /// Puts an object in place with its status, as the cluster's own controllers would.
    fn put(&self, object: Value) -> Result<()>;

    /// Deletes an object, at once.
    fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()>;

    /// An object as it is; `None` where there is none.
    fn object(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>>;

    /// All objects of a kind; of one that lives in namespaces, those in the namespaces of the test.
    fn objects(&self, kind: &str) -> Result<Vec<Value>>;

    /// Puts all objects of a manifest in place.
    fn apply(&self, manifest: &str) -> Result<()> {
        documents(manifest)?.into_iter().try_for_each(|object| self.put(object))
    }
}

impl<T: Objects + ?Sized> Objects for Box<T> {
    fn define(&self, kind: &str) -> Result<()> {
        (**self).define(kind)
    }

    fn put(&self, object: Value) -> Result<()> {
        (**self).put(object)
    }

    fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        (**self).delete(kind, namespace, name)
    }

    fn object(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        (**self).object(kind, namespace, name)
    }

    fn objects(&self, kind: &str) -> Result<Vec<Value>> {
        (**self).objects(kind)
    }
}

/// The objects of a manifest.
pub fn documents(manifest: &str) -> Result<Vec<Value>> {
    serde_saphyr::from_multiple(manifest).context("a manifest that cannot be read")
}

/// A text of an object that it cannot be without.
pub fn text<'a>(object: &'a Value, pointer: &str) -> Result<&'a str> {
    let text = object.pointer(pointer).and_then(Value::as_str);
    text.with_context(|| format!("an object without {pointer}"))
}
