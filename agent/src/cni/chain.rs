//! The plugin's place in the node's list of plugins: put there, kept there, taken out.
//!
//! A runtime uses the first list of its folder by name. The file is written beside and renamed, so that
//! nobody reads half of one, and everything in it that is not ours stays as it is. A CNI that writes its
//! file anew is noticed, and the plugin put back.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use serde_json::{Value, json};

use super::{PLUGIN, Standing, alarms};
use crate::readiness;

/// How often the list is looked at although nothing was heard.
const RECHECK: Duration = Duration::from_secs(60);

/// How often while something keeps the plugin from its place: that a folder can be written is told by
/// nobody.
const RETRY: Duration = Duration::from_secs(5);

/// The largest list that is read.
const LIST_MAX: u64 = 1 << 20;

/// Where the node's runtime finds its plugins.
#[derive(Clone, Debug)]
pub struct Place {
    /// The folder of lists.
    pub lists: PathBuf,
    /// The folder of programs.
    pub programs: PathBuf,
}

/// The plugin among the others.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Where that is.
    pub place: Place,
    /// Where the agent listens.
    pub socket: PathBuf,
    /// What stands in the list.
    pub entry: Value,
}

/// Why the plugin is not in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A folder or file cannot be read or written.
    #[error("{path}: {why}; check that the node's folder is mounted writable", path = path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// There is no list.
    #[error("{} has no list of CNI plugins yet; the plugin is put there when a CNI has written one", folder.display())]
    NoList {
        /// Where.
        folder: PathBuf,
    },
    /// The list has no known shape.
    #[error("{path} is no list of CNI plugins that another can be added to: {why}", path = path.display())]
    Shape {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The agent has no plugin to install.
    #[error("there is no {PLUGIN} beside the agent at {path}; the image should have it", path = path.display())]
    NoProgram {
        /// Where it should be.
        path: PathBuf,
    },
}

/// An entry for a list: where the agent listens, and what becomes of pods while it does not.
pub fn entry(socket: &Path, fails_closed: bool, wait: Duration) -> Value {
    json!({
        "type": PLUGIN,
        "socket": socket,
        "failurePolicy": if fails_closed { "Fail" } else { "Allow" },
        "waitSeconds": wait.as_secs().max(1),
    })
}

impl Chain {
    /// Puts program and entry in place; says which list was changed, if one was.
    pub fn ensure(&self) -> Result<Option<PathBuf>, ChainError> {
        self.place.install()?;
        let list = self.place.first()?;
        let text = read(&list)?;
        let shape = |why| ChainError::Shape { path: list.clone(), why };
        let Some(chained) = chained(&text, &self.entry).map_err(shape)? else { return Ok(None) };
        replace(&list, chained.as_bytes(), 0o644)?;
        Ok(Some(list))
    }

