//! A steady load of questions over UDP: names that are asked again and again, and names that
//! were never asked before. Replies are stamped as they come and read afterwards.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{
            SRV,
            opt::{EdnsCode, EdnsOption},
        },
    },
};
use tokio::time::Instant;

use crate::support::{Over, exchange};

/// Questions about cached names in a millisecond.
const CACHED: usize = 2;

/// Sockets that ask for them: replies wait there while this machine does other things, and
/// the kernel gives each socket little room.
const SOCKETS: usize = 12;

/// Milliseconds between two names that were never asked for.
const NEW_EVERY: u32 = 50;

/// Above it what was missed is not made up for: the load would be a burst.
const MOST_BEHIND: Duration = Duration::from_millis(20);

/// One question, and what came.
pub(crate) struct Asked {
    pub(crate) name: Arc<str>,
    pub(crate) new: bool,
    pub(crate) sent: Instant,
    reply: Option<(Instant, Vec<u8>)>,
}

/// A reply, read.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) at: Instant,
    pub(crate) code: ResponseCode,
    /// Records of any type, and the ports of services among them.
    pub(crate) answers: usize,
    pub(crate) ports: std::collections::BTreeSet<u16>,
    /// Extended errors (RFC 8914).
    pub(crate) reasons: Vec<u16>,
}

impl Reply {
    /// Said to be stale.
    pub(crate) fn is_stale(&self) -> bool {
        self.reasons.iter().any(|reason| [3, 19].contains(reason))
    }
}

impl Reply {
    fn read(at: Instant, bytes: &[u8]) -> Option<Self> {
        let message = Message::from_vec(bytes).ok()?;
        let ports = (message.answers.iter())
            .filter_map(|record| match &record.data {
                RData::SRV(srv) => Some(srv.port),
                _ => None,
            })
            .collect();
        let options = message.edns.iter().flat_map(|edns| edns.options().as_ref());
        let reasons = options
            .filter_map(|(code, option)| match option {
                EdnsOption::Unknown(_, data) if *code == EdnsCode::from(15) && data.len() >= 2 => {
                    Some(u16::from_be_bytes([data[0], data[1]]))
                }
                _ => None,
            })
            .collect();
        Some(Self {
            at,
            code: message.metadata.response_code,
            answers: message.answers.len(),
            ports,
            reasons,
        })
    }
}

impl Asked {
    /// `None` where nothing came, or nothing that can be read.
    pub(crate) fn reply(&self) -> Option<Reply> {
        let (at, bytes) = self.reply.as_ref()?;
        Reply::read(*at, bytes)
    }
}

#[cfg(test)]
impl Asked {
    /// Made up: a name with these ports, or an error, and perhaps a reason (RFC 8914).
    pub(super) fn made_up(
        name: &str,
        sent: Instant,
        at: Instant,
        ports: &[u16],
        reason: Option<u16>,
    ) -> Self {
        let mut message = Message::response(0, OpCode::Query);
        let owner = Name::from_ascii(name).expect("a plain name");
        if ports.is_empty() {
            message.metadata.response_code = ResponseCode::ServFail;
        }
        for port in ports {
            let srv = RData::SRV(SRV::new(1, 1, *port, owner.clone()));
            message.add_answer(Record::from_rdata(owner.clone(), 0, srv));
        }
        let mut edns = Edns::new();
        if let Some(reason) = reason {
            let data = reason.to_be_bytes().to_vec();
            (edns.options_mut()).insert(EdnsOption::Unknown(15, data));
        }
        message.set_edns(edns);
        Self {
            name: name.into(),
            new: false,
            sent,
            reply: Some((at, message.to_vec().expect("a plain reply"))),
        }
    }
}

/// One question beside the load.
pub(crate) async fn ask_once(server: SocketAddr, name: &str, kind: RecordType) -> Option<Reply> {
    let reply = exchange(server, &question(name, kind), Over::Edns(1232)).await?;
    Reply::read(Instant::now(), &reply)
}

/// Which question of the log has which id, on one socket.
struct Line {
    socket: UdpSocket,
    log: Mutex<(Vec<Asked>, Vec<Option<usize>>)>,
}

