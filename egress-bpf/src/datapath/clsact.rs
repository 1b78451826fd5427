//! Filters of a clsact qdisc (Linux 4.5), for kernels that have no tcx.
//!
//! There is nothing to pin: qdisc and filters stay until they are deleted, or their interface is. So
//! each has a directory among the pins that says that it is there, made before it and removed after
//! it. A filter's handle is that of every agent with the same pin root, whatever its version, and a
//! program takes the place of another one in one call.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use super::error::DatapathError;
use super::netlink::{Filter, Netlink};
use super::spot::{BOTH, FILTERS, Role, Spot, interface, make_directory, remove_directory};
use crate::abi::Direction;

/// The first that packets see. In one priority a younger filter comes before an older one
/// (`cls_bpf_change` of net/sched/cls_bpf.c).
const PRIORITY: u16 = 1;

/// Where filters are tried: no packet gets to this chain.
const NOWHERE: u32 = 0x4e67;

/// The upper half of every handle: few choose theirs, and the kernel counts from one.
const HANDLES: u32 = 0x4e67_0000;

/// Replaces the program of a filter and says whether there was one.
pub(super) fn replace(spot: &Spot, program: BorrowedFd<'_>) -> Result<bool, DatapathError> {
    if !spot.filter().exists() {
        return Ok(false);
    }
    let netlink = open(spot.ifindex)?;
    let filter = filter(spot);
    if !is_listed(&netlink, &filter)? {
        return Ok(false);
    }
    let replaced = netlink.replace_filter(&filter, program, &label(spot));
    replaced.map(|()| true).map_err(failed("replace the program of", spot.ifindex))
}

/// Puts this build's program in place of one of another version; says whether there was one.
pub(super) fn inherit(
    from: &Spot,
    to: &Spot,
    program: BorrowedFd<'_>,
) -> Result<bool, DatapathError> {
    if !from.filter().exists() {
        return Ok(false);
    }
    make_directory(&to.filter())?;
    if !replace(to, program)? {
        return Ok(false);
    }
    forget(from)?;
    Ok(true)
}

/// Lets the agent with the pins `to` have what one of another version knew of a qdisc.
pub(super) fn hand_over(from: &Path, to: &Path, ifindex: u32) -> Result<(), DatapathError> {
    let old = qdisc(from, ifindex);
    if !old.exists() {
        return Ok(());
    }
    make_directory(&qdisc(to, ifindex))?;
    remove_directory(&old)
}

/// Makes a filter before all others at its hook.
pub(super) fn create(spot: &Spot, program: BorrowedFd<'_>) -> Result<(), DatapathError> {
    let netlink = open(spot.ifindex)?;
    ensure_qdisc(&netlink, &spot.pins, spot.ifindex)?;
    make_directory(&spot.filter())?;
    let made = netlink.put_filter(&filter(spot), program, &label(spot));
    made.map_err(failed("make", spot.ifindex))
}

/// Takes a filter off its interface, if an agent of these pins made it; one that is not there is no
/// error.
pub(super) fn detach(spot: &Spot) -> Result<(), DatapathError> {
    let marker = spot.filter();
    if !marker.exists() {
        return Ok(());
    }
    if interface(spot.ifindex).is_ok() {
        let netlink = open(spot.ifindex)?;
        let filter = filter(spot);
        if let Err(error) = netlink.delete_filter(&filter)
            && is_listed(&netlink, &filter)?
        {
            return Err(failed("delete", spot.ifindex)(error));
        }
    }
    remove_directory(&marker)
}

/// Whether a filter that an agent of these pins made is on the interface.
pub(super) fn is_there(spot: &Spot) -> Result<bool, DatapathError> {
    Ok(spot.filter().exists() && is_listed(&open(spot.ifindex)?, &filter(spot))?)
}

/// Forgets a filter: an agent of another version made it and this one replaced it, or it is gone.
pub(super) fn forget(spot: &Spot) -> Result<(), DatapathError> {
    remove_directory(&spot.filter())
}

/// Removes the qdisc of an interface if an agent of these pins made it and nobody else uses it.
pub(super) fn leave(pins: &Path, ifindex: u32) -> Result<(), DatapathError> {
    let marker = qdisc(pins, ifindex);
    if !marker.exists() {
        return Ok(());
    }
    if interface(ifindex).is_ok() {
        let netlink = open(ifindex)?;
        if !is_used(&netlink, ifindex)?
            && let Err(error) = netlink.delete_qdisc(ifindex)
            && has_qdisc(&netlink, ifindex)?
        {
            return Err(failed("remove the qdisc of", ifindex)(error));
        }
    }
    remove_directory(&marker)
}

/// Whether an agent of these pins made the qdisc of an interface.
pub(super) fn qdisc(pins: &Path, ifindex: u32) -> PathBuf {
    pins.join(FILTERS).join(format!("{ifindex}-qdisc"))
}

