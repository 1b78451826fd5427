//! What tests change about a running agent. Builds without debug assertions, releases among them, have
//! none of it.

use crate::abi::ABI_VERSION;

/// The version whose directory the pins lie in; another one makes two runs of one build take over from
/// each other as builds of different versions do.
#[cfg(debug_assertions)]
pub(super) fn abi_version() -> u32 {
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
