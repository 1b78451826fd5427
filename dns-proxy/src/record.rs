//! The typed record of each decision, and the sink that takes it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use namegate_policy::name::DnsName;
use namegate_policy::rule::Origin;

use crate::clients::Client;
use crate::learner::Withheld;

/// What was decided about a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DnsVerdict {
    /// The name may be asked; the answer went to the pod.
    Allowed,
    /// No rule allows the name, or the pod asked too many new ones below a wildcard.
    Denied,
    /// Only Audit policies would have refused the name; the answer went to the pod.
    Audit,
    /// The name may be asked, and the pod got SERVFAIL from the proxy.
    Error,
}

impl fmt::Display for DnsVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Audit => "audit",
            Self::Error => "error",
        })
    }
}

/// How the pod asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// RFC 1035 section 4.2.1.
    Udp,
    /// RFC 7766.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}

/// Why the answer to an allowed query was not what the resolver says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DnsFailure {
    /// The resolver did not answer in time.
    UpstreamTimeout,
    /// The resolver's port or host cannot be reached.
    UpstreamUnreachable,
    /// As many queries are under way as the limits allow.
    Overloaded,
    /// The resolver's answer cannot be read.
    MalformedAnswer,
    /// The answer was cut short and could not be had whole.
    TruncatedAnswer,
    /// The kernel's table of learned addresses is full.
    LearnerFull,
    /// The endpoint or its policy changed while the answer was under way.
    Stale,
    /// The addresses could not be written.
    LearnerFailed,
    /// The pod asked more new names below wildcards than it may: refused.
    NewNames,
    /// The system gave no randomness or no socket.
    Internal,
}

impl fmt::Display for DnsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UpstreamTimeout => "upstream-timeout",
            Self::UpstreamUnreachable => "upstream-unreachable",
            Self::Overloaded => "overloaded",
            Self::MalformedAnswer => "malformed-answer",
            Self::TruncatedAnswer => "truncated-answer",
            Self::LearnerFull => "learner-full",
            Self::Stale => "stale",
            Self::LearnerFailed => "learner-failed",
            Self::NewNames => "new-names",
            Self::Internal => "internal",
        })
    }
}

/// A query type; displays as its mnemonic where it has one here, else as `TYPE` and its number
/// (RFC 3597 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryType(pub u16);

impl QueryType {
    /// RFC 1035.
    pub const A: Self = Self(1);
    /// RFC 1035.
    pub const CNAME: Self = Self(5);
    /// RFC 3596.
    pub const AAAA: Self = Self(28);
    /// RFC 9460.
    pub const SVCB: Self = Self(64);
    /// RFC 9460.
    pub const HTTPS: Self = Self(65);
}

impl fmt::Display for QueryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mnemonic = match self.0 {
            1 => "A",
            2 => "NS",
            5 => "CNAME",
            6 => "SOA",
            12 => "PTR",
            13 => "HINFO",
            15 => "MX",
            16 => "TXT",
            28 => "AAAA",
            33 => "SRV",
            35 => "NAPTR",
            39 => "DNAME",
            43 => "DS",
            46 => "RRSIG",
            47 => "NSEC",
            48 => "DNSKEY",
            52 => "TLSA",
            64 => "SVCB",
            65 => "HTTPS",
            99 => "SPF",
            256 => "URI",
            257 => "CAA",
            other => return write!(f, "TYPE{other}"),
        };
        f.write_str(mnemonic)
    }
}

/// A response code; displays as its mnemonic (RFC 6895 section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rcode(pub u16);

impl Rcode {
    /// No error.
    pub const NOERROR: Self = Self(0);
    /// The query cannot be read.
    pub const FORMERR: Self = Self(1);
    /// The server failed.
    pub const SERVFAIL: Self = Self(2);
    /// The name does not exist.
    pub const NXDOMAIN: Self = Self(3);
    /// The kind of query is not supported.
    pub const NOTIMP: Self = Self(4);
    /// Policy forbids the answer.
    pub const REFUSED: Self = Self(5);
    /// The signature's key is not known here.
    pub const NOTAUTH: Self = Self(9);
    /// The EDNS version is not known here.
    pub const BADVERS: Self = Self(16);
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mnemonic = match self.0 {
            0 => "NOERROR",
            1 => "FORMERR",
            2 => "SERVFAIL",
            3 => "NXDOMAIN",
            4 => "NOTIMP",
            5 => "REFUSED",
            6 => "YXDOMAIN",
            7 => "YXRRSET",
            8 => "NXRRSET",
            9 => "NOTAUTH",
            10 => "NOTZONE",
            16 => "BADVERS",
            other => return write!(f, "RCODE{other}"),
        };
        f.write_str(mnemonic)
    }
}

/// An address of the answer, and whether it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnsweredAddress {
    /// The address.
    pub address: IpAddr,
    /// The TTL that the pod was told.
    pub ttl: u32,
    /// Why it was not opened; `None` where it was.
    pub withheld: Option<Withheld>,
}

/// One decision, with all that an audit record says about it except the time of day.
#[derive(Clone, Debug)]
pub struct DecisionRecord {
    /// What was decided.
    pub verdict: DnsVerdict,
    /// Who asked: pod and identity.
    pub client: Arc<Client>,
    /// Where the query came from.
    pub source: SocketAddr,
    /// The asked name, in lower case.
    pub name: DnsName,
    /// The asked type.
    pub query_type: QueryType,
    /// What the pod was answered.
    pub rcode: Rcode,
    /// The addresses of the answer that count for the asked name (EP-8).
    pub addresses: Vec<AnsweredAddress>,
    /// The rule that allowed the name, or the policies that filter the identity's names and have no
    /// rule for it. Empty where the name resolves for everybody.
    pub policies: Vec<Origin>,
    /// The resolver that the pod asked.
    pub resolver: IpAddr,
    /// How the pod asked.
    pub transport: Transport,
    /// From the arrival of the query to the departure of the answer.
    pub latency: Duration,
    /// Why the verdict is [`DnsVerdict::Error`], why a name that a rule allows was refused, or why an
    /// answer past its time was served.
    pub failure: Option<DnsFailure>,
    /// Whether the answer came from the proxy's cache.
    pub cached: bool,
}

/// Takes the record of each decision.
///
/// Called on the proxy's threads: it never waits; a sink that cannot keep up drops and counts.
pub trait DecisionLog: Send + Sync {
    /// Takes one record.
    fn record(&self, record: DecisionRecord);
}
