//! **Shell.** The fast lane: a thread with a socket of its own, which takes datagrams
//! in batches, answers what it knows, and hands the rest to the slow lane. What it
//! knows is [`shortcut`]'s.
//!
//! Behind each thread stands its part of the [slow lane](super::slow_lane).
//!
//! Several sockets are bound to one address (`SO_REUSEPORT`, socket(7)): the kernel
//! keeps each client at one of them. One that was bound by somebody else, as systemd does, is
//! shared by all threads.

use std::{
    array,
    borrow::Cow,
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{
        MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike, recvmmsg, sendmmsg, sendto,
    },
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{sync::oneshot, task::JoinSet};
use tracing::{debug, warn};

use super::{
    QUESTION, give_room, keep_to_this_machine,
    slow_lane::{self, HandOver, Miss, SlowLane, Told},
};
use crate::{
    clock,
    endpoint::Transport,
    stub::{
        Server, answer,
        forward::Waiters,
        networks::Trusted,
        shortcut::{self, Given, Late, Shortcuts, Way},
        tally::{Counted, Tally},
    },
    task,
};

/// Datagrams taken and sent by one call.
const BATCH: usize = 64;

/// Longest reply over UDP, with its OPT record.
const REPLY: usize = 4_096;

/// How often a thread that hears nothing looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// What waits for the fast lane.
const MOST_TOLD: usize = 1_024;

/// Threads of the fast lane, at most.
const MOST_LANES: usize = 64;

/// One socket of several with the same address.
#[derive(Debug)]
pub(in crate::stub) struct Lane {
    socket: Socket,
}

/// What a thread is given.
struct Work {
    lane: Arc<Lane>,
    /// What its shortcuts may take.
    bytes: usize,
    misses: HandOver,
    told: Receiver<Told>,
    /// Set by the slow lane while it takes nobody in.
    full: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    trusted: Arc<Trusted>,
    tally: Arc<Tally>,
    counted: Arc<Counted>,
}

/// Binds a socket for each core.
pub(super) fn bind(address: SocketAddr) -> io::Result<Vec<Lane>> {
    (0..lanes()).map(|_| Lane::bind(address)).collect()
}

/// Takes a socket that is bound. There is no other to be had: all threads read it.
pub(super) fn share(socket: &Socket) -> io::Result<Vec<Lane>> {
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(LOOK))?;
    let lane = |_| {
        let socket = socket.try_clone()?;
        Ok(Lane { socket })
    };
    (0..lanes()).map(lane).collect()
}

/// One for each core.
fn lanes() -> usize {
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get());
    cores.min(MOST_LANES)
}

/// Starts a thread and a task for each socket. They end when `stop` is set.
pub(super) fn spawn(
    lanes: Vec<Lane>,
    server: &Arc<Server>,
    trusted: &Arc<Trusted>,
    stop: &Arc<AtomicBool>,
    loops: &mut JoinSet<()>,
) {
    let bytes = server.current().resolver.cache_bytes() / lanes.len().max(1);
    for (number, lane) in lanes.into_iter().enumerate() {
        let (misses, missed) = slow_lane::way();
        let (tell, told) = sync_channel(MOST_TOLD);
        let (lane, full) = (Arc::new(lane), Arc::<AtomicBool>::default());
        let work = Work {
            lane: Arc::clone(&lane),
            bytes,
            misses,
            told,
            full: Arc::clone(&full),
            stop: Arc::clone(stop),
            trusted: Arc::clone(trusted),
            tally: server.counted.lane(),
            counted: Arc::clone(&server.counted),
        };
        match start(work, number) {
            // Ends when the flag is set.
            Ok(ended) => _ = loops.spawn(async move { _ = ended.await }),
            Err(error) => warn!(%error, "a thread cannot be started"),
        }
        let slow = SlowLane {
            lane,
            tell,
            turned_away: full,
            trusted: Arc::clone(trusted),
            server: Arc::clone(server),
            waiters: Waiters::default(),
        };
        loops.spawn(slow.run(missed));
    }
}

impl Lane {
    /// Binds one of the sockets.
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_port(true)?;
        socket.set_read_timeout(Some(LOOK))?;
        give_room(&socket);
        keep_to_this_machine(&socket, address);
        socket.bind(&address.into())?;
        Ok(Self { socket })
    }

    /// Sends one reply, as its client may have it.
    pub(super) fn reply(
        &self,
        trusted: &Trusted,
        question: &[u8],
        reply: &[u8],
        client: SocketAddr,
    ) {
        let reply = trusted.cut(question, reply, client);
        if let Err(error) = self.send(&reply, client) {
            debug!(%client, %error, "reply not sent");
        }
    }

    /// Sends one reply, without waiting: what does not fit the kernel's queue is lost,
    /// as datagrams are.
    fn send(&self, reply: &[u8], client: SocketAddr) -> io::Result<()> {
        let descriptor = self.socket.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT;
        match client {
            SocketAddr::V4(client) => {
                sendto(descriptor, reply, &SockaddrIn::from(client), flags)?;
            }
            SocketAddr::V6(client) => {
                sendto(descriptor, reply, &SockaddrIn6::from(client), flags)?;
            }
        }
        Ok(())
    }
}

