//! What systemd hands over and is told (sd_listen_fds(3), sd_notify(3), systemd.exec(5)). Without it
//! nothing is handed over, and nobody is told.

use std::{
    env,
    ffi::OsStr,
    net::{TcpListener, UdpSocket},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// The sockets of `proconsul.socket`.
#[derive(Default)]
pub(crate) struct Sockets {
    pub(crate) udp: Vec<UdpSocket>,
    pub(crate) tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Those that were handed over.
    pub(crate) fn handed_over() -> Self {
        let mut sockets = Self::default();
        let mut all = ListenFd::from_env();
        for at in 0..all.len() {
            // Each kind says no to the other.
            if let Ok(Some(udp)) = all.take_udp_socket(at) {
                sockets.udp.push(udp);
            } else if let Ok(Some(tcp)) = all.take_tcp_listener(at) {
                sockets.tcp.push(tcp);
            }
        }
        sockets
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.udp.is_empty() && self.tcp.is_empty()
    }
}

/// The directory that is kept for the service (`StateDirectory=`, systemd.exec(5)): the first,
/// where there are several.
pub(crate) fn state_directory() -> Option<PathBuf> {
    let all = env::var_os("STATE_DIRECTORY")?;
    let first = all.as_bytes().split(|byte| *byte == b':').next()?;
    let first = Path::new(OsStr::from_bytes(first));
    first.is_absolute().then(|| first.to_owned())
}

/// Questions are answered.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is read again; [`ready`] ends it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    // Nobody listens where systemd is not.
    _ = sd_notify::notify(state);
}
