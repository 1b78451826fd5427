//! A verdict alone: the program on frames that are on no wire, over what an empty one takes.

use std::net::IpAddr;
use std::path::Path;

use aya::TestRun as _;
use aya::programs::{SchedClassifier, TestRunOptions};
use namegate_egress_bpf::abi::{Direction, Mac};
use namegate_egress_bpf::datapath::{Datapath, Events, RanVerdict};
use namegate_egress_bpf::sim::frame;
use namegate_policy::time::Timestamp;

use crate::step::Step;
use crate::world::{self, POD, POD_V6, PORT, SITE_V6, Size};

/// The interface that test runs happen on: the loopback.
const LOOPBACK: u32 = 1;
const MAC: Mac = Mac([2, 0, 0, 0, 0, 0x0a]);
/// Turns of a round, of which the cheapest counts.
const TURNS: u32 = 20;
/// First packets that leave their records before somebody reads them.
const RECORDS: u32 = 5_000;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Nanoseconds over an empty program.
pub(crate) struct Cost {
    pub(crate) same_flow: f64,
    pub(crate) same_flow_v6: f64,
    pub(crate) first_packet: f64,
}

/// A program with its maps filled.
pub(crate) struct Subject {
    pub(crate) size: Size,
    datapath: Datapath,
    events: Events,
    step: Step,
    /// Frames so far that were the first of a flow.
    opened: u32,
}

impl Subject {
    pub(crate) fn new(size: Size, pin: &Path) -> Self {
        let (datapath, events) = world::fill(size, LOOPBACK, None);
        let step = Step::before("pod_egress", pin).expect("a step");
        Self { size, datapath, events, step, opened: 0 }
    }

    /// One round: `repeat` packets of one flow, and `firsts` flows.
    pub(crate) fn measure(
        &mut self,
        (empty, nothing): (&mut SchedClassifier, &mut Step),
        repeat: u32,
        firsts: u32,
    ) -> Cost {
        for ends in [known_v4(), known_v6()] {
            self.run(&segment(ends, 40_000, SYN), 1);
        }
        let [same_flow, same_flow_v6] = [known_v4(), known_v6()].map(|ends| {
            let known = segment(ends, 40_000, ACK);
            let (mut none, mut own) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..TURNS {
                none = none.min(nanoseconds(empty, &known, repeat / TURNS));
                own = own.min(self.run(&known, repeat / TURNS));
            }
            own - none
        });
        let first_packet = self.first_packets(nothing, firsts);
        Cost { same_flow, same_flow_v6, first_packet }
    }

    /// Flows to one address after the other, `firsts` of them and as many at once as there are names, and
    /// no more than there is room for their records.
    fn first_packets(&mut self, nothing: &mut Step, firsts: u32) -> f64 {
        let portion = RECORDS.min(self.size.names - 1);
        let (mut own, mut none, mut runs) = (0.0, 0.0, 0);
        while runs * portion < firsts.max(portion) {
            self.opened += portion;
            let first = self.opened % (self.size.names - portion).max(1);
            let port = 1_024 + (self.opened / portion % 60_000) as u16;
            let ends = (IpAddr::V4(POD), IpAddr::V4(world::site(first)));
            let frame = segment(ends, port, SYN);
            none += nanoseconds(&mut nothing.program, &frame, portion);
            own += nanoseconds(&mut self.step.program, &frame, portion);
            runs += 1;
            let told = std::iter::from_fn(|| self.events.next_event()).count();
            assert!(told >= portion as usize, "{told} of {portion} flows were opened");
        }
        self.datapath.sweep(Timestamp::NEVER).expect("the flows are swept");
        (own - none) / f64::from(runs)
    }

    fn run(&mut self, frame: &[u8], repeat: u32) -> f64 {
        let ran = self.datapath.run(Direction::Egress, frame, repeat).expect("a run");
        assert_eq!(ran.verdict, RanVerdict::Next, "the rule lets it");
        ran.duration.as_nanos() as f64
    }
}

/// How long a run of the program takes.
fn nanoseconds(program: &mut SchedClassifier, frame: &[u8], repeat: u32) -> f64 {
    let mut out = vec![0; frame.len() + 64];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        repeat,
        ..TestRunOptions::default()
    };
    program.test_run(options).expect("a run").duration.as_nanos() as f64
}

const fn known_v6() -> (IpAddr, IpAddr) {
    (IpAddr::V6(POD_V6), IpAddr::V6(SITE_V6))
}

fn known_v4() -> (IpAddr, IpAddr) {
    (IpAddr::V4(POD), IpAddr::V4(world::site(0)))
}

/// A segment from the pod to a site.
fn segment(ends: (IpAddr, IpAddr), port: u16, flags: u8) -> Vec<u8> {
    frame::ip(MAC, ends, 6, &frame::tcp(port, PORT, flags))
}
