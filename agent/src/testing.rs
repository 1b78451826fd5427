//! What several tests need.

use std::path::PathBuf;
use std::sync::Arc;

use namegate_policy::object::{self, Object};

use crate::source::yaml;

/// The objects of a YAML text.
pub(crate) fn mk_objects(text: &str) -> Vec<Arc<Object>> {
    let documents = yaml::documents(text.as_bytes());
    let values = documents.into_iter().map(|document| document.content.expect("good YAML"));
    values.map(|value| Arc::new(object::parse(value).expect("a good object"))).collect()
}

/// A directory that goes away with the test.
#[derive(Debug)]
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("namegate-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let draft = self.0.join(".draft");
        std::fs::write(&draft, text).unwrap();
        std::fs::rename(draft, self.0.join(name)).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
