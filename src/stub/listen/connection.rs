//! **Shell.** One connection of the stub: questions are answered as they are done, in
//! whatever order (RFC 7766, section 6.2.1.1). What is known is answered at once, all
//! that a read brought by one write.
//!
//! | client | treated |
//! | --- | --- |
//! | has asked [`MOST_PENDING`] things that are not answered yet | not read from |
//! | is idle for [`IDLE`], in a crowd for [`IDLE_IN_A_CROWD`]; is there for [`LIFE`], in a crowd for [`LIFE_IN_A_CROWD`]; ends its side, or the stub is stopped | gets what is due, then the connection is closed |
//! | needs longer than [`MESSAGE`] for one message, or to take one write | cut off |
//! | announces a message that is shorter than a header | cut off |

use std::{
    io,
    net::SocketAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::timeout,
};

use super::{QUESTION, told};
use crate::{
    clock,
    endpoint::Transport,
    stub::{
        Server,
        forward::Waiters,
        framed::Framed,
        shortcut::{self, Way},
    },
    task,
};

/// Questions unanswered at once.
const MOST_PENDING: usize = 64;

/// Time between two questions of one connection (RFC 7766, section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);

/// The same while there is hardly room for others.
const IDLE_IN_A_CROWD: Duration = Duration::from_millis(200);

/// Time for one connection, however much is asked on it.
const LIFE: Duration = Duration::from_secs(600);

/// The same while there is hardly room for others: they get their turn.
const LIFE_IN_A_CROWD: Duration = Duration::from_secs(5);

/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Time for one message to arrive whole once it has begun, and to be sent.
const MESSAGE: Duration = Duration::from_secs(2);

/// Room for what is read at once, to begin with: it grows with what arrives, not with
/// what is announced.
const ROOM: usize = 4_096;

/// The longest message and its length (RFC 1035, section 4.2.2).
const LONGEST: usize = 2 + u16::MAX as usize;

/// Replies of up to so many bytes may wait by as many as there are seats for their questions.
const LONG: usize = 4_096;

/// Replies that are written together, at most so many bytes and one more.
const TOGETHER: usize = 64 << 10;

pub(super) async fn converse(
    stream: TcpStream,
    server: &Arc<Server>,
    crowd: &AtomicBool,
    stopped: watch::Receiver<()>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let client = stream.peer_addr()?;
    over(stream.into_split(), client, server, crowd, stopped).await
}

