//! The verdict in the kernel is the verdict on the host.
//!
//! Random tables, endpoints and frames are judged by the loaded program through
//! `BPF_PROG_TEST_RUN` and by the same code over simulated maps. After each batch everything that a
//! verdict leaves behind is compared: return codes, records, packet counters, rule hits, flows. So it is
//! with frames that have names (`frames`), and with what becomes of those when they are damaged
//! (`mutate`). Packets of real sockets (`load`) are counted.

#[path = "verdict/frames/mod.rs"]
mod frames;
#[path = "verdict/load.rs"]
mod load;
#[path = "verdict/mutate.rs"]
mod mutate;
#[path = "verdict/pen.rs"]
mod pen;
#[path = "verdict/random.rs"]
mod random;
#[path = "verdict/swaps.rs"]
mod swaps;
#[path = "verdict/twin.rs"]
mod twin;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use namegate_egress_bpf::abi::{Direction, DropReason, NameEntry, NameKey, PASSAGES, Pass};
use namegate_egress_bpf::compile::NameWrites;
use namegate_egress_bpf::datapath::{
    DatapathError, Numbers, Options, RanVerdict, Reason, ServiceEntry,
};
use namegate_egress_bpf::sim::frame;
use namegate_egress_bpf::verdict::Verdict;
use namegate_integration::lab;
use namegate_policy::identity::Identity;
use namegate_policy::time::Timestamp;
use random::{Random, World};
use twin::{LOOPBACK, Origin, Twin};

/// Frames that are compared, unless `NAMEGATE_FRAMES` says otherwise.
const FRAMES: u64 = 1_000_000;
const FRAMES_PER_TABLE: u64 = 2_000;

#[test]
fn kernel_and_host_agree_on_random_frames_and_tables() -> Result<()> {
    if !lab::can_run("kernel_and_host_agree_on_random_frames_and_tables")? {
        return Ok(());
    }
    let wanted = variable("NAMEGATE_FRAMES")?.unwrap_or(FRAMES);
    let seed = variable("NAMEGATE_SEED")?.unwrap_or(1);
    let mut twin = Twin::open("agree")?;
    let started = Instant::now();
    let mut frames = 0;
    let mut batch = 0;
    let mut seen = BTreeSet::new();
    while frames < wanted {
        batch += 1;
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(batch));
        let verdicts = judge_batch(&mut twin, &mut random)
            .with_context(|| format!("seed {seed}, batch {batch}"))?;
        seen.extend(verdicts);
        frames += FRAMES_PER_TABLE;
    }
    println!("{frames} frames under {batch} worlds in {:.1?}", started.elapsed());
    let missed: Vec<_> = every_verdict()
        .into_iter()
        .filter(|verdict| !seen.contains(verdict) && !is_out_of_reach(verdict))
        .collect();
    ensure!(frames < FRAMES || missed.is_empty(), "no frame ended in {missed:?}");
    twin.close()
}

/// One world: its frames under one table, then the rest under another, as after a policy change.
fn judge_batch(twin: &mut Twin, random: &mut Random) -> Result<BTreeSet<(Direction, Reason)>> {
    let mut world = World::random(random);
    twin.enter(&world)?;
    for part in 0..2 {
        if part == 1 {
            world.change_policy(random);
            twin.change_policy(&world)?;
        }
        for _ in 0..FRAMES_PER_TABLE / 2 {
            let direction = random.direction();
            let frame = world.frame(random, direction);
            let origin = Origin::any(random);
            twin.judge_from(origin, direction, &frame)
                .with_context(|| format!("{direction:?} from {origin:?} {frame:02x?}"))?;
        }
    }
    twin.compare()
}

fn every_verdict() -> Vec<(Direction, Reason)> {
    let passes = Pass::ALL.iter().copied().map(Reason::Pass);
    let drops = DropReason::ALL.iter().copied().map(Reason::Drop);
    passes
        .chain(drops)
        .flat_map(|reason| [(Direction::Egress, reason), (Direction::Ingress, reason)])
        .collect()
}

