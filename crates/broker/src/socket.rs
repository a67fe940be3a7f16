//! How an answer leaves: from memory, and where the system can do it from the log's files straight into the socket.

use std::{future::Future, io};

use dibs_log::FileRange;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use crate::wire::Reply;

/// What is read at once of a file that must pass through memory.
const PIECE: usize = 64 << 10;

/// A connection's end on this side.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {
    /// Sends all of an answer.
    fn send(&mut self, answer: &Reply) -> impl Future<Output = io::Result<()>> + Send;
}

/// What is sent is encrypted first, here.
impl Socket for TlsStream<TcpStream> {
    async fn send(&mut self, answer: &Reply) -> io::Result<()> {
        for (bytes, range) in answer.parts() {
            self.write_all(bytes).await?;
            if let Some(range) = range {
                copy(self, range).await?;
            }
        }
        // What was written may wait for more.
        self.flush().await
    }
}

impl Socket for TcpStream {
    async fn send(&mut self, answer: &Reply) -> io::Result<()> {
        for (bytes, range) in answer.parts() {
            match range {
                None => self.write_all(bytes).await?,
                Some(range) => direct::send(self, bytes, range).await?,
            }
        }
        Ok(())
    }
}

async fn copy<W: AsyncWrite + Unpin>(to: &mut W, range: &FileRange) -> io::Result<()> {
    let mut piece = Vec::new();
    let (mut at, end) = (range.position, range.position + range.length);
    while at < end {
        piece.clear();
        let n = range.file.read_into(&mut piece, PIECE.min((end - at) as usize), at).map_err(complain)?;
        if n == 0 {
            return Err(complain(io::ErrorKind::UnexpectedEof.into()));
        }
        to.write_all(&piece).await?;
        at += n as u64;
    }
    Ok(())
}

/// The client sees no more than that the connection ends.
fn complain(error: io::Error) -> io::Error {
    tracing::error!("records could not be read: {error}");
    error
}

/// Linux' sendfile: the page cache is what is sent.
#[cfg(target_os = "linux")]
mod direct {
    use rustix::{
        fs::sendfile,
        io::Errno,
        net::{SendFlags, send as send_bytes},
    };
    use tokio::io::Interest;

    use super::*;

    /// The most that is handed over by one call.
    const AT_ONCE: usize = 1 << 20;

    pub(super) async fn send(socket: &mut TcpStream, bytes: &[u8], range: &FileRange) -> io::Result<()> {
        let Some(file) = range.file.as_fd() else {
            socket.write_all(bytes).await?;
            return copy(socket, range).await;
        };
        // With what follows, not in a packet of its own.
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        let mut sent = 0;
        while sent < bytes.len() {
            sent += ready(socket, || send_bytes(&*socket, &bytes[sent..], flags)).await?;
        }
        let (mut at, end) = (range.position, range.position + range.length);
        while at < end {
            let count = AT_ONCE.min((end - at) as usize);
            match ready(socket, || sendfile(&*socket, file, Some(&mut at), count)).await {
                Ok(1..) => {}
                Err(e) if !is_of_file(&e) => return Err(e),
                // The file is too short, cannot be read, or is of a file system that does not do this: then reading it
                // says which.
                _ => {
                    let rest = FileRange { position: at, length: end - at, ..range.clone() };
                    return copy(socket, &rest).await;
                }
            }
        }
        Ok(())
    }

    /// Calls as soon as the socket takes something.
    async fn ready(
        socket: &TcpStream,
        mut call: impl FnMut() -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        socket.async_io(Interest::WRITABLE, || Ok(rustix::io::retry_on_intr(&mut call)?)).await
    }

    fn is_of_file(error: &io::Error) -> bool {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        errno.is_some_and(|e| [Errno::INVAL, Errno::NOSYS, Errno::IO].contains(&e))
    }
}

#[cfg(not(target_os = "linux"))]
mod direct {
    use super::*;

