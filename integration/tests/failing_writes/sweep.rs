//! Writes of a sweep that fail.

use anyhow::{Result, ensure};
use namegate_egress_bpf::datapath::{Options, RanVerdict, fail_writes};
use namegate_integration::lab;
use namegate_policy::time::Timestamp;

use crate::Node;
use crate::bench::{Bench, Probe};
use crate::town::{DB, STEPS};

/// Long past every time-out: what is not seen again ends.
const LATER: Timestamp = Timestamp::NEVER;

/// A flow that a packet used while others were swept stays, and the next sweep ends what is left.
#[test]
fn whichever_write_of_a_sweep_fails_flows_in_use_stay() -> Result<()> {
    if !lab::can_run("whichever_write_of_a_sweep_fails_flows_in_use_stay")? {
        return Ok(());
    }
    let mut node = Node::new(Bench::open(&Options { flows_max: 1_024, ..Options::default() })?);
    node.take(&STEPS[0])?;
    let bench = node.apply.kernel();
    let probe = Probe::to(DB, 80);
    let (mut failed, mut told) = (0, 0);
    loop {
        let used = 30_000;
        for port in used..used + 4 {
            ensure!(bench.send(probe, port)? == RanVerdict::Next, "{probe:?} is open");
        }
        let broom = bench.datapath().broom()?;
        let survey = broom.survey()?;
        bench.send(probe, used)?;
        fail_writes(failed, 1);
        let outcome = broom.clear(survey, LATER);
        let (_, to_fail) = fail_writes(0, 0);
        let flows = bench.datapath().flows()?;
        let is_there = flows.keys().any(|flow| flow.local_port == used);
        ensure!(is_there, "write {failed} fails: the flow in use is gone: {outcome:?}");
        told += usize::from(outcome.is_err());

        bench.datapath().sweep(LATER)?;
        ensure!(bench.datapath().flows()?.is_empty(), "write {failed} fails: flows are left");
        if to_fail > 0 {
            outcome?;
            break;
        }
        failed += 1;
    }
    ensure!(failed > 5 && told > 3, "{failed} writes failed and {told} were told of");
    println!("{failed} writes of a sweep failed, {told} of them to be told of");
    Ok(())
}
