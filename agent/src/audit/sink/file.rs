use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Batch, Sink, Unwritten};

/// A file of bounded size. When it is full it becomes `FILE.1`, what was `FILE.1` becomes `FILE.2`,
/// and what is older than `keep` files goes.
///
/// What is moved or removed by others, as logrotate does, is opened anew.
#[derive(Debug)]
pub(in super::super) struct RotatedFile {
    path: PathBuf,
    max_bytes: u64,
    keep: u32,
    /// `None` after it could not be opened.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    place: (u64, u64),
    size: u64,
    /// Whether a part of a line could not be taken back.
    is_torn: bool,
}

impl RotatedFile {
    /// Opens `path` for appending.
    pub(in super::super) fn open(path: &Path, max_bytes: u64, keep: u32) -> io::Result<Self> {
        let open = Some(Open::at(path)?);
        Ok(Self { path: path.to_owned(), max_bytes, keep, open })
    }

    /// The file, the one that bears the name, with room for `more`.
    fn with_room(&mut self, more: u64) -> io::Result<&mut Open> {
        let bears_the_name = |open: &Open| {
            std::fs::metadata(&self.path).is_ok_and(|is| (is.dev(), is.ino()) == open.place)
        };
        if !self.open.as_ref().is_some_and(bears_the_name) {
            self.open = None;
            self.open = Some(Open::at(&self.path)?);
        }
        let is_full =
            |open: &Open| open.size > 0 && open.size.saturating_add(more) > self.max_bytes;
        if self.open.as_ref().is_some_and(is_full) {
            self.rotate()?;
            self.open = None;
            self.open = Some(Open::at(&self.path)?);
        }
        self.open.as_mut().ok_or_else(|| io::Error::other("the file is not open"))
    }

    fn rotate(&self) -> io::Result<()> {
        if self.keep == 0 {
            return std::fs::remove_file(&self.path);
        }
        for number in (1..self.keep).rev() {
            match std::fs::rename(self.numbered(number), self.numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        std::fs::rename(&self.path, self.numbered(1))
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let is = file.metadata()?;
        Ok(Self { file, place: (is.dev(), is.ino()), size: is.len(), is_torn: false })
    }

    /// Appends the whole of `text`, or nothing.
    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.file.write_all(b"\n")?;
            self.size += 1;
            self.is_torn = false;
        }
        match self.file.write_all(text) {
            Ok(()) => {
                self.size += text.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.is_torn = self.file.set_len(self.size).is_err();
                Err(error)
            }
        }
    }
}

impl Sink for RotatedFile {
    fn write(&mut self, batch: &Batch) -> Result<(), Unwritten> {
        let outcome =
            self.with_room(batch.text.len() as u64).and_then(|open| open.append(&batch.text));
        outcome.map_err(|source| Unwritten { lines: batch.len(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("audit-file-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn read(&self, name: &str) -> Option<String> {
            std::fs::read_to_string(self.0.join(name)).ok()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn mk_batch(lines: &[&str]) -> Batch {
        let mut batch = Batch::default();
        for line in lines {
            batch.text.extend_from_slice(line.as_bytes());
            batch.text.push(b'\n');
            batch.ends.push((batch.text.len(), false));
        }
        batch
    }

    #[test]
    fn files_never_grow_beyond_their_bound_and_the_oldest_goes() {
        let folder = Folder::new("bound");
        let path = folder.0.join("a.log");
        let mut file = RotatedFile::open(&path, 20, 2).unwrap();
        for number in 0..7 {
            file.write(&mk_batch(&[&format!("line {number}"), "and more"])).unwrap();
        }
        assert_eq!(folder.read("a.log").as_deref(), Some("line 6\nand more\n"));
        assert_eq!(folder.read("a.log.1").as_deref(), Some("line 5\nand more\n"));
        assert_eq!(folder.read("a.log.2").as_deref(), Some("line 4\nand more\n"));
        assert_eq!(folder.read("a.log.3"), None);
    }

    #[test]
    fn a_file_of_an_earlier_agent_counts() {
        let folder = Folder::new("earlier");
        let path = folder.0.join("a.log");
        std::fs::write(&path, "from before\n").unwrap();
        let mut file = RotatedFile::open(&path, 20, 0).unwrap();
        file.write(&mk_batch(&["abc"])).unwrap();
        assert_eq!(folder.read("a.log").as_deref(), Some("from before\nabc\n"));
        file.write(&mk_batch(&["defgh"])).unwrap();
        assert_eq!(folder.read("a.log").as_deref(), Some("defgh\n"), "nothing is kept");
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_anew() {
        let folder = Folder::new("moved");
        let path = folder.0.join("a.log");
        let mut file = RotatedFile::open(&path, 1_000, 1).unwrap();
        file.write(&mk_batch(&["one"])).unwrap();
        std::fs::rename(&path, folder.0.join("b.log")).unwrap();
        file.write(&mk_batch(&["two"])).unwrap();
        assert_eq!(folder.read("b.log").as_deref(), Some("one\n"));
        assert_eq!(folder.read("a.log").as_deref(), Some("two\n"));
    }

    #[test]
    fn a_folder_that_went_and_came_back_costs_only_what_came_meanwhile() {
        let folder = Folder::new("gone");
        let inner = folder.0.join("inner");
        std::fs::create_dir(&inner).unwrap();
        let mut file = RotatedFile::open(&inner.join("a.log"), 1_000, 1).unwrap();
        std::fs::remove_dir_all(&inner).unwrap();
        let error = file.write(&mk_batch(&["lost", "lost too"])).unwrap_err();
        assert_eq!(error.lines, 2);
        std::fs::create_dir(&inner).unwrap();
        file.write(&mk_batch(&["kept"])).unwrap();
        assert_eq!(folder.read("inner/a.log").as_deref(), Some("kept\n"));
    }
}
