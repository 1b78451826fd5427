//! Whether everything that the agent read is enforced, told to `namegate ready` by a file.
//!
//! The first line of the file is the number of the process that wrote it; each further line is
//! something that is not enforced.

use std::fs;
use std::io;
use std::path::Path;

/// What a ready file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// No agent that runs wrote it.
    NoAgent,
    /// An agent runs and enforces all but these.
    Lacking(Vec<String>),
    /// An agent runs and enforces everything.
    Ready,
}

/// Writes the file, whole or not at all.
pub fn write(path: &Path, lacking: impl Iterator<Item = String>) -> io::Result<()> {
    let mut text = format!("{}\n", std::process::id());
    for line in lacking {
        text.push_str(&line.replace('\n', " "));
        text.push('\n');
    }
    let draft = path.with_extension("draft");
    fs::write(&draft, text)?;
    fs::rename(draft, path)
}

/// Reads the file; one of a process that is gone is no agent's.
pub fn read(path: &Path) -> Readiness {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines = text.lines();
    let process = lines.next().and_then(|line| line.trim().parse::<u32>().ok());
    if !process.is_some_and(|process| Path::new("/proc").join(process.to_string()).exists()) {
        return Readiness::NoAgent;
    }
    let lacking: Vec<String> = lines.map(str::to_owned).collect();
    if lacking.is_empty() { Readiness::Ready } else { Readiness::Lacking(lacking) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let path = std::env::temp_dir().join(format!("namegate-ready-{}", std::process::id()));
        assert_eq!(read(&path), Readiness::NoAgent);
        write(&path, std::iter::empty()).unwrap();
        assert_eq!(read(&path), Readiness::Ready);
        write(&path, ["interface 7: gone\nastray".to_owned()].into_iter()).unwrap();
        assert_eq!(read(&path), Readiness::Lacking(vec!["interface 7: gone astray".to_owned()]));
        fs::write(&path, "4294967294\n").unwrap();
        assert_eq!(read(&path), Readiness::NoAgent, "no such process");
        fs::remove_file(path).unwrap();
    }
}
