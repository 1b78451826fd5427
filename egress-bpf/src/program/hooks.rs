//! The entry points.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use namegate_egress_bpf::abi::{Direction, DropReason};
use namegate_egress_bpf::verdict::{Scene, Verdict, egress_verdict, pass_known};

use crate::maps::{self, KernelMaps};
use crate::rewrite;
use crate::skb::Skb;
use crate::translate;

/// Go on with the next program (`TCX_NEXT`, `TC_ACT_UNSPEC`).
pub(crate) const NEXT: i32 = -1;
/// Drop (`TC_ACT_SHOT`).
const SHOT: i32 = 2;

/// From the endpoint: the interface's ingress.
#[classifier]
pub(crate) fn pod_egress(ctx: TcContext) -> i32 {
    judge(ctx, Direction::Egress)
}

/// To the endpoint: the interface's egress.
#[classifier]
pub(crate) fn pod_ingress(ctx: TcContext) -> i32 {
    judge(ctx, Direction::Ingress)
}

/// Lets nothing pass: stands in for the others while they change places with another program.
#[classifier]
pub(crate) fn pod_shut(_ctx: TcContext) -> i32 {
    SHOT
}

#[inline(always)]
fn judge(ctx: TcContext, direction: Direction) -> i32 {
    let packet = Skb(ctx);
    let scene = Scene {
        ifindex: packet.ifindex(),
        direction,
        is_from_node: packet.received_by() == 0,
        is_returned: packet.received_by() == packet.ifindex(),
        now_ns: maps::now_ns(),
    };
    if let Some(pass) = pass_known(&packet, &mut KernelMaps, &scene) {
        maps::count(direction, pass as u8);
        return NEXT;
    }
    let Some(case) = maps::case() else {
        return SHOT;
    };
    case.reset();
    let decided = egress_verdict(&packet, &mut KernelMaps, &scene, case);
    let (verdict, code) = carry_out(&packet, decided);
    maps::count(direction, verdict.counter());
    if let Some(told) = case.told(verdict) {
        maps::tell(&scene, case, verdict.counter(), told);
    }
    code
}

/// What the kernel does with the packet, and the verdict that is told: a rewrite that fails is a
/// drop.
#[inline(always)]
fn carry_out(packet: &Skb, verdict: Verdict) -> (Verdict, i32) {
    let code = match verdict {
        Verdict::Forward(_) => NEXT,
        Verdict::Translate { way, .. } => translate::translate(packet, way),
        Verdict::Drop(_) => SHOT,
        Verdict::ToProxy { slot } => rewrite::to_proxy(packet, slot),
        Verdict::FromProxy { slot } => rewrite::from_proxy(packet, slot),
    };
    if code == rewrite::FAILED {
        return (Verdict::Drop(DropReason::Rewrite), SHOT);
    }
    (verdict, code)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that could get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