/// Runs a thread until it is told to stop; completes the receiver when it has.
fn start(work: Work, number: usize) -> io::Result<oneshot::Receiver<()>> {
    let (ended, heard) = oneshot::channel();
    let is_v4 = work.lane.socket.domain()? == Domain::IPV4;
    thread::Builder::new()
        .name(format!("proconsul-dns-{number}"))
        .spawn(move || {
            again_after_a_panic(&work.stop, || match is_v4 {
                true => serve::<SockaddrIn>(&work),
                false => serve::<SockaddrIn6>(&work),
            });
            // Nobody may wait for it any more.
            _ = ended.send(());
        })?;
    Ok(heard)
}

/// A thread that is gone would answer nobody, and be sent its part of the questions still.
fn again_after_a_panic(stop: &AtomicBool, run: impl Fn()) {
    while task::caught(&run).is_none() && !stop.load(Ordering::Relaxed) {
        warn!("a thread begins anew after a panic, without what it knew");
        thread::sleep(LOOK);
    }
}

/// An address as the kernel gives it.
trait Address: SockaddrLike + Copy {
    fn client(&self) -> SocketAddr;
}

impl Address for SockaddrIn {
    fn client(&self) -> SocketAddr {
        SocketAddrV4::from(*self).into()
    }
}

impl Address for SockaddrIn6 {
    fn client(&self) -> SocketAddr {
        SocketAddrV6::from(*self).into()
    }
}

fn serve<S: Address>(work: &Work) {
    let Work {
        lane,
        bytes,
        misses,
        told,
        full,
        stop,
        trusted,
        tally,
        counted,
    } = work;
    let mut shortcuts = Shortcuts::new(*bytes);
    let mut incoming = vec![0; BATCH * QUESTION];
    let mut outgoing = vec![0; BATCH * REPLY];
    let mut taken = MultiHeaders::<S>::preallocate(BATCH, None);
    let mut sent = MultiHeaders::<S>::preallocate(BATCH, None);
    let mut missed = Vec::with_capacity(BATCH);
    while !stop.load(Ordering::Relaxed) {
        let mut from: [(usize, Option<S>); BATCH] = [(0, None); BATCH];
        let count = match take(lane, &mut incoming, &mut taken, &mut from) {
            Ok(count) => count,
            // The slow lane may have told something.
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(error) => {
                warn!(%error, "socket cannot be read");
                thread::sleep(LOOK);
                continue;
            }
        };
        let now = clock::lately();
        let mut filled = false;
        while let Ok(told) = told.try_recv() {
            match told {
                Told::Fill(fill) => {
                    shortcuts.keep(fill, now);
                    filled = true;
                }
                Told::Late(miss) => late(work, &mut shortcuts, &miss, now, &mut outgoing[..REPLY]),
            }
        }
        if filled {
            tally.holds(shortcuts.size());
        }
        let mut lengths = [0; BATCH];
        let mut to: [Option<S>; BATCH] = [None; BATCH];
        let mut replies = 0;
        // Those that go to the slow lane came together; the exact clock is read for them alone.
        let mut came = None;
        let packets = incoming.chunks_exact(QUESTION).zip(&from).take(count);
        for (packet, (length, client)) in packets {
            let (packet, Some(client)) = (&packet[..*length], client) else {
                continue;
            };
            let room = &mut outgoing[replies * REPLY..(replies + 1) * REPLY];
            let plain = shortcut::read(packet, Way::udp(client.client().ip()));
            let given = match &plain {
                Some(plain) => shortcuts.answer(packet, plain, now, room),
                // What is no question keeps nobody waiting who asks one.
                None => match answer::first_look(packet) {
                    Ok(_) => Given::UNKNOWN,
                    Err(None) => {
                        counted.dropped();
                        continue;
                    }
                    Err(Some(refusal)) => {
                        counted.judged(&refusal);
                        counted.answered(&refusal, Transport::Udp, Duration::ZERO);
                        room[..refusal.len()].copy_from_slice(&refusal);
                        lengths[replies] = refusal.len();
                        to[replies] = Some(*client);
                        replies += 1;
                        continue;
                    }
                },
            };
            match given {
                Given::Reply(length) => {
                    tally.gave(room[3]);
                    lengths[replies] = fit(trusted, packet, room, length, client);
                    to[replies] = Some(*client);
                    replies += 1;
                }
                Given::Miss { hits } => {
                    // Too many wait already: what was known is given.
                    let known = match &plain {
                        Some(plain) if full.load(Ordering::Relaxed) => {
                            shortcuts.answer_late(packet, plain, now, room)
                        }
                        _ => None,
                    };
                    let Some(length) = known else {
                        missed.push(Miss {
                            packet: packet.into(),
                            client: client.client(),
                            since: *came.get_or_insert_with(clock::now),
                            hits,
                        });
                        continue;
                    };
                    let length = count_late(tally, Late::Known(length), room);
                    lengths[replies] = fit(trusted, packet, room, length, client);
                    to[replies] = Some(*client);
                    replies += 1;
                }
            }
        }
        give(lane, &outgoing, &lengths[..replies], &to, &mut sent);
        misses.take(&mut missed);
        // There is no room for these.
        for miss in missed.drain(..) {
            late(work, &mut shortcuts, &miss, now, &mut outgoing[..REPLY]);
        }
    }
}

