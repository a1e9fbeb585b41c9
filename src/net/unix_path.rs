//! The file of a Unix socket: who may connect, whether one that is there already is stale, and its removal.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

/// How long another server may take to begin in the same directory.
const LOCKED_FOR: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub(crate) struct UnixOptions {
    pub(crate) path: PathBuf,
    pub(crate) mode: u32,
    /// User and group, where they are to be changed.
    pub(crate) owner: (Option<u32>, Option<u32>),
}

/// The file, removed when this is dropped if it is still the one that was made.
pub(crate) struct UnixPath {
    /// Absolute, since the program may change its directory.
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

/// Keeps other servers from taking over a file of the same directory. Given up when dropped.
pub(super) struct DirectoryLock {
    _directory: File,
}

impl UnixPath {
    /// Binds `socket` to the path. A socket file that is there is taken over if nobody listens on it; anything else that
    /// is there is an error. Blocks while another server does the same in that directory, for a second at most.
    pub(super) fn bind(socket: &Socket, options: &UnixOptions) -> io::Result<(UnixPath, Option<DirectoryLock>)> {
        let path = &options.path;
        if path.as_os_str().as_bytes().starts_with(b"\0") {
            let why = "abstract names are not supported, since anybody may take and use them";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let lock = DirectoryLock::of(path)?;
        let addr = SockAddr::unix(path)?;
        // On Linux the file begins with no more than this, so there is no moment at which others may connect.
        fchmod(socket, Mode::from_raw_mode(options.mode))?;
        match socket.bind(&addr) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if lock.is_none() {
                    let why = "something is there, which is not taken over where its directory may not be read";
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
                }
                remove_stale(path, &addr)?;
                socket.bind(&addr)?;
            }
            bound => bound?,
        }
        let metadata = fs::symlink_metadata(path)?;
        let bound = UnixPath { path: std::path::absolute(path)?, file: (metadata.dev(), metadata.ino()) };
        let (user, group) = options.owner;
        if user.is_some() || group.is_some() {
            lchown(path, user, group)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(options.mode))?;
        Ok((bound, lock))
    }
}

impl Drop for UnixPath {
    fn drop(&mut self) {
        let is_ours = |file: fs::Metadata| (file.dev(), file.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
            if let Err(error) = fs::remove_file(&self.path) {
                log::warn!("cannot remove {}: {error}", self.path.display());
            }
        }
    }
}

impl DirectoryLock {
    /// `None` where the directory may be written to but not read: nobody takes over anything there.
    fn of(path: &Path) -> io::Result<Option<DirectoryLock>> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = match File::open(directory) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            directory => directory?,
        };
        let until = Instant::now() + LOCKED_FOR;
        // Whoever may read the directory can lock it, and may never give that up; a wait with an end has to look again
        // and again.
        loop {
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(DirectoryLock { _directory: directory })),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < until => thread::sleep(LOCKED_FOR / 100),
                Err(Errno::WOULDBLOCK) => {
                    let why = "another process keeps its directory locked";
                    return Err(io::Error::new(io::ErrorKind::WouldBlock, why));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Stale is a socket that refuses to be connected to: nobody has it open.
fn remove_stale(path: &Path, addr: &SockAddr) -> io::Result<()> {
    let in_use = |why: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, why));
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return in_use("a file that is no socket is there");
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Where the backlog is full, connecting would block; so somebody listens.
    probe.set_nonblocking(true)?;
    match probe.connect(addr) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => in_use("another process listens there"),
    }
}
