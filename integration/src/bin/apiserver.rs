//! The API server double as a program of its own: `apiserver ADDRESS FOLDER` says where the kubeconfig
//! is that leads to it, and serves until it is ended.

use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::{Context, Result};
use namegate_integration::apiserver::ApiServer;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (address, folder) =
        arguments.next().zip(arguments.next()).context("usage: apiserver ADDRESS FOLDER")?;
    let address = address.to_str().context("ADDRESS is no text")?.to_owned();
    let listener =
        TcpListener::bind(&address).with_context(|| format!("cannot listen at {address}"))?;
    let server = ApiServer::serve(listener, PathBuf::from(folder))?;
    println!("{}", server.kubeconfig()?.display());
    loop {
        std::thread::park();
    }
}