/// The numbers of the programs at a hook, the first to run first; zero for filters that are none.
pub(super) fn programs(ifindex: u32, direction: Direction) -> io::Result<Vec<u32>> {
    let filters = Netlink::open()?.filters(ifindex, direction)?;
    let seen = filters.iter().filter(|listed| listed.filter.chain == 0);
    Ok(seen.map(|listed| listed.program).collect())
}

/// Tries whether the kernel has all that filters need, on an interface of the agent's own, which is
/// left as it was. No packet gets to see what is tried.
pub(super) fn check(ifindex: u32, program: BorrowedFd<'_>) -> Result<(), DatapathError> {
    let netlink = open(ifindex)?;
    let had_qdisc = has_qdisc(&netlink, ifindex)?;
    if !had_qdisc {
        netlink
            .add_qdisc(ifindex)
            .map_err(missing(ifindex, "clsact qdisc (CONFIG_NET_SCH_INGRESS)"))?;
    }
    let direction = Direction::Egress;
    let filter = Filter { ifindex, direction, chain: NOWHERE, priority: PRIORITY, handle: HANDLES };
    let tried = netlink
        .put_filter(&filter, program, "namegate")
        .map_err(missing(ifindex, "BPF filters (CONFIG_NET_CLS_BPF)"))
        .and_then(|()| netlink.delete_filter(&filter).map_err(failed("delete", ifindex)));
    let cleaned = if had_qdisc { Ok(()) } else { netlink.delete_qdisc(ifindex) };
    tried.and(cleaned.map_err(failed("remove the qdisc of", ifindex)))
}

fn ensure_qdisc(netlink: &Netlink, pins: &Path, ifindex: u32) -> Result<(), DatapathError> {
    if has_qdisc(netlink, ifindex)? {
        return Ok(());
    }
    let marker = qdisc(pins, ifindex);
    make_directory(&marker)?;
    match netlink.add_qdisc(ifindex) {
        // Somebody else was faster, and it is theirs.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => remove_directory(&marker),
        outcome => outcome.map_err(failed("add the qdisc for", ifindex)),
    }
}

/// Whether an interface has a clsact qdisc; one of another kind in its place takes no filters for
/// what leaves.
fn has_qdisc(netlink: &Netlink, ifindex: u32) -> Result<bool, DatapathError> {
    match netlink.qdisc(ifindex).map_err(failed("look for the qdisc of", ifindex))? {
        None => Ok(false),
        Some(kind) if kind == "clsact" => Ok(true),
        Some(kind) => Err(DatapathError::OtherQdisc { interface: interface(ifindex)?, kind }),
    }
}

/// Whether there is a filter at either hook, whoever's it is.
fn is_used(netlink: &Netlink, ifindex: u32) -> Result<bool, DatapathError> {
    for direction in BOTH {
        let filters = netlink.filters(ifindex, direction).map_err(failed("list", ifindex))?;
        if !filters.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_listed(netlink: &Netlink, filter: &Filter) -> Result<bool, DatapathError> {
    let listed = netlink.filters(filter.ifindex, filter.direction);
    let listed = listed.map_err(failed("list", filter.ifindex))?;
    Ok(listed.iter().any(|listed| listed.filter == *filter))
}

fn filter(spot: &Spot) -> Filter {
    let root = spot.pins.parent().unwrap_or(&spot.pins);
    // Two agents with different pins can be at one interface.
    let hash =
        root.as_os_str().as_encoded_bytes().iter().fold(0x811c_9dc5_u32, |hash, octet| {
            (hash ^ u32::from(*octet)).wrapping_mul(0x0100_0193)
        });
    let place = match spot.role {
        Role::Judge => 2,
        Role::Shut => 3,
    };
    let handle = HANDLES | (hash ^ hash >> 16) & 0xfffc | place;
    let (ifindex, direction) = (spot.ifindex, spot.direction);
    Filter { ifindex, direction, chain: 0, priority: PRIORITY, handle }
}

/// What `tc filter show` says.
fn label(spot: &Spot) -> String {
    format!("namegate:{}", spot.program())
}

fn open(ifindex: u32) -> Result<Netlink, DatapathError> {
    Netlink::open().map_err(failed("ask about", ifindex))
}

fn failed(what: &'static str, ifindex: u32) -> impl Fn(io::Error) -> DatapathError {
    move |source| match source.raw_os_error() {
        Some(libc::ENODEV) => DatapathError::NoInterface { ifindex },
        _ => DatapathError::Filter { what, ifindex, source },
    }
}

fn missing(ifindex: u32, what: &'static str) -> impl Fn(io::Error) -> DatapathError {
    move |source| match source.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP) => DatapathError::NoClsact { what, source },
        _ => failed("try", ifindex)(source),
    }
}