/// Verdicts of one direction only, and gaps that a whole world has none of: unit tests make those
/// one by one.
fn is_out_of_reach(verdict: &(Direction, Reason)) -> bool {
    matches!(
        verdict,
        (Direction::Egress, Reason::Pass(Pass::FromProxy))
            | (Direction::Egress, Reason::Drop(DropReason::Misaddressed))
            | (Direction::Ingress, Reason::Pass(Pass::ToProxy))
            | (
                Direction::Ingress,
                Reason::Drop(
                    DropReason::NoProxy
                        | DropReason::ServiceClash
                        | DropReason::NoBackend
                        | DropReason::ServiceProtocol
                        | DropReason::HairpinFragment
                )
            )
            | (
                _,
                Reason::Drop(
                    DropReason::NoEndpoint
                        | DropReason::NoTable
                        | DropReason::MissingRow
                        | DropReason::FlowsFull
                        | DropReason::FragmentsFull
                        | DropReason::MappedAddress
                        | DropReason::Rewrite
                        | DropReason::Incomplete
                        | DropReason::Quota
                        | DropReason::HiddenResolver
                )
            )
    )
}

#[test]
fn rewritten_lookups_and_answers_have_right_checksums() -> Result<()> {
    if !lab::can_run("rewritten_lookups_and_answers_have_right_checksums")? {
        return Ok(());
    }
    let mut twin = Twin::open("rewrite")?;
    let mut random = Random::new(7);
    let mut world = World::random(&mut random);
    world.govern_dns();
    twin.enter(&world)?;
    let mut seen = [0; 2];
    for round in 0..400 {
        let direction = if round % 2 == 0 { Direction::Egress } else { Direction::Ingress };
        let exchange = frame::with_checksum(world.dns_frame(&mut random, direction));
        let (ran, verdict) = twin.judge(direction, &exchange)?;
        let side = match verdict {
            Verdict::ToProxy { .. } => 0,
            Verdict::FromProxy { .. } => 1,
            Verdict::Forward(_) | Verdict::Translate { .. } | Verdict::Drop(_) => continue,
        };
        seen[side] += 1;
        ensure!(frame::has_right_checksums(&exchange), "built wrong: {exchange:02x?}");
        ensure!(
            frame::has_right_checksums(&ran.frame),
            "{exchange:02x?} became {:02x?}",
            ran.frame
        );
        ensure!(ran.frame != exchange, "nothing was rewritten");
        let is_redirected = matches!(ran.verdict, RanVerdict::Redirect);
        ensure!(is_redirected == matches!(verdict, Verdict::ToProxy { .. }));
    }
    ensure!(seen.iter().all(|count| *count > 20), "only {seen:?} were rewritten");
    twin.close()
}

/// A table too small for the addresses: what it lacks is closed and counted, and opens when there is
/// room.
#[test]
fn address_that_does_not_fit_is_closed() -> Result<()> {
    if !lab::can_run("address_that_does_not_fit_is_closed")? {
        return Ok(());
    }
    let options = Options { addresses_max: 8, ..Options::default() };
    let mut twin = Twin::with("full", &options)?;
    twin.enter(&World::open())?;
    let datapath = twin.datapath();
    let addresses: BTreeMap<IpAddr, Identity> = (1..=32_u8)
        .map(|last| (IpAddr::from([10, 244, 3, last]), Identity::FIRST_WORKLOAD))
        .collect();
    let error = datapath.put_identities(&addresses).expect_err("the map is full");
    ensure!(matches!(error, DatapathError::Full { map: "IPCACHE", .. }), "{error}");
    datapath.set_complete(false)?;
    let written = datapath.addresses()?;
    let missing = addresses.keys().find(|address| !written.contains_key(address)).copied();
    let missing = missing.context("none is missing")?;
    ensure!(twin.syn(missing, 1_000)? == RanVerdict::Drop, "{missing} may be anybody");
    let some = *written.keys().next().context("none is written")?;
    ensure!(twin.syn(some, 1_000)? == RanVerdict::Next, "{some} is known");
    let reason = Reason::Drop(DropReason::Incomplete);
    ensure!(twin.counted(Direction::Egress, reason)? == 1, "it is counted");

    let datapath = twin.datapath();
    datapath.remove_identities(&written.into_keys().collect::<Vec<_>>())?;
    datapath.put_identities(&BTreeMap::from([(missing, Identity::FIRST_WORKLOAD)]))?;
    datapath.set_complete(true)?;
    ensure!(twin.syn(missing, 1_001)? == RanVerdict::Next, "there is room for {missing}");
    twin.close()
}

