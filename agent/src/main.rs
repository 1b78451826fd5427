//! The `namegate` command.

use std::process::ExitCode;

use clap::Parser;
use namegate::cli::Cli;

fn main() -> ExitCode {
    namegate::cli::run(Cli::parse())
}
