//! Message types of `icmps`, by number or by name.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::written::IcmpField;
use crate::field::Place;
use crate::problem::{FieldError, Problem};
use crate::rule::{PortMatch, PortRange, PortSet, Protocol};

/// Names that an ICMP type goes by in this API.
const TYPES: [(&str, u8); 14] = [
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

/// Names that an ICMPv6 type goes by in this API.
const TYPES_V6: [(&str, u8); 14] = [
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
];

/// Reads one entry of `fields`.
pub(super) fn message(path: &str, written: &IcmpField) -> Result<PortMatch, FieldError> {
    let place = Place(path);
    let (protocol, names) = match written.family.as_deref() {
        None | Some("IPv4") => (Protocol::Icmp, &TYPES),
        Some("IPv6") => (Protocol::Icmpv6, &TYPES_V6),
        Some(other) => {
            let problem =
                Problem::NotOneOf { value: other.to_owned(), expected: "IPv4 or IPv6".into() };
            return Err(FieldError::new(place.field("family"), problem));
        }
    };
    let (number, text) = match &written.kind {
        IntOrString::Int(number) => (u8::try_from(*number).ok(), number.to_string()),
        IntOrString::String(text) => {
            let named = names.iter().find(|(name, _)| name == text).map(|(_, number)| *number);
            (named.or_else(|| text.parse().ok()), text.clone())
        }
    };
    let Some(number) = number else {
        let expected = "a number from 0 to 255, or a name such as EchoRequest";
        return Err(FieldError::new(
            place.field("type"),
            Problem::NotOneOf { value: text, expected: expected.into() },
        ));
    };
    let ports = PortSet::Range(PortRange::single(u16::from(number)));
    Ok(PortMatch { protocol, ports })
}
