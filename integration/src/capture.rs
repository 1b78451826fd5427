//! `tcpdump` on one interface: what really passed there.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, UdpSocket};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::patience::{wait_for, wait_until};
use crate::process::Daemon;

const LIMIT: Duration = Duration::from_secs(10);
/// A port that nothing else uses: its packet marks the end of what is looked at.
const MARK_PORT: u16 = 9;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    _tcpdump: Daemon,
    lines: Receiver<String>,
}

impl Capture {
    /// Starts capturing on `interface` of `namespace`; returns once packets are seen.
    pub fn start(lab: &Lab, namespace: &Namespace, interface: &str) -> Result<Self> {
        let log = lab.file(&format!("tcpdump-{interface}.log"));
        let mut tcpdump = Daemon::start_piped(
            namespace.command("tcpdump").args([
                "-n",
                "-l",
                "--immediate-mode",
                "-Z",
                "root",
                "-i",
                interface,
            ]),
            &log,
        )?;
        let output = tcpdump.stdout().context("tcpdump has no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        wait_until("tcpdump to listen", LIMIT, || {
            tcpdump.check()?;
            Ok(tcpdump.log().contains("listening on"))
        })?;
        Ok(Self { _tcpdump: tcpdump, lines })
    }

    /// Ends the capture and returns its lines. `from` sends a packet to `to` over the interface:
    /// everything up to that packet is in the result.
    pub fn finish(self, from: &Namespace, to: IpAddr) -> Result<Vec<String>> {
        let bind: IpAddr = match to {
            IpAddr::V4(_) => [0, 0, 0, 0].into(),
            IpAddr::V6(_) => [0u16; 8].into(),
        };
        from.within(|| UdpSocket::bind((bind, 0))?.send_to(b"mark", (to, MARK_PORT)))??;
        let mark = format!("{to}.{MARK_PORT}: UDP");
        let mut seen = Vec::new();
        wait_for("the mark in the capture", LIMIT, || {
            for line in self.lines.try_iter() {
                if line.contains(&mark) {
                    return Ok(Some(()));
                }
                seen.push(line);
            }
            Ok(None)
        })?;
        Ok(seen)
    }
}

/// The lines of `seen` whose packets come from an address that begins with one of `prefixes`.
pub fn sent_by<'a>(seen: &'a [String], prefixes: &[&str]) -> Vec<&'a str> {
    let is_from = |line: &&str| {
        let source = line.split_whitespace().nth(2).unwrap_or_default();
        line.contains(" > ") && prefixes.iter().any(|prefix| source.starts_with(prefix))
    };
    seen.iter().map(String::as_str).filter(is_from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_senders_side_counts() {
        let seen = [
            "13:00:00.1 IP 203.0.113.20.443 > 10.244.1.10.5: Flags [.]".to_owned(),
            "13:00:00.2 IP 10.244.1.10.5 > 203.0.113.20.443: Flags [.]".to_owned(),
            "13:00:00.3 IP6 fd00:10:244:1::a > ff02::2: ICMP6".to_owned(),
        ];
        assert_eq!(sent_by(&seen, &["10.244.1."]), [seen[1].as_str()]);
        assert_eq!(sent_by(&seen, &["10.244.1.", "fd00:"]).len(), 2);
    }
}
