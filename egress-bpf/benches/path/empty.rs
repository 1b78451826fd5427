//! The least that a program at the hook can be: two instructions that let everything go on.

#![expect(unsafe_code, reason = "the bpf system call takes addresses")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::programs::SchedClassifier;

const BPF_PROG_LOAD: i64 = 5;
const BPF_OBJ_PIN: i64 = 6;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
/// `r0 = -1; exit`: go on with whatever else is at the hook.
const INSTRUCTIONS: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];

/// The members of `union bpf_attr` that loading needs.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u64; 2],
    kern_version: u32,
    prog_flags: u32,
}

/// The `BPF_OBJ_*` member.
#[repr(C)]
struct PinAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Loads the empty program.
pub(crate) fn load_empty(pin: &Path) -> io::Result<SchedClassifier> {
    load(pin, &INSTRUCTIONS)
}

/// Loads a program, by way of a pin that is gone again when this returns.
pub(crate) fn load(pin: &Path, instructions: &[u64]) -> io::Result<SchedClassifier> {
    let license = c"Apache-2.0";
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log: [0; 2],
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: instructions and licence outlive the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &attr) }?;
    // SAFETY: the kernel made the descriptor for this process just then.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let bpf_fd = fd.as_raw_fd().unsigned_abs();
    let attr = PinAttr { pathname: path.as_ptr() as u64, bpf_fd, file_flags: 0 };
    // SAFETY: the path outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &attr) }?;
    let program = SchedClassifier::from_pin(pin).map_err(io::Error::other);
    std::fs::remove_file(pin)?;
    program
}

/// # Safety
///
/// The addresses inside `attr` are valid for what `command` does with them.
pub(crate) unsafe fn bpf<T>(command: i64, attr: &T) -> io::Result<i32> {
    let size = size_of::<T>();
    // SAFETY: the caller vouches for the addresses inside `attr`.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size) };
    i32::try_from(outcome).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)
}
