use super::{ENDPOINT_MAC_KNOWN, Endpoint, Mac};

/// The places of `PASSAGES`; an endpoint's is the number of its interface modulo this.
pub const PASSAGES: u32 = 16_384;

/// Set in [`Passage::source`] where the endpoint's MAC is known.
const KNOWN: u64 = 1 << 63;

/// Value of `PASSAGES`: what the short way of known flows has to know of an endpoint, without a hash. An
/// endpoint whose place is another's has none, and its row of `ENDPOINTS` is asked.
///
/// Each word is written and read whole, and nothing orders one after another: the first two name the
/// interface, so that words of two endpoints are neither's. A word of another time of the same endpoint
/// means no more than that time did, since a flow has a generation only after the row of `ENDPOINTS` had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Passage {
    /// The interface, and [`Endpoint::epoch`]. Zero: nobody's.
    pub whose: u64,
    /// The interface, and [`Endpoint::generation`].
    pub current: u64,
    /// The endpoint's MAC, where known.
    pub source: u64,
}

impl Passage {
    /// Nobody's.
    pub const NOBODYS: Self = Self { whose: 0, current: 0, source: 0 };

    /// What `endpoint` behind `ifindex` has.
    #[inline(always)]
    pub const fn of(ifindex: u32, endpoint: &Endpoint) -> Self {
        let owner = (ifindex as u64) << 32;
        let is_mac_known = endpoint.flags & ENDPOINT_MAC_KNOWN != 0;
        Self {
            whose: owner | endpoint.epoch as u64,
            current: owner | endpoint.generation as u64,
            source: if is_mac_known { endpoint.mac.number() | KNOWN } else { 0 },
        }
    }

    /// Whether it is that of the endpoint behind `ifindex`.
    #[inline(always)]
    pub const fn is_of(&self, ifindex: u32) -> bool {
        (self.whose >> 32) as u32 == ifindex && (self.current >> 32) as u32 == ifindex
    }

    /// [`Endpoint::epoch`].
    #[inline(always)]
    pub const fn epoch(&self) -> u32 {
        self.whose as u32
    }

    /// [`Endpoint::generation`].
    #[inline(always)]
    pub const fn generation(&self) -> u32 {
        self.current as u32
    }

    /// Whether frames of the endpoint may come from `mac`.
    #[inline(always)]
    pub const fn lets_come_from(&self, mac: Mac) -> bool {
        self.source == 0 || self.source == mac.number() | KNOWN
    }
}

const _: () = assert!(size_of::<Passage>() == 24 && PASSAGES.is_power_of_two());
