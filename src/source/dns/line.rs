//! **Shell.** The questions to a server on this machine, all over one socket.
//!
//! A port drawn anew for each question (RFC 5452, section 9.2) defends against forgers elsewhere
//! on the network, and no datagram of theirs gets to loopback: what comes to a connected socket
//! there was sent by its server. So one socket serves all who ask, each under an id of its own,
//! and a late reply finds nobody. Who has which id, and who may send, is [`seats`](super::seats)'.
//!
//! A task sends and receives for all of them. It ends when nobody has asked for a while.

use std::{
    future::poll_fn,
    io::{self, Read as _},
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    io::Interest,
    net::UdpSocket,
    runtime::{self, Handle},
    sync::Notify,
    task::AbortHandle,
    time::sleep,
};
use tracing::debug;

use super::{
    Trouble,
    message::{Query, Stranger, Strangers},
    seats::{Came, Next, Seats, Ticket},
};
use crate::{
    clock, task,
    udp::{MOST_STRAY_DATAGRAMS, connected},
};

/// A line that nobody has used for so long is closed.
const IDLE: Duration = Duration::from_secs(5);

/// Longest datagram that is taken whole.
pub(super) const ROOM: usize = 8 << 10;

/// Bytes that may wait in the socket, where the kernel allows it.
const RECEIVED: usize = 1 << 20;

/// Datagrams that are taken before others have their turn.
const BATCH: usize = 64;

/// The lines to one server: one for each runtime that asks it, since none can wait for what
/// another one drives.
#[derive(Debug)]
pub(super) struct Lines {
    server: SocketAddr,
    strangers: Arc<Strangers>,
    open: Open,
}

/// A std mutex: held for a look, never across an await.
type Open = Arc<Mutex<Vec<Arc<Line>>>>;

#[derive(Debug)]
struct Line {
    runtime: runtime::Id,
    /// A std mutex: held for a look, never across an await.
    seats: Mutex<Seats>,
    /// Tells that a question waits to be sent.
    asked: Notify,
    driven: OnceLock<AbortHandle>,
}

/// A question that is asked over a line. Dropped, it leaves.
#[derive(Debug)]
pub(super) struct Asked {
    line: Arc<Line>,
    ticket: Ticket,
    answered: bool,
}

impl Lines {
    pub(super) fn new(server: SocketAddr, strangers: Arc<Strangers>) -> Self {
        Self {
            server,
            strangers,
            open: Open::default(),
        }
    }

    /// Asks a question, as soon as it has its turn.
    pub(super) fn ask(&self, query: &Query) -> Result<Asked, Trouble> {
        let runtime = Handle::current();
        // Held until the question has its seat: until then the line may be closed. Its driver is
        // spawned after that: a runtime that ends drops it here and now, and it looks there too.
        let mut open = look(&self.open);
        let known = open.iter().find(|line| line.runtime == runtime.id());
        let (line, socket) = match known {
            Some(line) => (Arc::clone(line), None),
            None => {
                let socket = connect(self.server).map_err(Trouble::from_io)?;
                let line = Arc::new(Line {
                    runtime: runtime.id(),
                    seats: Mutex::default(),
                    asked: Notify::new(),
                    driven: OnceLock::new(),
                });
                open.push(Arc::clone(&line));
                (line, Some(socket))
            }
        };
        let seat = (line.seats()).ask(clock::query_id, |id| query.with_id(id));
        drop(open);
        if let Some(socket) = socket {
            let driver = Driver {
                server: self.server,
                line: Arc::clone(&line),
                open: Arc::clone(&self.open),
                strangers: Arc::clone(&self.strangers),
            };
            let driven = runtime.spawn(task::outcome(driver.run(socket)));
            // Nobody else spawns one.
            _ = line.driven.set(driven.abort_handle());
        }
        let ticket = seat.ok_or(Trouble::Crowded)?;
        line.asked.notify_one();
        Ok(Asked {
            line,
            ticket,
            answered: false,
        })
    }

    /// Whether a question that is asked now waits for its turn.
    pub(super) fn are_crowded(&self) -> bool {
        let runtime = Handle::current().id();
        let open = look(&self.open);
        let own = open.iter().find(|line| line.runtime == runtime);
        own.is_some_and(|line| line.seats().is_crowded())
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let open = std::mem::take(&mut *look(&self.open));
        for driven in open.iter().filter_map(|line| line.driven.get()) {
            driven.abort();
        }
    }
}

impl Asked {
    /// The id that it has.
    pub(super) fn id(&self) -> u16 {
        self.ticket.id()
    }

