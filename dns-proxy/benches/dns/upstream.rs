//! The upstream: every question has one address that no other has.

use std::net::{Ipv4Addr, UdpSocket};

/// Answers until the process ends.
pub(crate) fn serve() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    println!("{}", socket.local_addr().expect("bound"));
    let mut buffer = [0; 2048];
    let mut address = 0x0b00_0000u32;
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
        address = address.wrapping_add(1);
        let mut answer = buffer[..end].to_vec();
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend_from_slice(&address.to_be_bytes());
        if socket.send_to(&answer, source).is_err() {
            continue;
        }
    }
}
