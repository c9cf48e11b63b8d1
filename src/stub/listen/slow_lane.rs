//! **Shell.** The slow lane behind one thread of the fast one: a task that works on what the
//! thread has no answer to, and tells it what it found.
//!
//! Both hand over by the handful, so that nobody is woken for one question, or for one reply,
//! where there are more: waking somebody up costs as much as what is done then.

use std::{
    collections::VecDeque,
    future::ready,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::SyncSender,
    },
    time::Instant,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{sync::Notify, task::consume_budget};
use tracing::debug;

use super::{CROWDED, MOST_DATAGRAMS, lane::Lane, share::Shares};
use crate::{
    cache::Hits,
    endpoint::Transport,
    stub::{Server, forward::Waiters, networks::Trusted, shortcut::Fill},
    task,
};

/// Misses that wait for the slow lane.
const MOST_WAITING: usize = 1_024;

/// Replies that wait for others to be sent with, and steps that they wait for.
const MOST_DUE: usize = 16;
const MOST_STEPS: usize = 32;

/// A datagram that the fast lane has no answer to.
#[derive(Debug)]
pub(super) struct Miss {
    pub(super) packet: Box<[u8]>,
    pub(super) client: SocketAddr,
    pub(super) since: Instant,
    /// How often the answer was given that holds no more.
    pub(super) hits: Hits,
}

/// What the slow lane tells its thread.
#[derive(Debug)]
pub(super) enum Told {
    Fill(Fill),
    /// There was no seat for it: what is known is to be given.
    Late(Miss),
}

/// The misses between a thread and its task.
#[derive(Debug, Default)]
struct Waiting {
    /// A std mutex: held for a look, once for all that came together.
    misses: Mutex<VecDeque<Miss>>,
    come: Notify,
    /// No more will come.
    ended: AtomicBool,
}

impl Waiting {
    fn misses(&self) -> MutexGuard<'_, VecDeque<Miss>> {
        self.misses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a thread hands its misses over. Dropped, it says that there are no more.
#[derive(Debug)]
pub(super) struct HandOver(Arc<Waiting>);

/// Where its task takes them.
#[derive(Debug)]
pub(super) struct Missed(Arc<Waiting>);

/// The way from a thread to its task.
pub(super) fn way() -> (HandOver, Missed) {
    let waiting = Arc::<Waiting>::default();
    (HandOver(Arc::clone(&waiting)), Missed(waiting))
}

impl HandOver {
    /// Hands over as many as there is room for; the others stay.
    pub(super) fn take(&self, misses: &mut Vec<Miss>) {
        if misses.is_empty() {
            return;
        }
        let mut waiting = self.0.misses();
        let room = MOST_WAITING.saturating_sub(waiting.len());
        waiting.extend(misses.drain(..room.min(misses.len())));
        drop(waiting);
        self.0.come.notify_one();
    }
}

impl Drop for HandOver {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.come.notify_one();
    }
}

impl Missed {
    /// The next one; `None`: there are no more.
    ///
    /// Cancel-safe.
    async fn next(&self) -> Option<Miss> {
        // Others have their turn, however many wait here.
        consume_budget().await;
        loop {
            let ended = self.0.ended.load(Ordering::Acquire);
            let next = self.0.misses().pop_front();
            if next.is_some() || ended {
                return next;
            }
            self.0.come.notified().await;
        }
    }

    fn len(&self) -> usize {
        self.0.misses().len()
    }
}

/// A reply that is to be sent: the question, what it is answered with, and who asked.
type Due = (Box<[u8]>, Vec<u8>, SocketAddr);

/// The slow lane behind one fast one.
pub(super) struct SlowLane {
    pub(super) lane: Arc<Lane>,
    pub(super) tell: SyncSender<Told>,
    /// Set while nobody is taken in.
    pub(super) turned_away: Arc<AtomicBool>,
    pub(super) trusted: Arc<Trusted>,
    pub(super) server: Arc<Server>,
    pub(super) waiters: Waiters,
}

impl SlowLane {
    /// Ends when the fast one has ended and all is answered.
    pub(super) async fn run(self, missed: Missed) {
        // In this task, and none of their own: that costs more than all else that is ours to do.
        let mut asked = FuturesUnordered::new();
        let (mut shares, mut due) = (Shares::default(), Vec::with_capacity(MOST_DUE));
        let (mut more, mut steps) = (true, 0);
        loop {
            // Who waits for another's question takes no seat.
            let seated = asked.len().saturating_sub(self.waiters.count());
            let full = seated >= MOST_DATAGRAMS;
            self.turned_away.store(full, Ordering::Relaxed);
            steps += 1;
            if due.len() >= MOST_DUE || steps >= MOST_STEPS {
                self.send(&mut due);
                steps = 0;
            }
            if !more && asked.is_empty() {
                return self.send(&mut due);
            }
            tokio::select! {
                // Who is done leaves before the next comes in: nobody is turned away for
                // questions that are answered.
                biased;
                Some(done) = asked.next(), if !asked.is_empty() => {
                    // Nobody knows whose it was that panicked.
                    let (client, reply) = match done {
                        Some((client, reply)) => (Some(client), reply),
                        None => (None, None),
                    };
                    shares.give_back(client);
                    due.extend(reply);
                }
                miss = missed.next(), if more && !full => {
                    let Some(miss) = miss else {
                        more = false;
                        continue;
                    };
                    let Miss { packet, client, since, .. } = &miss;
                    let turned_away = || self.server.turned_away(packet, *client, *since);
                    if let Some(Some(reply)) = task::caught(turned_away) {
                        due.push((miss.packet, reply, miss.client));
                        continue;
                    }
                    if !shares.take(miss.client, seated >= CROWDED) {
                        // A flood leaves no time to look.
                        let has_time = missed.len() <= MOST_WAITING / 2;
                        let known = || has_time.then(|| self.server.known(packet, *client))?;
                        if let Some(Some(reply)) = task::caught(known) {
                            due.push((miss.packet, reply, miss.client));
                            continue;
                        }
                        // The thread may remember more; it has no time either where it does
                        // not come to that.
                        if self.tell.try_send(Told::Late(miss)).is_err() {
                            self.server.counted.dropped();
                        }
                        continue;
                    }
                    // One that panics takes nobody along.
                    asked.push(task::outcome(self.answer(miss)));
                }
                // Nothing else can be done now.
                () = ready(()), if !due.is_empty() => self.send(&mut due),
            }
        }
    }

