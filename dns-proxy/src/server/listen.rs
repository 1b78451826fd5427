//! Binding the proxy's addresses, with errors that name them.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::config::StartError;
use crate::record::Transport;

/// The sockets of one address: a UDP socket for each worker, among which the kernel spreads the pods'
/// sockets, and a TCP socket.
pub(super) struct Bound {
    pub(super) address: SocketAddr,
    pub(super) udp: Vec<UdpSocket>,
    pub(super) tcp: TcpListener,
}

/// Room for bursts while the worker is busy; the system may grant less.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Room for the replies of a turn; the system may grant less.
const SEND_BUFFER: usize = 2 << 20;
const BACKLOG: i32 = 256;
/// Attempts to find a port that is free for both transports where any port will do.
const ANY_PORT_ATTEMPTS: u32 = 16;

/// Binds both transports on `address`, UDP for so many workers; where its port is 0, on one free port.
pub(super) fn bind(address: SocketAddr, workers: usize) -> Result<Bound, StartError> {
    let mut attempts = if address.port() == 0 { ANY_PORT_ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        match bind_once(address, workers) {
            Err(StartError::AddressInUse { .. }) if attempts > 0 => {}
            done => return done,
        }
    }
}

fn bind_once(address: SocketAddr, workers: usize) -> Result<Bound, StartError> {
    let failed = |source| error(address, Transport::Udp, source);
    let first = bind_udp(address).map_err(failed)?;
    let bound = first.local_addr().map_err(failed)?;
    // Before the other workers' sockets: it is TCP that finds another agent on the port.
    let tcp = bind_tcp(bound).map_err(|source| error(bound, Transport::Tcp, source))?;
    let mut udp = vec![first];
    for _ in 1..workers {
        udp.push(bind_udp(bound).map_err(failed)?);
    }
    Ok(Bound { address: bound, udp, tcp })
}

fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address, Type::DGRAM, Protocol::UDP)?;
    socket.set_reuse_port(true)?;
    grow_buffers(&socket, address);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Beyond the system's limit where the agent has the right to, up to it otherwise.
fn grow_buffers(socket: &Socket, address: SocketAddr) {
    let grown = sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER)
        .map_err(io::Error::from)
        .or_else(|_| socket.set_recv_buffer_size(RECEIVE_BUFFER))
        .and_then(|()| socket.set_send_buffer_size(SEND_BUFFER));
    if let Err(error) = grown {
        tracing::debug!(%address, %error, "a socket's buffers stay at their defaults");
    }
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
