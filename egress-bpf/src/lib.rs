//! Both halves of the datapath.
//!
//! [`abi`] is the layout that the kernel program and user space share, [`packet`] reads headers, and
//! [`verdict`] is the one function that decides about a packet: it runs in the kernel, in unit tests
//! and over simulated maps. These three are `no_std` and know no map implementation. The program
//! itself is this package's binary, built for the BPF target by `build.rs`.
//!
//! With the feature `host` come `compile` (policy tables to map rows), `sim` (maps in memory) and
//! `datapath` (loading, pinning, attaching, typed maps: the only module that names aya). `resident` is
//! here because this is the one crate that may hold unsafe code.

#![cfg_attr(not(feature = "host"), no_std)]
#![deny(unsafe_code)]

pub mod abi;
#[cfg(feature = "host")]
pub mod compile;
#[cfg(feature = "host")]
pub mod datapath;
pub mod packet;
#[cfg(feature = "host")]
pub mod resident;
#[cfg(feature = "host")]
pub mod sim;
pub mod verdict;
