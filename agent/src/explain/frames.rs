//! The first frame of a flow, octet by octet.

use std::net::IpAddr;

use namegate_egress_bpf::abi::Mac;
use namegate_egress_bpf::packet::{TCP_SYN, protocol};
use namegate_egress_bpf::sim::frame;
use namegate_policy::oracle::Flow;
use namegate_policy::rule::Protocol;

/// Whose frames these are does not matter: endpoints are told no MAC.
const MAC: Mac = Mac([0x02, 0, 0, 0, 0, 0x01]);
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;

/// The frame that opens `flow` from `source_port`, which is an echo's identifier; `None` where no
/// frame can carry both addresses.
pub(super) fn opening(flow: &Flow, source_port: u16) -> Option<Vec<u8>> {
    let ends = (flow.source, flow.destination);
    let is_v4 = match ends {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(_), IpAddr::V6(_)) => false,
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    let (number, payload) = match flow.protocol {
        Protocol::Tcp => (protocol::TCP, frame::tcp(source_port, flow.port, TCP_SYN)),
        Protocol::Udp => (protocol::UDP, frame::udp(source_port, flow.port, b"")),
        Protocol::Sctp => (protocol::SCTP, frame::sctp(source_port, flow.port)),
        Protocol::Icmp | Protocol::Icmpv6 if is_v4 => {
            (protocol::ICMP, frame::echo(ECHO_REQUEST, source_port))
        }
        Protocol::Icmp | Protocol::Icmpv6 => {
            (protocol::ICMPV6, frame::echo(ECHO_REQUEST_V6, source_port))
        }
    };
    Some(frame::ip(MAC, ends, number, &payload))
}
