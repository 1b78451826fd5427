//! Queries, as many as a server takes or as many a second as told.

use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::set_current_timer_slack;

use crate::subject::{ANY, until};

/// What all names end in.
const SUFFIX: &[u8] = b"\x05bench\x00";
/// Queries under way at saturation.
const WINDOW: u32 = 64;
/// Names that are asked again and again.
const FEW: u32 = 100;

/// Which names are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// Each once.
    Unique,
    /// A few, over and over.
    Few,
}

/// How a load went.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) answered: u32,
    pub(crate) asked: u32,
    pub(crate) took: Duration,
}

/// How a paced load went: latencies in order.
pub(crate) struct Paced {
    pub(crate) latencies: Vec<Duration>,
    pub(crate) asked: u32,
}

fn connect(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((ANY, 0)).expect("a free port");
    socket.connect(server).expect("a route");
    socket
}

/// A query for a name that `kind`, `tag` and `number` make.
pub(crate) fn write_query(message: &mut Vec<u8>, kind: u8, tag: u32, number: u32) {
    message.clear();
    message.extend_from_slice(&number.to_be_bytes()[2..]);
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 17, kind]);
    message.extend_from_slice(format!("{tag:07x}-{number:08x}").as_bytes());
    message.extend_from_slice(SUFFIX);
    message.extend_from_slice(&[0, 1, 0, 1]);
}

/// Whether `server` comes to answer.
pub(crate) fn answers(server: SocketAddr) -> bool {
    let socket = connect(server);
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a time limit");
    let mut query = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(5);
    for number in 0.. {
        write_query(&mut query, b'n', 0xfff, number);
        // Nobody listens yet.
        let _ = socket.send(&query);
        let mut reply = [0; 512];
        if socket.recv(&mut reply).is_ok() && reply[3] & 0xf == 0 {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::yield_now();
    }
    false
}

/// Keeps a window of queries under way until `queries` were asked.
pub(crate) fn saturate(server: SocketAddr, tag: u32, queries: u32, names: Names) -> Outcome {
    let socket = connect(server);
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a time limit");
    let start = Instant::now();
    let mut outcome = Outcome::default();
    let mut query = Vec::new();
    let mut under_way = 0;
    let mut buffer = [0; 2048];
    while outcome.asked < queries || under_way > 0 {
        // Refilled by halves, so that load and server both work in batches.
        if under_way <= WINDOW / 2 {
            while under_way < WINDOW && outcome.asked < queries {
                match names {
                    Names::Unique => write_query(&mut query, b'n', tag, outcome.asked),
                    Names::Few => write_query(&mut query, b'n', 0, outcome.asked % FEW),
                }
                socket.send(&query).expect("the server runs");
                outcome.asked += 1;
                under_way += 1;
            }
        }
        match socket.recv(&mut buffer) {
            Ok(_) => {
                outcome.answered += u32::from(buffer[3] & 0xf == 0);
                under_way = under_way.saturating_sub(1);
            }
            // Lost: the window starts afresh.
            Err(_) => under_way = 0,
        }
    }
    outcome.took = start.elapsed();
    outcome
}

/// Asks `rate` queries a second and times each answer.
pub(crate) fn pace(server: SocketAddr, tag: u32, rate: u32, queries: u32) -> Paced {
    let socket = connect(server);
    socket.set_nonblocking(true).expect("a socket");
    set_current_timer_slack(NonZeroU64::new(1)).expect("any time is allowed");
    let interval = Duration::from_secs(1) / rate;
    let mut asked_at = vec![None; 65_536];
    let mut latencies = Vec::with_capacity(queries as usize);
    let mut query = Vec::new();
    let mut buffer = [0; 2048];
    let start = Instant::now();
    let end = start + interval * queries + Duration::from_millis(200);
    let mut asked = 0;
    while Instant::now() < end && latencies.len() < queries as usize {
        while asked < queries && Instant::now() >= start + interval * asked {
            write_query(&mut query, b'n', 0x800_0000 | tag, asked);
            asked_at[asked as usize & 0xffff] = Some(Instant::now());
            socket.send(&query).expect("the server runs");
            asked += 1;
        }
        while let Ok(length) = socket.recv(&mut buffer) {
            let id = usize::from(u16::from_be_bytes([buffer[0], buffer[1]]));
            if let Some(at) = asked_at[id].take().filter(|_| length > 12) {
                latencies.push(Instant::elapsed(&at));
            }
        }
        // Waits rather than looks at the clock in a loop: that would take a processor.
        let next = if asked == queries { end } else { start + interval * asked };
        let wait = Timespec::try_from(until(next)).expect("a short time");
        let mut readable = [PollFd::new(&socket, PollFlags::IN)];
        poll(&mut readable, Some(&wait)).expect("poll works");
    }
    latencies.sort_unstable();
    Paced { latencies, asked }
}

/// Asks `rate` queries a second for `time`, whatever becomes of them, and counts the answers.
pub(crate) fn flood(server: SocketAddr, tag: u32, rate: f64, time: Duration) -> Outcome {
    let socket = connect(server);
    socket.set_nonblocking(true).expect("a socket");
    let start = Instant::now();
    let mut outcome = Outcome::default();
    let mut query = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        outcome.took = start.elapsed();
        if outcome.took >= time {
            return outcome;
        }
        let due = (outcome.took.as_secs_f64() * rate) as u32;
        while outcome.asked < due {
            write_query(&mut query, b'f', tag, outcome.asked);
            // What finds no room on the way is part of the flood.
            let _ = socket.send(&query);
            outcome.asked += 1;
        }
        while socket.recv(&mut buffer).is_ok_and(|length| length > 12 && buffer[3] & 0xf == 0) {
            outcome.answered += 1;
        }
        // By the millisecond: the flood is not to take a processor that the server needs.
        std::thread::park_timeout(Duration::from_millis(1));
    }
}