/// Blocks of addresses that are said to be empty: no longer once somebody in them is written, and by no
/// later agent before it has looked.
#[test]
fn block_of_addresses_is_looked_up_once_it_has_one() -> Result<()> {
    if !lab::can_run("block_of_addresses_is_looked_up_once_it_has_one")? {
        return Ok(());
    }
    let (closed, served) = (IpAddr::from([172, 30, 1, 1]), IpAddr::from([172, 31, 0, 1]));
    let closed_v6: IpAddr = "fd00:30:1::1".parse()?;
    let mut twin = Twin::open("blocks")?;
    let mut world = World::serving(served, closed);
    let services = std::mem::take(&mut world.services);
    twin.enter(&world)?;
    for remote in [closed, served] {
        ensure!(twin.syn(remote, 1_000)? == RanVerdict::Next, "{remote} is nobody's");
    }
    let before = twin.datapath().vacant_blocks();
    ensure!(before > 100_000, "{before} blocks are known to be empty");
    let datapath = twin.datapath();
    datapath.close_addresses(&[closed, closed_v6])?;
    datapath.set_services(
        &services.into_keys().map(|service| (service, ServiceEntry::default())).collect(),
    )?;
    ensure!(datapath.vacant_blocks() == before - 3, "three blocks have somebody");
    for (remote, reason) in [(closed, DropReason::Incomplete), (served, DropReason::NoBackend)] {
        ensure!(twin.syn(remote, 1_001)? == RanVerdict::Drop, "{remote} is somebody's");
        let counted = twin.counted(Direction::Egress, Reason::Drop(reason))?;
        ensure!(counted == 1, "{remote}: {counted} for {reason:?}");
    }
    twin.reopen()?;
    ensure!(twin.datapath().vacant_blocks() == 0, "the next agent knows of none");
    twin.datapath().set_complete(true)?;
    ensure!(twin.datapath().vacant_blocks() == before - 3, "and finds out by what is written");
    ensure!(twin.syn(closed, 1_002)? == RanVerdict::Drop, "{closed} is still somebody's");
    twin.close()
}

/// A table of learned addresses without room: what goes makes room for what comes.
#[test]
fn learned_addresses_take_the_place_of_those_that_go() -> Result<()> {
    const ROOM: u8 = 64;
    if !lab::can_run("learned_addresses_take_the_place_of_those_that_go")? {
        return Ok(());
    }
    let options = Options { names_max: ROOM.into(), ..Options::default() };
    let mut twin = Twin::with("names", &options)?;
    twin.enter(&World::open())?;
    let identity = Identity::FIRST_WORKLOAD.number();
    let key =
        |net: u8, last: u8| NameKey { identity, address: IpAddr::from([11, 0, net, last]).into() };
    let entry = NameEntry { deadline_ns: 1, class: 0, live_class: 0 };
    let entries = |net: u8| (0..ROOM).map(move |last| (key(net, last), entry)).collect();
    let datapath = twin.datapath();
    let earlier: Vec<NameKey> = datapath.names()?.into_keys().collect();
    for net in 1..=3_u8 {
        let delete_entries = if net == 1 {
            earlier.clone()
        } else {
            (0..ROOM).map(|last| key(net - 1, last)).collect()
        };
        let writes = NameWrites { entries: entries(net), delete_entries, ..NameWrites::default() };
        datapath.write_names(&writes)?;
        ensure!(datapath.names()? == writes.entries, "round {net}");
    }
    let writes = NameWrites { entries: entries(4), ..NameWrites::default() };
    let error = datapath.write_names(&writes).expect_err("the map is full");
    ensure!(matches!(error, DatapathError::Full { map: "NAMES", .. }), "{error}");
    twin.close()
}

