//! Writes to the kernel's maps that fail, and maps that are too small: nothing opens, what failed is
//! told, and the state heals by itself.
//!
//! The agent's state and its order of writes over the real maps, judged by test runs of the loaded
//! program. One write after the other fails: each on its own, and each with all that follow until the
//! step is done.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "failing_writes/bench.rs"]
mod bench;
#[path = "failing_writes/sweep.rs"]
mod sweep;
#[path = "failing_writes/take_over.rs"]
mod take_over;
#[path = "failing_writes/town.rs"]
mod town;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench::{Bench, IFINDEX, OWN, Probe};
use namegate::apply::{Apply, Outcome};
use namegate::clock;
use namegate::endpoints::{Interface, Town};
use namegate::source::Changes;
use namegate::state::{Answer, Effects, Event, Settings, State};
use namegate_egress_bpf::abi::{Direction, DropReason};
use namegate_egress_bpf::datapath::{Options, Reason, fail_each, fail_writes};
use namegate_integration::lab;
use namegate_policy::dns::NameDecision;
use namegate_policy::name::DnsName;
use namegate_policy::object::{self, Object, ObjectKind, ObjectRef};
use namegate_policy::opening::{ClusterRanges, RebindingGuard, Window};
use namegate_policy::resource::PodRef;
use town::{
    API, DB, DNS, EVIL, FRIEND, NEW_PEER, NODE, OLD_PEER, SERVICE, STEPS, Step, WORSE, WORST,
};

/// Rounds after which everything must have healed.
const PATIENCE: usize = 4;

/// Every so many writes fail at once in the end: all patterns of these, each begun at each place.
const EACH: [u64; 4] = [2, 3, 5, 7];

/// What the steps write to.
const MAPS: [&str; 10] = [
    "ENDPOINTS",
    "IPCACHE",
    "TABLES",
    "PEERS",
    "CIDRS",
    "PORTS",
    "NAMES",
    "SERVICES",
    "BACKENDS",
    "RESOLVERS",
];

const PROBES: [Probe; 22] = [
    Probe::to(DB, 80),
    Probe::to(DB, 5432),
    Probe::to(FRIEND, 80),
    Probe::to(FRIEND, 5432),
    Probe::to(EVIL, 80),
    Probe::to(WORSE, 80),
    Probe::to(WORST, 80),
    Probe::to(OLD_PEER, 5432),
    Probe::to(NEW_PEER, 5432),
    Probe::to(API, 443),
    Probe::to(API, 444),
    Probe::to(SERVICE, 80),
    Probe::to(NODE, 30_080),
    Probe::lookup_at(DNS),
    Probe::from(DB, 80),
    Probe::from(DB, 5432),
    Probe::from(FRIEND, 80),
    Probe::from(FRIEND, 5432),
    Probe::from(EVIL, 80),
    Probe::from(WORSE, 80),
    Probe::from(WORST, 80),
    Probe::from(OLD_PEER, 5432),
];

/// What is open, and how many rows each map has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Picture {
    open: BTreeSet<Probe>,
    rows: BTreeMap<&'static str, usize>,
}

struct Node {
    state: State,
    apply: Apply<Bench>,
    objects: BTreeMap<ObjectRef, Object>,
}

impl Node {
    fn new(bench: Bench) -> Self {
        Self::over(Apply::new(bench, BTreeMap::new(), BTreeSet::new(), 1))
    }

    fn over(apply: Apply<Bench>) -> Self {
        let state = State::new(Settings {
            cluster_domain: DnsName::parse("cluster.local").unwrap(),
            ranges: ClusterRanges {
                pods: vec!["10.244.0.0/16".parse().unwrap()],
                services: vec!["10.96.0.0/12".parse().unwrap()],
                ..ClusterRanges::default()
            },
            guard: RebindingGuard::Relaxed,
            window: Window { min_ttl: Duration::from_secs(600), grace: Duration::from_secs(5) },
            resolvers: Vec::new(),
            own_addresses: BTreeSet::new(),
            has_ipv6: false,
            node_name: None,
        });
        Self { state, apply, objects: BTreeMap::new() }
    }

    /// Does a step, with one round of writes for all that came of it.
    fn take(&mut self, step: &Step) -> Result<Outcome> {
        let documents: Vec<serde_json::Value> = match step.upserts {
            "" => Vec::new(),
            text => serde_saphyr::from_str(text).context("the step's objects")?,
        };
        let mut upserts = Vec::new();
        for document in documents {
            let object = object::parse(document).map_err(|error| anyhow::anyhow!("{error}"))?;
            self.objects.insert(object.reference(), object.clone());
            upserts.push(Arc::new(object));
        }
        let removals: Vec<ObjectRef> = step.removals.iter().map(reference).collect();
        for removal in &removals {
            self.objects.remove(removal);
        }
        let mut effects = self.change(upserts, removals);
        for address in step.learned {
            effects.absorb(self.learn(IpAddr::from(*address))?);
        }
        Ok(self.apply.apply(effects))
    }