/// The same over any stream.
pub(in crate::stub) async fn over(
    (mut reader, mut writer): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    client: SocketAddr,
    server: &Arc<Server>,
    crowd: &AtomicBool,
    mut stopped: watch::Receiver<()>,
) -> io::Result<()> {
    let (replies, mut due) = mpsc::channel::<Due>(MOST_PENDING);
    let mut incoming = Incoming::default();
    let mut out = Framed::default();
    let (mut pending, mut ended) = (0, false);
    loop {
        // All that is there, as far as there are seats for what has to be looked up.
        let begun = incoming.next;
        while pending < MOST_PENDING && out.len() < TOGETHER {
            let Some(packet) = incoming.unknown(server, &mut out)? else {
                break;
            };
            pending += 1;
            // As over UDP: what is longer is malformed then, and takes no room.
            let packet = packet[..packet.len().min(QUESTION)].to_vec();
            let (server, replies) = (Arc::clone(server), replies.clone());
            let since = clock::now();
            // Bounded by the seats, and by the time that a question may take.
            tokio::spawn(task::outcome(async move {
                // A connection has so few questions that it counts no waiters.
                let by = (client, &Waiters::default());
                let answer = server.answer(&packet, by, Transport::Tcp, since);
                // Nobody waits for one that panicked, whose seat is free again.
                let reply = task::outcome(answer).await.flatten();
                let (bytes, fill) = reply.map(|reply| (reply.bytes, reply.fill)).unzip();
                let due = Due::of(bytes.unwrap_or_default(), &server.due, || {
                    server.busy(&packet, client, Transport::Tcp)
                });
                // The client may be gone.
                _ = replies.send(due).await;
                if let Some(fill) = fill.flatten() {
                    server.keep(fill);
                }
            }));
        }
        if incoming.next > begun {
            incoming.since = clock::now();
        }
        if !out.is_empty() {
            timeout(MESSAGE, writer.write_all(out.as_bytes())).await??;
            out.clear();
            continue;
        }
        if ended && pending == 0 {
            return Ok(());
        }
        // Looked at now and then: whether it is crowded changes while one waits.
        let until = incoming.until(crowd);
        let look = until.min(clock::now() + LOOK);
        tokio::select! {
            () = told(&mut stopped), if !ended => ended = true,
            reply = due.recv() => {
                let mut next = reply;
                // Whatever else is done goes with it.
                while let Some(reply) = next {
                    pending -= 1;
                    out.push(&reply.bytes);
                    next = if out.len() < TOGETHER { due.try_recv().ok() } else { None };
                }
            }
            read = reader.read(incoming.room()), if !ended && pending < MOST_PENDING => match read {
                Ok(0) => ended = true,
                Ok(length) => incoming.came(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            },
            () = clock::sleep_until(look), if !ended && pending < MOST_PENDING => {
                let over = clock::now() >= incoming.until(crowd);
                match incoming.has_begun() {
                    _ if !over => {}
                    true => return Err(io::ErrorKind::TimedOut.into()),
                    false => ended = true,
                }
            }
        }
    }
}

/// A reply that waits until its client takes it.
struct Due {
    bytes: Vec<u8>,
    /// Its part of the room that long ones have together.
    _room: Option<OwnedSemaphorePermit>,
}

impl Due {
    /// A long reply that there is no room for is SERVFAIL: many who ask and do not read take no
    /// more memory than that.
    fn of(bytes: Vec<u8>, room: &Arc<Semaphore>, busy: impl FnOnce() -> Option<Vec<u8>>) -> Self {
        if bytes.len() <= LONG {
            return Self { bytes, _room: None };
        }
        let part = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        match Arc::clone(room).try_acquire_many_owned(part) {
            Ok(part) => Self {
                bytes,
                _room: Some(part),
            },
            Err(_) => Self {
                bytes: busy().unwrap_or_default(),
                _room: None,
            },
        }
    }
}

/// What was read and is not yet worked on.
struct Incoming {
    bytes: Vec<u8>,
    /// Where the next message begins, and where what was read ends.
    next: usize,
    end: usize,
    /// When the last message was complete, or what follows it has begun.
    since: Instant,
    /// When the client came.
    came: Instant,
}

impl Default for Incoming {
    fn default() -> Self {
        let came = clock::now();
        Self {
            bytes: vec![0; ROOM],
            next: 0,
            end: 0,
            since: came,
            came,
        }
    }
}

impl Incoming {
    /// Where the next message stands that is there whole.
    fn next(&mut self) -> io::Result<Option<Range<usize>>> {
        let there = &self.bytes[self.next..self.end];
        let Some((&length, rest)) = there.split_first_chunk() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes(length));
        if length < 12 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if rest.len() < length {
            return Ok(None);
        }
        let start = self.next + 2;
        self.next = start + length;
        Ok(Some(start..self.next))
    }

    /// Answers what is remembered, up to the next message that is not.
    fn unknown(&mut self, server: &Server, out: &mut Framed) -> io::Result<Option<&[u8]>> {
        let (mut memory, now) = (server.memory(Transport::Tcp), clock::lately());
        while out.len() < TOGETHER
            && let Some(place) = self.next()?
        {
            let packet = &self.bytes[place.clone()];
            let plain = shortcut::read(packet, Way::Tcp);
            let is_known =
                (plain.as_ref()).is_some_and(|plain| memory.give(packet, plain, now, out));
            if !is_known {
                return Ok(Some(&self.bytes[place]));
            }
        }
        Ok(None)
    }

    /// Where more can be read to.
    fn room(&mut self) -> &mut [u8] {
        if self.next > 0 {
            self.bytes.copy_within(self.next..self.end, 0);
            self.end -= self.next;
            self.next = 0;
        }
        if self.end == self.bytes.len() {
            self.bytes.resize((2 * self.end).min(LONGEST), 0);
        }
        &mut self.bytes[self.end..]
    }

    fn came(&mut self, length: usize) {
        if !self.has_begun() {
            self.since = clock::now();
        }
        self.end += length;
    }

    fn has_begun(&self) -> bool {
        self.end > self.next
    }

    /// When the client has had time enough.
    fn until(&self, crowd: &AtomicBool) -> Instant {
        let (idle, life) = if crowd.load(Ordering::Relaxed) {
            (IDLE_IN_A_CROWD, LIFE_IN_A_CROWD)
        } else {
            (IDLE, LIFE)
        };
        if self.has_begun() {
            // Nor does one that always has begun another message stay for ever.
            (self.since + MESSAGE).min(self.came + life + MESSAGE)
        } else {
            (self.since + idle).min(self.came + life)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_replies_that_wait_have_a_room_together_and_short_ones_need_none() {
        let room = Arc::new(Semaphore::new(10_000));
        let due = |length| Due::of(vec![1; length], &room, || Some(vec![2; 12]));
        let first = due(6_000);
        assert_eq!(
            (first.bytes.len(), room.available_permits()),
            (6_000, 4_000)
        );
        let (late, short) = (due(LONG + 1), due(LONG));
        assert_eq!((late.bytes.len(), short.bytes.len()), (12, LONG));
        assert_eq!(late.bytes, [2; 12]);
        drop(first);
        assert_eq!(due(LONG + 1).bytes.len(), LONG + 1);
        assert_eq!(room.available_permits(), 10_000);
    }

    #[test]
    fn room_grows_with_what_comes_and_not_with_what_is_announced() {
        let mut incoming = Incoming::default();
        incoming.room()[..2].fill(0xFF);
        incoming.came(2);
        for _ in 0..60 {
            assert!(incoming.next().unwrap().is_none());
            let most = (2 * incoming.end).max(ROOM);
            assert!(incoming.bytes.len() <= most, "{}", incoming.bytes.len());
            let length = incoming.room().len().min(1_000);
            incoming.came(length);
        }
        assert!(incoming.end > 50_000 && incoming.bytes.len() <= LONGEST);
    }
}
