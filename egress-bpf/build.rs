//! Builds the kernel program from this crate's own source, with whichever BPF toolchain is there.
//!
//! Two are known: the compiler of the distribution's `rustc-web` package, which has a prebuilt `core`
//! for BPF, and a rustup nightly with `rust-src`. Both need `bpf-linker`. `AYA_BUILD_SKIP=1` leaves an
//! empty object, for checks on machines that never load it.
//!
//! Builds for tests get a second object, of the same source and other instructions: what another build of
//! the agent would load.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const PROGRAM: &str = "namegate-egress";
/// What is built, and how much each is optimised.
const OBJECTS: [(&str, &str); 2] = [(PROGRAM, "3"), ("namegate-egress-other", "2")];
const WATCHED: [&str; 7] =
    ["Cargo.toml", "build.rs", "src/lib.rs", "src/abi", "src/packet", "src/verdict", "src/program"];
const MISSING: &str = "no BPF toolchain: run `make setup`, or install either the Debian packages \
    `rustc-web` and `libstd-rust-web-dev-bpf` or a rustup nightly with the component `rust-src`, \
    and in both cases `bpf-linker` (AYA_BUILD_SKIP=1 builds without the kernel program)";

fn main() -> ExitCode {
    for path in WATCHED {
        println!("cargo:rerun-if-changed={path}");
    }
    for variable in ["AYA_BUILD_SKIP", "NAMEGATE_BPF_RUSTC"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "bpf")
        || env::var_os("CARGO_FEATURE_HOST").is_none()
    {
        return ExitCode::SUCCESS;
    }
    match place_object() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo:error={message}");
            ExitCode::FAILURE
        }
    }
}

fn place_object() -> Result<(), String> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let is_skipped = env::var("AYA_BUILD_SKIP").is_ok_and(|skip| skip == "1" || skip == "true");
    let is_for_tests = variable("PROFILE")? == "debug";
    for (name, level) in OBJECTS {
        let object = out.join(name);
        if is_skipped || !(name == PROGRAM || is_for_tests) {
            std::fs::write(&object, [])
                .map_err(|error| format!("cannot write {}: {error}", object.display()))?;
            continue;
        }
        let built = Toolchain::find().ok_or(MISSING)?.build(&out, level)?;
        std::fs::copy(&built, &object)
            .map_err(|error| format!("cannot copy {}: {error}", built.display()))?;
    }
    Ok(())
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}

/// A compiler that can make BPF objects.
enum Toolchain {
    /// This rustc has a prebuilt `core` for the BPF target.
    Prebuilt(PathBuf),
    /// `rustup run nightly` with `rust-src`, building `core` from source.
    Nightly,
}

impl Toolchain {
    fn find() -> Option<Self> {
        if !runs(Command::new("bpf-linker").arg("--version")) {
            return None;
        }
        let named = env::var_os("NAMEGATE_BPF_RUSTC").map(PathBuf::from);
        let candidates = named.into_iter().chain([PathBuf::from("/usr/bin/rustc")]);
        for rustc in candidates {
            let target_libdir = answer(Command::new(&rustc).args([
                "--print",
                "target-libdir",
                "--target",
                &target(),
            ]));
            if target_libdir.is_some_and(|path| Path::new(&path).is_dir()) {
                return Some(Self::Prebuilt(rustc));
            }
        }
        let sysroot =
            answer(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))?;
        Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core")
            .is_dir()
            .then_some(Self::Nightly)
    }

    fn build(&self, out: &Path, level: &str) -> Result<PathBuf, String> {
        let mut command = match self {
            Self::Prebuilt(rustc) => {
                let mut command = Command::new(variable("CARGO")?);
                // aya-ebpf alone needs an unstable feature, inline assembly for BPF.
                command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "aya_ebpf");
                command.arg("build");
                command
            }
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
                command.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
                command
            }
        };
        let nested = out.join("bpf");
        command
            .args(["--package", "namegate-egress-bpf", "--bin", PROGRAM])
            .args(["--no-default-features", "--release", "--target", &target()])
            .arg("--target-dir")
            .arg(&nested)
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags()?)
            // More than one codegen unit leaves calls that break the 512-byte stack.
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_LTO", "fat")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", level)
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("CARGO_BUILD_TARGET")
            // Unified with those of the workspace, the kernel's features would bring `std`.
            .env_remove("CARGO_RESOLVER_FEATURE_UNIFICATION")
            .stdin(Stdio::null());
        let output =
            command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
        if !output.status.success() {
            for line in String::from_utf8_lossy(&output.stderr).lines() {
                println!("cargo:warning={line}");
            }
            return Err(format!("building the kernel program failed: {}", output.status));
        }
        Ok(nested.join(target()).join("release").join(PROGRAM))
    }
}

fn target() -> String {
    let big = env::var("CARGO_CFG_TARGET_ENDIAN").is_ok_and(|endian| endian == "big");
    format!("bpf{}-unknown-none", if big { "eb" } else { "el" })
}

fn rustflags() -> Result<String, String> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").map_err(|error| error.to_string())?;
    Ok([
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Otherwise every fill and move, of three octets too, is a call of a loop over octets.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ]
    .join("\x1f"))
}

fn runs(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn answer(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