    /// The next datagram that came under its id.
    ///
    /// Cancel-safe.
    pub(super) async fn hear(&self) -> Result<Vec<u8>, Trouble> {
        poll_fn(|context| self.line.seats().poll(self.ticket, context)).await
    }

    /// Its reply has come.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut seats = self.line.seats();
        seats.leave(self.ticket, self.answered, clock::lately());
        let others_wait = seats.has_waiting();
        drop(seats);
        if others_wait {
            self.line.asked.notify_one();
        }
    }
}

impl Line {
    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn look(open: &Open) -> MutexGuard<'_, Vec<Arc<Line>>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// With as much room for replies as is allowed: they come together.
fn connect(server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = connected(server)?;
    _ = SockRef::from(&socket).set_recv_buffer_size(RECEIVED);
    Ok(socket)
}

fn wake(all: impl IntoIterator<Item = Waker>) {
    all.into_iter().for_each(Waker::wake);
}

/// Whoever sends and receives over a line.
struct Driver {
    server: SocketAddr,
    line: Arc<Line>,
    open: Open,
    strangers: Arc<Strangers>,
}

impl Driver {
    async fn run(self, mut socket: UdpSocket) {
        let (mut room, mut strays) = (vec![0; ROOM], 0);
        let mut idle = pin!(sleep(IDLE));
        let mut used = true;
        loop {
            let turn = self.send(&socket);
            let later = turn.unwrap_or_else(clock::now);
            // A port that is closed is an error, and nothing to read.
            let wanted = Interest::READABLE | Interest::ERROR;
            tokio::select! {
                biased;
                received = socket.async_io(wanted, || self.receive(&socket, &mut room, &mut strays)) => {
                    // The runtime ends.
                    if received.is_err() {
                        break;
                    }
                    // There is more, and those whose it is have their turn.
                    tokio::task::yield_now().await;
                }
                () = self.line.asked.notified() => used = true,
                () = clock::sleep_until(later), if turn.is_some() => {}
                () = &mut idle => {
                    if !used && self.close() {
                        break;
                    }
                    used = false;
                    idle.set(sleep(IDLE));
                }
            }
            // A flood must not keep us busy: it goes on at a port that is closed.
            let is_flooded = strays >= MOST_STRAY_DATAGRAMS;
            if is_flooded {
                self.fail(&Trouble::Flooded, None);
                strays = 0;
            }
            if is_flooded || self.line.seats().is_deaf(clock::lately()) {
                match connect(self.server) {
                    Ok(other) => {
                        // No reply to it comes to the other one.
                        self.fail(&Trouble::Deaf, None);
                        socket = other;
                    }
                    Err(_) if is_flooded => break,
                    // It may be no more than slow.
                    Err(_) => {}
                }
            }
        }
    }

    /// Sends what may be sent; gives when more may be.
    fn send(&self, socket: &UdpSocket) -> Option<Instant> {
        let socket = SockRef::from(socket);
        let now = clock::now();
        loop {
            let next = self.line.seats().next(now);
            let (ticket, bytes) = match next {
                Next::Send(ticket, bytes) => (ticket, bytes),
                Next::At(turn) => return Some(turn),
                Next::Nothing => return None,
            };
            let mut sent = socket.send(&bytes);
            if let Err(error) = &sent
                && error.kind() == io::ErrorKind::ConnectionRefused
            {
                // That was said to those before it, which it is told now.
                self.fail(&Trouble::Refused, Some(ticket));
                sent = socket.send(&bytes);
            }
            match sent {
                Ok(_) => {}
                // What does not fit the kernel's queue is lost, as datagrams are.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    let failed = (self.line.seats()).fail_one(ticket, &Trouble::from_io(error));
                    wake(failed);
                }
            }
        }
    }

