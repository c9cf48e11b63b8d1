//! The load: questions in batches, as many as the server can take or so many a
//! second, and what they cost the server in processor time.

use std::{
    array, fs,
    io::{IoSlice, IoSliceMut, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    thread::sleep,
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

use crate::Outcome;

/// Sockets of the load: each is a client to the server.
const CLIENTS: usize = 8;

/// Questions sent by one call, and in the air on one socket.
const BATCH: usize = 32;

/// A reply that is not there by then is lost.
const LOST: Duration = Duration::from_millis(20);

/// The questions of a mix, asked in turn.
pub(crate) type Questions = Vec<Vec<u8>>;

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) answers: u64,
    pub(crate) asked: u64,
    pub(crate) took: Duration,
    /// Processor time of the server.
    pub(crate) cpu: Duration,
}

impl Run {
    /// Processor time an answer, in nanoseconds.
    pub(crate) fn cost(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.answers.max(1) as f64
    }

    pub(crate) fn rate(&self) -> f64 {
        self.answers as f64 / self.took.as_secs_f64()
    }
}

/// A question for `name`, with EDNS 1,232.
pub(crate) fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut packet = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        packet.push(u8::try_from(label.len()).expect("a label"));
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    packet
}

/// Processor time of all threads of a process so far.
pub(crate) fn cpu(process: u32) -> Outcome<Duration> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let told = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let spent = told.split_whitespace().next();
        sum += spent
            .and_then(|spent| spent.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(Duration::from_nanos(sum))
}

/// Bytes of memory that a process holds.
pub(crate) fn memory(process: u32) -> Outcome<u64> {
    let told = fs::read_to_string(format!("/proc/{process}/statm"))?;
    let pages = told.split_whitespace().nth(1).ok_or("no such field")?;
    Ok(pages.parse::<u64>()? * 4_096)
}

struct Client {
    socket: UdpSocket,
    sent: MultiHeaders<SockaddrIn>,
    taken: MultiHeaders<SockaddrIn>,
    rooms: Vec<u8>,
}

impl Client {
    fn new(server: SocketAddr) -> Outcome<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(LOST))?;
        Ok(Self {
            socket,
            sent: MultiHeaders::preallocate(BATCH, None),
            taken: MultiHeaders::preallocate(BATCH, None),
            rooms: vec![0; BATCH * 4_096],
        })
    }

    fn send(&mut self, questions: &[&[u8]]) -> Outcome<usize> {
        let mut left = questions.iter();
        let slices: [[IoSlice<'_>; 1]; BATCH] =
            array::from_fn(|_| [IoSlice::new(left.next().copied().unwrap_or_default())]);
        let to: [Option<SockaddrIn>; BATCH] = [None; BATCH];
        let sent = sendmmsg(
            self.socket.as_raw_fd(),
            &mut self.sent,
            slices[..questions.len()].iter(),
            to,
            [],
            MsgFlags::empty(),
        )?;
        Ok(sent.count())
    }

    /// Replies, until so many are there or none comes any more.
    fn take(&mut self, most: usize) -> usize {
        let mut count = 0;
        while count < most {
            let mut rooms = self.rooms.chunks_exact_mut(4_096);
            let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
                array::from_fn(|_| [IoSliceMut::new(rooms.next().unwrap_or_default())]);
            let taken = recvmmsg(
                self.socket.as_raw_fd(),
                &mut self.taken,
                slices[..most - count].iter_mut(),
                MsgFlags::MSG_WAITFORONE,
                None,
            );
            match taken {
                Ok(taken) => count += taken.count(),
                Err(_) => break,
            }
        }
        count
    }
}

/// Asks over UDP for `length`; `rate`: at most so many a second.
pub(crate) fn udp(
    server: SocketAddr,
    process: u32,
    questions: &Questions,
    length: Duration,
    rate: Option<u32>,
) -> Outcome<Run> {
    let mut clients = (0..CLIENTS)
        .map(|_| Client::new(server))
        .collect::<Outcome<Vec<_>>>()?;
    let mut next = questions.iter().cycle();
    let (mut asked, mut answers) = (0, 0);
    let (start, before) = (Instant::now(), cpu(process)?);
    while start.elapsed() < length {
        if let Some(rate) = rate {
            let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u64;
            let many = usize::try_from(due.saturating_sub(asked))?.min(BATCH);
            let client = &mut clients[usize::try_from(asked)? % CLIENTS];
            let batch: Vec<&[u8]> = next.by_ref().take(many).map(Vec::as_slice).collect();
            if batch.is_empty() {
                sleep(Duration::from_micros(500));
                continue;
            }
            let sent = client.send(&batch)?;
            asked += sent as u64;
            answers += client.take(sent) as u64;
            continue;
        }
        let mut sent = [0; CLIENTS];
        for (client, sent) in clients.iter_mut().zip(&mut sent) {
            let batch: Vec<&[u8]> = next.by_ref().take(BATCH).map(Vec::as_slice).collect();
            *sent = client.send(&batch)?;
        }
        for (client, sent) in clients.iter_mut().zip(sent) {
            asked += sent as u64;
            answers += client.take(sent) as u64;
        }
    }
    Ok(Run {
        answers,
        asked,
        took: start.elapsed(),
        cpu: cpu(process)?.saturating_sub(before),
    })
}

/// Asks over one connection, with 64 questions in the air.
pub(crate) fn tcp(
    server: SocketAddr,
    process: u32,
    questions: &Questions,
    length: Duration,
) -> Outcome<Run> {
    const PIPELINED: usize = 64;
    let mut stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut next = questions.iter().cycle();
    let mut answers = 0;
    let mut rooms = vec![0; 1 << 20];
    let (start, before) = (Instant::now(), cpu(process)?);
    while start.elapsed() < length {
        let mut batch = Vec::new();
        for question in next.by_ref().take(PIPELINED) {
            batch.extend(u16::try_from(question.len())?.to_be_bytes());
            batch.extend(question);
        }
        stream.write_all(&batch)?;
        let (mut filled, mut read, mut left) = (0, 0, PIPELINED);
        while left > 0 {
            let more = stream.read(&mut rooms[filled..])?;
            if more == 0 {
                return Err("the server closed the connection".into());
            }
            filled += more;
            while left > 0 && filled - read >= 2 {
                let length = usize::from(u16::from_be_bytes([rooms[read], rooms[read + 1]]));
                if filled - read < length + 2 {
                    break;
                }
                read += length + 2;
                left -= 1;
            }
        }
        answers += PIPELINED as u64;
    }
    Ok(Run {
        answers,
        asked: answers,
        took: start.elapsed(),
        cpu: cpu(process)?.saturating_sub(before),
    })
}

/// How a question is asked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Over UDP, with 512 bytes for the answer.
    Plain,
    /// Over UDP, with what the question says.
    Edns,
    Tcp,
}

