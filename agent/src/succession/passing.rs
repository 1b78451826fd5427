//! Words with descriptors over a stream. Each is answered by an octet, so that each comes alone.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use namegate_dns_proxy::Sockets;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Descriptors of a word at most: the kernel passes 253 at once.
const SOCKETS_MAX: usize = 253;

/// The longest word.
const WORD_MAX: usize = 256;

/// What is said with descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// So many sockets for UDP at this address come along, and one for TCP.
    Sockets(SocketAddr, usize),
    /// That was all.
    Done,
}

/// Says a word, and waits until it was heard.
pub(super) fn say(
    stream: &mut UnixStream,
    word: &Word,
    sockets: Option<&Sockets>,
) -> io::Result<()> {
    let text = serde_json::to_vec(word)?;
    let files = sockets
        .into_iter()
        .flat_map(|sockets| sockets.udp.iter().map(AsFd::as_fd).chain([sockets.tcp.as_fd()]));
    let files: Vec<_> = files.collect();
    let mut room = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::Error::other("an address has too many sockets"));
    }
    sendmsg(&*stream, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL)?;
    stream.read_exact(&mut [0])
}

/// Hears a word; `None` where that was all.
pub(super) fn hear(stream: &mut UnixStream) -> io::Result<Option<Sockets>> {
    let mut text = [0; WORD_MAX];
    let mut room = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let slices = &mut [IoSliceMut::new(&mut text)];
    let heard = recvmsg(&*stream, slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let files = control.drain().flat_map(|message| {
        let RecvAncillaryMessage::ScmRights(files) = message else { return Vec::new() };
        files.collect()
    });
    let mut files: Vec<OwnedFd> = files.collect();
    let said = text.get(..heard.bytes).unwrap_or_default();
    if said.is_empty() {
        return Err(io::Error::other("it ended before it had handed over"));
    }
    let word = serde_json::from_slice(said)?;
    stream.write_all(&[0])?;
    let Word::Sockets(address, udp) = word else { return Ok(None) };
    let tcp = files.pop().filter(|_| files.len() == udp);
    let tcp = tcp.ok_or_else(|| io::Error::other("sockets did not come along"))?;
    let udp = files.into_iter().map(UdpSocket::from).collect();
    Ok(Some(Sockets { address, udp, tcp: TcpListener::from(tcp) }))
}