/// One endpoint opens whatever it can: the flows of another live on, and it opens more.
#[test]
fn flood_of_one_endpoint_leaves_room_for_others() -> Result<()> {
    const LIVE: u64 = 1_000;
    const FLOOD: u64 = 300_000;
    if !lab::can_run("flood_of_one_endpoint_leaves_room_for_others")? {
        return Ok(());
    }
    let live = u32::try_from(variable("NAMEGATE_VICTIMS")?.unwrap_or(LIVE))?;
    let flood = u32::try_from(variable("NAMEGATE_SYNS")?.unwrap_or(FLOOD))?;
    let room = if live > 1_000 { Options::default().flows_max } else { 32_768 };
    let options = Options { flows_max: room, ..Options::default() };
    let mut twin = Twin::with("flood", &options)?;
    let world = World::open();
    twin.enter(&world)?;
    let victim = twin.epoch();
    let place = |number: u32| IpAddr::from((0x0b00_0000 | number).to_be_bytes());
    for number in 0..live {
        ensure!(twin.syn(place(number), 2_000)? == RanVerdict::Next, "the victim's own {number}");
    }
    // Another epoch is another endpoint.
    twin.be(&world, victim + 1)?;
    let mut opened = 0;
    for number in 0..flood {
        opened += u32::from(twin.syn(place(number), 3_000)? == RanVerdict::Next);
    }
    ensure!(opened > room / 3 && opened <= room / 2, "{opened} of {room} were taken");
    let refused = twin.counted(Direction::Egress, Reason::Drop(DropReason::Quota))?;
    ensure!(refused == u64::from(flood - opened), "every other is counted: {refused}");
    twin.be(&world, victim)?;
    for number in 0..live {
        ensure!(twin.syn(place(number), 2_000)? == RanVerdict::Next, "flow {number} lives");
        ensure!(twin.syn(place(number), 2_001)? == RanVerdict::Next, "another like {number}");
    }
    println!("{flood} openings took {opened} of {room} places, and none of {live} flows");
    // What is gone is given back.
    twin.sweep_all()?;
    twin.be(&world, victim + 2)?;
    for number in 0..room / 3 {
        ensure!(twin.syn(place(number), 4_000)? == RanVerdict::Next, "{number} after the flood");
    }
    twin.close()
}

/// The short way finds two endpoints in one place, of which one can have it, and none that is gone.
#[test]
fn endpoints_whose_interfaces_share_a_place_are_told_apart() -> Result<()> {
    const ACK: u8 = 0x10;
    const OTHER: u32 = LOOPBACK + PASSAGES;
    if !lab::can_run("endpoints_whose_interfaces_share_a_place_are_told_apart")? {
        return Ok(());
    }
    let mut twin = Twin::open("place")?;
    let world = World::open();
    twin.enter(&world)?;
    let epoch = twin.epoch();
    let remote = IpAddr::from([203, 0, 113, 1]);
    ensure!(twin.syn(remote, 2_000)? == RanVerdict::Next);
    ensure!(twin.segment(remote, 2_000, ACK)? == RanVerdict::Next, "its flow is known");
    twin.datapath().remove_endpoint(LOOPBACK)?;
    ensure!(twin.segment(remote, 2_000, ACK)? == RanVerdict::Drop, "it is gone");
    twin.put_beside(&world, OTHER)?;
    ensure!(twin.segment(remote, 2_000, ACK)? == RanVerdict::Drop, "the place is another's");
    twin.be(&world, epoch)?;
    ensure!(twin.segment(remote, 2_000, ACK)? == RanVerdict::Next, "its row is asked");
    twin.datapath().remove_endpoint(OTHER)?;
    twin.be(&world, epoch)?;
    ensure!(twin.segment(remote, 2_000, ACK)? == RanVerdict::Next, "the place is its own again");
    let known = Reason::Pass(Pass::Known);
    ensure!(twin.counted(Direction::Egress, known)? == 3, "all that passed were known");
    let gone = Reason::Drop(DropReason::NoEndpoint);
    ensure!(twin.counted(Direction::Egress, gone)? == 2, "and the others nobody's");
    twin.close()
}

