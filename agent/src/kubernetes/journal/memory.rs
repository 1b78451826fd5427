//! What an earlier agent wrote: where the line on each object is. Objects of a large cluster are read
//! one at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};

use serde_json::Value;

use super::super::kinds::{WATCHED, Watched};
use super::FILE_MAX;
use super::entry::{About, Checksum, Entry, Line};

/// Octets of a checksum and the space after it.
const CHECKSUM: usize = 17;

/// Namespace and name.
type Key = (Box<str>, Box<str>);

/// A journal that was read.
#[derive(Debug)]
pub(in super::super) struct Memory {
    file: File,
    kinds: BTreeMap<String, Kind>,
    is_whole: bool,
}

/// Objects of a kind.
#[derive(Debug, Default)]
struct Kind {
    settled: BTreeMap<Key, Place>,
    /// What came and was not settled; whether the line is one of an object that is there.
    staged: Vec<(Key, Place, bool)>,
}

/// Where the JSON of a line is in the file.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: u64,
    length: usize,
}

impl Memory {
    /// Reads a journal; `None` where it is another one. An agent that is killed leaves half a
    /// line at the end, which does not count; anything else that is wrong is an error.
    pub(super) fn read(file: File, about: &About) -> io::Result<Option<Self>> {
        check(&file)?;
        let mut reader = BufReader::new(file.try_clone()?).take(FILE_MAX);
        let mut memory = Self { file, kinds: BTreeMap::new(), is_whole: false };
        let (mut text, mut at, mut checksum) = (Vec::new(), 0, Checksum::default());
        let mut is_first = true;
        loop {
            text.clear();
            let length = reader.read_until(b'\n', &mut text)?;
            let Some((b'\n', line)) = text.split_last() else {
                return Ok(Some(memory).filter(|_| !is_first));
            };
            let (claimed, line) = line.split_at_checked(CHECKSUM).unwrap_or_default();
            checksum.take(line);
            if claimed.strip_suffix(b" ") != Some(checksum.to_string().as_bytes()) {
                let why = format!("it is damaged at octet {at}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            if !is_first {
                let place = Place { at: at + CHECKSUM as u64, length: line.len() };
                memory.take(serde_json::from_slice(line)?, place);
            } else if line != about.text().as_bytes() {
                tracing::info!("the objects that are kept are not those that were in force last");
                return Ok(None);
            }
            is_first = false;
            at += length as u64;
        }
    }

    /// Whether every kind was read whole.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The objects of a kind.
    pub(in super::super) fn objects(
        &self,
        watched: Watched,
    ) -> impl Iterator<Item = io::Result<Value>> {
        let kind = self.kinds.get(&watched.resource());
        kind.into_iter().flat_map(|kind| kind.settled.values()).map(|place| {
            match serde_json::from_slice(&self.text(*place)?)? {
                Line::Put(_, object) => Ok(object),
                Line::Gone(..) | Line::List(_) | Line::Settled(_) | Line::Whole => {
                    Err(io::Error::other("it changed while it was read"))
                }
            }
        })
    }

    /// Says it again in as few lines as there are objects.
    pub(super) fn tell(&self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        for watched in WATCHED {
            let Some(kind) = self.kinds.get(&watched.resource()) else { continue };
            for place in kind.settled.values() {
                write(&self.text(*place)?)?;
            }
            write(Entry::settled(&watched).text().as_bytes())?;
        }
        if self.is_whole {
            write(Entry::whole().text().as_bytes())?;
        }
        for (_, place, _) in self.kinds.values().flat_map(|kind| &kind.staged) {
            write(&self.text(*place)?)?;
        }
        Ok(())
    }

    fn text(&self, place: Place) -> io::Result<Vec<u8>> {
        let mut text = vec![0; place.length];
        self.file.read_exact_at(&mut text, place.at)?;
        Ok(text)
    }

    fn take(&mut self, line: Line, place: Place) {
        match line {
            Line::Put(of, object) => {
                let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
                let key = |pointer| text(pointer).unwrap_or_default().into();
                let key = (key("/metadata/namespace"), key("/metadata/name"));
                self.kinds.entry(of).or_default().staged.push((key, place, true));
            }
            Line::Gone(of, namespace, name) => {
                let key = (namespace.into(), name.into());
                self.kinds.entry(of).or_default().staged.push((key, place, false));
            }
            Line::List(of) => self.kinds.entry(of).or_default().staged.clear(),
            Line::Settled(of) => self.kinds.entry(of).or_default().settle(),
            Line::Whole => self.is_whole = true,
        }
    }
}

impl Kind {
    fn settle(&mut self) {
        for (key, place, is_there) in self.staged.drain(..) {
            if is_there {
                self.settled.insert(key, place);
            } else {
                self.settled.remove(&key);
            }
        }
    }
}

/// Refuses a file that is not the agent's own work.
fn check(file: &File) -> io::Result<()> {
    let found = file.metadata()?;
    let is_own = found.is_file() && found.uid() == rustix::process::geteuid().as_raw();
    if !is_own || found.mode() & 0o022 != 0 {
        return Err(io::Error::other("others than the agent may have written it"));
    }
    if found.len() > FILE_MAX {
        return Err(io::Error::other("it is too large"));
    }
    Ok(())
}
