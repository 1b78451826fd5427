//! A verdict alone: the program on frames that are on no wire, over what an empty one takes.

use std::net::IpAddr;

use aya::TestRun as _;
use aya::programs::{SchedClassifier, TestRunOptions};
use namegate_egress_bpf::abi::{Direction, Mac};
use namegate_egress_bpf::datapath::{Datapath, Events, RanVerdict};
use namegate_egress_bpf::sim::frame;

use crate::world::{self, POD, POD_V6, PORT, SITE_V6, Size};

/// The interface that test runs happen on: the loopback.
const LOOPBACK: u32 = 1;
const MAC: Mac = Mac([2, 0, 0, 0, 0, 0x0a]);
/// Turns of a round, of which the cheapest counts.
const TURNS: u32 = 20;
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
    opened: u32,
}

impl Subject {
    pub(crate) fn new(size: Size) -> Self {
        let (mut datapath, events) = world::fill(size, LOOPBACK, None);
        for ends in [known_v4(), known_v6()] {
            let opens = datapath.run(Direction::Egress, &segment(ends, 40_000, SYN), 1);
            assert_eq!(opens.expect("a run").verdict, RanVerdict::Next, "the rule lets it");
        }
        Self { size, datapath, events, opened: 0 }
    }

    /// One round: `repeat` packets of one flow, and `firsts` flows.
    pub(crate) fn measure(
        &mut self,
        empty: &mut SchedClassifier,
        repeat: u32,
        firsts: u32,
    ) -> Cost {
        let [same_flow, same_flow_v6] = [known_v4(), known_v6()].map(|ends| {
            let known = segment(ends, 40_000, ACK);
            let (mut none, mut own) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..TURNS {
                none = none.min(nanoseconds(empty, &known, repeat / TURNS));
                own = own.min(self.run(&known, repeat / TURNS));
            }
            own - none
        });
        let (mut first_packet, mut nothing) = (0.0, 0.0);
        for _ in 0..firsts {
            self.opened += 1;
            // Addresses far from each other, none of them twice in a row.
            let number = self.opened.wrapping_mul(7_919) % self.size.names;
            let port = 1_024 + (self.opened / self.size.names) as u16;
            let ends = (IpAddr::V4(POD), IpAddr::V4(world::site(number)));
            let frame = segment(ends, port, SYN);
            nothing += nanoseconds(empty, &frame, 1);
            first_packet += self.run(&frame, 1);
        }
        while self.events.next_event().is_some() {}
        let firsts = f64::from(firsts);
        Cost { same_flow, same_flow_v6, first_packet: (first_packet - nothing) / firsts }
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
