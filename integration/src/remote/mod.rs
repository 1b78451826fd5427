//! Any API server that a kubeconfig leads to: `NAMEGATE_TEST_KUBECONFIG` has the tests over an API
//! server use that one, and not a double of their own.
//!
//! What is made there is the test's own and goes when it ends: Namespaces of the town's names, which
//! must not exist, two Nodes without a kubelet, and the definitions that were missing. One test at a
//! time has a cluster to itself. Agents run in the lab and reach the API server through a
//! [`Relay`]. Where the cluster has agents of Namegate, or Pods at the town's addresses,
//! this is no place for tests.

mod definitions;
mod relay;

use std::env;
use std::fmt;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::apiserver::{BUILT_IN, DEFINED, Resource};
use crate::namespace::Namespace;
use crate::objects::{Objects, text};
use crate::patience::{wait_for, wait_until};
use relay::Relay;

/// Leads to the API server that tests use.
pub const KUBECONFIG: &str = "NAMEGATE_TEST_KUBECONFIG";

/// Who writes, and the label of Namespaces that may be taken away again.
const OWNER: &str = "namegate.dev-test";

/// How long a cluster may take to do what it was asked.
const LIMIT: Duration = Duration::from_secs(120);

/// The lock of the one test that has the cluster.
const LOCK: &str = "/run/namegate-lab-cluster.lock";

/// The API server of a kubeconfig, for one test. Fields drop in order.
pub struct Remote {
    client: Client,
    runtime: Runtime,
    kubeconfig: Kubeconfig,
    server: (String, u16),
    /// What has to be taken away, in the order in which it was made.
    made: Mutex<Vec<(Resource, String, String)>>,
    relay: Mutex<Option<Relay>>,
    _lock: File,
}

impl Remote {
    /// The API server that the environment names; `None` where it names none.
    pub fn asked() -> Result<Option<Self>> {
        env::var_os(KUBECONFIG).map(|path| Self::open(&PathBuf::from(path))).transpose()
    }