    fn change(&mut self, upserts: Vec<Arc<Object>>, removals: Vec<ObjectRef>) -> Effects {
        let changes = Changes { upserts, removals, ..Changes::default() };
        let mut effects = self.handle(Event::Objects(changes));
        let interface =
            |index, name: &str| Ok(Interface { index, name: name.to_owned(), pod_mac: None });
        let housed = self.objects.values().filter_map(|object| {
            let Object::Pod(pod) = object else { return None };
            let name = pod.annotations.get("namegate.dev/interface")?;
            let index = if &**name == "lo" { IFINDEX } else { 77 };
            let key = (Arc::clone(&pod.reference.namespace), Arc::clone(&pod.reference.name));
            Some((key, interface(index, name)))
        });
        let town = Town {
            host_addresses: BTreeSet::from([IpAddr::from(NODE)]),
            pods: housed.collect(),
            interfaces: BTreeSet::from([IFINDEX, 77]),
            told_at: BTreeMap::new(),
        };
        effects.absorb(self.handle(Event::Town(town)));
        effects
    }

    fn learn(&mut self, address: IpAddr) -> Result<Effects> {
        let web = PodRef { namespace: "shop".into(), name: "web".into() };
        let identity = self.state.identity_of_pod(&web).context("the pod is known")?;
        let name = DnsName::parse("api.example.com")?;
        let table = self.state.tables().get(&identity).context("its table is built")?;
        let NameDecision::Allowed { clauses, .. } = table.names.decide(&name) else {
            anyhow::bail!("{name} is refused");
        };
        let answer = Answer { identity, name, clauses, addresses: vec![(address, 3_600)] };
        Ok(self.state.teach(&answer, clock::monotonic_now())?.0)
    }

    fn handle(&mut self, event: Event) -> Effects {
        self.state.handle(event, clock::monotonic_now())
    }

    /// What the agent does each second while something failed.
    fn try_again(&mut self) -> Outcome {
        let mut effects = Effects::default();
        for identity in self.apply.retry_identities() {
            if let Some(effect) = self.state.table_effect(identity) {
                effects.tables.insert(identity, effect);
            }
        }
        self.apply.apply(effects)
    }

    fn heal(&mut self) -> Result<()> {
        let mut outcome = Outcome::default();
        for _ in 0..PATIENCE {
            if !self.apply.needs_retry() {
                return Ok(());
            }
            outcome = self.try_again();
        }
        ensure!(!self.apply.needs_retry(), "it does not heal: {:?}", outcome.failures);
        Ok(())
    }

    fn open(&mut self) -> Result<BTreeSet<Probe>> {
        self.apply.kernel().open_of(&PROBES)
    }

    fn picture(&mut self) -> Result<Picture> {
        Ok(Picture { open: self.open()?, rows: self.apply.kernel().rows()? })
    }

    /// Undoes everything, so that the maps are as they were.
    fn leave(mut self) -> Result<Bench> {
        let removals = std::mem::take(&mut self.objects).into_keys().collect();
        let mut effects = self.change(Vec::new(), removals);
        effects.absorb(self.handle(Event::Town(Town::default())));
        // What Services had stays closed for a while.
        let later = clock::monotonic_now().saturating_add(Duration::from_secs(100));
        effects.absorb(self.state.handle(Event::Tick, later));
        let outcome = self.apply.apply(effects);
        ensure!(outcome.failures.is_empty(), "{:?}", outcome.failures);
        Ok(self.apply.into_kernel())
    }
}

fn reference((kind, namespace, name): &(&str, &str, &str)) -> ObjectRef {
    let kind = match *kind {
        "Pod" => ObjectKind::Pod,
        "Service" => ObjectKind::Service,
        _ => ObjectKind::EndpointSlice,
    };
    ObjectRef { kind, namespace: Some((*namespace).into()), name: (*name).into() }
}

/// The steps without a failure, and what is open after each.
fn undisturbed(bench: Bench) -> Result<(Bench, Vec<Picture>)> {
    let mut node = Node::new(bench);
    let mut pictures = Vec::new();
    for step in &STEPS {
        let outcome = node.take(step)?;
        ensure!(outcome.failures.is_empty(), "{}: {:?}", step.name, outcome.failures);
        ensure!(!node.apply.needs_retry(), "{}", step.name);
        pictures.push(node.picture()?);
    }
    Ok((node.leave()?, pictures))
}