    /// Keeps the plugin in its place; what keeps it from there is said once, and to `standing`.
    pub async fn keep(self, standing: Standing) {
        let mut watch = None;
        loop {
            if watch.is_none() {
                watch = Watch::new(&self.place.lists).ok();
            }
            standing.count_unguarded(alarms::tell(&self.socket));
            let pause = match self.ensure() {
                Ok(changed) => {
                    if let Some(list) = changed {
                        tracing::info!(list = %list.display(), "{PLUGIN} is among the CNI plugins");
                    }
                    standing.note(None);
                    RECHECK
                }
                Err(error) => {
                    if standing.note(Some(error.to_string())) {
                        tracing::warn!(
                            "{error}; pods that start meanwhile are under policy once their interface is found"
                        );
                    }
                    RETRY
                }
            };
            let heard = async {
                match &mut watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                heard = heard => if heard.is_err() {
                    watch = None;
                },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

impl Place {
    /// Takes the entry out of every list, then the program away: in this order, since a list that
    /// names a program that is not there starts no pod.
    pub fn remove(&self) -> Result<(), ChainError> {
        for list in self.all()? {
            let Some(rest) = unchained(&read(&list)?) else { continue };
            replace(&list, rest.as_bytes(), 0o644)?;
        }
        let program = self.programs.join(PLUGIN);
        match fs::remove_file(&program) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&program, &error)),
            _ => Ok(()),
        }
    }

    fn install(&self) -> Result<(), ChainError> {
        let own = std::env::current_exe().map_err(|error| failed(Path::new(PLUGIN), &error))?;
        let source = own.with_file_name(PLUGIN);
        let program = fs::read(&source).map_err(|_| ChainError::NoProgram { path: source })?;
        let target = self.programs.join(PLUGIN);
        if fs::read(&target).is_ok_and(|there| there == program) {
            return Ok(());
        }
        replace(&target, &program, 0o755)
    }

    /// The list that the runtime uses.
    fn first(&self) -> Result<PathBuf, ChainError> {
        let first = self.all()?.into_iter().next();
        first.ok_or_else(|| ChainError::NoList { folder: self.lists.clone() })
    }

    fn all(&self) -> Result<Vec<PathBuf>, ChainError> {
        let folder = fs::read_dir(&self.lists).map_err(|error| failed(&self.lists, &error))?;
        let mut all: Vec<PathBuf> = folder
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let kind = path.extension().and_then(|kind| kind.to_str());
                matches!(kind, Some("conflist" | "conf" | "json"))
            })
            .collect();
        all.sort();
        Ok(all)
    }
}

/// The list with the entry at its end; `None` where it is there already.
fn chained(text: &str, entry: &Value) -> Result<Option<String>, String> {
    let mut list: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let Some(plugins) = list.get_mut("plugins") else {
        let is_single = list.get("type").is_some();
        return Err(if is_single {
            "it configures a single plugin; write it as a .conflist with `plugins`".to_owned()
        } else {
            "it has no `plugins`".to_owned()
        });
    };
    let plugins = plugins.as_array_mut().ok_or("its `plugins` is no list")?;
    if plugins.iter().all(is_ours) {
        return Err("it has no plugin that makes an interface".to_owned());
    }
    if plugins.last() == Some(entry) && plugins.iter().filter(|entry| is_ours(entry)).count() == 1 {
        return Ok(None);
    }
    plugins.retain(|entry| !is_ours(entry));
    plugins.push(entry.clone());
    Ok(Some(pretty(&list)))
}

/// The list without the entry; `None` where it is not there.
fn unchained(text: &str) -> Option<String> {
    let mut list: Value = serde_json::from_str(text).ok()?;
    let plugins = list.get_mut("plugins")?.as_array_mut()?;
    let before = plugins.len();
    plugins.retain(|entry| !is_ours(entry));
    (plugins.len() < before).then(|| pretty(&list))
}

fn is_ours(entry: &Value) -> bool {
    entry.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

fn pretty(list: &Value) -> String {
    format!("{list:#}\n")
}

fn read(path: &Path) -> Result<String, ChainError> {
    let size = fs::metadata(path).map_err(|error| failed(path, &error))?.len();
    if size > LIST_MAX {
        let why = format!("it has {size} octets, {LIST_MAX} at most are read");
        return Err(ChainError::Shape { path: path.to_owned(), why });
    }
    fs::read_to_string(path).map_err(|error| failed(path, &error))
}

/// Puts a file in place whole or not at all, under a name that no runtime reads until then.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), ChainError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let draft = path.with_file_name(format!(".{name}.namegate-draft"));
    let written = || -> io::Result<()> {
        fs::write(&draft, content)?;
        let mode = fs::metadata(path).map_or(mode, |there| there.permissions().mode());
        fs::set_permissions(&draft, fs::Permissions::from_mode(mode))?;
        fs::File::open(&draft)?.sync_all()?;
        fs::rename(&draft, path)
    };
    written().map_err(|error| {
        // Where the folder takes none there is none.
        let _ = fs::remove_file(&draft);
        failed(path, &error)
    })
}

fn failed(path: &Path, error: &io::Error) -> ChainError {
    ChainError::Io { path: path.to_owned(), why: error.to_string() }
}

