//! **Shell.** One question to one upstream, under an id and from a port of its own.

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    time::timeout,
};
use tracing::debug;

use super::{
    message::{LEAST_ROOM, answers, truncated, with_room},
    tally::Tally,
};
use crate::{
    clock,
    endpoint::Transport,
    stub::shortcut::Way,
    udp::{MOST_STRAY_DATAGRAMS, MOST_WRONG_IDS, connected},
};

/// After so long without a reply a second datagram is sent: of two in a row seldom both are
/// lost.
const AGAIN: Duration = Duration::from_millis(200);

/// Longest datagram.
const LONGEST: usize = u16::MAX as usize;

/// Datagrams and connections that one question of a client's may cost, whoever they go to: what
/// fails everywhere is not to become a flood of its own. A connection that is refused costs no more
/// than a datagram.
const MOST_SENDS: usize = 16;
const MOST_CONNECTIONS: usize = 2;

/// What one question may still cost, and where replies to no question of ours are counted.
#[derive(Debug)]
pub(super) struct Work<'a> {
    sends: AtomicUsize,
    connections: AtomicUsize,
    tally: &'a Tally,
}

impl<'a> Work<'a> {
    pub(super) fn new(tally: &'a Tally) -> Self {
        Self {
            sends: AtomicUsize::new(MOST_SENDS),
            connections: AtomicUsize::new(MOST_CONNECTIONS),
            tally,
        }
    }

    /// How often that may be asked over still.
    pub(super) fn left(&self, transport: Transport) -> usize {
        self.of(transport).load(Ordering::Relaxed)
    }

    /// Takes one of them, if there is one. Tasks that share it run one at a time.
    pub(super) fn take(&self, transport: Transport) -> bool {
        let left = self.left(transport).checked_sub(1);
        if let Some(left) = left {
            self.of(transport).store(left, Ordering::Relaxed);
        }
        left.is_some()
    }

    /// A connection was refused: it is a datagram instead, if there is one left.
    fn was_refused(&self) {
        if self.take(Transport::Udp) {
            self.connections.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn of(&self, transport: Transport) -> &AtomicUsize {
        match transport {
            Transport::Udp => &self.sends,
            _ => &self.connections,
        }
    }
}

/// Asks a server, and says whom. That is taken of the work already.
pub(super) async fn ask(
    server: SocketAddr,
    packet: &[u8],
    transport: Transport,
    work: &Work<'_>,
) -> (SocketAddr, io::Result<Vec<u8>>) {
    let told = match transport {
        Transport::Udp => over_udp(server, packet, work).await,
        _ => over_tcp(server, packet).await,
    };
    let is_refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if transport == Transport::Tcp && told.as_ref().is_err_and(is_refused) {
        work.was_refused();
    }
    (server, told)
}

/// One datagram, and a second one from another port where the first has no reply after
/// [`AGAIN`]. Whichever is answered counts.
pub(super) async fn over_udp(
    server: SocketAddr,
    packet: &[u8],
    work: &Work<'_>,
) -> io::Result<Vec<u8>> {
    let packet = with_room(packet, Way::udp(server.ip()).most());
    let mut first = std::pin::pin!(datagram(server, &packet, work));
    if let Ok(reply) = timeout(AGAIN, &mut first).await {
        return reply;
    }
    if !work.take(Transport::Udp) {
        return first.await;
    }
    let mut second = Box::pin(datagram(server, &packet, work));
    // An error of one says nothing of the other.
    tokio::select! {
        reply = &mut first => if reply.is_ok() { reply } else { second.await },
        reply = &mut second => if reply.is_ok() { reply } else { first.await },
    }
}

async fn datagram(server: SocketAddr, packet: &[u8], work: &Work<'_>) -> io::Result<Vec<u8>> {
    let socket = connected(server)?;
    let (packet, id) = with_id(packet);
    socket.send(&packet).await?;
    let mut wrong_ids = 0;
    for _ in 0..MOST_STRAY_DATAGRAMS {
        // Whoever waits has no room for a reply yet: that is 64 KiB.
        let reply = loop {
            socket.readable().await?;
            let mut reply = Vec::with_capacity(LONGEST);
            match socket.try_recv_buf(&mut reply) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => break received.map(|_| reply)?,
            }
        };
        if answers(&reply, &packet, id) {
            return Ok(reply.as_slice().into());
        }
        work.tally.ignored();
        wrong_ids += usize::from(reply.get(..2) != Some(&id[..]));
        if wrong_ids >= MOST_WRONG_IDS {
            if !work.take(Transport::Tcp) {
                break;
            }
            debug!(%server, "somebody guesses: asked over TCP");
            let reply = over_tcp(server, &packet).await?;
            // Longer than what every client of UDP takes: it comes over TCP itself.
            let fits = reply.len() <= usize::from(LEAST_ROOM);
            return Ok(if fits { reply } else { truncated(&reply) });
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

async fn over_tcp(server: SocketAddr, packet: &[u8]) -> io::Result<Vec<u8>> {
    let socket = match server {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    let mut stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    let (packet, id) = with_id(packet);
    let length = u16::try_from(packet.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(&packet);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut reply = Vec::new();
    stream.take(length.into()).read_to_end(&mut reply).await?;
    if reply.len() == usize::from(length) && answers(&reply, &packet, id) {
        Ok(reply)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

fn with_id(packet: &[u8]) -> (Vec<u8>, [u8; 2]) {
    let id = clock::query_id().to_be_bytes();
    let mut packet = packet.to_vec();
    for (byte, own) in packet.iter_mut().zip(id) {
        *byte = own;
    }
    (packet, id)
}
