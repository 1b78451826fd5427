//! Binding the proxy's addresses, with errors that name them.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::StartError;
use crate::record::Transport;

/// The sockets of one address: a UDP socket for each worker, among which the kernel spreads the pods'
/// sockets, and a TCP socket. What pods send waits in them for as long as anybody has them.
#[derive(Debug)]
pub struct Sockets {
    /// The address.
    pub address: SocketAddr,
    /// The sockets for UDP.
    pub udp: Vec<UdpSocket>,
    /// The socket for TCP.
    pub tcp: TcpListener,
}

impl Sockets {
    /// The same sockets once more.
    pub(super) fn again(&self) -> Result<Self, StartError> {
        let failed = |transport| {
            move |source| StartError::Listen { address: self.address, transport, source }
        };
        let udp = self.udp.iter().map(UdpSocket::try_clone).collect::<io::Result<_>>();
        Ok(Self {
            address: self.address,
            udp: udp.map_err(failed(Transport::Udp))?,
            tcp: self.tcp.try_clone().map_err(failed(Transport::Tcp))?,
        })
    }

    /// Sees to it that each of so many workers has one.
    pub(super) fn complete(mut self, workers: usize) -> Result<Self, StartError> {
        while self.udp.len() < workers {
            let bound = bind_udp(self.address);
            self.udp.push(bound.map_err(|source| error(self.address, Transport::Udp, source))?);
        }
        Ok(self)
    }
}

/// Room for bursts while the worker is busy; the system may grant less.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Room for the replies of a turn; the system may grant less.
const SEND_BUFFER: usize = 2 << 20;
const BACKLOG: i32 = 256;
/// Attempts to find a port that is free for both transports where any port will do.
const ANY_PORT_ATTEMPTS: u32 = 16;

/// Binds both transports on `address`, UDP for so many workers; where its port is 0, on one free port.
pub(super) fn bind(address: SocketAddr, workers: usize) -> Result<Sockets, StartError> {
    let mut attempts = if address.port() == 0 { ANY_PORT_ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        match bind_once(address, workers) {
            Err(StartError::AddressInUse { .. }) if attempts > 0 => {}
            done => return done,
        }
    }
}

fn bind_once(address: SocketAddr, workers: usize) -> Result<Sockets, StartError> {
    let failed = |source| error(address, Transport::Udp, source);
    let first = bind_udp(address).map_err(failed)?;
    let bound = first.local_addr().map_err(failed)?;
    // Before the other workers' sockets: it is TCP that finds another agent on the port.
    let tcp = bind_tcp(bound).map_err(|source| error(bound, Transport::Tcp, source))?;
    Sockets { address: bound, udp: vec![first], tcp }.complete(workers)
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
    Ok(socket.into())
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
