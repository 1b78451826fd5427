//! Asking the resolver that the pod asked, or one that the configuration declares its equal: over
//! UDP from ports and with ids that cannot be guessed, over TCP where the answer was cut short,
//! where somebody tries to guess, or where the pod itself came over TCP.

pub(crate) mod entropy;
pub(crate) mod exchanges;
pub(crate) mod ports;
pub(crate) mod servers;
pub(crate) mod sockets;
pub(crate) mod tcp;
pub(crate) mod udp;
pub(crate) mod under_way;