/// The load; it goes on until [`Load::stop`].
pub(crate) struct Load {
    done: Arc<AtomicBool>,
    lines: Vec<Arc<Line>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Against this server, from sockets for the names that are known and one for the new.
    pub(crate) fn start(server: SocketAddr, known: &[String], new: &[String]) -> Self {
        let done: Arc<AtomicBool> = Arc::default();
        let line = || {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
            socket.connect(server).expect("loopback");
            let wait = Some(Duration::from_millis(100));
            socket.set_read_timeout(wait).expect("more than nothing");
            Arc::new(Line {
                socket,
                log: Mutex::new((Vec::new(), vec![None; 1 << 16])),
            })
        };
        let lines: Vec<_> = (0..=SOCKETS).map(|_| line()).collect();
        let mut threads: Vec<_> = lines
            .iter()
            .map(|line| {
                let (line, done) = (Arc::clone(line), Arc::clone(&done));
                thread::spawn(move || line.hear(&done))
            })
            .collect();
        let questions = |names: &[String]| -> Vec<(Arc<str>, Vec<u8>)> {
            let question = |name: &String| (name.as_str().into(), question(name, RecordType::SRV));
            names.iter().map(question).collect()
        };
        let (known, new) = (questions(known), questions(new));
        let all = lines.clone();
        let ends = Arc::clone(&done);
        threads.push(thread::spawn(move || {
            let (others, cached) = all.split_first().expect("there are more");
            let mut known = known.iter().cycle().zip(cached.iter().cycle());
            let mut new = new.iter();
            let mut due = Instant::now();
            for tick in 0_u32.. {
                if ends.load(Ordering::Relaxed) {
                    return;
                }
                for ((name, packet), line) in known.by_ref().take(CACHED) {
                    line.ask(name, packet, false);
                }
                if tick % NEW_EVERY == 0
                    && let Some((name, packet)) = new.next()
                {
                    others.ask(name, packet, true);
                }
                due += Duration::from_millis(1);
                let now = Instant::now();
                due = due.max(now.checked_sub(MOST_BEHIND).unwrap_or(now));
                thread::sleep(due.saturating_duration_since(now));
            }
        }));
        Self {
            done,
            lines,
            threads,
        }
    }

    /// Waits for what is still due, and gives all that was asked.
    pub(crate) fn stop(mut self) -> Vec<Asked> {
        self.done.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("the load does not panic");
        }
        let logs = self.lines.iter().map(|line| {
            let mut log = line.log.lock().expect("nothing panics with the lock held");
            std::mem::take(&mut log.0)
        });
        logs.flatten().collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

impl Line {
    fn ask(&self, name: &Arc<str>, packet: &[u8], new: bool) {
        let mut log = self.log.lock().expect("nothing panics with the lock held");
        let (asked, ids) = &mut *log;
        let id = asked.len() % ids.len();
        ids[id] = Some(asked.len());
        asked.push(Asked {
            name: Arc::clone(name),
            new,
            sent: Instant::now(),
            reply: None,
        });
        drop(log);
        let mut packet = packet.to_vec();
        packet[..2].copy_from_slice(&u16::try_from(id).expect("16 bits").to_be_bytes());
        // A server that is gone refuses, which says nothing of the next question.
        _ = self.socket.send(&packet);
    }

    fn hear(&self, done: &AtomicBool) {
        let mut packet = vec![0; 65_535];
        let mut ended: Option<Instant> = None;
        // What was asked last has its second.
        while ended.is_none_or(|at| at.elapsed() < Duration::from_secs(1)) {
            if ended.is_none() && done.load(Ordering::Relaxed) {
                ended = Some(Instant::now());
            }
            let Ok(length @ 12..) = self.socket.recv(&mut packet) else {
                continue;
            };
            let now = Instant::now();
            let id = usize::from(u16::from_be_bytes([packet[0], packet[1]]));
            let mut log = self.log.lock().expect("nothing panics with the lock held");
            let (asked, ids) = &mut *log;
            if let Some(at) = ids[id].take() {
                asked[at].reply = Some((now, packet[..length].to_vec()));
            }
        }
    }
}

pub(crate) fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii(name).expect("a plain name");
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message.to_vec().expect("a plain question")
}
