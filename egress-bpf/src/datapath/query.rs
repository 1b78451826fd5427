//! Asking which programs tcx runs at a hook, in their order (Linux 6.6). What aya asks besides, their names,
//! takes `CAP_SYS_ADMIN`; this takes `CAP_NET_ADMIN`.

#![expect(unsafe_code, reason = "the bpf system call takes addresses")]

use std::io;

use super::unlink::bpf;
use crate::abi::Direction;

const BPF_PROG_QUERY: i64 = 16;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// `BPF_MPROG_MAX` of kernel/bpf/mprog.c.
const PROGRAMS_MAX: usize = 64;

/// The `query` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Whether this kernel has tcx.
pub(super) fn has_tcx() -> bool {
    // There is no interface zero: where the hook is known, that is what is wrong.
    !matches!(programs(0, Direction::Egress), Err(error) if error.raw_os_error() == Some(libc::EINVAL))
}

/// The numbers of the programs at a hook, the first to run first; `None` where there is no such
/// interface.
pub(super) fn programs(ifindex: u32, direction: Direction) -> io::Result<Option<Vec<u32>>> {
    let mut numbers = [0_u32; PROGRAMS_MAX];
    let mut attr = QueryAttr {
        target_ifindex: ifindex,
        attach_type: match direction {
            Direction::Egress => BPF_TCX_INGRESS,
            Direction::Ingress => BPF_TCX_EGRESS,
        },
        prog_ids: numbers.as_mut_ptr() as u64,
        count: u32::try_from(PROGRAMS_MAX).unwrap_or(u32::MAX),
        ..QueryAttr::default()
    };
    // SAFETY: there is room for as many numbers as the call says, and nothing else is asked for.
    match unsafe { bpf(BPF_PROG_QUERY, &mut attr) } {
        Ok(_) => {
            let count = usize::try_from(attr.count).unwrap_or(0);
            Ok(Some(numbers.iter().take(count).copied().collect()))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}
