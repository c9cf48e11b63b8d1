//! **Shell.** One persistent connection to a name server, shared by all who ask:
//! questions are pipelined and replies matched in whatever order they come
//! (RFC 7766, sections 6.2.1 and 7).

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::{Mutex, mpsc, oneshot},
    time::timeout,
};
use tracing::debug;

use super::message::{self, Query, Stranger, Strangers};
use super::{Reply, Trouble};
use crate::{clock, complete::TCP_LIMIT, endpoint::Transport};

/// Questions that wait for the connection to take them up.
pub(super) const QUEUE: usize = 256;

/// Questions unanswered at once on one connection.
const MOST_PENDING: usize = 4_096;

/// Replies nobody asked for before the connection is dropped.
const MOST_UNASKED_REPLIES: usize = 16;

/// Longest time that one question may take to be written.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// Bytes that one read may bring: most replies come in one piece.
const READ_ROOM: usize = 16 << 10;

/// Longest time that opening the connection ahead may take.
const OPENING: Duration = Duration::from_secs(1);

/// A connection nobody used for this long is closed. Consul closes its side
/// after 8 seconds.
const IDLE: Duration = Duration::from_secs(7);

/// The connection to one server: opened by the first question, opened again when
/// it was closed.
#[derive(Debug)]
pub(super) struct Connection {
    server: SocketAddr,
    strangers: Arc<Strangers>,
    /// Held across the opening, so that one opens and the others wait for it.
    questions: Mutex<Option<mpsc::Sender<Asked>>>,
    /// Questions that wait for their replies.
    waiting: AtomicUsize,
    /// Whether the connection is worth being opened ahead of a question that
    /// needs it: not for the first question of all, which may be the only one,
    /// and not where it failed.
    ahead: AtomicU8,
}

/// Nothing was asked yet.
const UNUSED: u8 = 0;
const WORTH_OPENING: u8 = 1;
const NOT_WORTH_OPENING: u8 = 2;

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) query: Query,
    pub(super) reply: oneshot::Sender<Result<Vec<u8>, Trouble>>,
}

impl Connection {
    pub(super) fn new(server: SocketAddr, strangers: Arc<Strangers>) -> Self {
        Self {
            server,
            strangers,
            questions: Mutex::new(None),
            waiting: AtomicUsize::new(0),
            ahead: AtomicU8::new(UNUSED),
        }
    }

    /// Open, and nobody waits for a reply on it.
    pub(super) fn is_free(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
            && (self.questions.try_lock())
                .is_ok_and(|open| open.as_ref().is_some_and(|open| !open.is_closed()))
    }

    /// There is none, and nobody is about to open one.
    fn is_closed(&self) -> bool {
        (self.questions.try_lock())
            .is_ok_and(|open| open.as_ref().is_none_or(mpsc::Sender::is_closed))
    }

    /// Opens it in the background, unless that was in vain before.
    pub(super) fn open_soon(self: &Arc<Self>) {
        let first = self.ahead.compare_exchange(
            UNUSED,
            WORTH_OPENING,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        if first == Err(WORTH_OPENING) && self.is_closed() {
            let connection = Arc::clone(self);
            // Bounded by its own limit, and of no use to anybody who would wait.
            tokio::spawn(async move {
                if !matches!(timeout(OPENING, connection.open()).await, Ok(Ok(_))) {
                    connection.ahead.store(NOT_WORTH_OPENING, Ordering::Relaxed);
                }
            });
        }
    }

    /// Asks over the connection and waits for the reply. The caller bounds the
    /// time; dropping the future leaves the connection to the others.
    pub(super) async fn exchange(&self, query: &Query) -> Result<Reply, Trouble> {
        let bytes = match self.ask(query).await {
            // The server may close an idle connection at the moment we write:
            // that says nothing of the server, so once more on a fresh one.
            Err(Trouble::Closed) => self.ask(query).await?,
            other => other?,
        };
        read(query, &bytes)
    }

    /// Lets the next question open a fresh connection: this one stopped answering.
    /// Questions that wait on it still get their replies, if any come.
    pub(super) fn give_up(&self) {
        // Whoever holds the lock is about to open a fresh one.
        if let Ok(mut open) = self.questions.try_lock() {
            *open = None;
        }
    }

    async fn ask(&self, query: &Query) -> Result<Vec<u8>, Trouble> {
        let _waiting = Waiting::on(&self.waiting);
        let questions = self.open().await?;
        let (reply, heard) = oneshot::channel();
        let asked = Asked {
            query: query.clone(),
            reply,
        };
        questions.send(asked).await.map_err(|_| Trouble::Closed)?;
        heard.await.map_err(|_| Trouble::Closed)?
    }

    async fn open(&self) -> Result<mpsc::Sender<Asked>, Trouble> {
        let mut open = self.questions.lock().await;
        if let Some(questions) = open.as_ref().filter(|questions| !questions.is_closed()) {
            return Ok(questions.clone());
        }
        let stream = connect(self.server).await.map_err(Trouble::from_io)?;
        let (questions, asked) = mpsc::channel(QUEUE);
        // Ends by itself when the last sender is gone or the stream is.
        tokio::spawn(converse(
            self.server,
            stream.into_split(),
            asked,
            Arc::clone(&self.strangers),
        ));
        *open = Some(questions.clone());
        Ok(questions)
    }
}

/// What came over a connection in reply to a question.
pub(super) fn read(query: &Query, bytes: &[u8]) -> Result<Reply, Trouble> {
    let message = message::decode(bytes).map_err(|_| Trouble::Malformed)?;
    Ok(Reply {
        message,
        size: bytes.len(),
        limit: TCP_LIMIT,
        advertised: query.payload(),
        transport: Transport::Tcp,
    })
}

/// Counts one who waits for as long as they do, however that ends.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn on(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(server),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    let stream = TcpSocket::from_std_stream(socket.into())
        .connect(server)
        .await?;
    SockRef::from(&stream).set_tcp_nodelay(true)?;
    Ok(stream)
}