/// Tells when something in a folder is another.
struct Watch {
    ready: tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
}

impl Watch {
    fn new(folder: &Path) -> io::Result<Self> {
        let notify = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let what = inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::MOVED_FROM
            | inotify::WatchFlags::DELETE
            | inotify::WatchFlags::DELETE_SELF;
        inotify::add_watch(&notify, folder, what)?;
        Ok(Self { ready: readiness::of(&notify)? })
    }

    /// Waits for a change, and takes all that there are.
    async fn changed(&mut self) -> io::Result<()> {
        let mut guard = self.ready.readable().await?;
        let mut buffer = [0; 4_096];
        loop {
            match rustix::io::read(guard.get_inner(), &mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    guard.clear_ready();
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::thread;

    use super::*;
    use crate::testing::Scratch;

    fn mk_entry() -> Value {
        entry(Path::new("/run/namegate/namegate.cni.sock"), true, Duration::from_secs(10))
    }

    #[test]
    fn the_entry_is_the_last_of_the_list_and_stands_there_once() {
        let list = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge","x":[1]},{"type":"portmap"}]}"#;
        let chained_once = chained(list, &mk_entry()).unwrap().unwrap();
        let value: Value = serde_json::from_str(&chained_once).unwrap();
        assert_eq!(value["plugins"][2], mk_entry());
        assert_eq!(value["plugins"][0], json!({"type": "bridge", "x": [1]}));
        assert_eq!(chained(&chained_once, &mk_entry()), Ok(None), "nothing to write");

        // Another plugin that came behind it, and an entry of an older agent.
        let mut moved = value.clone();
        moved["plugins"].as_array_mut().unwrap().swap(1, 2);
        moved["plugins"][1]["failurePolicy"] = "Allow".into();
        let mended = chained(&moved.to_string(), &mk_entry()).unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Value>(&mended).unwrap(), value);

        let rest: Value = serde_json::from_str(&unchained(&chained_once).unwrap()).unwrap();
        assert_eq!(rest, serde_json::from_str::<Value>(list).unwrap());
        assert_eq!(unchained(list), None);
    }

    #[test]
    fn a_list_of_no_known_shape_is_left_alone() {
        for (text, words) in [
            ("{", "EOF"),
            ("[]", "no `plugins`"),
            (r#"{"type": "bridge"}"#, "single plugin"),
            (r#"{"plugins": {}}"#, "no list"),
            (r#"{"plugins": []}"#, "makes an interface"),
        ] {
            let why = chained(text, &mk_entry()).unwrap_err();
            assert!(why.contains(words), "{text}: {why}");
        }
    }

    #[test]
    fn a_reader_meets_a_whole_list_at_every_moment() {
        let folder = Scratch::new("chain");
        let list = folder.0.join("10-net.conflist");
        // So long that half of it would be met.
        let plugins: Vec<Value> =
            (0..1_000).map(|number| json!({"type": "bridge", "number": number})).collect();
        let without = pretty(&json!({"cniVersion": "1.0.0", "name": "net", "plugins": plugins}));
        let with = chained(&without, &mk_entry()).unwrap().unwrap();
        fs::write(&list, &without).unwrap();
        let met = [AtomicU32::new(0), AtomicU32::new(0)];
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let text = fs::read_to_string(&list).unwrap();
                    assert!(text == without || text == with, "{} octets of a list", text.len());
                    met[usize::from(text == with)].fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut rounds = 0;
            let is_enough = |rounds| {
                rounds >= 20 && met.iter().all(|times| times.load(Ordering::Relaxed) >= 10)
            };
            while !reader.is_finished() && !is_enough(rounds) {
                replace(&list, with.as_bytes(), 0o644).unwrap();
                replace(&list, without.as_bytes(), 0o644).unwrap();
                rounds += 1;
            }
            is_over.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        let left: Vec<_> =
            fs::read_dir(&folder.0).unwrap().map(|file| file.unwrap().path()).collect();
        assert_eq!(left, [list]);
    }
}