    /// Waits until no other test has the cluster.
    fn open(path: &Path) -> Result<Self> {
        let lock = File::create(LOCK).with_context(|| format!("cannot make {LOCK}"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let kubeconfig = Kubeconfig::read_from(path)
            .with_context(|| format!("{KUBECONFIG}={}", path.display()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (client, server) = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig.clone(), &options).await?;
            let url = config.cluster_url.clone();
            let port = if url.scheme_str() == Some("http") { 80 } else { 443 };
            let host = url.host().context("a server without a host")?.to_owned();
            let server = (host, url.port_u16().unwrap_or(port));
            anyhow::Ok((Client::try_from(config)?, server))
        })?;
        let (made, relay) = (Mutex::default(), Mutex::default());
        Ok(Self { client, runtime, kubeconfig, server, made, relay, _lock: lock })
    }

    /// Lets who is in `namespace` reach the API server at `address`, by the kubeconfig that is written
    /// to `path`.
    pub fn reach(&self, namespace: &Namespace, address: SocketAddr, path: &Path) -> Result<()> {
        *locked(&self.relay) = Some(Relay::start(namespace, address, self.server.clone())?);
        let mut kubeconfig = self.kubeconfig.clone();
        for named in &mut kubeconfig.clusters {
            let Some(cluster) = &mut named.cluster else { continue };
            let host = self.server.0.trim_matches(['[', ']']).to_owned();
            cluster.tls_server_name.get_or_insert(host);
            cluster.server = Some(format!("https://{address}"));
        }
        // JSON is YAML.
        let text = serde_json::to_string_pretty(&kubeconfig)?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn api(&self, resource: Resource, namespace: &str) -> Api<DynamicObject> {
        let known = ApiResource {
            group: resource.group.to_owned(),
            version: resource.version.to_owned(),
            api_version: resource.api_version(),
            kind: resource.kind.to_owned(),
            plural: resource.plural.to_owned(),
        };
        if resource.is_namespaced && !namespace.is_empty() {
            Api::namespaced_with(self.client.clone(), namespace, &known)
        } else {
            Api::all_with(self.client.clone(), &known)
        }
    }

    fn note(&self, resource: Resource, namespace: &str, name: &str) {
        let entry = (resource, namespace.to_owned(), name.to_owned());
        let mut made = locked(&self.made);
        if !made.contains(&entry) {
            made.push(entry);
        }
    }

    /// Refuses a Namespace of somebody else's; removes what a test that was killed left of its own.
    fn claim(&self, name: &str) -> Result<()> {
        let Some(found) = self.object("Namespace", "", name)? else { return Ok(()) };
        let is_own = found["metadata"]["labels"].get(OWNER).is_some();
        ensure!(is_own, "the cluster has a Namespace {name}, which is not a test's; use another");
        self.delete("Namespace", "", name)?;
        self.expect_gone("Namespace", name)
    }

    fn expect_gone(&self, kind: &str, name: &str) -> Result<()> {
        let what = format!("{kind} {name} to be gone");
        wait_until(&what, LIMIT, || Ok(self.object(kind, "", name)?.is_none()))
    }

    /// Applies an object, or its status alone, as its one owner.
    fn write(&self, resource: Resource, object: &Value, is_status: bool) -> Result<()> {
        let (namespace, name) = (namespace(resource, object), text(object, "/metadata/name")?);
        let (api, patch) = (self.api(resource, namespace), Patch::Apply(object));
        let how = PatchParams::apply(OWNER).force();
        wait_for(&format!("{} {name} to be written", resource.kind), LIMIT, || {
            let written = self.runtime.block_on(async {
                if is_status {
                    api.patch_status(name, &how, &patch).await
                } else {
                    api.patch(name, &how, &patch).await
                }
            });
            match written {
                Ok(_) => Ok(Some(())),
                // The controller that makes a Namespace's account takes its time.
                Err(kube::Error::Api(status))
                    if status.code == 403 && status.message.contains("serviceaccount") =>
                {
                    Ok(None)
                }
                Err(error) => Err(error).with_context(|| format!("{} {name}", resource.kind)),
            }
        })
    }

    /// Takes away what was made, the last first.
    fn clear(&self) -> Result<()> {
        let made = std::mem::take(&mut *locked(&self.made));
        for (resource, namespace, name) in made.iter().rev() {
            self.delete(resource.kind, namespace, name)?;
        }
        for (resource, _, name) in made.iter().filter(|(resource, ..)| !resource.is_namespaced) {
            self.expect_gone(resource.kind, name)?;
        }
        Ok(())
    }
}

impl Objects for Remote {
    fn define(&self, kind: &str) -> Result<()> {
        let resource = resource(kind)?;
        let definition = self::resource("CustomResourceDefinition")?;
        let name = format!("{}.{}", resource.plural, resource.group);
        if self.object(definition.kind, "", &name)?.is_none() {
            self.write(definition, &definitions::of(resource)?, false)?;
            self.note(definition, "", &name);
        }
        let served = self.api(resource, "");
        wait_until(&format!("{name} to be served"), LIMIT, || {
            Ok(self.runtime.block_on(served.list(&ListParams::default())).is_ok())
        })
    }

    fn put(&self, mut object: Value) -> Result<()> {
        let resource = resource(text(&object, "/kind")?)?;
        let name = text(&object, "/metadata/name")?.to_owned();
        let namespace = namespace(resource, &object).to_owned();
        let metadata = object["metadata"].as_object_mut().context("an object without metadata")?;
        // They are those of an object that was read before.
        for key in ["managedFields", "resourceVersion", "uid", "generation", "creationTimestamp"] {
            metadata.remove(key);
        }
        let is_made = locked(&self.made).iter().any(|made| made.0 == resource && made.2 == name);
        if resource.kind == "Namespace" {
            if !is_made {
                self.claim(&name)?;
            }
            object["metadata"]["labels"][OWNER] = "true".into();
        }
        let status = object.as_object_mut().and_then(|object| object.remove("status"));
        self.write(resource, &object, false)?;
        self.note(resource, &namespace, &name);
        let Some(status) = status.filter(|_| resource.has_status) else { return Ok(()) };
        let whole = json!({
            "apiVersion": object["apiVersion"], "kind": object["kind"], "status": status,
            "metadata": {"name": name, "namespace": object["metadata"]["namespace"]},
        });
        self.write(resource, &whole, true)
    }

    fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let resource = resource(kind)?;
        let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let deleted = self.runtime.block_on(self.api(resource, namespace).delete(name, &at_once));
        match deleted {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot delete {kind} {name}")),
        }
    }

    fn object(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let api = self.api(resource(kind)?, namespace);
        match self.runtime.block_on(api.get_opt(name)) {
            Ok(found) => Ok(found.map(serde_json::to_value).transpose()?),
            Err(error) => Err(error).with_context(|| format!("cannot read {kind} {name}")),
        }
    }

    fn objects(&self, kind: &str) -> Result<Vec<Value>> {
        let resource = resource(kind)?;
        let all = self.runtime.block_on(self.api(resource, "").list(&ListParams::default()));
        let all = all.with_context(|| format!("cannot list {kind}"))?;
        let made = locked(&self.made);
        let is_own = |name: Option<&String>| {
            made.iter().any(|made| made.0.kind == "Namespace" && Some(&made.2) == name)
        };
        let own = all
            .items
            .into_iter()
            .filter(|object| !resource.is_namespaced || is_own(object.metadata.namespace.as_ref()));
        own.map(|object| Ok(serde_json::to_value(object)?)).collect()
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Remote").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("the cluster is not as it was: {error:#}");
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn resource(kind: &str) -> Result<Resource> {
    let all = BUILT_IN.iter().chain(&DEFINED);
    match all.into_iter().find(|resource| resource.kind == kind) {
        Some(resource) => Ok(*resource),
        None => bail!("no such kind: {kind}"),
    }
}

fn namespace(resource: Resource, object: &Value) -> &str {
    let named = object.pointer("/metadata/namespace").and_then(Value::as_str);
    if resource.is_namespaced { named.unwrap_or("default") } else { "" }
}
