//! `namegate endpoints`.

use clap::Args;

use super::client::{Client, SocketArgs};
use crate::admin::EndpointItem;

/// Options of `namegate endpoints`.
#[derive(Debug, Args)]
pub struct EndpointsArgs {
    #[command(flatten)]
    socket: SocketArgs,
}

pub(super) fn run(args: &EndpointsArgs) -> anyhow::Result<()> {
    let items: Vec<EndpointItem> = Client::new(&args.socket).get("/v1/endpoints")?;
    println!("{}", serde_json::to_string_pretty(&items)?);
    Ok(())
}
