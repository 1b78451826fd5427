//! First packets: each answer is followed at once by a packet to one of its addresses.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::load::write_query;
use crate::subject::ANY;
use crate::upstream::{ECHO, MANY};

/// Lookups under way.
const WINDOW: usize = 64;
/// For how long an answer or an echo is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// How it went.
#[derive(Default)]
pub(crate) struct Firsts {
    /// Answers with all their addresses.
    pub(crate) answered: u32,
    /// Packets that never came back.
    pub(crate) lost: u32,
    /// Lookups without an answer that could be used.
    pub(crate) unanswered: u32,
}

/// Looks up so many names and sends a packet after each answer.
pub(crate) fn follow(server: SocketAddr, lookups: u32) -> Firsts {
    let asking = UdpSocket::bind((ANY, 0)).expect("a free port");
    asking.connect(server).expect("a route");
    let sending = UdpSocket::bind((ANY, 0)).expect("a free port");
    for socket in [&asking, &sending] {
        socket.set_nonblocking(true).expect("a socket");
    }
    let mut firsts = Firsts::default();
    let (mut asked, mut under_way, mut echoed) = (0u32, 0usize, 0u32);
    let mut heard = Instant::now();
    let mut query = Vec::new();
    let mut buffer = [0; 2048];
    while firsts.answered + firsts.unanswered < lookups || echoed < firsts.answered {
        while under_way < WINDOW && asked < lookups {
            write_query(&mut query, b'm', 0, asked);
            // EDNS, so that the answer may be long.
            query[11] = 1;
            query.extend_from_slice(&[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
            asking.send(&query).expect("the server runs");
            asked += 1;
            under_way += 1;
        }
        while let Ok(length) = asking.recv(&mut buffer) {
            heard = Instant::now();
            under_way = under_way.saturating_sub(1);
            match address(&buffer[..length], firsts.answered) {
                Some(address) => {
                    firsts.answered += 1;
                    sending.send_to(b"first", (address, ECHO)).expect("a route");
                }
                None => firsts.unanswered += 1,
            }
        }
        while sending.recv(&mut buffer).is_ok() {
            heard = Instant::now();
            echoed += 1;
        }
        if heard.elapsed() > PATIENCE {
            if under_way == 0 {
                break;
            }
            firsts.unanswered += u32::try_from(under_way).expect("a window");
            under_way = 0;
            heard = Instant::now();
        }
        let flags = PollFlags::POLLIN;
        let mut both = [PollFd::new(asking.as_fd(), flags), PollFd::new(sending.as_fd(), flags)];
        poll(&mut both, PollTimeout::from(10u8)).expect("poll works");
    }
    firsts.lost = firsts.answered - echoed;
    firsts
}

/// One of the addresses of an answer that has all of them.
fn address(message: &[u8], number: u32) -> Option<Ipv4Addr> {
    let records = message.get(message.len().checked_sub(16 * MANY as usize)?..)?;
    if message[3] & 0xf != 0 || message[7] != MANY as u8 {
        return None;
    }
    let at = 16 * (number as usize % MANY as usize) + 12;
    records.get(at..at + 4)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}
