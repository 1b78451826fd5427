//! The lab: a Kubernetes node and the world around it, as network namespaces and real programs.
//!
//! A [`town::Town`] is a node with a bridge, pods, a resolver pod, and an internet with an
//! authoritative server and sites behind real certificates. An [`agent::Agent`] is the real
//! `namegate` binary on that node. The demo and the end-to-end tests both stand on these two.
//!
//! Everything the lab makes carries the prefix of its [`lab::Lab`], goes away when the lab is
//! dropped, and is swept up by the next lab where a crash left it behind. Nothing here knows how the
//! firewall works: it sees what a user sees, which is packets, answers and the audit log.

#![forbid(unsafe_code)]

pub mod addresses;
pub mod agent;
pub mod apiserver;
pub mod audit;
pub mod authority;
pub mod browser;
pub mod capture;
pub mod cluster;
pub mod cni;
pub mod demo;
pub mod dns;
pub mod flood;
pub mod fronts;
pub mod kubelet;
pub mod lab;
pub mod live;
pub mod manifests;
pub mod namespace;
pub mod node;
pub mod objects;
pub mod outpost;
pub mod patience;
pub mod pod;
pub mod process;
pub mod proxy;
pub mod read_only;
pub mod remote;
pub mod resolver;
pub mod rival;
pub mod scene;
pub mod site;
pub mod tls;
pub mod town;
pub mod wall_clock;
