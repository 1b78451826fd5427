//! Word that the plugin left of pods that started while nobody could see their policy in force.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// The folder of alarms beside the socket.
pub const FOLDER: &str = "unguarded";

/// The ending of an alarm that is being written.
pub const DRAFT: &str = "draft";

/// How old a draft is whose plugin has died.
const DRAFT_AGE: Duration = Duration::from_secs(60);

/// The largest alarm that is read.
const ALARM_MAX: u64 = 64 << 10;

#[derive(Deserialize)]
struct Alarm {
    pod: String,
    why: String,
}

/// Where the plugin leaves its alarms, for an agent that listens at `socket`.
pub fn folder(socket: &Path) -> Option<PathBuf> {
    socket.parent().map(|folder| folder.join(FOLDER))
}

/// Takes away what was left and never told.
pub fn remove(socket: &Path) -> io::Result<()> {
    let Some(folder) = folder(socket) else { return Ok(()) };
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Says every alarm that was left, and takes it away; says how many there were.
pub fn tell(socket: &Path) -> usize {
    let left = folder(socket).and_then(|folder| fs::read_dir(folder).ok());
    let mut told = 0;
    for entry in left.into_iter().flatten().flatten() {
        let path = entry.path();
        if is_being_written(&entry) {
            continue;
        }
        let is_small =
            entry.metadata().is_ok_and(|found| found.is_file() && found.len() <= ALARM_MAX);
        let alarm = is_small.then(|| fs::read(&path).ok()).flatten();
        let alarm = alarm.and_then(|text| serde_json::from_slice::<Alarm>(&text).ok());
        let (pod, why) = match &alarm {
            Some(alarm) => (&*alarm.pod, &*alarm.why),
            None => ("unknown", "the word that was left cannot be read"),
        };
        // What stays would be told and counted again.
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), pod, why, %error, "an alarm cannot be taken away");
            continue;
        }
        tracing::error!(pod, why, "a pod started before its policy was in force");
        told += 1;
    }
    told
}

fn is_being_written(entry: &fs::DirEntry) -> bool {
    let is_draft = entry.path().extension().is_some_and(|ending| ending == DRAFT);
    let written = entry.metadata().and_then(|found| found.modified());
    // A clock that was set back makes it young, and it is told later.
    is_draft && !written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > DRAFT_AGE))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn an_alarm_that_is_being_written_is_told_once_its_plugin_is_done_or_dead() {
        let place = std::env::temp_dir().join(format!("namegate-alarms-{}", std::process::id()));
        let socket = place.join("cni.sock");
        let left = folder(&socket).unwrap();
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("c1.json"), r#"{"pod": "shop/web", "why": "no agent"}"#).unwrap();
        let draft = left.join("c2.draft");
        fs::write(&draft, r#"{"pod": "sh"#).unwrap();
        assert_eq!(tell(&socket), 1);
        assert!(draft.exists() && !left.join("c1.json").exists());
        let long_ago = SystemTime::now() - 2 * DRAFT_AGE;
        fs::File::options().write(true).open(&draft).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(tell(&socket), 1);
        assert!(!draft.exists());
        fs::remove_dir_all(place).unwrap();
    }
}
