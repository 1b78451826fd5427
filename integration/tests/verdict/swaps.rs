//! Two tables take turns under packets of real sockets. Each opens a port of its own to a peer of its
//! own: who sees the peers of one with the ports of the other lets through what neither opens.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use namegate_egress_bpf::abi::{Direction, EventVerdict};
use namegate_integration::lab;
use namegate_integration::patience::wait_until;
use namegate_policy::identity::Identity;
use namegate_policy::rule::CidrReach;
use namegate_policy::table::{CidrPeer, Clause, ClauseAction, ClausePeers};

use crate::load::{OPEN, PEER, POD, SOON, Wire, clause, gaps, opening, ports};
use crate::random::World;
use crate::twin::Twin;

const TURNS: usize = 50;
/// The peers of the two tables, and their ports; behind those the one that both open to anybody.
const PEERS: [Ipv4Addr; 2] = [PEER, Ipv4Addr::new(10, 244, 1, 78)];
const PORTS: [u16; 3] = [7_001, 7_002, OPEN];

/// What a table knows its peer by.
#[derive(Clone, Copy, Debug)]
enum Known {
    Cidr,
    Identity,
    Name,
}

impl Known {
    fn peers(self, turn: usize) -> ClausePeers {
        let mut peers = ClausePeers::default();
        match self {
            Self::Cidr => {
                let net = IpAddr::from(PEERS[turn]).into();
                let peer = CidrPeer { net, except: Vec::new(), reach: CidrReach::All };
                peers.cidrs = Arc::new(vec![peer]);
            }
            Self::Identity => peers.identities = Arc::new([identity(turn)].into_iter().collect()),
            Self::Name => peers.names = true,
        }
        peers
    }

    /// The world under one of the two tables.
    fn rule(self, world: &mut World, direction: Direction, turn: usize) {
        let own = clause(ClauseAction::Forward, self.peers(turn), ports(&[PORTS[turn]]));
        let clauses: Vec<Clause> = [vec![own], opening(&[OPEN])].concat();
        match direction {
            Direction::Egress => world.rule(clauses),
            Direction::Ingress => world.admit(clauses),
        }
        for (class, ip) in (1..).zip(PEERS) {
            match self {
                Self::Cidr => {}
                Self::Identity => {
                    world.identities.insert(ip.into(), identity(class as usize - 1));
                }
                Self::Name => {
                    world.learn(ip.into(), class);
                    world.name(class, if class as usize - 1 == turn { &[0] } else { &[] });
                }
            }
        }
    }
}

fn identity(peer: usize) -> Identity {
    Identity::new(400 + peer as u32).expect("not zero")
}

#[test]
fn nothing_passes_that_neither_of_two_tables_opens() -> Result<()> {
    if !lab::can_run("nothing_passes_that_neither_of_two_tables_opens")? {
        return Ok(());
    }
    let wire = Wire::lay()?;
    wire.introduce()?;
    wire.node.ip(&[&format!("addr add {}/24 dev pod0", PEERS[1])])?;
    for (direction, known) in [
        (Direction::Egress, Known::Cidr),
        (Direction::Egress, Known::Identity),
        (Direction::Egress, Known::Name),
        (Direction::Ingress, Known::Cidr),
        (Direction::Ingress, Known::Identity),
    ] {
        take_turns(&wire, direction, known).with_context(|| format!("{direction:?} {known:?}"))?;
    }
    Ok(())
}

fn take_turns(wire: &Wire, direction: Direction, known: Known) -> Result<()> {
    let mut world = World::ruled(opening(&[]), opening(&[]));
    known.rule(&mut world, direction, 0);
    let (from, to) = match direction {
        Direction::Egress => (&wire.pod, &wire.node),
        Direction::Ingress => (&wire.node, &wire.pod),
    };
    let sinks = to.within(|| PORTS.map(|port| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))))?;
    let (is_over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let came = wire.judged("turns", &world.clone(), |twin| {
        thread::scope(|scope| {
            let readers = sinks.map(|sink| scope.spawn(|| read(&sink?, &is_over)));
            let sender = scope.spawn(|| from.within(|| send(direction, &rounds, &is_over))?);
            let turned = (1..=TURNS).try_for_each(|turn| {
                known.rule(&mut world, direction, turn % 2);
                twin.change_policy(&world)?;
                let before = rounds.load(Ordering::Relaxed);
                wait_until("packets in this turn", SOON, || {
                    Ok(rounds.load(Ordering::Relaxed) > before + 1 || sender.is_finished())
                })?;
                expect_open(twin, direction).with_context(|| format!("turn {turn}"))
            });
            is_over.store(true, Ordering::Relaxed);
            sender.join().expect("no panic")?;
            turned?;
            let mut came = BTreeSet::new();
            for reader in readers {
                came.extend(reader.join().expect("no panic")?);
            }
            let gaps = gaps(twin, direction)?;
            ensure!(gaps == 0, "{gaps} packets saw a table without rows");
            Ok(came)
        })
    })?;
    let expected = [[0, 0], [0, 2], [1, 1], [1, 2]];
    ensure!(came == BTreeSet::from(expected), "{came:?} came, by peer and port");
    Ok(())
}

/// Sends from all peers to all ports, or to them from the pod: in flows that live through all turns and
/// in new ones. Each packet says which peer and port it is of.
fn send(direction: Direction, rounds: &AtomicU64, is_over: &AtomicBool) -> Result<()> {
    let socket = |[peer, port]: [u8; 2]| -> std::io::Result<UdpSocket> {
        let (peer, port) = (PEERS[usize::from(peer)], PORTS[usize::from(port)]);
        let (own, far) = match direction {
            Direction::Egress => (POD, peer),
            Direction::Ingress => (peer, POD),
        };
        let socket = UdpSocket::bind((own, 0))?;
        socket.connect((far, port))?;
        Ok(socket)
    };
    let all = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]];
    let live = all.map(|which| Ok((which, socket(which)?)));
    let live = live.into_iter().collect::<std::io::Result<Vec<_>>>()?;
    while !is_over.load(Ordering::Relaxed) {
        for (which, socket) in &live {
            let _refused = socket.send(which);
        }
        for which in [[0, 1], [1, 0], [0, 2]] {
            let _refused = socket(which)?.send(&which);
        }
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Which packets came.
fn read(sink: &UdpSocket, is_over: &AtomicBool) -> Result<BTreeSet<[u8; 2]>> {
    sink.set_read_timeout(Some(Duration::from_millis(50)))?;
    let (mut came, mut which) = (BTreeSet::new(), [0; 2]);
    loop {
        // Whether the last has been sent is asked before it is looked for.
        let was_over = is_over.load(Ordering::Relaxed);
        match sink.recv(&mut which) {
            Ok(2) => {
                came.insert(which);
            }
            Ok(length) => anyhow::bail!("a packet of {length} octets"),
            Err(_) if was_over => return Ok(came),
            Err(_) => {}
        }
    }
}

/// Nothing to the port that both tables open was dropped.
fn expect_open(twin: &mut Twin, direction: Direction) -> Result<()> {
    let closed = twin.told().into_iter().find(|event| {
        let port = match direction {
            Direction::Egress => event.remote_port,
            Direction::Ingress => event.local_port,
        };
        port == OPEN && event.verdict == EventVerdict::Dropped
    });
    ensure!(closed.is_none(), "{closed:?}");
    Ok(())
}
