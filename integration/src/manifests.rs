//! The folder of manifests that an agent watches: a copy of `examples/town`, moved into the lab.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::lab::Lab;

/// What the manifests in `examples/town` call the lab's namespaces.
const EXAMPLE_PREFIX: &str = "/run/netns/town-";

/// A folder of manifests that a test changes.
#[derive(Debug)]
pub struct Manifests {
    folder: PathBuf,
    netns: String,
}

impl Manifests {
    /// An empty folder.
    pub fn empty(lab: &Lab) -> Result<Self> {
        let manifests =
            Self { folder: lab.file("manifests"), netns: format!("/run/netns/{}-", lab.prefix()) };
        fs::create_dir_all(&manifests.folder)?;
        Ok(manifests)
    }

    /// The town's cluster (namespaces, pods, services) without any policy.
    pub fn cluster(lab: &Lab) -> Result<Self> {
        let manifests = Self::empty(lab)?;
        manifests.copy("cluster.yaml")?;
        Ok(manifests)
    }

    /// The whole of `examples/town`.
    pub fn town(lab: &Lab) -> Result<Self> {
        let manifests = Self::empty(lab)?;
        for entry in fs::read_dir(examples().join("town"))? {
            if let Some(name) = entry?.file_name().to_str().filter(|name| name.ends_with(".yaml")) {
                manifests.copy(name)?;
            }
        }
        Ok(manifests)
    }

    /// `examples/one-machine`, with its pod in the lab's namespace `pod-a`.
    pub fn one_machine(lab: &Lab) -> Result<Self> {
        let manifests = Self::empty(lab)?;
        for name in ["pod.yaml", "policy.yaml"] {
            let text = read(&examples().join("one-machine").join(name))?;
            let netns = format!("{}pod-a", manifests.netns);
            manifests.write(name, &text.replace("/run/netns/pod-a", &netns))?;
        }
        Ok(manifests)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a manifest; what the examples call `/run/netns/town-` becomes this lab's. The file
    /// appears whole, as an editor or a mounted volume would make it.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let text = text.replace(EXAMPLE_PREFIX, &self.netns);
        let partial = self.folder.join(format!(".{name}.partial"));
        fs::write(&partial, text)?;
        fs::rename(&partial, self.folder.join(name)).with_context(|| format!("cannot write {name}"))
    }

    /// Replaces `from` by `to` in a manifest that has it.
    pub fn edit(&self, name: &str, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(self.folder.join(name))?;
        anyhow::ensure!(text.contains(from), "{name} has no {from:?}");
        self.write(name, &text.replace(from, to))
    }

    /// Removes a manifest.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.folder.join(name)).with_context(|| format!("cannot remove {name}"))
    }

    fn copy(&self, name: &str) -> Result<()> {
        let text = read(&examples().join("town").join(name))?;
        self.write(name, &text)
    }
}

/// The repository's `examples` folder.
pub fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
