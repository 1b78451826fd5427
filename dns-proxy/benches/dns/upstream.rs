//! The resolver beyond the node: every question has one address that no other has, or, where its name
//! begins with `m`, [`MANY`] addresses for a second. Every address takes connections.

use std::net::{TcpListener, UdpSocket};

use crate::subject::ANY;
use crate::town::RESOLVER;

/// Addresses of an answer that has many.
pub(crate) const MANY: u32 = 64;
/// How many addresses there are until the first comes again: no answer opens one for so long.
const ADDRESSES: u32 = 1 << 22;
/// The port that takes connections.
pub(crate) const PORT: u16 = 443;

/// Answers until the process ends.
pub(crate) fn serve() {
    let listener = TcpListener::bind((ANY, PORT)).expect("a free port");
    // Whoever connects ends it.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let socket = UdpSocket::bind((RESOLVER, 53)).expect("a free port");
    println!("{}", socket.local_addr().expect("bound"));
    let mut buffer = [0; 2048];
    let (mut single, mut many) = (0u32, 0u32);
    loop {
        let Ok((length, source)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let mut at = 12;
        while at < length && buffer[at] != 0 {
            at += 1 + usize::from(buffer[at]);
        }
        let end = at + 5;
        if end > length {
            continue;
        }
        let mut answer = buffer[..end].to_vec();
        let has_many = buffer[13] == b'm';
        let (count, ttl) = if has_many { (MANY, 1u8) } else { (1, 60) };
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, count as u8, 0, 0, 0, 0]);
        for _ in 0..count {
            let address = if has_many {
                many = many.wrapping_add(1) % ADDRESSES;
                0x0b80_0000 + many
            } else {
                single = single.wrapping_add(1) % 0x0070_0000;
                0x0b00_0000 + single
            };
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, ttl, 0, 4]);
            answer.extend_from_slice(&address.to_be_bytes());
        }
        if socket.send_to(&answer, source).is_err() {
            continue;
        }
    }
}
