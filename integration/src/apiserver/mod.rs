//! A Kubernetes API server for tests: real HTTP over TLS, lists in pages, watches with history and
//! bookmarks, streamed lists, conflicts, status apart from spec, server-side apply, and faults on demand.
//!
//! It keeps objects and tells about them; it checks no schema, runs no controller and starts no pod. Of
//! definitions it knows that they are there, of Namespaces that what is in them goes with them. A test
//! that needs the rest needs a cluster.

mod faults;
mod patch;
mod requests;
mod resources;
mod selection;
mod store;
mod tls;
mod watches;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::{oneshot, watch};

pub use faults::{Faults, StreamedLists};
pub use resources::{BUILT_IN, DEFINED, Resource};

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::objects::{Objects, text};
use selection::Selection;
use store::{Part, Place, Store};

/// What the double's one account shows to be let in.
const TOKEN: &str = "town-token";

/// A running API server; it ends with this value.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    folder: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What requests and the test share.
#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    /// The version of the store: watches wake up by it.
    version: watch::Sender<u64>,
    /// Counts the cuts: every watch that is open at a cut is torn off.
    cuts: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    faults: Faults,
    /// Every request so far: method, path and query.
    requests: Vec<String>,
    /// Until when requests for a path are too early, and those that were.
    asked_to_wait: BTreeMap<String, Instant>,
    early: Vec<String>,
    /// The version that the last bookmark of each kind told.
    bookmarked: BTreeMap<&'static str, u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes one of the conflicts that are to be met.
    fn take_conflict(&self) -> bool {
        let conflicts = &mut self.lock().faults.conflicts;
        let is_one = *conflicts > 0;
        *conflicts = conflicts.saturating_sub(1);
        is_one
    }

    /// Notes a request that comes before the time that the answer to the last one named.
    fn note_whether_early(&self, request: &str) {
        let (mut inner, now) = (self.lock(), Instant::now());
        if inner.asked_to_wait.get(request).is_some_and(|until| now < *until) {
            inner.early.push(request.to_owned());
        }
        let wait = inner.faults.retry_after.filter(|_| inner.faults.fail_with.is_some());
        match wait {
            Some(wait) => inner.asked_to_wait.insert(request.to_owned(), now + wait),
            None => inner.asked_to_wait.remove(request),
        };
    }

    /// Works on the store, and wakes the watches.
    fn change<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        let mut inner = self.lock();
        let result = work(&mut inner.store);
        let version = inner.store.version();
        drop(inner);
        self.version.send_replace(version);
        result
    }
}

impl ApiServer {
    /// Starts it at `address` of `namespace`.
    pub fn start(lab: &Lab, namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener = namespace
            .within(|| TcpListener::bind(address))?
            .with_context(|| format!("cannot listen at {address}"))?;
        Self::serve(listener, lab.folder())
    }