/// A packet opens a flow again between the look at the table and the removal of what was dead there.
#[test]
fn flow_that_opens_again_under_the_broom_lives() -> Result<()> {
    if !lab::can_run("flow_that_opens_again_under_the_broom_lives")? {
        return Ok(());
    }
    let mut twin = Twin::open("broom")?;
    twin.enter(&World::open())?;
    let [quiet, again] = [1, 2].map(|last| IpAddr::from([203, 0, 113, last]));
    for remote in [quiet, again] {
        ensure!(twin.syn(remote, 2_000)? == RanVerdict::Next, "{remote} is open");
    }
    let broom = twin.datapath().broom()?;
    let survey = broom.survey()?;
    ensure!(twin.syn(again, 2_000)? == RanVerdict::Next, "{again} goes on");
    let swept = broom.clear(survey, Timestamp::from_nanos(u64::MAX))?;
    ensure!((swept.removed, swept.live) == (1, 1), "{swept:?}");
    let left: Vec<IpAddr> = twin.datapath().flows()?.keys().map(|key| key.remote.into()).collect();
    ensure!(left == [again], "{left:?} are left");
    twin.close()
}

/// What an endpoint leaves behind that is let go keeps its numbers from whoever comes next.
#[test]
fn numbers_of_flows_are_in_use_when_their_endpoint_is_gone() -> Result<()> {
    if !lab::can_run("numbers_of_flows_are_in_use_when_their_endpoint_is_gone")? {
        return Ok(());
    }
    let mut twin = Twin::open("numbers")?;
    let world = World::open();
    twin.enter(&world)?;
    twin.be(&world, 41)?;
    let remote = IpAddr::from([203, 0, 113, 1]);
    ensure!(twin.syn(remote, 2_000)? == RanVerdict::Next, "{remote} is open");
    let before = twin.datapath().numbers()?;
    twin.datapath().remove_endpoint(LOOPBACK)?;
    twin.datapath().remove_table(before.table)?;
    let after = twin.datapath().numbers()?;
    ensure!(after.epoch == 41 && after == before, "{before:?}, then {after:?}");
    twin.sweep_all()?;
    ensure!(twin.datapath().numbers()? == Numbers::default(), "nothing is left");
    twin.close()
}

/// A pod comes while the flows of others are swept on another thread.
#[test]
fn who_comes_under_the_broom_keeps_flows_and_room() -> Result<()> {
    if !lab::can_run("who_comes_under_the_broom_keeps_flows_and_room")? {
        return Ok(());
    }
    let mut twin = Twin::open("comes")?;
    let world = World::open();
    twin.enter(&world)?;
    let remote = IpAddr::from([203, 0, 113, 1]);
    ensure!(twin.syn(remote, 2_000)? == RanVerdict::Next, "{remote} is open");
    let broom = twin.datapath().broom()?;
    let next = twin.epoch() + 1;
    twin.be(&world, next)?;
    for port in [2_001, 2_002] {
        ensure!(twin.syn(remote, port)? == RanVerdict::Next, "{remote} is open");
    }
    let swept = broom.sweep(Timestamp::from_nanos(u64::MAX))?;
    ensure!(swept.removed == 1, "that of the pod before: {swept:?}");
    let left = twin.datapath().flows()?;
    ensure!(left.len() == 2 && left.keys().all(|key| key.epoch == next), "{left:?} are left");
    ensure!(twin.syn(remote, 2_003)? == RanVerdict::Next, "it may open more");
    // What the one before had taken is given back by the next sweep, with the pod it belonged to.
    twin.datapath().sweep(Timestamp::from_nanos(0))?;
    ensure!(twin.datapath().flows()?.len() == 3, "all of them live");
    twin.close()
}

