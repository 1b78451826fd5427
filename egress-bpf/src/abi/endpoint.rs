use super::{Address, Mac};

/// The number of addresses that an endpoint can have.
pub const ADDRESSES_MAX: usize = 8;

/// [`Endpoint::flags`]: lookups towards known resolvers go to the proxy.
pub const ENDPOINT_DNS_GOVERNED: u16 = 1;

/// [`Endpoint::flags`]: [`Endpoint::mac`] is known, and frames from another are dropped.
pub const ENDPOINT_MAC_KNOWN: u16 = 1 << 1;

/// [`Endpoint::flags`]: flows to service addresses are translated here, and judged by the backend.
pub const ENDPOINT_TRANSLATED: u16 = 1 << 2;

/// One pod's attachment: the row of `ENDPOINTS` under the index of its host-side interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// Number of the pod's identity.
    pub identity: u32,
    /// The policy table in force.
    pub table: u32,
    /// Raised with every change of what `table` holds; flows of another one are judged again.
    pub generation: u32,
    /// Different for each pod that ever had this interface, so that none inherits flows.
    pub epoch: u32,
    /// `ENDPOINT_*`.
    pub flags: u16,
    /// The pod's MAC.
    pub mac: Mac,
    /// The pod's addresses; unused places are `::`.
    pub addresses: [Address; ADDRESSES_MAX],
}

const _: () = assert!(size_of::<Endpoint>() == 24 + 16 * ADDRESSES_MAX);
const _: () = assert!(align_of::<Endpoint>() == 4);

impl Endpoint {
    /// Whether `address` is one of the pod's. Not inlined, for the sake of the kernel's stack.
    #[inline(never)]
    pub fn has(&self, address: &Address) -> bool {
        if address.is(&Address::UNSPECIFIED) {
            return false;
        }
        // Left at once where found: kept for later, each answer would double the verifier's work.
        let mut at = 0;
        while at < ADDRESSES_MAX {
            if self.addresses[at].is(address) {
                return true;
            }
            at += 1;
        }
        false
    }

    /// Whether `address` is one of the pod's, or a link-local address that can be: the one that its
    /// MAC derives, or any where the MAC is unknown.
    #[inline(always)]
    pub fn has_on_link(&self, address: &Address) -> bool {
        if self.has(address) {
            return true;
        }
        address.is_link_local_v6()
            && (self.flags & ENDPOINT_MAC_KNOWN == 0 || self.mac.derives(address))
    }
}