    /// Serves `listener`; what its clients need goes to `folder`.
    pub fn serve(listener: TcpListener, folder: PathBuf) -> Result<Self> {
        let address = listener.local_addr()?;
        let authority = folder.join("apiserver-ca.pem");
        let config = tls::config(address.ip(), &authority)?;
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                store: Store::new(),
                faults: Faults::default(),
                requests: Vec::new(),
                asked_to_wait: BTreeMap::new(),
                early: Vec::new(),
                bookmarked: BTreeMap::new(),
            }),
            version: watch::Sender::new(1),
            cuts: watch::Sender::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let served = Arc::clone(&shared);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("apiserver".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    ended = serve(listener, config, served) => {
                        if let Err(error) = ended {
                            eprintln!("apiserver: {error:#}");
                        }
                    }
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { shared, address, folder, stop: Some(stop), thread: Some(thread) })
    }

    /// Writes a kubeconfig for it and says where.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        self.write_kubeconfig("kubeconfig", &format!("token: {TOKEN}"))
    }

    /// The same, with the token in a file of its own: says where both are.
    pub fn kubeconfig_with_token_file(&self) -> Result<(PathBuf, PathBuf)> {
        let token = self.folder.join("token");
        fs::write(&token, TOKEN)?;
        let user = format!("tokenFile: {}", token.display());
        Ok((self.write_kubeconfig("kubeconfig-token-file", &user)?, token))
    }

    fn write_kubeconfig(&self, name: &str, user: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        let (address, authority) = (self.address, self.folder.join("apiserver-ca.pem"));
        let authority = authority.display();
        fs::write(
            &path,
            format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: town\n\
                 contexts: [{{name: town, context: {{cluster: town, user: town}}}}]\n\
                 clusters:\n- name: town\n  cluster: {{server: \"https://{address}\", certificate-authority: {authority}}}\n\
                 users: [{{name: town, user: {{{user}}}}}]\n"
            ),
        )?;
        Ok(path)
    }

    /// Serves a kind in another version than agents read.
    pub fn define_version(&self, kind: &str, version: &'static str) -> Result<()> {
        let found = DEFINED.iter().find(|resource| resource.kind == kind);
        let known = *found.with_context(|| format!("no such kind: {kind}"))?;
        self.shared.change(|store| store.resources.push(Resource { version, ..known }));
        Ok(())
    }

    /// Changes what goes wrong.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.shared.lock().faults);
    }

    /// Tears off every watch.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Forgets the history: every watch that begins at a version known so far is too late.
    pub fn compact(&self) {
        self.shared.change(Store::compact);
    }

    /// The version that the store is at.
    pub fn version(&self) -> u64 {
        self.shared.lock().store.version()
    }

    /// The version that the last bookmark of a watch of a kind told, by the kind's plural.
    pub fn bookmarked(&self, plural: &str) -> u64 {
        self.shared.lock().bookmarked.get(plural).copied().unwrap_or_default()
    }

    /// Forgets the history before `version`: watches that are further go on.
    pub fn forget(&self, version: u64) {
        self.shared.lock().store.forget(version);
    }

    /// The requests so far: method, path and query.
    pub fn requests(&self) -> Vec<String> {
        self.shared.lock().requests.clone()
    }

    /// The requests that came before the time that the answer to the one before had named.
    pub fn early_requests(&self) -> Vec<String> {
        self.shared.lock().early.clone()
    }

    fn resource(&self, kind: &str) -> Result<Resource> {
        let inner = self.shared.lock();
        let found = inner.store.resources.iter().find(|resource| resource.kind == kind);
        found.copied().with_context(|| format!("the double has no kind {kind}"))
    }

    fn locate(&self, object: &Value) -> Result<(Resource, Place)> {
        let resource = self.resource(text(object, "/kind")?)?;
        let name = text(object, "/metadata/name")?;
        let namespace = text(object, "/metadata/namespace").unwrap_or("default");
        let namespace = if resource.is_namespaced { namespace } else { "" };
        Ok((resource, (namespace.to_owned(), name.to_owned())))
    }
}

impl Objects for ApiServer {
    fn define(&self, kind: &str) -> Result<()> {
        let found = DEFINED.iter().find(|resource| resource.kind == kind);
        let resource = *found.with_context(|| format!("no such kind: {kind}"))?;
        self.shared.change(|store| store.resources.push(resource));
        Ok(())
    }

    fn put(&self, object: Value) -> Result<()> {
        let (resource, place) = self.locate(&object)?;
        self.shared
            .change(|store| match store.get(resource, &place) {
                Ok(_) => store.replace(resource, &place, object, Part::Everything),
                Err(_) => store.create(resource, &place, object),
            })
            .map_err(|refusal| anyhow::anyhow!("{}", refusal.message))?;
        Ok(())
    }

    fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let resource = self.resource(kind)?;
        let place = (namespace.to_owned(), name.to_owned());
        self.shared
            .change(|store| store.delete(resource, &place))
            .map_err(|refusal| anyhow::anyhow!("{}", refusal.message))?;
        Ok(())
    }

    fn object(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let resource = self.resource(kind)?;
        let place = (namespace.to_owned(), name.to_owned());
        Ok(self.shared.lock().store.get(resource, &place).ok().cloned())
    }

    fn objects(&self, kind: &str) -> Result<Vec<Value>> {
        let resource = self.resource(kind)?;
        let page = self.shared.lock().store.list(resource, None, &Selection::default(), 0, None);
        page.map(|page| page.items).map_err(|refusal| anyhow::anyhow!("{}", refusal.message))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            let _ended = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("apiserver: panicked");
        }
    }
}

/// The groups that are served, with their version.
fn groups(store: &Store) -> BTreeSet<(&'static str, &'static str)> {
    let named = store.resources.iter().filter(|resource| !resource.group.is_empty());
    named.map(|resource| (resource.group, resource.version)).collect()
}

async fn serve(
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    shared: Arc<Shared>,
) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    loop {
        let (stream, _) = listener.accept().await?;
        if shared.lock().faults.is_down {
            continue;
        }
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            // A client that breaks off its handshake or request is its own affair.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = hyper::service::service_fn(move |request| {
                requests::answer(Arc::clone(&shared), request)
            });
            let server = hyper::server::conn::http1::Builder::new();
            let _broken_off = server.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
