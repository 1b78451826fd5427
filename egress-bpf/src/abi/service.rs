use super::Address;

/// [`Service::flags`]: every flow of a client goes to the same backend.
pub const SERVICE_AFFINE: u16 = 1;

/// Key of `SERVICES`: one port of an address that stands for backends. Where no address of the node's has a
/// row, that of [`ServiceKey::at_node`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceKey {
    /// The address.
    pub address: Address,
    /// The port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub padding: u8,
}

impl ServiceKey {
    /// The key of the same port at whatever address of the node, as node ports have it; another for
    /// each family.
    #[inline(always)]
    pub const fn at_node(self) -> Self {
        let address = if self.address.is_v4() { Address::v4([0; 4]) } else { Address::UNSPECIFIED };
        Self { address, ..self }
    }
}

/// Value of `SERVICES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// The list of backends; another number for each list that there ever was.
    pub list: u32,
    /// How many backends it has; a service without any drops.
    pub backends: u16,
    /// `SERVICE_*`.
    pub flags: u16,
}

/// Key of `BACKENDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct BackendKey {
    /// [`Service::list`].
    pub list: u32,
    /// The place in the list, from zero.
    pub place: u32,
}

/// Value of `BACKENDS`: where a service's flows end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Backend {
    /// The address.
    pub address: Address,
    /// The port.
    pub port: u16,
    /// Zero.
    pub padding: [u8; 2],
}

const _: () = assert!(size_of::<ServiceKey>() == 20);
const _: () = assert!(size_of::<Service>() == 8);
const _: () = assert!(size_of::<BackendKey>() == 8);
const _: () = assert!(size_of::<Backend>() == 20);
