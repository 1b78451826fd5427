//! Binding the socket and the optional TCP listener.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why the agent cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another agent has the socket.
    #[error("another agent answers on {path}; give each its own --socket", path = path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot make the socket {path}; check --socket", path = path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}; check {option}")]
    Tcp {
        /// Who asked for it.
        option: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A socket in the file system that goes with this value.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) listener: UnixListener,
    pub(crate) path: SocketPath,
}

/// Removes the socket where it is still the one that was made: another agent may have put its own
/// there.
#[derive(Debug)]
pub(crate) struct SocketPath {
    path: PathBuf,
    /// Device and number of the file.
    file: (u64, u64),
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let path = &self.path;
        let removed = match file(path) {
            Ok(found) if found == self.file => fs::remove_file(path),
            Ok(_) => Err(io::Error::other("it is another one")),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            tracing::debug!(path = %path.display(), %error, "the socket stays");
        }
    }
}

fn file(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Socket {
    /// Makes the socket, for its owner alone. What an agent that crashed left is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        if UnixStream::connect(path).is_ok() {
            return Err(ListenError::Taken { path: path.to_owned() });
        }
        let failed = |source| ListenError::Socket { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        // Under another name until nobody else may open it.
        let draft = path.with_extension(format!("{}.draft", std::process::id()));
        let listener = UnixListener::bind(&draft).map_err(failed)?;
        let placed = fs::set_permissions(&draft, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&draft, path))
            .and_then(|()| listener.set_nonblocking(true));
        match placed.and_then(|()| file(path)) {
            Ok(file) => Ok(Self { listener, path: SocketPath { path: path.to_owned(), file } }),
            Err(source) => {
                let _ = fs::remove_file(&draft);
                Err(failed(source))
            }
        }
    }
}

/// Listens on what `option` says.
pub(super) fn tcp(
    option: &'static str,
    address: SocketAddr,
) -> Result<std::net::TcpListener, ListenError> {
    let failed = |source| ListenError::Tcp { option, address, source };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_path(test: &str) -> PathBuf {
        let name = format!("namegate-listen-{test}-{}", std::process::id());
        std::env::temp_dir().join(name).join("agent.sock")
    }

    #[test]
    fn socket_is_for_its_owner_alone_and_goes_with_the_agent() {
        let path = mk_path("mode");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
        fs::remove_dir(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn the_socket_of_another_agent_stays() {
        let path = mk_path("other");
        let socket = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let other = Socket::bind(&path).unwrap();
        drop(socket);
        assert!(UnixStream::connect(&path).is_ok(), "the other agent can be asked");
        drop(other);
        assert!(!path.exists());
        fs::remove_dir(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let path = mk_path("stale");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "what a crash leaves");
        let socket = Socket::bind(&path).unwrap();
        let error = Socket::bind(&path).expect_err("an agent answers there");
        assert!(matches!(error, ListenError::Taken { .. }), "{error}");
        drop(socket);
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
