//! Rules in, decisions out.
//!
//! This crate owns what a policy means: parsing the policy objects of every dialect into one rule
//! model, interning label sets into identities, ordering the rules that select an identity into a
//! policy table, and remembering which addresses an identity learned for which names.
//!
//! It is pure: no IO, no async, no clock (time is an argument), no kernel, no Kubernetes client.

#![forbid(unsafe_code)]

pub mod api;
pub mod cilium;
pub mod cluster;
pub mod convert;
pub mod dns;
pub mod explain;
mod field;
pub mod identity;
pub mod inventory;
pub mod kubernetes;
pub mod learned;
pub mod limits;
mod misspelt;
pub mod name;
pub mod note;
pub mod object;
pub mod opening;
pub mod oracle;
pub mod pattern;
pub mod problem;
pub mod resource;
pub mod review;
pub mod rule;
pub mod selector;
mod stand_in;
pub mod table;
#[cfg(feature = "testing")]
pub mod testing;
pub mod time;
