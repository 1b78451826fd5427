//! `namegate completion` and `namegate man`: what shells and man(1) need, from the command line's own
//! definition.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Options of `namegate completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Options of `namegate man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write one page a command into this directory, such as /usr/local/share/man/man1
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(super) fn completion(args: &CompletionArgs) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "namegate", &mut script);
    super::print(&script)
}

pub(super) fn man(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let command = Cli::command();
    let Some(directory) = &args.directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return Ok(super::print(&page));
    };
    if !directory.is_dir() {
        eprintln!("namegate: --directory {}: not a directory; make it first", directory.display());
        return Ok(ExitCode::from(2));
    }
    clap_mangen::generate_to(command, directory)
        .with_context(|| format!("cannot write the pages to {}", directory.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_a_script() {
        let scratch = crate::testing::Scratch::new("man");
        man(&ManArgs { directory: Some(scratch.0.clone()) }).unwrap();
        for command in Cli::command().get_subcommands() {
            let page = scratch.0.join(format!("namegate-{}.1", command.get_name()));
            let text = fs::read_to_string(&page).expect("a page");
            assert!(text.contains(".SH NAME"), "{}", page.display());
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "namegate", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("observe") && script.contains("follow"), "{shell}");
        }
    }
}
