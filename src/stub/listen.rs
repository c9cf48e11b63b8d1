//! **Shell.** The stub's sockets: datagrams and connections in, answers out, all
//! of it bounded.

pub(super) mod connection;
mod datagrams;
#[cfg(target_os = "linux")]
mod lane;
mod share;
#[cfg(target_os = "linux")]
mod slow_lane;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use self::{
    datagrams::{Datagrams, Peer},
    share::Shares,
};
use super::{
    Server,
    forward::Waiters,
    framed::Framed,
    networks::Trusted,
    shortcut::{self, Way},
};
use crate::{clock, endpoint::Transport, process, task};

/// Longest question that is taken; a longer one is not ordinary, and is cut.
const QUESTION: usize = 4_096;

/// Bytes that may wait in a socket each way, where the kernel allows it.
const WAITING: usize = 4 << 20;

/// Questions over UDP that are worked on at once, for each thread of the fast lane, or for the socket
/// that has none.
const MOST_DATAGRAMS: usize = 512;

/// From so many on a client has its share and no more.
const CROWDED: usize = MOST_DATAGRAMS / 4;

/// Connections at once, per address. No more than a quarter of the descriptors that this
/// process may have: questions to Consul need some too.
const MOST_CONNECTIONS: usize = 256;

/// Time for answers that are due when the stub is stopped.
const DRAIN: Duration = Duration::from_secs(5);

/// A free port that is free for UDP may be taken for TCP: so many are tried.
const PORT_TRIES: usize = 16;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1_024;

/// One address, bound for UDP, for TCP, or for both.
#[derive(Debug)]
pub(super) struct Sockets {
    udp: Option<Udp>,
    tcp: Option<TcpListener>,
    address: SocketAddr,
}

#[derive(Debug)]
enum Udp {
    /// A socket for each core.
    #[cfg(target_os = "linux")]
    Lanes(Vec<lane::Lane>),
    /// One, which has to look where each datagram was sent to.
    One(Datagrams),
}

