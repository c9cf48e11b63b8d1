//! **Shell.** One question over one UDP socket, which no other question uses meanwhile.
//!
//! On loopback a socket whose question was answered serves others after it, a bounded
//! number of times: a port drawn anew for each question (RFC 5452, section 9.2) defends
//! against forgers elsewhere on the network, and no datagram of theirs gets there. A
//! late reply to an earlier question still finds another id.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    net::SocketAddr,
    os::fd::AsRawFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use tokio::{io::Interest, net::UdpSocket, runtime::Handle, task::AbortHandle, time::sleep};
use tracing::debug;

use super::message::{Heard, Hearing, Query, Strangers};
use super::{Reply, Trouble};
use crate::{clock, endpoint::Transport, udp::connected};

/// Questions that one socket serves.
const MOST_USES: u32 = 64;

/// Sockets kept for the next questions, and for how long.
const MOST_IDLE: usize = 256;
const IDLE: Duration = Duration::from_secs(5);

/// Bytes that a thread keeps to receive into.
const ROOM: usize = 8 << 10;

/// Consul 1.8 sends a few bytes more than was advertised (issue 9945).
const SLACK: usize = 512;

thread_local! {
    /// Where datagrams are received and read: none of a thousand questions that wait holds
    /// room for its reply.
    static RECEIVED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The sockets to one server.
#[derive(Debug)]
pub(super) struct Sockets {
    server: SocketAddr,
    strangers: Arc<Strangers>,
    /// A std mutex: held for a look, never across an await.
    idle: Arc<Mutex<Idle>>,
}

/// The sockets that wait for a question.
#[derive(Debug, Default)]
struct Idle {
    /// Each with the time since when; the one used last is last.
    ports: VecDeque<(Port, Instant)>,
    /// What closes them after their time.
    closing: Option<AbortHandle>,
}

#[derive(Debug)]
struct Port {
    socket: UdpSocket,
    uses: u32,
    /// Whose it is: no other runtime can wait on it.
    runtime: tokio::runtime::Id,
}

impl Sockets {
    pub(super) fn new(server: SocketAddr, strangers: Arc<Strangers>) -> Self {
        Self {
            server,
            strangers,
            idle: Arc::default(),
        }
    }

    /// Asks the server and waits for its reply. The caller bounds the time; dropping
    /// the future closes the socket.
    pub(super) async fn exchange(&self, query: &Query) -> Result<Reply, Trouble> {
        let mut port = self.take().map_err(Trouble::from_io)?;
        let reply = port.exchange(query, self.server, &self.strangers).await?;
        self.give_back(port);
        Ok(reply)
    }

    fn take(&self) -> io::Result<Port> {
        let runtime = Handle::current().id();
        let last = self.idle().ports.pop_back().map(|(port, _)| port);
        if let Some(port) = last.filter(|port| port.runtime == runtime) {
            return Ok(port);
        }
        Ok(Port {
            socket: connected(self.server)?,
            uses: 0,
            runtime,
        })
    }

    /// Keeps a socket that has nothing more to hear.
    fn give_back(&self, port: Port) {
        if !self.server.ip().is_loopback() || port.uses >= MOST_USES {
            return;
        }
        // Nothing is there to be read, as the runtime does not know yet: it would try at the
        // next question. What comes from now on it is told anew.
        let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        _ = port.socket.try_io(Interest::READABLE, nothing);
        let now = clock::lately();
        let mut idle = self.idle();
        // Whoever closes them may be in a runtime that nobody drives.
        let is_old =
            |(_, since): &(Port, Instant)| now.saturating_duration_since(*since) > 2 * IDLE;
        if idle.ports.len() >= MOST_IDLE || idle.ports.front().is_some_and(is_old) {
            idle.ports.pop_front();
        }
        idle.ports.push_back((port, now));
        // Its runtime may have ended.
        if (idle.closing.as_ref()).is_none_or(AbortHandle::is_finished) {
            let closing = tokio::spawn(close(Arc::clone(&self.idle)));
            idle.closing = Some(closing.abort_handle());
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        look(&self.idle)
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let mut idle = self.idle();
        if let Some(closing) = &idle.closing {
            closing.abort();
        }
        idle.ports.clear();
    }
}

fn look(idle: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes the sockets that nobody has used for long, until there are none.
async fn close(idle: Arc<Mutex<Idle>>) {
    loop {
        sleep(IDLE).await;
        let now = clock::now();
        let mut idle = look(&idle);
        let is_old = |(_, since): &(Port, Instant)| now.saturating_duration_since(*since) >= IDLE;
        let old = idle.ports.partition_point(is_old);
        let old: Vec<_> = idle.ports.drain(..old).collect();
        let is_last = idle.ports.is_empty();
        if is_last {
            // Whoever gives one back before this has ended finds that nobody closes.
            idle.closing = None;
        }
        drop(idle);
        // Closing takes its time.
        drop(old);
        if is_last {
            return;
        }
    }
}

impl Port {
    async fn exchange(
        &mut self,
        query: &Query,
        server: SocketAddr,
        strangers: &Strangers,
    ) -> Result<Reply, Trouble> {
        self.uses += 1;
        let id = clock::query_id();
        self.socket
            .send(&query.with_id(id))
            .await
            .map_err(Trouble::from_io)?;

        let mut hearing = Hearing::new(query, id);
        let most = usize::from(query.payload()) + SLACK;
        loop {
            let take = || {
                RECEIVED.with_borrow_mut(|room| {
                    room.resize(room.len().max(most), 0);
                    let descriptor = self.socket.as_raw_fd();
                    let taken = loop {
                        match recv(descriptor, &mut room[..most], MsgFlags::MSG_DONTWAIT) {
                            Err(Errno::EINTR) => {}
                            taken => break taken,
                        }
                    };
                    let heard = taken.map(|length| (hearing.hear(&room[..length]), length));
                    // The seldom ones that take more are not to hold it.
                    room.truncate(ROOM);
                    room.shrink_to(ROOM);
                    Ok(heard?)
                })
            };
            // A port that is closed is an error, and nothing to read.
            let wanted = Interest::READABLE | Interest::ERROR;
            let taken = self.socket.async_io(wanted, take).await;
            let (heard, size) = taken.map_err(Trouble::from_io)?;
            if let Heard::Stranger(stranger) | Heard::Enough(stranger) = heard {
                strangers.count(stranger);
                debug!(%server, ?stranger, bytes = size, "datagram ignored");
            }
            match heard {
                Heard::Reply(message) => {
                    return Ok(Reply {
                        message,
                        size,
                        limit: usize::from(query.payload()),
                        advertised: query.payload(),
                        transport: Transport::Udp,
                    });
                }
                Heard::Stranger(_) => {}
                Heard::Enough(_) => return Err(Trouble::Flooded),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::UdpSocket as Std, thread};

    use hickory_proto::rr::RecordType;

    use super::*;

    /// Answers so many questions with nothing, twice each, and tells the ports that
    /// asked.
    fn server(questions: usize) -> (SocketAddr, thread::JoinHandle<Vec<u16>>) {
        let socket = Std::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let served = thread::spawn(move || {
            let mut packet = [0; 512];
            let mut serve = || {
                let (length, client) = socket.recv_from(&mut packet).unwrap();
                packet[2] |= 0x80;
                for _ in 0..2 {
                    socket.send_to(&packet[..length], client).unwrap();
                }
                client.port()
            };
            (0..questions).map(|_| serve()).collect()
        });
        (address, served)
    }

    fn query(name: &str) -> Query {
        Query::new(name, RecordType::A, 4_093).unwrap()
    }

    fn sockets(server: SocketAddr) -> (Sockets, Arc<Strangers>) {
        let strangers = Arc::<Strangers>::default();
        (Sockets::new(server, Arc::clone(&strangers)), strangers)
    }

    #[tokio::test]
    async fn a_socket_serves_many_questions_and_no_late_reply_is_taken_for_another() {
        let all = MOST_USES as usize + 1;
        let (address, served) = server(all);
        let (sockets, strangers) = sockets(address);
        for at in 0..all {
            let name = format!("n{at}.service.consul.");
            let reply = sockets.exchange(&query(&name)).await.unwrap();
            assert_eq!(reply.message.queries[0].name().to_ascii(), name);
        }
        // The second replies to all but the last of each socket.
        assert_eq!(strangers.total(), u64::from(MOST_USES) - 1);
        let ports = served.join().unwrap();
        let first: HashSet<_> = ports[..MOST_USES as usize].iter().collect();
        assert_eq!((first.len(), first.contains(&ports[all - 1])), (1, false));
    }

    #[tokio::test]
    async fn a_question_that_is_given_up_takes_its_socket_along() {
        let silent = Std::bind("127.0.0.1:0").unwrap();
        let (sockets, _) = sockets(silent.local_addr().unwrap());
        let asked = query("web.service.consul.");
        let asking = tokio::time::timeout(Duration::from_millis(10), sockets.exchange(&asked));
        assert!(asking.await.is_err());
        assert!(sockets.idle().ports.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_that_nobody_uses_any_more_is_closed() {
        let (address, served) = server(2);
        let (sockets, _) = sockets(address);
        for _ in 0..2 {
            let asked = query("web.service.consul.");
            sockets.exchange(&asked).await.unwrap();
            assert_eq!(sockets.idle().ports.len(), 1);
            sleep(IDLE * 3).await;
            assert!(sockets.idle().ports.is_empty());
        }
        served.join().unwrap();
    }

    #[test]
    fn a_socket_of_a_runtime_that_is_gone_is_not_used() {
        let (address, served) = server(2);
        let (sockets, _) = sockets(address);
        for _ in 0..2 {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let asked = query("web.service.consul.");
            runtime.block_on(sockets.exchange(&asked)).unwrap();
        }
        served.join().unwrap();
    }
}
