//! Which types of the ABI may be read and written as octets.

#![expect(unsafe_code, reason = "aya's marker for plain data is an unsafe trait")]

use aya::Pod;

use crate::abi::{
    Address, Backend, BackendKey, CidrKey, Config, Endpoint, Flow, FlowKey, Fragment, FragmentKey,
    HitKey, NameEntry, NameKey, PeerKey, PortKey, QuotaKey, RuleSet, Service, ServiceKey, Table,
    TableKey,
};

/// Key of an LPM map: how many bits count, and the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub(super) struct TrieKey<K> {
    pub(super) length: u32,
    pub(super) key: K,
}

pub(super) type CidrTrieKey = TrieKey<CidrKey>;
pub(super) type RangeTrieKey = TrieKey<Address>;

const _: () = assert!(size_of::<CidrTrieKey>() == 28);
const _: () = assert!(size_of::<RangeTrieKey>() == 20);

macro_rules! plain {
    ($($kind:ty),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)`, made of numbers and octets, without implicit padding.
            unsafe impl Pod for $kind {}
        )+
    };
}

plain!(
    Address,
    Backend,
    BackendKey,
    CidrTrieKey,
    RangeTrieKey,
    Config,
    Endpoint,
    Flow,
    FlowKey,
    Fragment,
    FragmentKey,
    HitKey,
    NameEntry,
    NameKey,
    PeerKey,
    PortKey,
    QuotaKey,
    RuleSet,
    Service,
    ServiceKey,
    Table,
    TableKey,
);
