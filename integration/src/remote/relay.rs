//! A way from the lab to an API server outside of it.

use std::net::{SocketAddr, TcpListener};
use std::thread;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::namespace::Namespace;

/// Passes connections on; it ends with this value, and they with it.
#[derive(Debug)]
pub(super) struct Relay {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Relay {
    /// Passes what comes to `address` of `namespace` on to `server`, a host and a port of this machine's
    /// world.
    pub(super) fn start(
        namespace: &Namespace,
        address: SocketAddr,
        server: (String, u16),
    ) -> Result<Self> {
        let listener = namespace
            .within(|| TcpListener::bind(address))?
            .with_context(|| format!("cannot listen at {address}"))?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("relay".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    ended = pass_on(listener, server) => {
                        if let Err(error) = ended {
                            eprintln!("relay: {error:#}");
                        }
                    }
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            let _ended = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("relay: panicked");
        }
    }
}

async fn pass_on(listener: TcpListener, (host, port): (String, u16)) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (mut near, _) = listener.accept().await?;
        let host = host.trim_matches(['[', ']']).to_owned();
        tokio::spawn(async move {
            // Whoever asked sees a connection that ends.
            let Ok(mut far) = TcpStream::connect((host, port)).await else { return };
            let _either_end = copy_bidirectional(&mut near, &mut far).await;
        });
    }
}
