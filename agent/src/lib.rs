//! The agent of one node: objects in, enforcement and records out.
//!
//! [`source`] tells what objects there are and [`endpoints`] which interfaces; [`state`] is the single
//! owner of what follows from them and says what has to change; [`apply`] writes that to the kernel.
//! [`dns`] and [`flows`] turn decisions into learned addresses and records. [`admin`] answers what
//! people and programs ask of it, and [`map`] draws it for a browser. [`agent`] wires these.

#![forbid(unsafe_code)]

pub mod admin;
pub mod agent;
pub mod apply;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod cni;
pub mod dns;
pub mod endpoints;
pub mod explain;
pub mod flows;
pub mod hooks;
pub mod kubernetes;
pub mod link;
pub mod lock;
pub mod map;
pub mod metrics;
pub mod preflight;
mod readiness;
pub mod ready_file;
pub mod registry;
pub mod remembered;
pub mod resolvers;
pub mod source;
pub mod state;
pub mod succession;
pub mod suggest;
#[cfg(test)]
mod testing;
pub mod uninstall;
