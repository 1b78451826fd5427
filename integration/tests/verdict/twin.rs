//! The loaded program and its simulation, side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use namegate_egress_bpf::abi::{
    ABI_VERSION, Address, Backend, BackendKey, CONFIG_OTHER_PROTOCOLS, CONFIG_RANGES, Config,
    Direction, Flow, FlowKey, Mac, SERVICE_AFFINE, Service, ServiceKey,
};
use namegate_egress_bpf::compile::NameWrites;
use namegate_egress_bpf::datapath::{
    Datapath, Events, FlowEvent, Options, Ran, RanVerdict, Reason,
};
use namegate_egress_bpf::sim::{Simulation, frame};
use namegate_egress_bpf::verdict::{Scene, Verdict, Way};
use namegate_policy::time::Timestamp;

use crate::random::{MAC, Random, World};

/// Interface that test runs happen on: the loopback.
pub(crate) const LOOPBACK: u32 = 1;

/// Who had a frame before it came to the endpoint's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The node itself made it.
    Node,
    /// Another interface of the node received it.
    Elsewhere,
    /// The endpoint sent it, and it was turned round.
    Endpoint,
}

impl Origin {
    /// As often the node as others.
    pub(crate) fn any(random: &mut Random) -> Self {
        random.pick(&[Self::Node, Self::Node, Self::Elsewhere, Self::Endpoint])
    }

    /// The interface that received it, where the endpoint's is `own`.
    const fn interface(self, own: u32) -> u32 {
        match self {
            Self::Node => 0,
            Self::Elsewhere => own + 1,
            Self::Endpoint => own,
        }
    }
}

/// A pin directory that goes away whatever becomes of the test.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0)
            && self.0.exists()
        {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}

pub(crate) struct Twin {
    pins: Pins,
    datapath: Datapath,
    events: Events,
    sim: Simulation,
    /// The simulation without the short way of known flows.
    long: Simulation,
    told: Vec<FlowEvent>,
    ifindex: u32,
    table: u32,
    epoch: u32,
    counted: BTreeMap<(Direction, Reason), u64>,
}

impl Twin {
    /// Loads the program under a pin directory of its own.
    pub(crate) fn open(name: &str) -> Result<Self> {
        Self::with(name, &Options::default())
    }

    /// The same with maps of other sizes.
    pub(crate) fn with(name: &str, options: &Options) -> Result<Self> {
        let path = format!("/sys/fs/bpf/namegate-test-{name}-{}", std::process::id());
        let pins = Pins(PathBuf::from(path));
        let options = Options { pin_root: pins.0.clone(), ..options.clone() };
        let (datapath, events) = Datapath::open(&options)?;
        Ok(Self {
            pins,
            datapath,
            events,
            sim: Simulation::default(),
            long: Simulation::default(),
            told: Vec::new(),
            ifindex: LOOPBACK,
            table: 0,
            epoch: 0,
            counted: BTreeMap::new(),
        })
    }

