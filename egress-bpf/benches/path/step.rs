//! Frames that are each the first of a flow, without a system call between them: a program that gives the
//! frame another destination and source port, and goes on with the one that is measured.

#![expect(unsafe_code, reason = "the bpf system call takes addresses")]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use aya::programs::{SchedClassifier, loaded_programs};

use crate::empty::{bpf, load};
use crate::world::SPREAD;

const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;

/// The members of `union bpf_attr` that making a map needs.
#[repr(C)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The element member.
#[repr(C)]
struct ElementAttr {
    map_fd: u64,
    key: u64,
    value: u64,
    flags: u64,
}

/// The program that steps on, before another.
pub(crate) struct Step {
    pub(crate) program: SchedClassifier,
    _next: OwnedFd,
}

impl Step {
    /// Before the program that was loaded last under the name `next`.
    pub(crate) fn before(next: &str, pin: &Path) -> io::Result<Self> {
        let named = loaded_programs().flatten().filter(|info| info.name_as_str() == Some(next));
        let latest = named.max_by_key(aya::programs::ProgramInfo::id);
        let latest = latest.ok_or_else(|| io::Error::other("no such program is loaded"))?;
        Self::before_program(latest.fd().map_err(io::Error::other)?.as_fd(), pin)
    }

    /// Before a program that was loaded here.
    pub(crate) fn before_program(next: BorrowedFd<'_>, pin: &Path) -> io::Result<Self> {
        let attr = MapAttr {
            map_type: BPF_MAP_TYPE_PROG_ARRAY,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
        };
        // SAFETY: numbers alone.
        let fd = unsafe { bpf(BPF_MAP_CREATE, &attr) }?;
        // SAFETY: the kernel made the descriptor for this process just then.
        let map = unsafe { OwnedFd::from_raw_fd(fd) };
        let (key, value) = (0_u32, next.as_raw_fd());
        let attr = ElementAttr {
            map_fd: u64::from(map.as_raw_fd().unsigned_abs()),
            key: (&raw const key) as u64,
            value: (&raw const value) as u64,
            flags: 0,
        };
        // SAFETY: key and value outlive the call.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &attr) }?;
        let program = load(pin, &instructions(map.as_raw_fd()))?;
        Ok(Self { program, _next: map })
    }
}

/// The next site's address as the destination of an IPv4 frame, one more in the first octet of its source
/// port, and a tail call.
fn instructions(next: i32) -> [u64; 23] {
    const OUT: i16 = 15;
    [
        op(0xbf, 6, 1, 0, 0),             // r6 = context
        op(0x61, 2, 1, 76, 0),            // r2 = data
        op(0x61, 3, 1, 80, 0),            // r3 = data_end
        op(0xbf, 4, 2, 0, 0),             // r4 = data + 54
        op(0x07, 4, 0, 0, 54),            //
        op(0x2d, 4, 3, OUT, 0),           // beyond the end: out
        op(0x69, 5, 2, 34, 0),            // the source port
        op(0x07, 5, 0, 0, 1),             //
        op(0x6b, 2, 5, 34, 0),            //
        op(0x61, 5, 2, 30, 0),            // the destination
        op(0xdc, 5, 0, 0, 32),            // in the order of this machine
        op(0x07, 5, 0, 0, SPREAD as i32), //
        op(0x57, 5, 0, 0, 0x00ff_ffff),   //
        op(0x47, 5, 0, 0, 0x0b00_0000),   //
        op(0xdc, 5, 0, 0, 32),            //
        op(0x63, 2, 5, 30, 0),            //
        op(0xbf, 1, 6, 0, 0),             // tail_call(context, map, 0)
        op(0x18, 2, 1, 0, next),          //
        0,                                //
        op(0xb7, 3, 0, 0, 0),             //
        op(0x85, 0, 0, 0, 12),            //
        op(0xb7, 0, 0, 0, -1),            // out: go on
        op(0x95, 0, 0, 0, 0),             //
    ]
}

const fn op(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    code as u64
        | (to as u64) << 8
        | (from as u64) << 12
        | (offset as u16 as u64) << 16
        | (number as u32 as u64) << 32
}
