//! Asking the resolver that the pod asked: over UDP from ports and with ids that cannot be guessed,
//! over TCP where the answer was cut short or the pod itself came over TCP.

pub(crate) mod entropy;
pub(crate) mod tcp;
pub(crate) mod udp;
