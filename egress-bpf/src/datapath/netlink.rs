//! As much of the traffic control's netlink as one qdisc and its filters take, which aya has no calls
//! for: it replaces and lists no filters.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

use crate::abi::Direction;

// linux/netlink.h
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 0x001;
const ACK: u16 = 0x004;
const ECHO: u16 = 0x008;
const DUMP: u16 = 0x300;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
/// The upper bits of an attribute's type are flags.
const TYPE_MASK: u16 = 0x3fff;

// linux/rtnetlink.h
const NEW_QDISC: u16 = 36;
const DELETE_QDISC: u16 = 37;
const GET_QDISC: u16 = 38;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const CHAIN: u16 = 11;

// linux/pkt_sched.h
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

// linux/pkt_cls.h
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
const BPF_FLAGS_GENERAL: u16 = 9;
const BPF_ID: u16 = 11;
/// The program's code is the verdict.
const DIRECT_ACTION: u32 = 1;
/// The kernel runs the program, and no network card.
const SKIP_HARDWARE: u32 = 1;

/// `ETH_P_ALL` of linux/if_ether.h.
const ALL_PROTOCOLS: u16 = 3;

const HEADER: usize = 16;
const MESSAGE: usize = 20;
/// The kernel fills buffers of 32 KiB where it can (`netlink_dump` of net/netlink/af_netlink.c).
const ROOM: usize = 1 << 16;

/// A filter of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) ifindex: u32,
    pub(super) direction: Direction,
    /// Packets see chain zero alone, unless a filter sends them elsewhere.
    pub(super) chain: u32,
    /// The lowest is the first to see packets; in one priority the youngest.
    pub(super) priority: u16,
    pub(super) handle: u32,
}

/// A filter that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) filter: Filter,
    /// The kernel's number of the program; zero where the filter has none.
    pub(super) program: u32,
}

