//! Every limit of the policy core, in one place.
//!
//! A limit is checked where something would grow past it, and what hits it is reported on the object
//! or in the audit record concerned; nothing is cut off in silence.

/// Names that one identity can hold at a time, whether fresh or kept for a live flow.
pub const NAMES_PER_IDENTITY: usize = 131_072;

/// Addresses that one name can hold for one identity. CNP-18 asks for at least 100.
pub const ADDRESSES_PER_NAME: usize = 16_384;

/// Names that one address can belong to for one identity: front ends of content networks answer for
/// many. Each is matched against the policy when the address is opened.
pub const NAMES_PER_ADDRESS: usize = 256;

/// Addresses that all identities of a node can hold together: an eighth less than the kernel's map
/// takes, since what a batch of answers teaches one identity may be written before what another loses
/// to it is deleted.
pub const ADDRESSES_TOTAL: usize = 114_688;

/// Octets that all learned names and addresses of a node can take.
pub const LEARNED_OCTETS: usize = 64 << 20;

/// Steps that the rules of one identity can take in one direction: 256 rules and more, since a rule
/// takes one or two, and one more for each number that a named port has.
pub const STEPS_PER_DIRECTION: usize = 512;

/// Octets of one file of manifests.
pub const FILE_OCTETS: usize = 16 << 20;

/// Octets of one document.
pub const DOCUMENT_OCTETS: usize = 4 << 20;

/// Documents of one file.
pub const DOCUMENTS_PER_FILE: usize = 100_000;

/// Files of manifests.
pub const FILES: usize = 100_000;

/// Directories that lie in each other.
pub const DIRECTORY_DEPTH: usize = 16;

/// Characters of a rule's name (CNP-4).
pub const RULE_NAME_CHARACTERS: usize = 100;

/// The largest priority in a tier (CNP-1).
pub const PRIORITY: u16 = 1_000;

/// Rules of a direction, peers and protocols of a rule, networks and names of a peer, in a
/// ClusterNetworkPolicy (CNP-3, CNP-4).
pub const CLUSTER_LIST: usize = 25;

/// Ports of an entry of `toPorts`, and message types of one of `icmps`, in Cilium policies (CL-4).
pub const CILIUM_PORTS: usize = 40;

const _: () = {
    assert!(STEPS_PER_DIRECTION >= 2 * 256, "256 rules of one identity and direction fit");
    assert!(ADDRESSES_PER_NAME >= 10_000, "a large content network fits behind one name");
};
