//! `make demo`: tells the story; `demo clean` removes a town that was left standing.

#![forbid(unsafe_code)]

use std::env;
use std::process::ExitCode;

use anyhow::{Result, bail};
use namegate_integration::demo;

fn main() -> ExitCode {
    match play() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play() -> Result<bool> {
    match env::args().nth(1).as_deref() {
        None => demo::run(),
        Some("clean") => demo::clean().map(|()| true),
        Some(other) => bail!("unknown argument {other:?}; the only one is `clean`"),
    }
}