/// A conversation with the kernel about the network namespace that it was opened in.
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        // No protocol stands for NETLINK_ROUTE.
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        Ok(Self(socket_with(family, kind, SocketFlags::CLOEXEC, None)?))
    }

    /// What kind of qdisc the hooks of an interface belong to: `clsact`, `ingress`, or none.
    pub(super) fn qdisc(&self, ifindex: u32) -> io::Result<Option<String>> {
        let target = Target { handle: 0, ..Target::qdisc(ifindex) };
        match self.ask(Request::new(GET_QDISC, ECHO, &target)) {
            Ok(replies) => Ok(replies.iter().find_map(|reply| reply.text(KIND))),
            // Where there was one before, the kernel has nothing to say of what is there since, and
            // some versions take that for an error (`qdisc_get_notify` of net/sched/sch_api.c).
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn add_qdisc(&self, ifindex: u32) -> io::Result<()> {
        let mut request = Request::new(NEW_QDISC, CREATE | EXCLUSIVE, &Target::qdisc(ifindex));
        request.attribute(KIND, b"clsact\0");
        self.ask(request).map(drop)
    }

    pub(super) fn delete_qdisc(&self, ifindex: u32) -> io::Result<()> {
        self.ask(Request::new(DELETE_QDISC, 0, &Target::qdisc(ifindex))).map(drop)
    }

    /// Makes a filter with this program, before all others of its priority; one of that handle gets
    /// the program in place of its own and stays where it is.
    pub(super) fn put_filter(
        &self,
        filter: &Filter,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> io::Result<()> {
        self.write_filter(CREATE, filter, program, name)
    }

    /// Gives a filter another program: packets are judged whole by the one or the other. Fails with
    /// `ENOENT` where there is no such filter.
    pub(super) fn replace_filter(
        &self,
        filter: &Filter,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> io::Result<()> {
        self.write_filter(0, filter, program, name)
    }

    fn write_filter(
        &self,
        flags: u16,
        filter: &Filter,
        program: BorrowedFd<'_>,
        name: &str,
    ) -> io::Result<()> {
        let mut request = Request::new(NEW_FILTER, flags, &Target::filter(filter));
        request.attribute(KIND, b"bpf\0");
        request.attribute(CHAIN, &filter.chain.to_ne_bytes());
        request.nested(OPTIONS, |options| {
            options.attribute(BPF_FD, &program.as_raw_fd().to_ne_bytes());
            options.attribute(BPF_NAME, &[name.as_bytes(), b"\0"].concat());
            options.attribute(BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
            options.attribute(BPF_FLAGS_GENERAL, &SKIP_HARDWARE.to_ne_bytes());
        });
        self.ask(request).map(drop)
    }

    pub(super) fn delete_filter(&self, filter: &Filter) -> io::Result<()> {
        let mut request = Request::new(DELETE_FILTER, 0, &Target::filter(filter));
        request.attribute(CHAIN, &filter.chain.to_ne_bytes());
        self.ask(request).map(drop)
    }

    /// The filters of a hook, the first to see packets first; none where there is no such hook.
    pub(super) fn filters(&self, ifindex: u32, direction: Direction) -> io::Result<Vec<Listed>> {
        let target = Target { ifindex, parent: parent(direction), ..Target::default() };
        let replies = self.ask(Request::new(GET_FILTER, DUMP, &target))?;
        let listed = replies.iter().filter(|reply| reply.kind == NEW_FILTER);
        Ok(listed.filter_map(|reply| reply.filter(ifindex, direction)).collect())
    }

    /// Sends a request and hears the kernel out.
    fn ask(&self, request: Request) -> io::Result<Vec<Reply>> {
        send(&self.0, &request.finish(), SendFlags::empty())?;
        let mut room = vec![0_u8; ROOM];
        let mut replies = Vec::new();
        loop {
            let (length, whole) = recv(&self.0, room.as_mut_slice(), RecvFlags::TRUNC)?;
            if whole > length {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut rest = room.get(..length).unwrap_or_default();
            while let Some((reply, later)) = Reply::split(rest) {
                rest = later;
                match reply.kind {
                    ERROR | DONE => return reply.outcome().map(|()| replies),
                    _ => replies.push(reply),
                }
            }
        }
    }
}

const fn parent(direction: Direction) -> u32 {
    match direction {
        Direction::Egress => INGRESS,
        Direction::Ingress => EGRESS,
    }
}

/// `struct tcmsg`: what a message is about.
#[derive(Default)]
struct Target {
    ifindex: u32,
    handle: u32,
    parent: u32,
    /// Priority and protocol.
    info: u32,
}

impl Target {
    fn qdisc(ifindex: u32) -> Self {
        Self { ifindex, handle: CLSACT_HANDLE, parent: CLSACT, info: 0 }
    }

    fn filter(filter: &Filter) -> Self {
        Self {
            ifindex: filter.ifindex,
            handle: filter.handle,
            parent: parent(filter.direction),
            info: u32::from(filter.priority) << 16 | u32::from(ALL_PROTOCOLS.to_be()),
        }
    }
}

/// A message under way to the kernel.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, target: &Target) -> Self {
        let mut octets = vec![0; 4];
        octets.extend(kind.to_ne_bytes());
        octets.extend((REQUEST | ACK | flags).to_ne_bytes());
        // Sequence and sender: there is one conversation, with the kernel.
        octets.extend([0; 8]);
        // Family and padding.
        octets.extend([0; 4]);
        for word in [target.ifindex, target.handle, target.parent, target.info] {
            octets.extend(word.to_ne_bytes());
        }
        Self(octets)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |request| request.0.extend(value));
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// A message from the kernel without its header.
struct Reply {
    kind: u16,
    body: Vec<u8>,
}

impl Reply {
    /// The first message, and what is behind it.
    fn split(octets: &[u8]) -> Option<(Self, &[u8])> {
        let length = usize::try_from(word(octets, 0)?).ok()?;
        let kind = halfword(octets, 4)?;
        let body = octets.get(HEADER..length)?.to_vec();
        Some((Self { kind, body }, octets.get(length.next_multiple_of(4)..).unwrap_or_default()))
    }

    /// What an acknowledgement, or the end of a list, says.
    fn outcome(&self) -> io::Result<()> {
        match word(&self.body, 0).map_or(0, u32::cast_signed) {
            0 => Ok(()),
            number => Err(io::Error::from_raw_os_error(number.wrapping_neg())),
        }
    }

    fn attributes(&self) -> impl Iterator<Item = (u16, &[u8])> {
        attributes(self.body.get(MESSAGE..).unwrap_or_default())
    }

    fn text(&self, kind: u16) -> Option<String> {
        let (_, text) = self.attributes().find(|(found, _)| *found == kind)?;
        Some(String::from_utf8_lossy(text.strip_suffix(b"\0").unwrap_or(text)).into_owned())
    }

    /// The filter that the message tells of; heads of lists, which have no handle, are none.
    fn filter(&self, ifindex: u32, direction: Direction) -> Option<Listed> {
        let (handle, info) = (word(&self.body, 8)?, word(&self.body, 16)?);
        if handle == 0 {
            return None;
        }
        let number = |kind, octets| {
            let (_, value) = attributes(octets).find(|(found, _)| *found == kind)?;
            word(value, 0)
        };
        let rest = self.body.get(MESSAGE..)?;
        let is_bpf = self.text(KIND).is_some_and(|kind| kind == "bpf");
        let options = attributes(rest).find(|(kind, _)| *kind == OPTIONS && is_bpf);
        let filter = Filter {
            ifindex,
            direction,
            chain: number(CHAIN, rest).unwrap_or(0),
            priority: (info >> 16) as u16,
            handle,
        };
        let program = options.and_then(|(_, options)| number(BPF_ID, options));
        Some(Listed { filter, program: program.unwrap_or(0) })
    }
}

fn attributes(mut octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(halfword(octets, 0)?);
        let kind = halfword(octets, 2)? & TYPE_MASK;
        let value = octets.get(4..length)?;
        octets = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn word(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

fn halfword(octets: &[u8], at: usize) -> Option<u16> {
    octets.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_is_read_back_from_a_message() {
        let filter = Filter {
            ifindex: 7,
            direction: Direction::Ingress,
            chain: 3,
            priority: 1,
            handle: 0x4e67_0002,
        };
        let mut request = Request::new(NEW_FILTER, 0, &Target::filter(&filter));
        request.attribute(KIND, b"bpf\0");
        request.attribute(CHAIN, &3_u32.to_ne_bytes());
        request.nested(OPTIONS, |options| {
            options.attribute(BPF_NAME, b"odd\0");
            options.attribute(BPF_ID, &81_u32.to_ne_bytes());
        });
        let octets = request.finish();
        assert_eq!(octets.len() % 4, 0);
        let (reply, rest) = Reply::split(&octets).expect("a whole message");
        assert!(rest.is_empty());
        assert_eq!(reply.filter(7, Direction::Ingress), Some(Listed { filter, program: 81 }));
    }

    #[test]
    fn cut_messages_are_no_messages() {
        let mut request = Request::new(NEW_FILTER, 0, &Target::qdisc(1));
        request.attribute(KIND, b"bpf\0");
        let octets = request.finish();
        for length in 0..octets.len() {
            assert!(Reply::split(&octets[..length]).is_none(), "{length} octets");
        }
        let (mut reply, _) = Reply::split(&octets).expect("a whole message");
        while reply.body.pop().is_some() {
            // Whatever is there, nothing is read that is not.
            let _cut = (reply.text(KIND), reply.filter(1, Direction::Egress), reply.outcome());
        }
    }
}