/// What a reply says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply {
    pub(crate) code: u8,
    pub(crate) answers: u16,
    pub(crate) additional: u16,
    /// There are more than these.
    pub(crate) is_cut: bool,
    pub(crate) length: usize,
}

/// One question and its reply.
pub(crate) fn ask(server: SocketAddr, question: &[u8], way: Way) -> Outcome<Reply> {
    let mut question = question.to_vec();
    if way == Way::Plain {
        // Its OPT record stands last.
        question.truncate(question.len() - 11);
        question[11] = 0;
    }
    let limit = Some(Duration::from_secs(2));
    let mut reply = vec![0; usize::from(u16::MAX)];
    let length = if way == Way::Tcp {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(limit)?;
        stream.write_all(&u16::try_from(question.len())?.to_be_bytes())?;
        stream.write_all(&question)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let length = usize::from(u16::from_be_bytes(length));
        stream.read_exact(&mut reply[..length])?;
        length
    } else {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(server)?;
        socket.set_read_timeout(limit)?;
        socket.send(&question)?;
        socket.recv(&mut reply)?
    };
    if length < 12 {
        return Err(format!("{length} bytes are no header").into());
    }
    let pair = |at: usize| u16::from_be_bytes([reply[at], reply[at + 1]]);
    Ok(Reply {
        code: reply[3] & 15,
        answers: pair(6),
        additional: pair(10),
        is_cut: reply[2] & 2 != 0,
        length,
    })
}

/// A cached question beside a flood of names that nobody knows.
#[derive(Debug)]
pub(crate) struct Flooded {
    /// Of the cached question: the median, 99 of 100, and the share that got no reply.
    pub(crate) median: Duration,
    pub(crate) p99: Duration,
    pub(crate) lost: f64,
    /// Unknown names a second, and bytes that the server grew by.
    pub(crate) unknown: f64,
    pub(crate) grown: i64,
}

/// Floods the server with so many unknown names a second for `length`; each is another.
pub(crate) fn flood(
    server: SocketAddr,
    process: u32,
    cached: &[u8],
    rate: u32,
    length: Duration,
) -> Outcome<Flooded> {
    let before = memory(process)?;
    let start = Instant::now();
    let flood = std::thread::spawn(move || -> Outcome<u64> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(server)?;
        socket.set_nonblocking(true)?;
        let (mut sent, mut reply) = (0_u64, [0; 4_096]);
        while start.elapsed() < length {
            let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u64;
            while sent < due {
                let name = format!("f{sent}x{}.service.consul", process);
                // What does not fit the queue is lost, as in a flood.
                _ = socket.send(&question(&name, 1));
                sent += 1;
            }
            while socket.recv(&mut reply).is_ok() {}
            sleep(Duration::from_micros(200));
        }
        Ok(sent)
    });
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let (mut times, mut asked, mut reply) = (Vec::new(), 0_u16, [0; 4_096]);
    while start.elapsed() < length {
        asked += 1;
        let mut packet = cached.to_vec();
        packet[..2].copy_from_slice(&asked.to_be_bytes());
        let sent = Instant::now();
        socket.send(&packet)?;
        // A late reply to an earlier question is none to this one.
        while let Ok(length) = socket.recv(&mut reply) {
            if length > 12 && reply[..2] == packet[..2] {
                times.push(sent.elapsed());
                break;
            }
        }
        sleep(Duration::from_millis(1));
    }
    let sent = flood.join().map_err(|_| "the flood ended early")??;
    times.sort();
    let at = |share: f64| {
        let place = (times.len() as f64 * share) as usize;
        times
            .get(place.min(times.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    };
    Ok(Flooded {
        median: at(0.5),
        p99: at(0.99),
        lost: 1.0 - times.len() as f64 / f64::from(asked.max(1)),
        unknown: sent as f64 / length.as_secs_f64(),
        grown: i64::try_from(memory(process)?)? - i64::try_from(before)?,
    })
}
