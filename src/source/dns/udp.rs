//! **Shell.** One question as a datagram, and its reply: over a [line](mod@line) to a server
//! on this machine, over a socket and from a port of its own to any other (RFC 5452, section 9.2).

use std::{cell::RefCell, net::SocketAddr, os::fd::AsRawFd as _, sync::Arc};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use tokio::{io::Interest, net::UdpSocket};
use tracing::debug;

use super::line::{self, Lines};
use super::message::{Heard, Hearing, Query, Strangers};
use super::{Reply, Trouble};
use crate::{clock, endpoint::Transport, udp::connected};

/// Bytes that a thread keeps to receive into.
const ROOM: usize = 8 << 10;

/// Consul 1.8 sends a few bytes more than was advertised (issue 9945).
const SLACK: usize = 512;

thread_local! {
    /// Where datagrams are received and read: none of a thousand questions that wait holds
    /// room for its reply.
    static RECEIVED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The way of datagrams to one server.
#[derive(Debug)]
pub(super) struct Datagrams {
    server: SocketAddr,
    strangers: Arc<Strangers>,
    lines: Lines,
}

impl Datagrams {
    pub(super) fn new(server: SocketAddr, strangers: Arc<Strangers>) -> Self {
        let lines = Lines::new(server, Arc::clone(&strangers));
        Self {
            server,
            strangers,
            lines,
        }
    }

    /// Whether questions wait for their turn.
    pub(super) fn are_crowded(&self) -> bool {
        self.lines.are_crowded()
    }

    /// Asks the server and waits for its reply. The caller bounds the time; dropping
    /// the future gives the question up.
    pub(super) async fn exchange(&self, query: &Query) -> Result<Reply, Trouble> {
        let most = usize::from(query.payload()) + SLACK;
        if self.server.ip().is_loopback() && most <= line::ROOM {
            self.over_a_line(query).await
        } else {
            // In a box: most servers are on this machine.
            Box::pin(self.alone(query, most)).await
        }
    }

    async fn over_a_line(&self, query: &Query) -> Result<Reply, Trouble> {
        let asked = self.lines.ask(query)?;
        let mut hearing = Hearing::new(query, asked.id());
        loop {
            let datagram = asked.hear().await?;
            let heard = hearing.hear(&datagram);
            if let Some(reply) = self.weigh(heard, datagram.len(), query) {
                if reply.is_ok() {
                    asked.answered();
                }
                return reply;
            }
        }
    }

    async fn alone(&self, query: &Query, most: usize) -> Result<Reply, Trouble> {
        let socket = connected(self.server).map_err(Trouble::from_io)?;
        let id = clock::query_id();
        let sent = socket.send(&query.with_id(id)).await;
        sent.map_err(Trouble::from_io)?;
        let mut hearing = Hearing::new(query, id);
        loop {
            let take = || take(&socket, most, &mut hearing);
            // A port that is closed is an error, and nothing to read.
            let wanted = Interest::READABLE | Interest::ERROR;
            let (heard, length) =
                (socket.async_io(wanted, take).await).map_err(Trouble::from_io)?;
            if let Some(reply) = self.weigh(heard, length, query) {
                return reply;
            }
        }
    }

    /// What a datagram of so many bytes comes to. `None`: the next one is waited for.
    fn weigh(&self, heard: Heard, size: usize, query: &Query) -> Option<Result<Reply, Trouble>> {
        if let Heard::Stranger(stranger) | Heard::Enough(stranger) = heard {
            self.strangers.count(stranger);
            debug!(server = %self.server, ?stranger, bytes = size, "datagram ignored");
        }
        match heard {
            Heard::Reply(message) => Some(Ok(Reply {
                message,
                size,
                limit: usize::from(query.payload()),
                advertised: query.payload(),
                transport: Transport::Udp,
            })),
            Heard::Stranger(_) => None,
            Heard::Enough(_) => Some(Err(Trouble::Flooded)),
        }
    }
}

/// Takes a datagram, if one is there, and says what it is and its length.
fn take(
    socket: &UdpSocket,
    most: usize,
    hearing: &mut Hearing<'_>,
) -> std::io::Result<(Heard, usize)> {
    RECEIVED.with_borrow_mut(|room| {
        room.resize(room.len().max(most), 0);
        let taken = loop {
            match recv(
                socket.as_raw_fd(),
                &mut room[..most],
                MsgFlags::MSG_DONTWAIT,
            ) {
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
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::UdpSocket as Std, thread, time::Duration};

    use futures_util::future::join_all;
    use hickory_proto::rr::RecordType;
    use tokio::time::timeout;

    use super::*;

    fn query(name: &str, payload: u16) -> Query {
        Query::new(name, RecordType::A, payload).unwrap()
    }

    fn datagrams(server: SocketAddr) -> (Datagrams, Arc<Strangers>) {
        let strangers = Arc::<Strangers>::default();
        (Datagrams::new(server, Arc::clone(&strangers)), strangers)
    }

    /// Answers so many questions with nothing, twice each, when all of them have come, and tells the
    /// ports that asked: those that are open at once are no two the same.
    fn server(questions: usize) -> (SocketAddr, thread::JoinHandle<Vec<u16>>) {
        let socket = Std::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let served = thread::spawn(move || {
            let next = |_| {
                let mut packet = vec![0; 512];
                let (length, client) = socket.recv_from(&mut packet).unwrap();
                packet.truncate(length);
                packet[2] |= 0x80;
                (packet, client)
            };
            let all: Vec<_> = (0..questions).map(next).collect();
            for (reply, client) in &all {
                for _ in 0..2 {
                    // The port may be closed by then.
                    _ = socket.send_to(reply, client);
                }
            }
            all.iter().map(|(_, client)| client.port()).collect()
        });
        (address, served)
    }

    /// One socket serves a server on this machine; what is longer than its room, as all that is
    /// asked elsewhere, has a port of its own.
    #[tokio::test]
    async fn each_question_has_its_own_reply_whether_it_has_a_socket_of_its_own_or_not() {
        for (payload, ports) in [(4_093, 1), (59_989, 64)] {
            let (address, served) = server(64);
            let (datagrams, _) = datagrams(address);
            let datagrams = &datagrams;
            let exchange = |at| async move {
                let name = format!("n{at}.service.consul.");
                let reply = datagrams.exchange(&query(&name, payload)).await.unwrap();
                assert_eq!(reply.message.queries[0].name().to_ascii(), name);
                assert_eq!(reply.advertised, payload);
            };
            join_all((0..64).map(exchange)).await;
            let asked: HashSet<_> = served.join().unwrap().into_iter().collect();
            assert_eq!(asked.len(), ports);
        }
    }

    #[tokio::test]
    async fn a_port_that_is_closed_is_told_at_once_either_way() {
        let closed = Std::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (datagrams, _) = datagrams(closed);
        for payload in [4_093, 59_989] {
            for _ in 0..3 {
                let asked = query("web.service.consul.", payload);
                let told = timeout(Duration::from_secs(5), datagrams.exchange(&asked));
                assert!(matches!(told.await.unwrap(), Err(Trouble::Refused)));
            }
        }
    }
}
