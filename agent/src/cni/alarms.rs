//! Word that the plugin left of pods that started while nobody could see their policy in force.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The folder of alarms beside the socket.
pub const FOLDER: &str = "unguarded";

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
