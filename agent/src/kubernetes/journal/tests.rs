use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use super::super::kinds::{WATCHED, Watched};
use super::*;

/// A folder, and the id of the journal in it that was noted.
struct Folder(PathBuf, RefCell<Option<String>>);

impl Folder {
    fn new(test: &str) -> Self {
        let name = format!("namegate-journal-{test}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder, RefCell::default())
    }

    fn path(&self) -> PathBuf {
        path(&self.0)
    }

    /// The journal over a node, and the pods that it held.
    fn open(&self, node: &str) -> (Journal, Option<Vec<String>>) {
        let noted = self.1.borrow_mut().take();
        let (journal, memory) =
            Journal::open(&self.path(), "https://api:6443", node, noted.as_deref());
        self.1.replace(Some(journal.id().to_owned()));
        let name = |object: io::Result<Value>| {
            object.unwrap()["metadata"]["name"].as_str().unwrap().to_owned()
        };
        (journal, memory.map(|memory| memory.objects(pods()).map(name).collect()))
    }

    /// A journal that holds the pod `web`.
    fn with_web(test: &str) -> Self {
        let folder = Self::new(test);
        folder.open("a").0.add(&[put("web"), settled(), Entry::whole()]);
        folder
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn pods() -> Watched {
    *WATCHED.iter().find(|watched| watched.kind == "Pod").unwrap()
}

fn put(name: &str) -> Entry {
    Entry::put(&pods(), &json!({"kind": "Pod", "metadata": {"namespace": "shop", "name": name}}))
}

fn gone(name: &str) -> Entry {
    Entry::gone(&pods(), "shop", name)
}

fn list() -> Entry {
    Entry::list(&pods())
}

fn settled() -> Entry {
    Entry::settled(&pods())
}

fn names(names: &[&str]) -> Option<Vec<String>> {
    Some(names.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn the_last_word_on_each_object_is_read_back() {
    let folder = Folder::new("last");
    let (mut journal, remembered) = folder.open("a");
    assert_eq!(remembered, None);
    journal.add(&[put("web"), put("old"), settled(), Entry::whole()]);
    journal.add(&[gone("old"), settled()]);
    journal.add(&[put("late"), settled()]);
    let (mut journal, remembered) = folder.open("a");
    assert_eq!(remembered, names(&["late", "web"]));
    journal.add(&[gone("web"), settled()]);
    assert_eq!(folder.open("a").1, names(&["late"]), "one that was read back goes on");
    assert_eq!(folder.open("b").1, None, "another node's is none");
}

#[test]
fn a_change_counts_once_it_is_settled_and_then_as_one() {
    let folder = Folder::with_web("settled");
    let (mut journal, _) = folder.open("a");
    journal.add(&[list(), put("other"), gone("web")]);
    let (mut journal, remembered) = folder.open("a");
    assert_eq!(remembered, names(&["web"]), "the list did not end");
    // The next list under way is another one: what the first told was kept over the rewrite.
    journal.add(&[list(), put("third")]);
    journal.add(&[settled()]);
    assert_eq!(folder.open("a").1, names(&["third", "web"]));
}

#[test]
fn a_list_that_outlasts_a_rewrite_is_settled_after_it() {
    let folder = Folder::with_web("rewrite");
    let (mut journal, _) = folder.open("a");
    journal.add(&[list(), put("other"), gone("web")]);
    let memory = journal.read().unwrap();
    journal.rewrite(memory.as_ref()).unwrap();
    journal.add(&[settled()]);
    assert_eq!(folder.open("a").1, names(&["other"]));
}

#[test]
fn a_journal_is_written_anew_when_it_grows() {
    let folder = Folder::with_web("grows");
    let (mut journal, _) = folder.open("a");
    journal.rewrite_min = 4_096;
    let sizes: Vec<u64> = (0..200)
        .map(|_| {
            journal.add(&[put("web"), settled()]);
            fs::metadata(folder.path()).unwrap().len()
        })
        .collect();
    let rewritten = sizes.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(rewritten > 2, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 4_096), "{sizes:?}");
    assert_eq!(folder.open("a").1, names(&["web"]));
}

#[test]
fn what_does_not_say_all_says_nothing() {
    let folder = Folder::new("part");
    folder.open("a").0.add(&[put("web"), settled()]);
    assert_eq!(folder.open("a").1, None);
}

#[test]
fn half_a_line_at_the_end_is_passed_over() {
    let folder = Folder::with_web("half");
    let whole = fs::read(folder.path()).unwrap();
    fs::write(folder.path(), [&whole, &b"0123456789abcdef {\"put\""[..]].concat()).unwrap();
    assert_eq!(folder.open("a").1, names(&["web"]));
}

#[test]
fn a_journal_that_is_damaged_anywhere_is_not_believed() {
    let folder = Folder::with_web("damaged");
    let whole = fs::read(folder.path()).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(folder.path(), damaged).unwrap();
        assert_eq!(folder.open("a").1, None, "octet {at}");
    }
    // A line is missing, each other one is as it was.
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    for missing in 0..lines.len() - 1 {
        let mut damaged = lines.clone();
        damaged.remove(missing);
        fs::write(folder.path(), damaged.concat()).unwrap();
        assert_eq!(folder.open("a").1, None, "line {missing}");
    }
}

#[test]
fn what_others_may_have_written_is_not_believed() {
    let folder = Folder::with_web("others");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o662)).unwrap();
    assert_eq!(folder.open("a").1, None);
}

#[test]
fn one_that_is_not_noted_is_older_than_what_is_in_force() {
    let folder = Folder::with_web("noted");
    let noted = folder.1.borrow().clone();
    assert_eq!(folder.open("a").1, names(&["web"]));
    assert_eq!(*folder.1.borrow(), noted, "it keeps its id");
    for other in [None, Some("0123456789abcdef".to_owned())] {
        let folder = Folder::with_web("noted-other");
        folder.1.replace(other);
        assert_eq!(folder.open("a").1, None);
    }
}

#[test]
fn one_that_is_put_in_anothers_place_is_the_one_that_counts() {
    let heirs = Folder::with_web("settles");
    let (mut journal, _) = heirs.open("a");
    let folder = Folder::new("settled-here");
    folder.open("a").0.add(&[put("old"), settled(), Entry::whole()]);
    journal.settle(folder.path());
    journal.add(&[put("late"), settled()]);
    folder.1.replace(Some(journal.id().to_owned()));
    assert_eq!(folder.open("a").1, names(&["late", "web"]));
    // One that is lost leaves nothing that is older.
    let (mut journal, _) = heirs.open("a");
    journal.file = None;
    journal.settle(folder.path());
    assert!(!folder.path().exists());
}

#[test]
fn only_the_agent_may_read_it() {
    let folder = Folder::with_web("mode");
    assert_eq!(fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_journal_that_cannot_be_written_is_taken_away() {
    let folder = Folder::with_web("readonly");
    let (mut journal, _) = folder.open("a");
    journal.file = Some(Pen {
        file: BufWriter::new(File::open(folder.path()).unwrap()),
        checksum: Checksum::default(),
        size: 0,
    });
    journal.add(&[gone("web"), settled()]);
    assert!(!folder.path().exists(), "it would bring the pod back");
}

#[tokio::test]
async fn a_thread_of_its_own_writes_all_in_order_and_more_than_may_wait() {
    let folder = Folder::new("scribe");
    let scribe = Scribe::start(folder.open("a").0);
    let large = json!({"kind": "Pod", "metadata": {"namespace": "shop", "name": "large"}, "rest": "x".repeat(1 << 20)});
    for _ in 0..64 {
        while !scribe.has_room() {
            scribe.progress().await;
        }
        scribe.add(vec![Entry::put(&pods(), &large), settled()]);
    }
    scribe.add(vec![put("web"), gone("large"), settled(), Entry::whole()]);
    while !scribe.is_written() {
        scribe.progress().await;
    }
    let other = folder.0.join("other.journal");
    scribe.settle(other.clone());
    assert!(other.exists() && !folder.path().exists());
    scribe.settle(folder.path());
    drop(scribe);
    assert_eq!(folder.open("a").1, names(&["web"]));
}
