//! A pod's first packet: the CNI plugin that waits for its policy, and the agent's side of it.
//!
//! `namegate-cni` ([`plugin`]) is the last of the plugins that the node's runtime runs for a pod. It
//! tells the agent which pod has which addresses and returns once the pod's policy is in force, so that
//! no container of the pod runs before. The agent ([`desk`]) does not take the plugin's word for the
//! interface: it finds it by the addresses, as for every pod. [`chain`] puts the plugin into the node's
//! list and keeps it there.

pub mod alarms;
pub mod chain;
pub mod desk;
pub mod plugin;
pub mod protocol;
mod standing;

pub use standing::Standing;

/// The plugin's name: of its file, and in lists of plugins.
pub const PLUGIN: &str = "namegate-cni";