/// Frames to services and back are between the right addresses and ports, with right checksums.
#[test]
fn translated_frames_are_whole() -> Result<()> {
    if !lab::can_run("translated_frames_are_whole")? {
        return Ok(());
    }
    let mut twin = Twin::open("translate")?;
    for (service, backend, own) in [
        ("10.96.0.80", "10.244.3.1", "10.244.1.10"),
        ("fd00:10:96::80", "fd00:10:244:3::1", "fd00:10:244:1::10"),
    ] {
        let (service, backend): (IpAddr, IpAddr) = (service.parse()?, backend.parse()?);
        let own: IpAddr = own.parse()?;
        let world = World::serving(service, backend);
        twin.enter(&world)?;
        for protocol in [6, 17] {
            let mk = |ends, from, to| {
                let payload = match protocol {
                    6 => [frame::tcp(from, to, 0x02), b"some octets".to_vec()].concat(),
                    _ => frame::udp(from, to, b"some octets"),
                };
                frame::with_checksum(frame::ip(random::MAC, ends, protocol, &payload))
            };
            let sent = mk((own, service), 40_000, 80);
            let (ran, _) = twin.judge(Direction::Egress, &sent)?;
            ensure!(ran.frame == mk((own, backend), 40_000, 8_080), "out: {:02x?}", ran.frame);
            let mut reply = mk((backend, own), 8_080, 40_000);
            let mut expected = mk((service, own), 80, 40_000);
            if protocol == 6 {
                let flags = if own.is_ipv4() { 14 + 20 + 13 } else { 14 + 40 + 13 };
                (reply[flags], expected[flags]) = (0x12, 0x12);
                reply = frame::with_checksum(reply);
                expected = frame::with_checksum(expected);
            }
            let (ran, _) = twin.judge(Direction::Ingress, &reply)?;
            ensure!(ran.frame == expected, "back: {:02x?}", ran.frame);
            let quoted = |to, port| {
                let icmp = if own.is_ipv4() { (3, 1) } else { (1, 58) };
                let body = mk((own, to), 40_000, port)[14..].to_vec();
                let message = frame::icmp(icmp.0, [0, 0, 5, 0xdc], &body);
                let gateway = if own.is_ipv4() { "10.244.1.1" } else { "fd00:10:244:1::1" };
                let ends = (gateway.parse().expect("an address"), own);
                frame::with_checksum(frame::ip(random::MAC, ends, icmp.1, &message))
            };
            let (ran, _) = twin.judge(Direction::Ingress, &quoted(backend, 8_080))?;
            let (got, told) = (&ran.frame, quoted(service, 80));
            // The quoted packet's own checksum is not mended: errors quote it cut short.
            let header = if own.is_ipv4() { 20 } else { 40 };
            let (checksum, cut) = (14 + header + 2, 14 + header + 8 + header + 4);
            ensure!(got[..checksum] == told[..checksum], "{got:02x?}");
            ensure!(got[checksum + 2..cut] == told[checksum + 2..cut], "{got:02x?}");
            ensure!(frame::has_right_checksums(got), "{got:02x?}");
        }
    }
    twin.close()
}

#[test]
fn verifier_has_patience_to_spare() -> Result<()> {
    if !lab::can_run("verifier_has_patience_to_spare")? {
        return Ok(());
    }
    let mut twin = Twin::open("verifier")?;
    for direction in [Direction::Egress, Direction::Ingress] {
        let walked = twin.verified_instructions(direction)?;
        println!("{direction:?}: {walked:?} instructions walked");
        ensure!(walked.is_none_or(|walked| walked < 300_000), "{direction:?}: {walked:?}");
    }
    twin.close()
}

fn variable(name: &str) -> Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name}={text}"))?)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(error).context(name.to_owned()),
    }
}