/// Writes questions and hands out replies until the connection ends. Whoever
/// still waits then hears that it was closed.
pub(super) async fn converse(
    server: SocketAddr,
    (mut reader, mut writer): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
    mut asked: mpsc::Receiver<Asked>,
    ignored: Arc<Strangers>,
) {
    let mut pending: HashMap<u16, Asked> = HashMap::new();
    let mut incoming = Vec::with_capacity(READ_ROOM);
    let mut strangers = 0;
    let mut open = true;
    while open || !pending.is_empty() {
        if pending.len() >= MOST_PENDING {
            pending.retain(|_, asked| !asked.reply.is_closed());
        }
        // Without room of its own a read would be as short as the vector happens to be.
        incoming.reserve(READ_ROOM);
        tokio::select! {
            next = asked.recv(), if open && pending.len() < MOST_PENDING => match next {
                Some(next) => if write(&mut writer, next, &mut pending).await.is_err() { break },
                None => open = false,
            },
            read = reader.read_buf(&mut incoming) => {
                match read {
                    Ok(1..) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    _ => break,
                }
                while let Some(message) = take_message(&mut incoming) {
                    if let Err(stranger) = hand_out(message, &mut pending) {
                        strangers += 1;
                        ignored.count(stranger);
                        debug!(%server, ?stranger, "reply on a connection ignored");
                    }
                }
                if strangers > MOST_UNASKED_REPLIES { break }
            }
            () = tokio::time::sleep(IDLE) => {
                pending.retain(|_, asked| !asked.reply.is_closed());
                if pending.is_empty() { break }
            }
        }
    }
    debug!(%server, unanswered = pending.len(), "connection closed");
}

async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    asked: Asked,
    pending: &mut HashMap<u16, Asked>,
) -> Result<(), Trouble> {
    let mut id = clock::query_id();
    while pending.contains_key(&id) {
        id = clock::query_id();
    }
    let message = asked.query.with_id(id);
    let Ok(length) = u16::try_from(message.len()) else {
        return Ok(());
    };
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&message);
    pending.insert(id, asked);
    match timeout(WRITE_LIMIT, writer.write_all(&framed)).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(Trouble::Closed),
    }
}

/// Takes the first whole message out of what was read (RFC 1035, section 4.2.2).
fn take_message(incoming: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes(*incoming.first_chunk()?));
    let end = 2 + length;
    if incoming.len() < end {
        return None;
    }
    let message = incoming.get(2..end)?.to_vec();
    incoming.drain(..end);
    Some(message)
}

fn hand_out(message: Vec<u8>, pending: &mut HashMap<u16, Asked>) -> Result<(), Stranger> {
    let id = message::id(&message).ok_or(Stranger::TooShort)?;
    let asked = pending.get(&id).ok_or(Stranger::WrongId)?;
    asked.query.is_answered_by(id, &message)?;
    if let Some(asked) = pending.remove(&id) {
        // Whoever asked may have left; the reply is then of no use.
        let _ = asked.reply.send(Ok(message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_whole_however_they_were_split() {
        let mut incoming = vec![0];
        assert_eq!(take_message(&mut incoming), None);
        incoming.extend([3, 1, 2]);
        assert_eq!(take_message(&mut incoming), None);
        incoming.extend([3, 0, 1, 9, 0]);
        assert_eq!(take_message(&mut incoming), Some(vec![1, 2, 3]));
        assert_eq!(take_message(&mut incoming), Some(vec![9]));
        assert_eq!(incoming, [0]);
    }
}
