//! The least that any forwarder can do: batches in, batches out, an id for each query under way.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

use crate::subject::ANY;

const BATCH: usize = 64;

/// Forwards until the process ends.
pub(crate) fn serve(upstream: SocketAddr) {
    let client = UdpSocket::bind((ANY, 0)).expect("a free port");
    let server = UdpSocket::bind((ANY, 0)).expect("a free port");
    server.connect(upstream).expect("a route");
    println!("{}", client.local_addr().expect("bound"));
    let mut askers: Vec<(u16, Option<SockaddrIn>)> = vec![(0, None); 65_536];
    let mut next = 0u16;
    let mut buffers = vec![[0u8; 1500]; BATCH];
    loop {
        let mut waiting = [
            PollFd::new(client.as_fd(), PollFlags::POLLIN),
            PollFd::new(server.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut waiting, PollTimeout::NONE).expect("poll works");
        let [asks, answers] =
            waiting.map(|socket| socket.revents().is_some_and(|events| !events.is_empty()));
        if answers {
            relay(&server, &client, &mut buffers, |message, _| {
                let id = usize::from(u16::from_be_bytes([message[0], message[1]]));
                let (id, asker) = askers[id];
                message[..2].copy_from_slice(&id.to_be_bytes());
                asker
            });
        }
        if asks {
            relay(&client, &server, &mut buffers, |message, source| {
                next = next.wrapping_add(1);
                askers[usize::from(next)] = (u16::from_be_bytes([message[0], message[1]]), source);
                message[..2].copy_from_slice(&next.to_be_bytes());
                None
            });
        }
    }
}

/// Moves one batch from one socket to the other; `map` rewrites a message and says where it goes.
fn relay(
    from: &UdpSocket,
    to: &UdpSocket,
    buffers: &mut [[u8; 1500]],
    mut map: impl FnMut(&mut [u8], Option<SockaddrIn>) -> Option<SockaddrIn>,
) {
    let mut received = [(0, None); BATCH];
    let mut count = 0;
    {
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        let Ok(messages) = recvmmsg(from.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None)
        else {
            return;
        };
        for (message, received) in messages.zip(received.iter_mut()) {
            *received = (message.bytes, message.address);
            count += 1;
        }
    }
    let mut targets = Vec::with_capacity(count);
    for (buffer, (length, source)) in buffers.iter_mut().zip(received).take(count) {
        targets.push(map(&mut buffer[..length], source));
    }
    let slices: Vec<[IoSlice<'_>; 1]> = buffers
        .iter()
        .zip(received)
        .take(count)
        .map(|(buffer, (length, _))| [IoSlice::new(&buffer[..length])])
        .collect();
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(count, None);
    let flags = MsgFlags::MSG_DONTWAIT;
    if sendmmsg(to.as_raw_fd(), &mut headers, slices.iter(), &targets, [], flags).is_err() {
        eprintln!("the forwarder lost a batch");
    }
}