/// Fails if something is open after a failure that was not before and is not in the end.
fn expect_nothing_opened(
    open: &BTreeSet<Probe>,
    (was_open, is_to_be): (&BTreeSet<Probe>, &BTreeSet<Probe>),
    closed: &[[u8; 4]],
) -> Result<()> {
    for probe in open.difference(is_to_be) {
        // A service that could not be removed leads to its backend, which may be nobody's now.
        let is_served = [SERVICE, NODE].contains(&probe.remote);
        let is_old = is_served && is_to_be.contains(&Probe::to(EVIL, 80));
        let was_open = was_open.contains(probe) || is_old;
        ensure!(was_open && !closed.contains(&probe.remote), "{probe:?} is open");
    }
    Ok(())
}

/// The steps while every `nth` write fails, in the rounds that try again as well; then all heals. Says how
/// many rounds had to tell of something.
fn disturbed_all_along(
    bench: Bench,
    expected: &[Picture],
    (nth, before): (u64, u64),
) -> Result<(Bench, usize)> {
    let (mut node, mut told) = (Node::new(bench), 0);
    let mut was_open = BTreeSet::new();
    for (step, after) in STEPS.iter().zip(expected) {
        fail_each(nth, before);
        let mut outcome = node.take(step)?;
        for round in 0..3 {
            fail_each(0, 0);
            let context = || format!("{}: round {round}: {:?}", step.name, outcome.failures);
            let open = node.open()?;
            expect_nothing_opened(&open, (&was_open, &after.open), &[]).with_context(context)?;
            if !node.apply.needs_retry() {
                break;
            }
            ensure!(!outcome.failures.is_empty(), "not told: {}", context());
            told += 1;
            fail_each(nth, before + round);
            outcome = node.try_again();
        }
        fail_each(0, 0);
        node.heal().with_context(|| step.name)?;
        let healed = node.picture()?;
        ensure!(healed == *after, "{}: {healed:?} is not {after:?}", step.name);
        was_open.clone_from(&after.open);
    }
    Ok((node.leave()?, told))
}

/// The steps with `count` writes that fail after `before`, in one step at most; says which maps they were
/// to, if any did.
fn disturbed(
    bench: Bench,
    expected: &[Picture],
    before: u64,
    count: u64,
) -> Result<(Bench, Option<BTreeSet<&'static str>>)> {
    let mut node = Node::new(bench);
    let (mut to_come, mut failed) = ((before, count), None);
    let mut was_open = BTreeSet::new();
    for (step, after) in STEPS.iter().zip(expected) {
        fail_writes(to_come.0, to_come.1);
        let outcome = node.take(step)?;
        to_come = fail_writes(0, 0);
        let fails = failed.is_none() && to_come.1 < count;
        let context = || format!("{}: write {before} fails: {:?}", step.name, outcome.failures);
        ensure!(outcome.failures.is_empty() != fails, "told or not: {}", context());
        ensure!(fails || !node.apply.needs_retry(), "tried again for nothing: {}", context());
        if fails {
            let closed = if count == 1 { step.about } else { &[] };
            let open = node.open()?;
            expect_nothing_opened(&open, (&was_open, &after.open), closed).with_context(context)?;
            node.heal().with_context(context)?;
            let healed = node.picture()?;
            ensure!(healed == *after, "{healed:?} is not {after:?}: {}", context());
            let is_told = |map: &&str| outcome.failures.iter().any(|text| text.contains(*map));
            (to_come, failed) = ((0, 0), Some(MAPS.into_iter().filter(is_told).collect()));
        }
        was_open.clone_from(&after.open);
    }
    if failed.is_some() {
        let (last, expected) = (node.picture()?, expected.last());
        ensure!(Some(&last) == expected, "write {before}: {last:?} is not {expected:?}");
    }
    Ok((node.leave()?, failed))
}