    /// Opens the pinned maps anew, as the next agent does.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        let options = Options { pin_root: self.pins.0.clone(), ..Options::default() };
        (self.datapath, self.events) = Datapath::open(&options)?;
        Ok(())
    }

    /// The same with the pod behind another interface.
    pub(crate) fn at(mut self, ifindex: u32) -> Self {
        self.ifindex = ifindex;
        self
    }

    pub(crate) fn verified_instructions(&mut self, direction: Direction) -> Result<Option<u32>> {
        Ok(self.datapath.verified_instructions(direction)?)
    }

    pub(crate) fn datapath(&mut self) -> &mut Datapath {
        &mut self.datapath
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Puts a pod behind an interface that no packet comes over.
    pub(crate) fn put_beside(&mut self, world: &World, ifindex: u32) -> Result<()> {
        Ok(self.datapath.set_endpoint(&world.endpoint(ifindex, self.table, self.epoch))?)
    }

    /// Puts another pod behind the interface.
    pub(crate) fn be(&mut self, world: &World, epoch: u32) -> Result<()> {
        Ok(self.datapath.set_endpoint(&world.endpoint(self.ifindex, self.table, epoch))?)
    }

    /// What the kernel does with the opening of a connection to `remote` from `port`.
    pub(crate) fn syn(&mut self, remote: IpAddr, port: u16) -> Result<RanVerdict> {
        self.segment(remote, port, 0x02)
    }

    /// What it does with a segment to `remote` from `port`.
    pub(crate) fn segment(&mut self, remote: IpAddr, port: u16, flags: u8) -> Result<RanVerdict> {
        let own = IpAddr::from([10, 244, 1, 10]);
        let packet = frame::ip(MAC, (own, remote), 6, &frame::tcp(port, 80, flags));
        Ok(self.datapath.run(Direction::Egress, &packet, 1)?.verdict)
    }

    /// Packets that ended so since [`Twin::enter`].
    pub(crate) fn counted(&self, direction: Direction, reason: Reason) -> Result<u64> {
        let key = (direction, reason);
        let count = self.datapath.counters()?.packets.get(&key).copied().unwrap_or(0);
        Ok(count - self.counted.get(&key).copied().unwrap_or(0))
    }

    /// The records that are there to be read.
    pub(crate) fn told(&mut self) -> Vec<FlowEvent> {
        std::iter::from_fn(|| self.events.next_event()).collect()
    }

    /// Removes every flow, as if all of them had expired.
    pub(crate) fn sweep_all(&mut self) -> Result<()> {
        self.datapath.sweep(Timestamp::from_nanos(u64::MAX))?;
        Ok(())
    }

    pub(crate) fn close(self) -> Result<()> {
        Ok(self.datapath.detach_all()?)
    }

    /// Empties both sides and fills them with a world.
    pub(crate) fn enter(&mut self, world: &World) -> Result<()> {
        let config = &world.settings;
        self.datapath.configure(config)?;
        self.datapath.set_complete(true)?;
        self.datapath.set_resolvers(&world.resolvers)?;
        let known: Vec<IpAddr> = self.datapath.addresses()?.into_keys().collect();
        self.datapath.remove_identities(&known)?;
        self.datapath.put_identities(&world.identities)?;
        self.datapath.set_ranges(&world.ranges)?;
        self.datapath.set_services(&world.services)?;
        let known = self.datapath.names()?;
        let forget =
            NameWrites { delete_entries: known.into_keys().collect(), ..NameWrites::default() };
        self.datapath.write_names(&forget)?;
        self.sim = Simulation {
            config: Some(sim_config(world)),
            resolvers: world
                .resolvers
                .iter()
                .map(|(slot, ip)| (u32::from(*slot), Address::from(*ip)))
                .collect(),
            ipcache: world
                .identities
                .iter()
                .map(|(ip, identity)| (Address::from(*ip), identity.number()))
                .collect(),
            ranges: world
                .ranges
                .iter()
                .map(|(net, identity)| {
                    let length =
                        u32::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 };
                    ((Address::from(net.network()), length), identity.number())
                })
                .collect(),
            ..Simulation::default()
        };
        (self.sim.services, self.sim.backends) = sim_services(world);
        self.long = self.sim.clone();
        self.epoch += 1;
        self.change_policy(world)?;
        // Flows of earlier epochs are nobody's.
        self.datapath.sweep(Timestamp::from_nanos(0))?;
        self.counted = self.datapath.counters()?.packets;
        while self.events.next_event().is_some() {}
        self.told.clear();
        Ok(())
    }

    /// Puts the world's policy in force as another table.
    pub(crate) fn change_policy(&mut self, world: &World) -> Result<()> {
        let before = self.table;
        self.table += 1;
        let rows = world.rows(self.table);
        self.datapath.install(self.table, &rows)?;
        let names = world.names(self.table);
        self.datapath.write_names(&names)?;
        let endpoint = world.endpoint(self.ifindex, self.table, self.epoch);
        self.datapath.set_endpoint(&endpoint)?;
        for sim in [&mut self.sim, &mut self.long] {
            sim.install(&rows);
            sim.rows.peers.extend(&names.classes);
            sim.names.extend(&names.entries);
            sim.endpoints.insert(self.ifindex, endpoint.row()?);
        }
        Ok(self.datapath.remove_table(before)?)
    }

    /// Judges a frame of the node on both sides.
    pub(crate) fn judge(&mut self, direction: Direction, frame: &[u8]) -> Result<(Ran, Verdict)> {
        self.judge_from(Origin::Node, direction, frame)
    }

    /// The same for one that somebody else had before.
    pub(crate) fn judge_from(
        &mut self,
        origin: Origin,
        direction: Direction,
        frame: &[u8],
    ) -> Result<(Ran, Verdict)> {
        let received_by = origin.interface(self.ifindex);
        let ran = self.datapath.run_received(direction, frame, received_by, 1)?;
        let scene = self.scene(origin, direction);
        let (verdict, event) = self.sim.judge(frame, &scene);
        let (long, _) = self.long.judge_the_long_way(frame, &scene);
        ensure!(verdict == long, "the short way {verdict:?}, the long one {long:?}");
        self.told.extend(event.as_ref().and_then(FlowEvent::from_record));
        let expected = match verdict {
            Verdict::Translate { way: Way::HairpinOut | Way::HairpinBack, .. } => {
                RanVerdict::Redirect
            }
            Verdict::Forward(_) | Verdict::FromProxy { .. } | Verdict::Translate { .. } => {
                RanVerdict::Next
            }
            Verdict::Drop(_) => RanVerdict::Drop,
            Verdict::ToProxy { .. } => RanVerdict::Redirect,
        };
        ensure!(ran.verdict == expected, "kernel {:?}, host {verdict:?}", ran.verdict);
        Ok((ran, verdict))
    }

    /// Judges a frame on the host alone.
    pub(crate) fn imagine(
        &mut self,
        origin: Origin,
        direction: Direction,
        frame: &[u8],
    ) -> Verdict {
        let scene = self.scene(origin, direction);
        self.sim.judge(frame, &scene).0
    }

    const fn scene(&self, origin: Origin, direction: Direction) -> Scene {
        Scene {
            ifindex: self.ifindex,
            direction,
            is_from_node: matches!(origin, Origin::Node),
            is_returned: matches!(origin, Origin::Endpoint),
            now_ns: world_now(),
        }
    }

    /// Compares everything that the frames since [`Twin::enter`] left behind, and tells what
    /// verdicts there were.
    pub(crate) fn compare(&mut self) -> Result<BTreeSet<(Direction, Reason)>> {
        let told = std::mem::take(&mut self.told);
        for (number, expected) in told.iter().enumerate() {
            let event = self.events.next_event().context("the kernel told less")?;
            let event = FlowEvent { time: expected.time, ..event };
            ensure!(event == *expected, "record {number}: kernel {event:?}, host {expected:?}");
        }
        ensure!(self.events.next_event().is_none(), "the kernel told more");

        let mut counted = self.datapath.counters()?.packets;
        for (key, before) in &self.counted {
            if let Some(count) = counted.get_mut(key) {
                *count -= before;
            }
        }
        counted.retain(|_, count| *count != 0);
        let expected: BTreeMap<(Direction, Reason), u64> = self
            .sim
            .counters
            .iter()
            .filter_map(|((direction, number), count)| {
                Some(((*direction, Reason::from_number(*number)?), *count))
            })
            .collect();
        ensure!(counted == expected, "counters: kernel {counted:?}, host {expected:?}");

        for ((table, direction, clause), count) in self.datapath.hits()? {
            let key =
                namegate_egress_bpf::abi::HitKey { table, direction: direction as u16, clause };
            let expected = self.sim.hits.get(&key).copied().unwrap_or(0);
            ensure!(count == expected, "hits of {key:?}: kernel {count}, host {expected}");
        }

        ensure!(self.sim.flows == self.long.flows, "the short way leaves other traces");
        let flows: BTreeMap<FlowKey, Flow> = without_times(self.datapath.flows()?);
        let expected = without_times(self.sim.flows.clone());
        for (key, flow) in &expected {
            let found = flows.get(key);
            ensure!(found == Some(flow), "{key:?}: kernel {found:?}, host {flow:?}");
        }
        ensure!(flows.len() == expected.len(), "the kernel knows more flows");
        Ok(counted.into_keys().collect())
    }
}

