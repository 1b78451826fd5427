//! Binding the proxy's addresses, with errors that name them.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Handle;

use crate::config::StartError;
use crate::record::Transport;

/// The UDP and the TCP socket of one address.
pub(super) struct Pair {
    pub(super) address: SocketAddr,
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
}

/// Room for bursts while the worker is busy; the system may grant less.
const RECEIVE_BUFFER: usize = 4 << 20;
const BACKLOG: i32 = 256;
/// Attempts to find a port that is free for both transports where any port will do.
const ANY_PORT_ATTEMPTS: u32 = 16;

/// Binds both transports on `address`, UDP for the thread of `worker`; where its port is 0, on one free port.
pub(super) fn bind(address: SocketAddr, worker: &Handle) -> Result<Pair, StartError> {
    let mut attempts = if address.port() == 0 { ANY_PORT_ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        match bind_once(address, worker) {
            Err(StartError::AddressInUse { .. }) if attempts > 0 => {}
            done => return done,
        }
    }
}

fn bind_once(address: SocketAddr, worker: &Handle) -> Result<Pair, StartError> {
    let udp = bind_udp(address, worker).map_err(|source| error(address, Transport::Udp, source))?;
    let bound = udp.local_addr().map_err(|source| error(address, Transport::Udp, source))?;
    let tcp = bind_tcp(bound).map_err(|source| error(bound, Transport::Tcp, source))?;
    Ok(Pair { address: bound, udp, tcp })
}

fn bind_udp(address: SocketAddr, worker: &Handle) -> io::Result<UdpSocket> {
    let socket = open(address, Type::DGRAM, Protocol::UDP)?;
    if let Err(error) = socket.set_recv_buffer_size(RECEIVE_BUFFER) {
        tracing::debug!(%address, %error, "receive buffer stays at its default");
    }
    socket.bind(&address.into())?;
    // The worker's thread is the one that waits for this socket.
    let _worker = worker.enter();
    UdpSocket::from_std(socket.into())
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address, Type::STREAM, Protocol::TCP)?;
    // Connections of an earlier run may linger; a listener that is alive is still a conflict.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn open(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn error(address: SocketAddr, transport: Transport, source: io::Error) -> StartError {
    if source.kind() == io::ErrorKind::AddrInUse {
        StartError::AddressInUse { address, transport }
    } else if source.kind() == io::ErrorKind::AddrNotAvailable {
        StartError::AddressMissing { address, transport }
    } else {
        StartError::Listen { address, transport, source }
    }
}
