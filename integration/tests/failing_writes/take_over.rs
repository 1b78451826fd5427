//! Writes that fail while one version takes over from another.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use namegate::apply::{Apply, EndpointRow};
use namegate_egress_bpf::datapath::{Options, RanVerdict, fail_writes, pretend_abi_version};
use namegate_egress_bpf::packet::{TCP_ACK, TCP_SYN};
use namegate_integration::lab::{self, Lab};
use namegate_integration::namespace::Namespace;

use crate::Node;
use crate::bench::{Bench, IFINDEX, Probe};
use crate::town::{EVIL, OLD_PEER, STEPS};

/// A flow that policy lets the pod open, and nobody else: without its entry nothing of it passes.
const LIVE: Probe = Probe::to(OLD_PEER, 5432);
const LIVE_PORT: u16 = 30_000;
/// Closed to the pod always.
const CLOSED: Probe = Probe::to(EVIL, 5432);
const FIRST_VERSION: u32 = 100;

/// Versions take over from each other, each with the next write failing. Where that ends the agent, another
/// one begins again; one flow lives through all of them.
#[test]
fn whichever_write_of_a_take_over_fails_a_live_flow_goes_on() -> Result<()> {
    if !lab::can_run("whichever_write_of_a_take_over_fails_a_live_flow_goes_on")? {
        return Ok(());
    }
    let lab = Lab::for_test()?;
    let node = Namespace::create(&lab.namespace("node"))?;
    let options = Options {
        pin_root: lab.pins(),
        names_max: 1_024,
        flows_max: 1_024,
        addresses_max: 1_024,
        peers_max: 1_024,
        ..Options::default()
    };
    node.within(|| take_over_and_over(&options))?
}

fn take_over_and_over(options: &Options) -> Result<()> {
    pretend_abi_version(FIRST_VERSION);
    let mut first = take_over(options)?;
    let opened = first.apply.kernel().send(LIVE, LIVE_PORT)?;
    ensure!(opened == RanVerdict::Next, "{LIVE:?} is open");
    drop(first);
    let (mut failed, mut ended) = (0, 0);
    for version in FIRST_VERSION + 1.. {
        pretend_abi_version(version);
        fail_writes(failed, 1);
        let outcome = take_over(options);
        let (_, to_fail) = fail_writes(0, 0);
        ended += u32::from(outcome.is_err());
        let context = || format!("write {failed} fails");
        let mut node = outcome.or_else(|_| take_over(options)).with_context(context)?;
        node.heal().with_context(context)?;
        let bench = node.apply.kernel();
        let goes_on = bench.send_flags(LIVE, LIVE_PORT, TCP_ACK)?;
        ensure!(goes_on == RanVerdict::Next, "write {failed} fails: the live flow is cut");
        let unknown = bench.send_flags(LIVE, LIVE_PORT + 1, TCP_ACK)?;
        ensure!(unknown == RanVerdict::Drop, "a flow that nobody opened goes on");
        let closed = bench.send_flags(CLOSED, LIVE_PORT, TCP_SYN)?;
        ensure!(closed == RanVerdict::Drop, "write {failed} fails: {CLOSED:?} is open");
        ensure!(bench.datapath().attached().contains(&IFINDEX));
        bench.datapath().retire_earlier().with_context(context)?;
        let left = std::fs::read_dir(&options.pin_root)?.count();
        ensure!(left == 1, "write {failed} fails: pins of {left} versions are there");
        if to_fail > 0 {
            break;
        }
        failed += 1;
    }
    ensure!(failed > 20, "only {failed} writes were tried");
    println!("{failed} writes of a take-over failed, {ended} of them ended the agent");
    Ok(())
}

/// What an agent does at its start, as far as maps and programs go.
fn take_over(options: &Options) -> Result<Node> {
    let mut bench = Bench::pinned(options)?;
    let datapath = bench.datapath();
    let earlier = datapath.inherited().iter().chain(datapath.endpoints());
    let inherited: BTreeMap<u32, EndpointRow> =
        earlier.map(|(index, entry)| (*index, entry.into())).collect();
    let tables: BTreeSet<u32> = datapath.tables().collect();
    let numbers = datapath.numbers()?;
    let mut node = Node::over(Apply::new(bench, inherited, tables, 1).above(numbers));
    node.take(&STEPS[0])?;
    Ok(node)
}
