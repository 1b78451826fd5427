//! What tests change about a running agent. Builds without debug assertions, releases among them, have
//! none of it.

use std::io;

use super::load::OBJECT;
use crate::abi::ABI_VERSION;

#[cfg(debug_assertions)]
thread_local! {
    /// How many writes succeed before some fail, and how many fail.
    static FAILING: std::cell::Cell<(u64, u64)> = const { std::cell::Cell::new((0, 0)) };
    /// Which of how many writes fail, where any do, and how many were made.
    static FAILING_EACH: std::cell::Cell<(u64, u64)> = const { std::cell::Cell::new((0, 0)) };
    /// The version that this thread's datapaths take for their own, where it is another.
    static VERSION: std::cell::Cell<Option<u32>> = const { std::cell::Cell::new(None) };
}

/// Has the datapaths of this thread be of another version from here on.
#[cfg(debug_assertions)]
pub fn pretend_abi_version(version: u32) {
    VERSION.set(Some(version));
}

/// Lets `count` writes of this thread to maps fail after `before` that do not, as if the kernel had no
/// memory for them; returns what is left of what was said last.
#[cfg(debug_assertions)]
pub fn fail_writes(before: u64, count: u64) -> (u64, u64) {
    FAILING.replace((before, count))
}

/// Lets every `nth` write of this thread to maps fail in the same way, `before` of them being counted as
/// made; zero ends it.
#[cfg(debug_assertions)]
pub fn fail_each(nth: u64, before: u64) {
    FAILING_EACH.set((nth, before));
}

/// Why the write that is about to be made fails, where it does.
#[cfg(debug_assertions)]
pub(super) fn write_fault() -> Option<io::Error> {
    let fails_alone = FAILING.with(|failing| match failing.get() {
        (_, 0) => false,
        (0, count) => {
            failing.set((0, count - 1));
            true
        }
        (before, count) => {
            failing.set((before - 1, count));
            false
        }
    });
    let (nth, made) = FAILING_EACH.get();
    FAILING_EACH.set((nth, made + 1));
    let fails = fails_alone || nth != 0 && (made + 1).is_multiple_of(nth);
    fails.then(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

/// Why the write that is about to be made fails, where it does.
#[cfg(not(debug_assertions))]
pub(super) const fn write_fault() -> Option<io::Error> {
    None
}

/// The kernel program that is loaded: that of another build, of the same source compiled otherwise, makes
/// two runs of one build take over from each other as two builds of one version do.
#[cfg(debug_assertions)]
pub(super) fn object() -> &'static [u8] {
    static OTHER: &[u8] =
        aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/namegate-egress-other"));
    if std::env::var_os("NAMEGATE_TEST_OTHER_PROGRAM").is_some() { OTHER } else { OBJECT }
}

/// The kernel program that is loaded.
#[cfg(not(debug_assertions))]
pub(super) const fn object() -> &'static [u8] {
    OBJECT
}

/// The version whose directory the pins lie in; another one makes two runs of one build take over from
/// each other as builds of different versions do.
#[cfg(debug_assertions)]
pub(super) fn abi_version() -> u32 {
    if let Some(version) = VERSION.get() {
        return version;
    }
    std::env::var("NAMEGATE_TEST_ABI_VERSION")
        .ok()
        .and_then(|version| version.parse().ok())
        .unwrap_or(ABI_VERSION)
}

/// The version whose directory the pins lie in.
#[cfg(not(debug_assertions))]
pub(super) const fn abi_version() -> u32 {
    ABI_VERSION
}