/// Answers a question that the slow lane has no seat for: with what was known, or that it is so.
fn late(work: &Work, shortcuts: &mut Shortcuts, miss: &Miss, now: Instant, room: &mut [u8]) {
    let Miss { packet, client, .. } = miss;
    let plain = shortcut::read(packet, Way::udp(client.ip()));
    let told = plain.and_then(|plain| shortcuts.late(packet, &plain, now, room));
    let Some(told) = told else {
        return work.counted.dropped();
    };
    let length = count_late(&work.tally, told, room);
    (work.lane).reply(&work.trusted, packet, &room[..length], *client);
}

/// Counts what is told in `room`; gives its length.
fn count_late(tally: &Tally, told: Late, room: &[u8]) -> usize {
    match told {
        Late::Known(length) => {
            tally.gave(room[3]);
            length
        }
        Late::Shed(length) => {
            tally.shed();
            length
        }
    }
}

/// Cuts the reply in `room` to what its client may have; gives its length.
fn fit<S: Address>(
    trusted: &Trusted,
    packet: &[u8],
    room: &mut [u8],
    length: usize,
    client: &S,
) -> usize {
    let brief = match trusted.cut(packet, &room[..length], client.client()) {
        Cow::Borrowed(_) => return length,
        Cow::Owned(brief) => brief,
    };
    room[..brief.len()].copy_from_slice(&brief);
    brief.len()
}

/// Takes what waits in the socket, or waits for it.
fn take<S: Address>(
    lane: &Lane,
    incoming: &mut [u8],
    headers: &mut MultiHeaders<S>,
    from: &mut [(usize, Option<S>); BATCH],
) -> Result<usize, Errno> {
    let mut rooms = incoming.chunks_exact_mut(QUESTION);
    let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
        array::from_fn(|_| [IoSliceMut::new(rooms.next().unwrap_or_default())]);
    let descriptor = lane.socket.as_raw_fd();
    let flags = MsgFlags::MSG_WAITFORONE;
    let taken = recvmmsg(descriptor, headers, slices.iter_mut(), flags, None)?;
    let mut count = 0;
    for (message, from) in taken.zip(from) {
        *from = (message.bytes, message.address);
        count += 1;
    }
    Ok(count)
}

/// Sends the replies. One that cannot be sent costs the others nothing.
fn give<S: Address>(
    lane: &Lane,
    outgoing: &[u8],
    lengths: &[usize],
    to: &[Option<S>; BATCH],
    headers: &mut MultiHeaders<S>,
) {
    let mut done = 0;
    while done < lengths.len() {
        let rooms = outgoing.chunks_exact(REPLY).skip(done);
        let mut left = rooms.zip(&lengths[done..]);
        let slices: [[IoSlice<'_>; 1]; BATCH] = array::from_fn(|_| {
            let reply = left.next().map(|(room, length)| &room[..*length]);
            [IoSlice::new(reply.unwrap_or_default())]
        });
        let count = lengths.len() - done;
        let descriptor = lane.socket.as_raw_fd();
        let sent = sendmmsg(
            descriptor,
            headers,
            slices[..count].iter(),
            &to[done..],
            [],
            MsgFlags::MSG_DONTWAIT,
        );
        done += match sent {
            Ok(sent) => sent.count().max(1),
            Err(Errno::EINTR) => 0,
            Err(_) => 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn a_thread_that_panics_begins_anew_until_it_is_to_stop() {
        let (stop, runs) = (AtomicBool::new(false), AtomicU32::new(0));
        let before = task::panics();
        again_after_a_panic(&stop, || {
            assert!(runs.fetch_add(1, Ordering::Relaxed) > 1, "on purpose");
        });
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        assert!(task::panics() >= before + 2);
        stop.store(true, Ordering::Relaxed);
        again_after_a_panic(&stop, || panic!("on purpose, and for the last time"));
    }
}