    /// Answers a question: whose it was, and what is to be sent.
    async fn answer(&self, miss: Miss) -> (SocketAddr, Option<Due>) {
        let Miss {
            packet,
            client,
            since,
            hits,
        } = miss;
        let Self {
            tell,
            server,
            waiters,
            ..
        } = self;
        // Which nobody waits for.
        task::caught(|| server.served(&packet, hits));
        let answer = server.answer(&packet, (client, waiters), Transport::Udp, since);
        let Some(reply) = answer.await else {
            return (client, None);
        };
        if let Some(fill) = reply.fill
            && tell.try_send(Told::Fill(fill)).is_err()
        {
            debug!(%client, "no room to remember the answer");
        }
        (client, Some((packet, reply.bytes, client)))
    }

    /// Sends replies, as their clients may have them.
    fn send(&self, due: &mut Vec<Due>) {
        for (packet, reply, client) in due.drain(..) {
            self.lane.reply(&self.trusted, &packet, &reply, client);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, sync::mpsc::sync_channel, time::Duration};

    use super::*;
    use crate::{Resolver, clock};

    fn miss(port: u16) -> Miss {
        Miss {
            packet: Box::default(),
            client: ([127, 0, 0, 1], port).into(),
            since: clock::now(),
            hits: Hits::default(),
        }
    }

    #[tokio::test]
    async fn all_that_there_is_room_for_is_handed_over_in_order_and_to_the_last() {
        let (hands_over, missed) = way();
        let most = u16::try_from(MOST_WAITING).unwrap();
        let mut misses: Vec<_> = (1..=most + 10).map(miss).collect();
        hands_over.take(&mut misses);
        // For these there is none.
        let left: Vec<_> = misses.drain(..).map(|miss| miss.client.port()).collect();
        assert_eq!(left, (most + 1..=most + 10).collect::<Vec<_>>());
        assert_eq!(missed.len(), MOST_WAITING);
        assert_eq!(missed.next().await.unwrap().client.port(), 1);
        hands_over.take(&mut vec![miss(9)]);
        // What waits is taken also when no more comes.
        drop(hands_over);
        for port in (2..=most).chain([9]) {
            assert_eq!(missed.next().await.unwrap().client.port(), port);
        }
        assert!(missed.next().await.is_none() && missed.next().await.is_none());
    }

    #[tokio::test]
    async fn who_waits_for_a_miss_is_woken_by_one_and_by_the_end() {
        let (hands_over, missed) = way();
        let waiting = tokio::spawn(async move {
            let first = missed.next().await;
            (
                first.map(|miss| miss.client.port()),
                missed.next().await.is_none(),
            )
        });
        tokio::task::yield_now().await;
        hands_over.take(&mut vec![miss(7)]);
        tokio::task::yield_now().await;
        drop(hands_over);
        assert_eq!(waiting.await.unwrap(), (Some(7), true));
    }

    /// A question for an address of `www.example.`, which is nobody's here.
    fn question(client: SocketAddr) -> Miss {
        let mut packet = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        packet.extend(b"\x03www\x07example\0\0\x01\0\x01");
        Miss {
            packet: packet.into(),
            client,
            since: clock::now(),
            hits: Hits::default(),
        }
    }

    #[tokio::test]
    async fn whatever_is_due_when_no_more_comes_is_sent_and_the_lane_ends() {
        let any = ([127, 0, 0, 1], 0).into();
        let resolver = Resolver::builder().dns("none").http("none").build();
        let server = Arc::new(Server::new(resolver.unwrap(), Vec::new()));
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let limit = Some(Duration::from_secs(10));
        client.set_read_timeout(limit).unwrap();
        for many in 0..2 * MOST_STEPS {
            let (hands_over, missed) = way();
            let asks = |_| question(client.local_addr().unwrap());
            hands_over.take(&mut (0..many).map(asks).collect());
            drop(hands_over);
            let slow = SlowLane {
                lane: Arc::new(super::super::lane::bind(any).unwrap().remove(0)),
                tell: sync_channel(1).0,
                turned_away: Arc::default(),
                trusted: Arc::default(),
                server: Arc::clone(&server),
                waiters: Waiters::default(),
            };
            slow.run(missed).await;
            for _ in 0..many {
                let mut reply = [0; 512];
                let length = client.recv(&mut reply).unwrap();
                // REFUSED.
                assert_eq!((reply[3] & 0x0F, length > 12), (5, true));
            }
        }
    }
}
