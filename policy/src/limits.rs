//! Every limit of the policy core, in one place.
//!
//! A limit is checked where something would grow past it, and what hits it is reported on the object
//! or in the audit record concerned; nothing is cut off in silence.

/// Names that one identity can hold at a time, whether fresh or kept for a live flow.
pub const NAMES_PER_IDENTITY: usize = 131_072;

/// Addresses that one name can hold for one identity. CNP-18 asks for at least 100.
pub const ADDRESSES_PER_NAME: usize = 16_384;

/// Names that one address can belong to for one identity: front ends of content networks answer for
/// many.
pub const NAMES_PER_ADDRESS: usize = 1_024;

/// Addresses that all identities of a node can hold together.
pub const ADDRESSES_TOTAL: usize = 131_072;
