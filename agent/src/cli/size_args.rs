use clap::Args;
use namegate_egress_bpf::datapath::Options;

use super::NodeArgs;

/// How large the kernel's maps are. Maps that an earlier agent pinned keep their size until
/// `namegate uninstall`.
#[derive(Args, Clone, Copy, Debug)]
pub struct SizeArgs {
    /// Addresses of pods and nodes that the kernel knows at most; while more are there, new flows
    /// with an address that it does not know are dropped
    #[arg(long, env = "NAMEGATE_ADDRESSES_MAX", value_name = "COUNT", default_value_t = Options::default().addresses_max, value_parser = clap::value_parser!(u32).range(1..))]
    pub addresses_max: u32,
    /// Flows that the kernel follows at most, of all pods of the node together
    #[arg(long, env = "NAMEGATE_FLOWS_MAX", value_name = "COUNT", default_value_t = Options::default().flows_max, value_parser = clap::value_parser!(u32).range(1..))]
    pub flows_max: u32,
    /// Rows of policies that name pods by labels, at most: pods that a policy's selectors mean, for
    /// each set of labels that pods of this node have; pods beyond that are closed
    #[arg(long, env = "NAMEGATE_PEERS_MAX", value_name = "COUNT", default_value_t = Options::default().peers_max, value_parser = clap::value_parser!(u32).range(1..))]
    pub peers_max: u32,
}

impl SizeArgs {
    /// The datapath's options, with the pins of this node.
    pub fn options(&self, node: &NodeArgs) -> Options {
        Options {
            pin_root: node.pin_dir.clone(),
            addresses_max: self.addresses_max,
            flows_max: self.flows_max,
            peers_max: self.peers_max,
            ..Options::default()
        }
    }
}