    /// Takes what has come, and waits for more unless there is, or others may be sent now.
    /// `strays`: datagrams in a row that are nobody's.
    fn receive(&self, socket: &UdpSocket, room: &mut [u8], strays: &mut usize) -> io::Result<()> {
        let socket = SockRef::from(socket);
        let mut made_room = false;
        for _ in 0..BATCH {
            if *strays >= MOST_STRAY_DATAGRAMS {
                break;
            }
            let length = match (&*socket).read(room) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let goes_on = made_room && self.line.seats().has_waiting();
                    return if goes_on { Ok(()) } else { Err(error) };
                }
                Err(error) => {
                    self.fail(&Trouble::from_io(error), None);
                    continue;
                }
            };
            let came = self.line.seats().hear(&room[..length]);
            match came {
                Came::Answer(waker) => {
                    (*strays, made_room) = (0, true);
                    wake(waker);
                }
                Came::Late => self.strangers.count(Stranger::WrongId),
                Came::Stranger(stranger, enough) => {
                    *strays += 1;
                    self.strangers.count(stranger);
                    debug!(server = %self.server, ?stranger, bytes = length, "datagram ignored");
                    wake(enough);
                }
            }
        }
        Ok(())
    }

    /// What was sent fails, but for one that was not.
    fn fail(&self, trouble: &Trouble, but: Option<Ticket>) {
        let failed = self.line.seats().fail(trouble, but);
        wake(failed);
    }

    /// Closes the line, unless somebody asks.
    fn close(&self) -> bool {
        let mut open = look(&self.open);
        let is_idle = self.line.seats().is_idle();
        if is_idle {
            open.retain(|line| !Arc::ptr_eq(line, &self.line));
        }
        is_idle
    }
}

impl Drop for Driver {
    /// Who still waits is told.
    fn drop(&mut self) {
        look(&self.open).retain(|line| !Arc::ptr_eq(line, &self.line));
        let seats = std::mem::take(&mut *self.line.seats());
        wake(seats.into_wakers());
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket as Std, thread};

    use futures_util::future::join_all;
    use hickory_proto::rr::RecordType;
    use tokio::{runtime::Builder, time::timeout};

    use super::*;
    use crate::source::dns::message;

    fn query(name: &str) -> Query {
        Query::new(name, RecordType::A, 4_093).unwrap()
    }

    fn lines(server: SocketAddr) -> (Lines, Arc<Strangers>) {
        let strangers = Arc::<Strangers>::default();
        (Lines::new(server, Arc::clone(&strangers)), strangers)
    }

