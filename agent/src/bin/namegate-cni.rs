//! The `namegate-cni` plugin.

use std::process::ExitCode;

fn main() -> ExitCode {
    namegate::cni::plugin::main()
}
