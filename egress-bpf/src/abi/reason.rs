/// The number of counters that each direction has in `COUNTERS`.
pub const COUNTER_SLOTS: u32 = 64;

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $number:literal, $label:literal;)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$doc])* $variant = $number,)+
        }

        impl $name {
            /// All of them, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The one numbered `number`.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The name that logs and metrics carry.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }
        }

        const _: () = { $(assert!($number < COUNTER_SLOTS);)+ };
    };
}

numbered! {
    /// Why a packet was let through: the lower counters of a direction.
    Pass {
        /// A known flow of the current generation.
        Known = 0, "known-flow";
        /// The first packet of a flow that policy lets through, or one judged again.
        Judged = 1, "judged";
        /// An ICMP error about a known flow.
        Related = 2, "related";
        /// A later piece of a datagram whose first piece was let through.
        Fragment = 3, "fragment";
        /// ARP, neighbour discovery or multicast listener discovery.
        Link = 4, "link";
        /// A lookup on its way to the proxy.
        ToProxy = 5, "to-proxy";
        /// An answer on its way from the proxy.
        FromProxy = 6, "from-proxy";
    }
}

numbered! {
    /// Why a packet was dropped. Numbers do not overlap with those of [`Pass`], so that both count
    /// in one array.
    DropReason {
        /// A rule drops it, isolation included.
        Denied = 16, "denied";
        /// No rule of the table matches.
        NoRule = 17, "no-rule";
        /// The flow was let through before, and the policy in force does not let it.
        Revoked = 18, "revoked";
        /// The interface belongs to no known endpoint.
        NoEndpoint = 19, "no-endpoint";
        /// The endpoint has no policy table in this direction.
        NoTable = 20, "no-table";
        /// A row that the table promises is missing.
        MissingRow = 21, "missing-row";
        /// The flow table is full.
        FlowsFull = 22, "conntrack-full";
        /// Source address, MAC, or what ARP or neighbour discovery claims is not the endpoint's.
        Spoofed = 23, "spoofed";
        /// A TCP packet that answers a flow nobody opened.
        NoFlow = 24, "no-flow";
        /// A combination of TCP flags that no stack sends.
        TcpFlags = 25, "tcp-flags";
        /// An ICMP error that belongs to no known flow.
        Unrelated = 26, "icmp-unrelated";
        /// An ICMP type that is neither echo nor an error.
        IcmpType = 27, "icmp-type";
        /// An IP protocol other than TCP, UDP, SCTP and ICMP, which are all that is judged.
        Protocol = 28, "protocol";
        /// Shorter than its headers say.
        Truncated = 29, "truncated";
        /// Header fields that contradict each other.
        Malformed = 30, "malformed";
        /// An ethertype other than IPv4, IPv6 and ARP.
        Ethertype = 31, "ethertype";
        /// An 802.1Q or 802.1ad tag.
        Vlan = 32, "vlan";
        /// IPv4 options.
        Options = 33, "ip-options";
        /// An IPv6 extension header that hides what follows.
        ExtensionHeader = 34, "extension-header";
        /// A first fragment too small for its headers, or one that overlaps them.
        TinyFragment = 35, "fragment-tiny";
        /// A later fragment whose first was not let through.
        UnknownFragment = 36, "fragment-unknown";
        /// A fragmented lookup or answer.
        DnsFragment = 37, "fragment-dns";
        /// The memory of first fragments could not take another.
        FragmentsFull = 38, "fragments-full";
        /// Sent to the proxy's own address, or from it without being an answer.
        ProxyAddress = 39, "proxy-address";
        /// A governed lookup while no proxy is known.
        NoProxy = 40, "no-proxy";
        /// A v4-mapped IPv6 address on the wire.
        MappedAddress = 41, "mapped-address";
        /// A router advertisement or redirect from an endpoint.
        Router = 42, "router-message";
        /// A helper of the kernel failed while a packet was rewritten.
        Rewrite = 43, "rewrite-failed";
        /// A unicast packet for an address that is not the endpoint's.
        Misaddressed = 44, "not-addressed";
        /// To a service while the same ports speak to its backend in another way.
        ServiceClash = 45, "service-clash";
        /// To a service that has no backend.
        NoBackend = 46, "service-no-backend";
        /// To a service whose port cannot be translated for this protocol: SCTP to another port.
        ServiceProtocol = 47, "service-protocol";
        /// The first fragment of a datagram that an endpoint sends through a service to itself.
        HairpinFragment = 48, "fragment-hairpin";
        /// To or from an address that is not found, while not every address could be written.
        Incomplete = 49, "addresses-incomplete";
        /// The endpoint holds as many flows as are left for all.
        Quota = 50, "conntrack-quota";
        /// A governed lookup to a service that is no resolver itself and has one as its backend.
        HiddenResolver = 51, "service-resolver";
    }
}
