use super::{Address, Mac};

/// The number of resolvers that lookups can be taken from.
pub const RESOLVERS_MAX: usize = 128;

/// [`Config::flags`]: the cluster ranges hold prefixes, so that an address missing in the ipcache is
/// looked up there.
pub const CONFIG_RANGES: u32 = 1;

/// [`Config::flags`]: IP protocols other than TCP, UDP, SCTP and ICMP are judged by policy; without
/// it they are dropped.
pub const CONFIG_OTHER_PROTOCOLS: u32 = 1 << 1;

/// [`Config::flags`]: some address, service or resolver could not be written, so that one that is not
/// found is not known to be nobody's.
pub const CONFIG_INCOMPLETE: u32 = 1 << 2;

/// What the whole program knows: the one row of `CONFIG`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// [`super::ABI_VERSION`] of whoever wrote the maps.
    pub abi_version: u32,
    /// `CONFIG_*`.
    pub flags: u32,
    /// Interface that intercepted lookups are handed to; zero where there is no proxy.
    pub proxy_ifindex: u32,
    /// Proxy port of the resolver in slot zero.
    pub proxy_port: u16,
    /// MAC of that interface.
    pub proxy_mac: Mac,
    /// Entries that `FLOWS` has room for.
    pub flows_max: u32,
    /// The proxy's IPv4 address, v4-mapped.
    pub proxy_v4: Address,
    /// The proxy's IPv6 address.
    pub proxy_v6: Address,
}

const _: () = assert!(size_of::<Config>() == 56 && align_of::<Config>() == 4);
