//! Detaching a link at once (Linux 5.7), which aya has no call for.

#![expect(unsafe_code, reason = "the bpf system call takes addresses")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const BPF_OBJ_GET: i64 = 7;
const BPF_LINK_DETACH: i64 = 34;

/// The `BPF_OBJ_*` member of `union bpf_attr`.
#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Takes the program of the link pinned at `path` off its interface before it returns. Removing the
/// pin alone leaves that to the kernel's workers, some time later (`bpf_link_put` of
/// kernel/bpf/syscall.c). A link that is not there, or whose interface is gone, is no error.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the path ends in a zero and outlives the call.
    let fd = match unsafe { bpf(BPF_OBJ_GET, &mut attr) } {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // SAFETY: the kernel made the descriptor for this process just then.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut number = link.as_raw_fd().unsigned_abs();
    // SAFETY: the call takes a number and no address.
    match unsafe { bpf(BPF_LINK_DETACH, &mut number) } {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        Err(error) => Err(error),
    }
}

/// # Safety
/// The addresses inside `attr` are valid for what `command` does with them.
pub(super) unsafe fn bpf<T>(command: i64, attr: &mut T) -> io::Result<i32> {
    let size = size_of::<T>();
    // SAFETY: the caller vouches for the addresses inside `attr`.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size) };
    i32::try_from(outcome).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)
}
