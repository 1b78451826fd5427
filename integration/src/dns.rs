//! Questions asked and answers read with `dig`.

use std::net::IpAddr;

use crate::addresses::KUBE_DNS_SERVICE;

/// Over what a question goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A connection.
    Tcp,
}

/// One question.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    name: &'a str,
    kind: &'a str,
    server: IpAddr,
    transport: Transport,
    seconds: u32,
}

impl<'a> Query<'a> {
    /// Asks the cluster's resolver for IPv4 addresses.
    pub fn a(name: &'a str) -> Self {
        Self::of(name, "A")
    }

    /// Asks the cluster's resolver for IPv6 addresses.
    pub fn aaaa(name: &'a str) -> Self {
        Self::of(name, "AAAA")
    }

    /// Asks the cluster's resolver for records of the type `kind`.
    pub fn of(name: &'a str, kind: &'a str) -> Self {
        Self {
            name,
            kind,
            server: KUBE_DNS_SERVICE.v4.into(),
            transport: Transport::Udp,
            seconds: 3,
        }
    }

    /// Asks another server.
    #[must_use]
    pub fn at(self, server: impl Into<IpAddr>) -> Self {
        Self { server: server.into(), ..self }
    }

    /// Asks over another transport.
    #[must_use]
    pub fn over(self, transport: Transport) -> Self {
        Self { transport, ..self }
    }

    /// Gives up after so many seconds.
    #[must_use]
    pub fn within_seconds(self, seconds: u32) -> Self {
        Self { seconds, ..self }
    }

    /// What `dig` is called with.
    pub fn arguments(&self) -> Vec<String> {
        let transport = match self.transport {
            Transport::Udp => "+notcp",
            Transport::Tcp => "+tcp",
        };
        vec![
            format!("@{}", self.server),
            self.name.to_owned(),
            self.kind.to_owned(),
            transport.to_owned(),
            "+tries=1".to_owned(),
            format!("+time={}", self.seconds),
            "+nocookie".to_owned(),
        ]
    }
}

/// One record of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The owner's name, with its final dot.
    pub name: String,
    /// Seconds to live.
    pub ttl: u32,
    /// The type, as text.
    pub kind: String,
    /// The data, as text.
    pub value: String,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The response code as `dig` prints it, or `TIMEOUT`.
    pub status: String,
    /// The answer section.
    pub answers: Vec<Record>,
}

impl Reply {
    /// Reads `dig`'s output.
    pub fn parse(output: &str) -> Self {
        let status = output
            .lines()
            .rev()
            .find_map(|line| line.split_once("status: ")?.1.split_once(','))
            .map_or("TIMEOUT", |(status, _)| status)
            .to_owned();
        let answers = output
            .lines()
            .skip_while(|line| !line.starts_with(";; ANSWER SECTION"))
            .skip(1)
            .take_while(|line| !line.is_empty())
            .filter_map(record)
            .collect();
        Self { status, answers }
    }

    /// The addresses of the answer.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.answers
            .iter()
            .filter(|record| matches!(record.kind.as_str(), "A" | "AAAA"))
            .filter_map(|record| record.value.parse().ok())
            .collect()
    }
}

fn record(line: &str) -> Option<Record> {
    let mut fields = line.split_whitespace();
    let name = fields.next()?.to_owned();
    let ttl = fields.next()?.parse().ok()?;
    let _class = fields.next()?;
    let kind = fields.next()?.to_owned();
    let value = fields.collect::<Vec<_>>().join(" ");
    Some(Record { name, ttl, kind, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dig_output_becomes_records() {
        let reply = Reply::parse(
            ";; Got answer:\n;; ->>HEADER<<- opcode: QUERY, status: NOERROR, id: 1\n\n\
             ;; ANSWER SECTION:\na.example.\t\t60\tIN\tCNAME\tb.example.\n\
             b.example.\t\t5\tIN\tA\t203.0.113.1\n\n;; Query time: 1 msec\n",
        );
        assert_eq!(reply.status, "NOERROR");
        assert_eq!(reply.answers.len(), 2);
        assert_eq!(reply.addresses(), [IpAddr::from([203, 0, 113, 1])]);
    }

    #[test]
    fn silence_is_a_timeout() {
        let reply = Reply::parse(";; connection timed out; no servers could be reached\n");
        assert_eq!(reply.status, "TIMEOUT");
    }
}
