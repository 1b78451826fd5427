//! A wall clock that a test sets, for one program: the machine's own stays as it is.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;

use crate::lab::Lab;
use crate::process::run;

const SOURCE: &str = include_str!("wall_clock.c");

/// A wall clock, which programs that are started in its environment go by.
#[derive(Debug)]
pub struct WallClock {
    library: PathBuf,
    offset: PathBuf,
}

impl WallClock {
    /// Makes one that says what the machine's says.
    pub fn new(lab: &Lab) -> Result<Self> {
        let (library, offset) = (lab.file("wall_clock.so"), lab.file("wall_clock.offset"));
        let source = lab.file("wall_clock.c");
        fs::write(&source, SOURCE)?;
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
        run(compiler.stdin(Stdio::null()), Duration::from_secs(60))?.success()?;
        let clock = Self { library, offset };
        clock.set(0)?;
        Ok(clock)
    }

    /// What a program has to have in its environment.
    pub fn environment(&self) -> [(&'static str, OsString); 2] {
        [
            ("LD_PRELOAD", self.library.clone().into()),
            ("WALL_CLOCK_OFFSET", self.offset.clone().into()),
        ]
    }

    /// Sets it to so many seconds after what the machine's says.
    pub fn set(&self, seconds: i64) -> Result<()> {
        let draft = self.offset.with_extension("draft");
        fs::write(&draft, seconds.to_string())?;
        fs::rename(&draft, &self.offset)?;
        Ok(())
    }
}