#[test]
fn whichever_write_fails_nothing_opens_and_all_heals() -> Result<()> {
    if !lab::can_run("whichever_write_fails_nothing_opens_and_all_heals")? {
        return Ok(());
    }
    // Small maps are read quickly.
    let small = Options {
        names_max: 1_024,
        flows_max: 1_024,
        addresses_max: 1_024,
        peers_max: 1_024,
        ..Options::default()
    };
    let bench = Bench::open(&small)?;
    let empty = bench.rows()?;
    let (mut bench, expected) = undisturbed(bench)?;
    let all: BTreeSet<Probe> = expected.iter().flat_map(|after| after.open.clone()).collect();
    let never = [Probe::to(EVIL, 80), Probe::to(WORSE, 80), Probe::to(WORST, 80)];
    ensure!(never.iter().any(|probe| all.contains(probe)), "they are open before they are known");
    let empty = BTreeMap::from_iter(empty.into_iter().filter(|(map, _)| *map != "RESOLVERS"));
    for count in [1, u64::MAX] {
        let (mut before, mut maps) = (0, BTreeSet::new());
        loop {
            let (left, failed) = disturbed(bench, &expected, before, count)?;
            bench = left;
            let Some(told) = failed else { break };
            maps.extend(told);
            let mut rows = bench.rows()?;
            rows.remove("RESOLVERS");
            ensure!(rows == empty, "write {before}: rows are left: {rows:?}");
            before += 1;
        }
        ensure!(before > 50, "only {before} writes were tried");
        ensure!(maps == BTreeSet::from(MAPS), "only writes to {maps:?} were tried");
        let how = if count == 1 { "alone" } else { "with all that follow in its step" };
        println!("{before} writes failed, each {how}: nothing opened, all healed");
    }
    for nth in EACH {
        let mut rounds = 0;
        for before in 0..nth {
            let (left, told) = disturbed_all_along(bench, &expected, (nth, before))
                .with_context(|| format!("of {nth} writes one fails, begun after {before}"))?;
            (bench, rounds) = (left, rounds + told);
        }
        ensure!(rounds > STEPS.len(), "of {nth} writes one fails, and {rounds} rounds told of it");
        println!("of {nth} writes one failed, in {rounds} rounds: nothing opened, all healed");
    }
    Ok(())
}

/// A table that denies by labels has no room for the rows of more pods: those are denied to everybody,
/// counted and named, and heal by themselves when others go.
#[test]
fn pods_whose_rows_do_not_fit_are_closed_until_they_do() -> Result<()> {
    const PODS: u8 = 40;
    if !lab::can_run("pods_whose_rows_do_not_fit_are_closed_until_they_do")? {
        return Ok(());
    }
    let mut node = Node::new(Bench::open(&Options { peers_max: 32, ..Options::default() })?);
    let outcome = node.take(&STEPS[0])?;
    ensure!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    let place = |last: u8| [10, 244, 3, last];
    let mut failures = Vec::new();
    for last in 1..=PODS {
        failures = node.take_pod(last, place(last))?.failures;
    }
    let closed = node.apply.kernel().counters()?;
    let incomplete = (Direction::Egress, Reason::Drop(DropReason::Incomplete));
    let before = closed.packets.get(&incomplete).copied().unwrap_or(0);
    let probes: Vec<Probe> = (1..=PODS).map(|last| Probe::to(place(last), 80)).collect();
    let open = node.apply.kernel().open_of(&probes)?;
    ensure!(open.is_empty(), "{} of {PODS} denied pods are open", open.len());
    let counted = node.apply.kernel().counters()?.packets.get(&incomplete).copied().unwrap_or(0);
    ensure!(counted > before, "none is closed because it does not fit");
    let told = failures.join("; ");
    ensure!(told.contains("PEERS is full") && told.contains("closed to new flows"), "{told}");
    ensure!(node.apply.needs_retry());

    // The last stays: what had no room has it now.
    let gone: Vec<ObjectRef> = (1..PODS).map(pod_reference).collect();
    for removal in &gone {
        node.objects.remove(removal);
    }
    let effects = node.change(Vec::new(), gone);
    node.apply.apply(effects);
    node.heal()?;
    let last = Probe::to(place(PODS), 80);
    ensure!(node.apply.kernel().open_of(&[last])?.is_empty(), "it is denied by its labels");
    let after = node.apply.kernel().counters()?.packets.get(&incomplete).copied().unwrap_or(0);
    ensure!(after == counted, "not because it is not known");
    Ok(())
}

impl Node {
    /// A pod that is denied by its labels, which are its own.
    fn take_pod(&mut self, last: u8, address: [u8; 4]) -> Result<Outcome> {
        let address = IpAddr::from(address);
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("evil-{last}"), "namespace": "shop",
                "labels": {"tier": "evil", "app": format!("evil-{last}")},
            },
            "status": {"podIPs": [{"ip": address.to_string()}]},
        });
        let pod = object::parse(pod).map_err(|error| anyhow::anyhow!("{error}"))?;
        ensure!(IpAddr::from(OWN) != address);
        self.objects.insert(pod.reference(), pod.clone());
        let effects = self.change(vec![Arc::new(pod)], Vec::new());
        Ok(self.apply.apply(effects))
    }
}

fn pod_reference(last: u8) -> ObjectRef {
    reference(&("Pod", "shop", &format!("evil-{last}")))
}
