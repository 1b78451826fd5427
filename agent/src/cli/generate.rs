//! `namegate completion` and `namegate man`: what shells and man(1) need, from the command line's own
//! definition.

use std::fs;
use std::io;
use std::path::PathBuf;

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

pub(super) fn completion(args: &CompletionArgs) {
    clap_complete::generate(args.shell, &mut Cli::command(), "namegate", &mut io::stdout());
}

pub(super) fn man(args: &ManArgs) -> anyhow::Result<()> {
    let command = Cli::command();
    match &args.directory {
        None => Ok(clap_mangen::Man::new(command).render(&mut io::stdout())?),
        Some(directory) => fs::create_dir_all(directory)
            .and_then(|()| clap_mangen::generate_to(command, directory))
            .with_context(|| format!("cannot write the pages to {}", directory.display())),
    }
}

#[cfg(test)]
mod tests {
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