    pub(super) async fn send(socket: &mut TcpStream, bytes: &[u8], range: &FileRange) -> io::Result<()> {
        socket.write_all(bytes).await?;
        copy(socket, range).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dibs_log::{DiskStorage, MemoryStorage, Storage};
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    /// More than a socket takes at once.
    const CONTENT: usize = 20 << 20;

    fn reply(storage: &dyn Storage) -> Reply {
        let file: Arc<dyn dibs_log::File> = Arc::from(storage.open("file", true).unwrap());
        let content: Vec<u8> = (0..CONTENT).map(|i| (i / 7) as u8).collect();
        file.write_at(&content, 0).unwrap();
        let mut reply = Reply::default();
        for (bytes, position, length) in [("one", 5, CONTENT - 50), ("two", 0, 20_000), ("", 1_000, 100)] {
            reply.bytes.extend_from_slice(bytes.as_bytes());
            let (position, length) = (position, length as u64);
            reply.put_file(&FileRange { file: file.clone(), position, length, until: 0 }).unwrap();
        }
        reply.bytes.extend_from_slice(b"end");
        reply
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (one, other) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (one.unwrap(), other.unwrap().0)
    }

    #[tokio::test]
    async fn what_is_sent_comes() {
        let folder = tempfile::tempdir().unwrap();
        let on_disk: &dyn Storage = &DiskStorage::new(folder.path()).unwrap();
        for storage in [on_disk, &MemoryStorage::new(0)] {
            let reply = reply(storage);
            let (mut one, mut other) = pair().await;
            let mut read = Vec::new();
            let sending = async {
                one.send(&reply).await.unwrap();
                one.shutdown().await.unwrap();
            };
            let (_, done) = tokio::join!(sending, other.read_to_end(&mut read));
            done.unwrap();
            assert!(read.len() as u64 == reply.len() && read == reply.flat(), "{} bytes", read.len());
        }
    }

    /// A file in memory with a descriptor that nothing can be sent from.
    struct Unsendable(Box<dyn dibs_log::File>, std::fs::File);

    impl dibs_log::File for Unsendable {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
            self.0.read_at(buf, position)
        }
        fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
            Some(std::os::fd::AsFd::as_fd(&self.1))
        }
        fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
            self.0.write_at(bytes, position)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn allocate(&self, len: u64) -> io::Result<()> {
            self.0.allocate(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
    }

    #[tokio::test]
    async fn what_cannot_be_sent_is_copied() {
        let file = MemoryStorage::new(0).open("file", true).unwrap();
        file.write_at(&[7; 200_000], 0).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = Arc::new(Unsendable(file, std::fs::File::open(folder.path()).unwrap()));
        let mut reply = Reply::default();
        reply.put_file(&FileRange { file, position: 9, length: 150_000, until: 0 }).unwrap();
        let (mut one, mut other) = pair().await;
        let mut read = Vec::new();
        let sending = async move { one.send(&reply).await };
        let (sent, done) = tokio::join!(sending, other.read_to_end(&mut read));
        assert!(sent.is_ok() && done.is_ok() && read == [7; 150_000], "{sent:?}, {} bytes", read.len());
    }

    #[tokio::test]
    async fn a_file_that_was_cut_ends_the_connection() {
        let folder = tempfile::tempdir().unwrap();
        let on_disk: &dyn Storage = &DiskStorage::new(folder.path()).unwrap();
        for storage in [on_disk, &MemoryStorage::new(0)] {
            let reply = reply(storage);
            storage.open("file", false).unwrap().set_len(30_000).unwrap();
            let (mut one, mut other) = pair().await;
            let mut read = Vec::new();
            let sending = async move { one.send(&reply).await };
            let (sent, _) = tokio::join!(sending, other.read_to_end(&mut read));
            assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            assert_eq!(read.len(), 3 + 30_000 - 5);
        }
    }
}
