//! The control socket: what the owner of the data folder asks of its running neuron.
//!
//! A Unix socket in the data folder that only its owner can open; one line of JSON each way. It
//! serves `ganglion backup`, which must not be reachable by whoever reaches a port.

use std::fs::DirBuilder;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use store::embedded::{EmbeddedStore, Options};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::serve::{STORE_FILE, not_opened};

const SOCKET: &str = "control.sock";
/// Folder in which the socket is made.
const NEST: &str = "control.new";
/// Longest line, in bytes.
const LINE_BYTES_MAX: u64 = 16 << 10;

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Request {
    /// Copy the store to a file that does not exist.
    Backup(PathBuf),
}

#[derive(Debug, Deserialize, Serialize)]
struct Answer {
    error: Option<String>,
}

/// A folder that is held open, so that a socket in it can be named however long its path is.
struct Folder(std::fs::File);

impl Folder {
    fn open(path: &Path) -> Result<Folder> {
        let file = std::fs::File::open(path);
        Ok(Folder(file.with_context(|| format!("opening the data folder {}", path.display()))?))
    }

    fn socket(&self) -> PathBuf {
        self.at(SOCKET)
    }

    fn at(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}

/// Listens in a data folder whose store is open, and so has no other neuron. The socket is made in a
/// folder that only its owner may enter and gets its place when it is the owner's alone: the data
/// folder may be one that was made by somebody else, for more to enter.
pub(crate) fn bind(data_dir: &Path) -> Result<UnixListener> {
    let folder = Folder::open(data_dir)?;
    let nest = folder.at(NEST);
    // A neuron that was killed between the steps leaves it.
    let _ = std::fs::remove_dir_all(&nest);
    let bound = DirBuilder::new().mode(0o700).create(&nest).and_then(|()| {
        let socket = folder.at(&format!("{NEST}/{SOCKET}"));
        let listener = UnixListener::bind(&socket)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&socket, folder.socket())?;
        Ok(listener)
    });
    let _ = std::fs::remove_dir_all(&nest);
    bound.context("binding the control socket")
}

/// Whether a neuron has left its socket, as one does that was not stopped in order.
pub(crate) fn was_left(data_dir: &Path) -> bool {
    Folder::open(data_dir).is_ok_and(|folder| folder.socket().symlink_metadata().is_ok())
}

/// Takes the socket away when its neuron has ended in order.
pub(crate) fn remove(data_dir: &Path) {
    if let Err(error) =
        Folder::open(data_dir).and_then(|folder| Ok(std::fs::remove_file(folder.socket())?))
    {
        tracing::warn!(%error, "the control socket was not removed");
    }
}

/// Answers requests, one at a time, until the task is dropped.
pub(crate) async fn serve(listener: UnixListener, store: Arc<EmbeddedStore>) {
    loop {
        let done = match listener.accept().await {
            Ok((stream, _)) => answer(stream, &store).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "control socket");
        }
    }
}

async fn answer(stream: UnixStream, store: &Arc<EmbeddedStore>) -> Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
    let done = match serde_json::from_str(&line)? {
        Request::Backup(to) => {
            let store = store.clone();
            tokio::task::spawn_blocking(move || store.backup(&to)).await?
        }
    };
    let answer = Answer { error: done.err().map(|error| error.to_string()) };
    write.write_all(serde_json::to_string(&answer)?.as_bytes()).await?;
    Ok(())
}

/// Copies the store of a data folder: by its running neuron when there is one, else by itself.
pub(crate) async fn backup(data_dir: &Path, file: &Path) -> Result<()> {
    let to = std::path::absolute(file)?;
    let folder = Folder::open(data_dir)?;
    let Ok(mut stream) = UnixStream::connect(folder.socket()).await else {
        let path = data_dir.join(STORE_FILE);
        if !path.exists() {
            bail!("there is no store in {}", data_dir.display());
        }
        let store = EmbeddedStore::open(&path, Options::default());
        let store = store.map_err(|error| not_opened(data_dir, error))?;
        return store.backup(&to).with_context(|| format!("copying to {}", to.display()));
    };
    let line = format!("{}\n", serde_json::to_string(&Request::Backup(to.clone()))?);
    stream.write_all(line.as_bytes()).await?;
    let mut text = String::new();
    stream.take(LINE_BYTES_MAX).read_to_string(&mut text).await?;
    let answer: Answer = serde_json::from_str(&text).context("the neuron ended meanwhile")?;
    match answer.error {
        None => Ok(()),
        Some(error) => bail!("copying to {}: {error}", to.display()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
    use rustix::io::Errno;

    use super::*;

    /// There is no moment in which somebody else could open it.
    #[tokio::test]
    async fn the_socket_is_its_owners_from_when_it_is_there() -> Result<()> {
        let folder = tempfile::TempDir::new()?;
        let socket = folder.path().join(SOCKET);
        // A neuron that was killed leaves both.
        std::fs::create_dir(folder.path().join(NEST))?;
        std::fs::write(folder.path().join(NEST).join(SOCKET), "")?;
        std::fs::write(&socket, "")?;
        let watched = inotify::init(CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watched, folder.path(), WatchFlags::ALL_EVENTS)?;
        let listener = bind(folder.path())?;

        let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 4096];
        let mut reader = Reader::new(&watched, &mut buffer);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event)
                    if event
                        .file_name()
                        .is_some_and(|name| name.to_bytes() == SOCKET.as_bytes()) =>
                {
                    events.push(event.events());
                }
                Ok(_) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        assert_eq!(events, [ReadFlags::MOVED_TO], "neither made nor changed in its place");
        let metadata = std::fs::symlink_metadata(&socket)?;
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path())?.count(), 1, "nothing is left beside it");
        let (client, server) = tokio::join!(UnixStream::connect(&socket), listener.accept());
        client.and(server)?;
        Ok(())
    }
}
