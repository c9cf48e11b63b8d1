//! **Shell.** The socket of one question over UDP, whoever is asked.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

/// Datagrams that are no reply to a question before its port is given up: a flood must not
/// keep us busy.
pub(crate) const MOST_STRAY_DATAGRAMS: usize = 64;

/// Wrong ids before a question goes over to TCP, where guesses are useless.
pub(crate) const MOST_WRONG_IDS: usize = 16;

/// A connected socket on a port that the kernel draws at random: only datagrams of that
/// very server reach it, an ICMP refusal arrives at once instead of a time-out, and when it
/// is closed a late reply finds nobody (RFC 5452, sections 4.5 and 9.2).
pub(crate) fn connected(server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(server),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_nonblocking(true)?;
    socket.connect(&server.into())?;
    UdpSocket::from_std(socket.into())
}
