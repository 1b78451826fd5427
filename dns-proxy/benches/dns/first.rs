//! First packets: each answer is followed at once by a connection to one of its addresses.
//!
//! A connection whose first packet is dropped would be made a second later, when it is sent again;
//! whoever waits less long loses it. No address comes twice within the time that an answer opens it
//! for, and every connection is a flow of its own, so that each needs its own answer.

use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::SockRef;

use crate::load::write_query;
use crate::subject::ANY;
use crate::town::{POD, Town};
use crate::upstream::{MANY, PORT};

/// Lookups under way, each on a thread of its own.
const WINDOW: u32 = 64;
/// For how long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// For how long a connection is waited for: the first packet is sent again after a second.
const FIRST: Duration = Duration::from_millis(900);

/// How it went.
#[derive(Default)]
pub(crate) struct Firsts {
    /// Answers with all their addresses.
    pub(crate) answered: u32,
    /// Connections whose first packet was lost.
    pub(crate) lost: u32,
    /// Lookups without an answer that could be used.
    pub(crate) unanswered: u32,
}

/// Looks up so many names and connects after each answer.
pub(crate) fn follow(town: &Town, server: SocketAddr, lookups: u32) -> Firsts {
    std::thread::scope(|scope| {
        let share = |thread: u32| (lookups / WINDOW) + u32::from(thread < lookups % WINDOW);
        let threads: Vec<_> = (0..WINDOW)
            .map(|thread| {
                scope.spawn(move || {
                    town.enter(POD);
                    follow_some(server, thread, share(thread))
                })
            })
            .collect();
        let mut all = Firsts::default();
        for thread in threads {
            let some = thread.join().expect("no thread panics");
            all.answered += some.answered;
            all.lost += some.lost;
            all.unanswered += some.unanswered;
        }
        all
    })
}

fn follow_some(server: SocketAddr, thread: u32, lookups: u32) -> Firsts {
    let socket = UdpSocket::bind((ANY, 0)).expect("a free port");
    socket.connect(server).expect("a route");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let mut firsts = Firsts::default();
    let mut query = Vec::new();
    for number in 0..lookups {
        write_query(&mut query, b'm', thread, number);
        // EDNS, so that the answer may be long.
        query[11] = 1;
        query.extend_from_slice(&[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
        socket.send(&query).expect("the server runs");
        match answer_to(&socket, &query).and_then(|message| address(&message, number)) {
            Some(address) => {
                firsts.answered += 1;
                match TcpStream::connect_timeout(&(address, PORT).into(), FIRST) {
                    // Ends at once and leaves no port in use.
                    Ok(stream) => SockRef::from(&stream)
                        .set_linger(Some(Duration::ZERO))
                        .expect("a connected socket"),
                    Err(_) => firsts.lost += 1,
                }
            }
            None => firsts.unanswered += 1,
        }
    }
    firsts
}

/// The answer to `query`; `None` where none comes in time.
fn answer_to(socket: &UdpSocket, query: &[u8]) -> Option<Vec<u8>> {
    let mut buffer = [0; 2048];
    loop {
        let length = socket.recv(&mut buffer).ok()?;
        // Another is one that came too late for its own query.
        if length > 12 && buffer[..2] == query[..2] {
            return Some(buffer[..length].to_vec());
        }
    }
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