impl Sockets {
    pub(super) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
        loop {
            tries -= 1;
            match Self::try_bind(address) {
                Err(error) if tries > 0 && error.kind() == io::ErrorKind::AddrInUse => {}
                bound => return bound,
            }
        }
    }

    fn try_bind(address: SocketAddr) -> io::Result<Self> {
        let tcp = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        if address.is_ipv6() {
            tcp.set_only_v6(true)?;
        }
        // A restart must not wait for the connections of the last run.
        tcp.set_reuse_address(true)?;
        tcp.set_nonblocking(true)?;
        keep_to_this_machine(&tcp, address);
        tcp.bind(&address.into())?;
        tcp.listen(BACKLOG)?;
        let tcp = TcpListener::from_std(tcp.into())?;
        let address = tcp.local_addr()?;

        #[cfg(target_os = "linux")]
        if !address.ip().is_unspecified() {
            return Ok(Self {
                udp: Some(Udp::Lanes(lane::bind(address)?)),
                tcp: Some(tcp),
                address,
            });
        }
        Ok(Self {
            udp: Some(Udp::One(Self::bind_one(address)?)),
            tcp: Some(tcp),
            address,
        })
    }

    /// A socket for UDP that is bound.
    pub(super) fn of_udp(socket: std::net::UdpSocket) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let socket = Socket::from(socket);
        #[cfg(target_os = "linux")]
        if !address.ip().is_unspecified() {
            return Ok(Self {
                udp: Some(Udp::Lanes(lane::share(&socket)?)),
                tcp: None,
                address,
            });
        }
        socket.set_nonblocking(true)?;
        Ok(Self {
            udp: Some(Udp::One(Datagrams::new(socket, address)?)),
            tcp: None,
            address,
        })
    }

    /// A socket for TCP that is bound and listens.
    pub(super) fn of_tcp(listener: std::net::TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            address: listener.local_addr()?,
            udp: None,
            tcp: Some(TcpListener::from_std(listener)?),
        })
    }

    fn bind_one(address: SocketAddr) -> io::Result<Datagrams> {
        let udp = Socket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        if address.is_ipv6() {
            udp.set_only_v6(true)?;
        }
        udp.set_nonblocking(true)?;
        give_room(&udp);
        udp.bind(&address.into())?;
        Datagrams::new(udp, address)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Whoever asks a loopback address is on this machine: where the kernel is told to let in what
/// comes from elsewhere for it (`route_localnet`), it is not taken, whatever its source says.
#[cfg(target_os = "linux")]
fn keep_to_this_machine(socket: &Socket, address: SocketAddr) {
    if address.ip().is_loopback()
        && let Err(error) = socket.bind_device(Some(b"lo"))
    {
        // As before Linux 5.7, but for root: then the kernel alone sees to it.
        debug!(%address, %error, "not kept to the loopback interface");
    }
}

#[cfg(not(target_os = "linux"))]
fn keep_to_this_machine(_: &Socket, _: SocketAddr) {}

/// Ends the threads when it is dropped, whatever drops it.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Serves all sockets until `stop`, then drains.
pub(super) async fn run(
    sockets: Vec<Sockets>,
    server: &Arc<Server>,
    stop: impl Future<Output = ()>,
) {
    let trusted = &server.trusted;
    let (stopping, stopped) = watch::channel(());
    let threads = Stop(Arc::default());
    let mut loops = JoinSet::new();
    let listeners = sockets.iter().filter(|sockets| sockets.tcp.is_some());
    let most = most_connections(listeners.count());
    for Sockets { udp, tcp, .. } in sockets {
        match udp {
            None => {}
            Some(Udp::One(udp)) => {
                let socket = Replies {
                    socket: udp,
                    trusted: Arc::clone(trusted),
                };
                loops.spawn(datagrams(
                    Arc::new(socket),
                    Arc::clone(server),
                    stopped.clone(),
                ));
            }
            #[cfg(target_os = "linux")]
            Some(Udp::Lanes(lanes)) => {
                lane::spawn(lanes, server, trusted, &threads.0, &mut loops);
            }
        }
        if let Some(tcp) = tcp {
            loops.spawn(connections(tcp, Arc::clone(server), most, stopped.clone()));
        }
    }
    stop.await;
    drop(stopping);
    drop(threads);
    let drained = timeout(DRAIN, async { while loops.join_next().await.is_some() {} });
    if drained.await.is_err() {
        warn!("answers were still due when the time for them was over");
    }
}

/// Completes when the stub is stopped.
async fn told(stopped: &mut watch::Receiver<()>) {
    // The sender says nothing; it is dropped.
    while stopped.changed().await.is_ok() {}
}

/// A socket, and who may have long replies from it.
struct Replies {
    socket: Datagrams,
    trusted: Arc<Trusted>,
}

impl Replies {
    fn send(&self, question: &[u8], reply: &[u8], peer: Peer) {
        let reply = self.trusted.cut(question, reply, peer.client);
        if let Err(error) = self.socket.send(&reply, peer) {
            debug!(client = %peer.client, %error, "reply not sent");
        }
    }
}

/// Whether a datagram is done with: what is remembered is given, and who has no seat is told so,
/// and keeps nobody waiting.
fn at_once(
    socket: &Replies,
    server: &Server,
    packet: &[u8],
    peer: Peer,
    seats: impl FnOnce() -> bool,
) -> bool {
    let plain = shortcut::read(packet, Way::udp(peer.client.ip()));
    let (now, mut reply) = (clock::lately(), Framed::default());
    if let Some(plain) = &plain
        && server
            .memory(Transport::Udp)
            .give(packet, plain, now, &mut reply)
    {
        // Behind the length, which a datagram needs not.
        socket.send(packet, &reply.as_bytes()[2..], peer);
        return true;
    }
    if seats() {
        return false;
    }
    if let Some(reply) = server.late(packet, plain.as_ref(), peer.client) {
        socket.send(packet, &reply, peer);
    }
    true
}

async fn datagrams(socket: Arc<Replies>, server: Arc<Server>, mut stopped: watch::Receiver<()>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let (mut asked, mut shares) = (JoinSet::new(), Shares::default());
    let waiters = Arc::<Waiters>::default();
    loop {
        tokio::select! {
            () = told(&mut stopped) => break,
            Some(client) = asked.join_next(), if !asked.is_empty() => shares.give_back(client.ok().flatten()),
            received = socket.socket.receive(&mut buffer) => match received {
                Ok((length, peer)) => {
                    let packet = &buffer[..length];
                    let seated = asked.len().saturating_sub(waiters.count());
                    let seats = || {
                        seated < MOST_DATAGRAMS && shares.take(peer.client, seated >= CROWDED)
                    };
                    // One that panics takes nobody along.
                    match task::caught(|| at_once(&socket, &server, packet, peer, seats)) {
                        Some(false) => {}
                        Some(true) => continue,
                        None => {
                            server.counted.dropped();
                            continue;
                        }
                    }
                    let (packet, since): (Box<[u8]>, _) = (packet.into(), clock::now());
                    let (socket, server) = (Arc::clone(&socket), Arc::clone(&server));
                    let waiters = Arc::clone(&waiters);
                    asked.spawn(task::outcome(async move {
                        let client = peer.client;
                        let answer = server.answer(&packet, (client, &waiters), Transport::Udp, since);
                        if let Some(reply) = answer.await {
                            socket.send(&packet, &reply.bytes, peer);
                            if let Some(fill) = reply.fill {
                                server.keep(fill);
                            }
                        }
                        client
                    }));
                }
                // An earlier reply met a closed port; nothing is wrong with ours.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => {
                    warn!(%error, "socket cannot be read");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    while asked.join_next().await.is_some() {}
}

/// As much as is allowed: a burst of questions waits there, and replies to neighbours that do not
/// answer.
fn give_room(socket: &Socket) {
    _ = socket.set_recv_buffer_size(WAITING);
    _ = socket.set_send_buffer_size(WAITING);
}

/// For one of so many listeners.
fn most_connections(listeners: usize) -> usize {
    let share = process::quarter_of_descriptors() / listeners.max(1);
    MOST_CONNECTIONS.min(share.max(1))
}

async fn connections(
    listener: TcpListener,
    server: Arc<Server>,
    most: usize,
    mut stopped: watch::Receiver<()>,
) {
    let mut open = JoinSet::new();
    let crowd = Arc::new(AtomicBool::new(false));
    // From so many on, those that say nothing make room for others (RFC 7766, section 6.2.3).
    let crowded = most / 4 * 3;
    loop {
        let full = open.len() >= most;
        crowd.store(open.len() >= crowded, Ordering::Relaxed);
        tokio::select! {
            () = told(&mut stopped) => break,
            _ = open.join_next(), if !open.is_empty() => {}
            accepted = listener.accept(), if !full => match accepted {
                Ok((stream, client)) => {
                    let (server, stopped) = (Arc::clone(&server), stopped.clone());
                    let crowd = Arc::clone(&crowd);
                    open.spawn(task::outcome(async move {
                        let ended = connection::converse(stream, &server, &crowd, stopped).await;
                        if ended.as_ref().is_err_and(|end| end.kind() == io::ErrorKind::InvalidData) {
                            server.counted.dropped();
                        }
                        debug!(%client, ?ended, "connection closed");
                    }));
                }
                Err(error) => {
                    // Descriptors are short: those who are connected go on.
                    warn!(%error, "no connection can be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    while open.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpStream, UdpSocket},
        sync::oneshot,
    };

    use crate::{Resolver, stub::Stub, task};

    use super::*;

    /// Of which each look-up panics: a limit that no builder takes cannot be added to the time.
    fn broken() -> Resolver {
        let mut builder = Resolver::builder().dns("none").http("none");
        builder.config.timeout = Duration::MAX / 2;
        builder.build().unwrap()
    }

    /// A question for an address, with this id and RD set.
    fn question(id: u8, name: &[&[u8]]) -> Vec<u8> {
        let mut packet = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name {
            packet.push(u8::try_from(label.len()).unwrap());
            packet.extend_from_slice(label);
        }
        packet.extend([0, 0, 1, 0, 1]);
        packet
    }

    /// That a reply is SERVFAIL, and to this question.
    fn is_servfail(reply: &[u8], question: &[u8]) -> bool {
        reply[..2] == question[..2]
            && (reply[2] & 0x80, reply[3] & 0x0F) == (0x80, 2)
            && reply.get(12..question.len()) == Some(&question[12..])
    }

    async fn over_tcp(stream: &mut TcpStream, question: &[u8]) -> Vec<u8> {
        let mut framed = Framed::default();
        framed.push(question);
        stream.write_all(framed.as_bytes()).await.unwrap();
        let length = timeout(DRAIN, stream.read_u16()).await.unwrap().unwrap();
        let mut reply = vec![0; length.into()];
        stream.read_exact(&mut reply).await.unwrap();
        reply
    }

    #[tokio::test]
    async fn a_question_that_panics_is_told_so_counted_and_keeps_nobody_waiting() {
        // A lane, and a socket that is bound to every address.
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let bound = Stub::bind(broken(), &[address.parse().unwrap()]).await;
            let stub = bound.unwrap();
            let port = stub.addresses()[0].port();
            let resolver = stub.control().resolver();
            let (stop, stopped) = oneshot::channel::<()>();
            let running = tokio::spawn(stub.run(async { _ = stopped.await }));
            let before = task::panics();

            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            udp.connect(("127.0.0.1", port)).await.unwrap();
            let mut reply = [0; 512];
            for id in 0..3 {
                let asked = question(id, &[b"web", b"service", b"consul"]);
                udp.send(&asked).await.unwrap();
                let told = timeout(DRAIN, udp.recv(&mut reply)).await;
                assert!(is_servfail(&reply[..told.unwrap().unwrap()], &asked));
            }
            let mut tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            for id in 0..3 {
                let asked = question(id, &[b"web", b"service", b"consul"]);
                assert!(is_servfail(&over_tcp(&mut tcp, &asked).await, &asked));
            }
            // What does not panic is answered on the same connection: refused.
            let asked = question(9, &[b"www", b"example"]);
            assert_eq!(over_tcp(&mut tcp, &asked).await[3] & 0x0F, 5);
            assert!(task::panics() >= before + 6);
            let metrics = resolver.metrics().to_string();
            assert!(metrics.contains("\nproconsul_panics_total "), "{metrics}");

            let start = clock::now();
            stop.send(()).unwrap();
            running.await.unwrap();
            assert!(clock::now().saturating_duration_since(start) < DRAIN);
        }
    }
}
