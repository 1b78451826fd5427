use std::io;
use std::net::{ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use super::{Batch, Sink, Unwritten};
use crate::clock;

/// RFC 5424 section 6.2.1: facility `local0`, severity `warning` or `informational`.
const LOCAL0: u8 = 16 << 3;
const WARNING: u8 = 4;
const INFORMATIONAL: u8 = 6;

/// How long a receiver that is not there is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// Where a syslog daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyslogAddress {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A host and port, over UDP (RFC 5426).
    Udp(String),
}

impl FromStr for SyslogAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("udp", host)) if host.contains(':') => Ok(Self::Udp(host.to_owned())),
            _ => Err("expected unix:/dev/log or udp:HOST:PORT".to_owned()),
        }
    }
}

/// Sends each line as a message of RFC 5424, one a datagram, and never waits.
#[derive(Debug)]
pub(in super::super) struct Syslog {
    address: SyslogAddress,
    socket: Option<Socket>,
    retry_at: Instant,
    host: String,
    message: Vec<u8>,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixDatagram),
    Udp(UdpSocket),
}

impl Syslog {
    pub(in super::super) fn new(address: SyslogAddress) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            address,
            socket: None,
            retry_at: Instant::now(),
            host: header_field(&host),
            message: Vec::new(),
        }
    }

    fn connected(&mut self) -> io::Result<&Socket> {
        if self.socket.is_none() {
            let now = Instant::now();
            if now < self.retry_at {
                return Err(io::ErrorKind::NotConnected.into());
            }
            self.retry_at = now + RETRY;
            self.socket = Some(Socket::connect(&self.address)?);
        }
        self.socket.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn send(&mut self, header: &str, line: &[u8], is_refusal: bool) -> io::Result<()> {
        let severity = if is_refusal { WARNING } else { INFORMATIONAL };
        let mut message = std::mem::take(&mut self.message);
        message.clear();
        message.extend_from_slice(format!("<{}>", LOCAL0 + severity).as_bytes());
        message.extend_from_slice(header.as_bytes());
        message.extend_from_slice(line);
        let outcome = self.connected().and_then(|socket| socket.send(&message));
        self.message = message;
        match &outcome {
            // One message that is too long, or a receiver that is behind, says nothing of the rest.
            Err(error)
                if error.kind() != io::ErrorKind::WouldBlock
                    && error.raw_os_error() != Some(rustix::io::Errno::MSGSIZE.raw_os_error()) =>
            {
                self.socket = None;
            }
            Ok(()) | Err(_) => {}
        }
        outcome
    }
}

impl Socket {
    fn connect(address: &SyslogAddress) -> io::Result<Self> {
        match address {
            SyslogAddress::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Unix(socket))
            }
            SyslogAddress::Udp(host) => {
                let target = host.to_socket_addrs()?.next();
                let target = target.ok_or_else(|| io::Error::other("the host has no address"))?;
                let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any)?;
                socket.connect(target)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Udp(socket))
            }
        }
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(socket) => socket.send(message),
            Self::Udp(socket) => socket.send(message),
        }
        .map(drop)
    }
}

impl Sink for Syslog {
    fn write(&mut self, batch: &Batch) -> Result<(), Unwritten> {
        let time = clock::rfc3339(SystemTime::now());
        let header = format!("1 {time} {} namegate {} audit - ", self.host, std::process::id());
        let mut unwritten = None;
        for (line, is_refusal) in batch.lines() {
            if let Err(source) = self.send(&header, line, is_refusal) {
                let lines = unwritten.as_ref().map_or(0, |before: &Unwritten| before.lines) + 1;
                unwritten = Some(Unwritten { lines, source });
            }
        }
        unwritten.map_or(Ok(()), Err)
    }
}

/// Printable ASCII without spaces, as header fields are (RFC 5424 section 6).
fn header_field(text: &str) -> String {
    let field: String = text.chars().filter(char::is_ascii_graphic).take(255).collect();
    if field.is_empty() { "-".to_owned() } else { field }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_batch(lines: &[(&str, bool)]) -> Batch {
        let mut batch = Batch::default();
        for (line, is_refusal) in lines {
            batch.text.extend_from_slice(line.as_bytes());
            batch.text.push(b'\n');
            batch.ends.push((batch.text.len(), *is_refusal));
        }
        batch
    }

    #[test]
    fn each_line_is_a_message_with_its_severity() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let address = format!("udp:{}", receiver.local_addr().unwrap()).parse().unwrap();
        let mut syslog = Syslog::new(address);
        syslog.write(&mk_batch(&[(r#"{"a":1}"#, false), (r#"{"b":2}"#, true)])).unwrap();
        for (priority, body) in
            [("<134>1 ", r#" audit - {"a":1}"#), ("<132>1 ", r#" audit - {"b":2}"#)]
        {
            let mut octets = [0; 512];
            let length = receiver.recv(&mut octets).unwrap();
            let message = std::str::from_utf8(&octets[..length]).unwrap();
            assert!(message.starts_with(priority) && message.ends_with(body), "{message}");
            assert_eq!(message.split(' ').count(), 8, "{message}");
        }
    }

    #[test]
    fn a_receiver_that_reads_nothing_stalls_nobody_and_one_that_comes_back_is_found() {
        let path = std::env::temp_dir().join(format!("audit-syslog-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let mut syslog = Syslog::new(SyslogAddress::Unix(path.clone()));
        assert_eq!(syslog.write(&mk_batch(&[("x", false)])).unwrap_err().lines, 1, "nobody there");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let long = "x".repeat(4_096);
        let batch = mk_batch(&[(long.as_str(), false); 2_000]);
        syslog.retry_at = Instant::now();
        let lost = syslog.write(&batch).unwrap_err().lines;
        assert!(lost > 0 && lost < 2_000, "{lost}: some fit, the rest is counted");
        let mut octets = [0; 8_192];
        receiver.set_nonblocking(true).unwrap();
        let heard = std::iter::from_fn(|| receiver.recv(&mut octets).ok()).count();
        assert_eq!(heard as u64 + lost, 2_000);
        drop(receiver);
        std::fs::remove_file(&path).unwrap();
        assert!(syslog.write(&mk_batch(&[("x", false)])).is_err(), "it went");
        let receiver = UnixDatagram::bind(&path).unwrap();
        syslog.retry_at = Instant::now();
        syslog.write(&mk_batch(&[("back", false)])).unwrap();
        let length = receiver.recv(&mut octets).unwrap();
        assert!(octets[..length].ends_with(b"back"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let unix = SyslogAddress::Unix("/dev/log".into());
        assert_eq!("unix:/dev/log".parse(), Ok(unix));
        assert_eq!("udp:[::1]:514".parse(), Ok(SyslogAddress::Udp("[::1]:514".to_owned())));
        for text in ["", "unix:", "unix:dev/log", "udp:host", "tcp:host:514", "/dev/log"] {
            assert!(text.parse::<SyslogAddress>().is_err(), "{text:?}");
        }
    }
}