/// The host's clock stands still: later than every expired name, earlier than every other.
const fn world_now() -> u64 {
    1 << 32
}

fn without_times(flows: BTreeMap<FlowKey, Flow>) -> BTreeMap<FlowKey, Flow> {
    let still = |(key, flow)| (key, Flow { created_ns: 0, seen_ns: 0, ..flow });
    flows.into_iter().map(still).collect()
}

fn sim_services(world: &World) -> (BTreeMap<ServiceKey, Service>, BTreeMap<BackendKey, Backend>) {
    let (mut services, mut lists) = (BTreeMap::new(), BTreeMap::new());
    for (list, (key, entry)) in (0..).zip(&world.services) {
        let backends = entry.backends.len() as u16;
        let flags = if entry.is_affine { SERVICE_AFFINE } else { 0 };
        services.insert(*key, Service { list, backends, flags });
        for (place, backend) in (0..).zip(&entry.backends) {
            lists.insert(BackendKey { list, place }, *backend);
        }
    }
    (services, lists)
}

fn sim_config(world: &World) -> Config {
    let mut flags = 0;
    if world.settings.judges_other_protocols {
        flags |= CONFIG_OTHER_PROTOCOLS;
    }
    if !world.ranges.is_empty() {
        flags |= CONFIG_RANGES;
    }
    let proxy = world.settings.proxy.as_ref();
    Config {
        abi_version: ABI_VERSION,
        flags,
        proxy_ifindex: proxy.map_or(0, |proxy| proxy.ifindex),
        proxy_port: proxy.map_or(0, |proxy| proxy.port),
        flows_max: Options::default().flows_max,
        proxy_mac: Mac(proxy.map_or([0; 6], |proxy| proxy.mac)),
        proxy_v4: proxy.map_or(Address::UNSPECIFIED, |proxy| IpAddr::V4(proxy.v4).into()),
        proxy_v6: proxy.map_or(Address::UNSPECIFIED, |proxy| IpAddr::V6(proxy.v6).into()),
    }
}