    fn server() -> (Std, SocketAddr) {
        let socket = Std::bind("127.0.0.1:0").unwrap();
        // A test that lost a datagram is to fail, and not to wait.
        let limit = Some(Duration::from_secs(10));
        socket.set_read_timeout(limit).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    /// The next question, and who asks.
    fn next(server: &Std) -> (Vec<u8>, SocketAddr) {
        let mut packet = vec![0; 512];
        let (length, client) = server.recv_from(&mut packet).unwrap();
        packet.truncate(length);
        (packet, client)
    }

    /// Answers a question with nothing.
    fn answer(server: &Std, (question, client): &(Vec<u8>, SocketAddr)) {
        let mut reply = question.clone();
        reply[2] |= 0x80;
        server.send_to(&reply, client).unwrap();
    }

    /// The name that a datagram for this question answers.
    async fn heard(lines: &Lines, name: &str) -> Result<String, Trouble> {
        let asked = lines.ask(&query(name))?;
        let reply = asked.hear().await?;
        asked.answered();
        let message = message::decode(&reply).map_err(|_| Trouble::Malformed)?;
        Ok(message.queries[0].name().to_ascii())
    }

    #[tokio::test]
    async fn a_thousand_questions_at_once_each_have_their_own_reply() {
        const ALL: usize = 1_000;
        let (socket, address) = server();
        // The last one first, as far as they come before it answers.
        let serving = thread::spawn(move || {
            let mut left = ALL;
            while left > 0 {
                let many = left.min(100);
                let asked: Vec<_> = (0..many).map(|_| next(&socket)).collect();
                asked.iter().rev().for_each(|one| answer(&socket, one));
                left -= many;
            }
        });
        let (lines, strangers) = lines(address);
        let names: Vec<_> = (0..ALL)
            .map(|at| format!("n{at}.service.consul."))
            .collect();
        let all = join_all(names.iter().map(|name| heard(&lines, name))).await;
        let all: Vec<_> = all.into_iter().map(Result::unwrap).collect();
        assert_eq!(all, names);
        serving.join().unwrap();
        assert_eq!(strangers.total(), 0);
        assert!(look(&lines.open).iter().all(|line| line.seats().is_idle()));
    }

    #[tokio::test]
    async fn a_late_reply_finds_nobody_and_is_no_guess_at_those_who_ask() {
        let (socket, address) = server();
        let (lines, strangers) = lines(address);
        let late: Vec<_> = (0..20)
            .map(|_| lines.ask(&query("old.service.consul.")).unwrap())
            .collect();
        let waits = timeout(Duration::from_millis(200), late[0].hear());
        assert!(waits.await.is_err());
        let left = late.len();
        drop(late);
        let asking = heard(&lines, "web.service.consul.");
        let serving = thread::spawn(move || {
            let all: Vec<_> = (0..=left).map(|_| next(&socket)).collect();
            all.iter().for_each(|one| answer(&socket, one));
        });
        assert_eq!(asking.await.unwrap(), "web.service.consul.");
        serving.join().unwrap();
        assert_eq!(strangers.total(), 20);
    }

    #[tokio::test]
    async fn guesses_at_ids_end_a_question_and_not_the_line() {
        let (socket, address) = server();
        let (lines, strangers) = lines(address);
        let serving = thread::spawn(move || {
            let (question, client) = next(&socket);
            for guess in 1..=crate::udp::MOST_WRONG_IDS {
                let mut forged = question.clone();
                forged[1] ^= u8::try_from(guess).unwrap();
                answer(&socket, &(forged, client));
            }
            answer(&socket, &next(&socket));
        });
        let name = "web.service.consul.";
        assert!(matches!(heard(&lines, name).await, Err(Trouble::Flooded)));
        assert_eq!(heard(&lines, name).await.unwrap(), name);
        serving.join().unwrap();
        assert_eq!(strangers.total(), crate::udp::MOST_WRONG_IDS as u64);
    }

    #[tokio::test]
    async fn who_asked_a_server_that_ended_is_told_and_who_asks_it_when_it_is_back_is_answered() {
        let (socket, address) = server();
        let (lines, _) = lines(address);
        let name = "web.service.consul.";
        let waits = lines.ask(&query(name)).unwrap();
        // It is sent.
        assert!(
            timeout(Duration::from_millis(50), waits.hear())
                .await
                .is_err()
        );
        drop(socket);
        assert!(matches!(heard(&lines, name).await, Err(Trouble::Refused)));
        // What is sent to a closed port says so of all before it.
        assert!(matches!(waits.hear().await, Err(Trouble::Refused)));
        let back = Std::bind(address).unwrap();
        let serving = thread::spawn(move || answer(&back, &next(&back)));
        assert_eq!(heard(&lines, name).await.unwrap(), name);
        serving.join().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_nobody_uses_any_more_is_closed_and_one_that_somebody_waits_at_is_not() {
        let (_silent, address) = server();
        let (lines, _) = lines(address);
        let open = || look(&lines.open).len();
        let waits = lines.ask(&query("web.service.consul.")).unwrap();
        assert!(timeout(IDLE * 10, waits.hear()).await.is_err());
        assert_eq!(open(), 1);
        drop(waits);
        sleep(IDLE * 4).await;
        assert_eq!(open(), 0);
        drop(lines.ask(&query("web.service.consul.")).unwrap());
        assert_eq!(open(), 1);
    }

    #[test]
    fn each_runtime_has_a_line_of_its_own_that_ends_with_it() {
        let (socket, address) = server();
        let serving = thread::spawn(move || (0..2).for_each(|_| answer(&socket, &next(&socket))));
        let (lines, _) = lines(address);
        let name = "web.service.consul.";
        let mut waits = None;
        for _ in 0..2 {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            assert_eq!(runtime.block_on(heard(&lines, name)).unwrap(), name);
            let _inside = runtime.enter();
            waits = Some(lines.ask(&query(name)).unwrap());
            assert_eq!(look(&lines.open).len(), 1);
        }
        assert!(look(&lines.open).is_empty());
        // Whoever waits elsewhere for what it asked there is told.
        let runtime = Builder::new_current_thread().build().unwrap();
        let told = runtime.block_on(waits.unwrap().hear());
        assert!(matches!(told, Err(Trouble::Closed)));
        serving.join().unwrap();
    }

    #[tokio::test]
    async fn a_server_that_is_deaf_to_one_port_is_asked_from_another() {
        let (socket, address) = server();
        // Ends when nobody asks any more.
        thread::spawn(move || {
            // Whoever asked first is not heard.
            let (_, deaf) = next(&socket);
            loop {
                let one = next(&socket);
                if one.1 != deaf {
                    answer(&socket, &one);
                }
            }
        });
        let (lines, _) = lines(address);
        let name = "web.service.consul.";
        let asks = async || {
            let brief = Duration::from_millis(100);
            timeout(brief, heard(&lines, name)).await.ok()?.ok()
        };
        assert_eq!(until(asks).await, name);
    }

    /// Asks again until there is a reply, for a few seconds.
    async fn until<T>(asks: impl AsyncFn() -> Option<T>) -> T {
        for _ in 0..50 {
            if let Some(told) = asks().await {
                return told;
            }
        }
        panic!("there is no reply");
    }
}
