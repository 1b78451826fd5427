use std::net::SocketAddr;

use clap::Args;

use crate::map::{Exposed, Hosts};

/// The service map.
#[derive(Debug, Args)]
pub struct MapArgs {
    /// Serve the service map, a page that shows live who talks to whom and what is refused; whoever
    /// reaches the address can see it, so any but a loopback address needs --map-host
    #[arg(long, env = "NAMEGATE_MAP_LISTEN", value_name = "ADDRESS:PORT")]
    pub map_listen: Option<SocketAddr>,
    /// A host besides localhost that browsers may ask for the map by; may be repeated
    #[arg(
        long = "map-host",
        env = "NAMEGATE_MAP_HOSTS",
        value_name = "HOST",
        value_delimiter = ',',
        requires = "map_listen"
    )]
    pub map_hosts: Vec<String>,
}

impl MapArgs {
    /// The hosts that requests may name; `None` where no map is served.
    pub fn hosts(&self) -> Result<Option<Hosts>, Exposed> {
        self.map_listen.map(|listen| Hosts::new(listen, self.map_hosts.clone())).transpose()
    }
}
