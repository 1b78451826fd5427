//! Leaving a node as it was found.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context;
use namegate_egress_bpf::datapath::Datapath;

use crate::cli::{NodeArgs, cni_socket};
use crate::cni::alarms;
use crate::endpoints::netlink;
use crate::lock::AgentLock;
use crate::{kubernetes, link, preflight, remembered, succession};

/// Removes everything that an agent left; refuses while one runs.
pub fn run(args: &NodeArgs) -> anyhow::Result<()> {
    preflight::check(&args.pin_dir, false)?;
    let lock = AgentLock::take(&args.run_dir())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(clean(args))?;
    remove_file(lock.path())?;
    remove_empty(&args.run_dir());
    args.socket().parent().map(remove_empty);
    println!("namegate: nothing of an agent is left on this node");
    Ok(())
}

/// Removes the CNI plugin, pins, interface and what an agent keeps in its directory, a killed one's
/// leftovers included.
pub async fn clean(args: &NodeArgs) -> anyhow::Result<()> {
    if let Some(place) = args.cni_place() {
        place.remove().context("the CNI plugin stays among those of the node")?;
    }
    remove_pins(args)?;
    remove_link(args).await?;
    let run_dir = args.run_dir();
    remove_file(&remembered::path(&run_dir))?;
    remove_file(&remembered::draft(&remembered::path(&run_dir)))?;
    for journal in [kubernetes::journal_path(&run_dir), kubernetes::heirs_journal_path(&run_dir)] {
        remove_file(&kubernetes::journal_draft(&journal))?;
        remove_file(&journal)?;
    }
    remove_file(&succession::path(&run_dir))?;
    alarms::remove(&cni_socket(&args.socket()))
        .context("cannot remove what the CNI plugin told of pods")?;
    remove_file(&cni_socket(&args.socket()))?;
    remove_file(&args.socket())
}

/// Takes programs off their interfaces, and removes them and their maps.
pub fn remove_pins(args: &NodeArgs) -> anyhow::Result<()> {
    Datapath::remove(&args.pin_dir)
        .with_context(|| format!("cannot remove what is below {}", args.pin_dir.display()))
}

/// Whether an interface of the agent's name exists.
pub async fn has_link(args: &NodeArgs) -> anyhow::Result<bool> {
    let (connection, handle, _) =
        rtnetlink::new_connection().context("cannot talk to the kernel's routing interface")?;
    let driver = tokio::spawn(connection);
    let links = netlink::list(&handle).await;
    driver.abort();
    Ok(links?.values().any(|link| link.name == args.link_name))
}

/// Removes the agent's interface.
pub async fn remove_link(args: &NodeArgs) -> anyhow::Result<()> {
    let (connection, handle, _) =
        rtnetlink::new_connection().context("cannot talk to the kernel's routing interface")?;
    let driver = tokio::spawn(connection);
    let removed = link::remove(&handle, &args.link_name).await;
    driver.abort();
    removed?;
    Ok(())
}

/// Removes a file; one that is not there is no error.
pub fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes a directory where nothing else is in it.
pub fn remove_empty(path: &Path) {
    if let Err(error) = fs::remove_dir(path) {
        tracing::debug!(path = %path.display(), %error, "the directory stays");
    }
}
