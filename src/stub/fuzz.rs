//! **Shell.** The rules of serving, for the fuzzer: any datagram, and any bytes on a
//! connection, in any pieces and at any pace. Nobody is asked, no socket is opened, and the
//! time is tokio's own, which nobody waits for.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split},
    runtime::{Builder, Runtime},
    sync::watch,
    time::sleep,
};

use super::{
    Server,
    forward::Waiters,
    framed::Framed,
    listen::connection,
    shortcut::{self, Plain, Way},
};
use crate::{Resolver, clock, endpoint::Transport, records::wire};

/// The address of the only service that there is.
const WEB: [u8; 4] = [10, 0, 0, 1];

/// Longest time that a connection may be held, in a crowd or not, with what is written last.
const LONGEST: Duration = Duration::from_secs(620);

fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime without sockets")
}

/// A stub whose resolver asks nobody, and knows one service.
/// Who asks.
const ANYBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);

fn server() -> Arc<Server> {
    let builder = Resolver::builder().dns("none").http("none");
    let builder = builder.default_address("web", "10.0.0.1:80");
    let resolver = builder.build().expect("plain settings");
    Arc::new(Server::new(resolver, Vec::new()))
}

/// A datagram is dropped or answered, by the letter of RFC 1035 and RFC 6891: whoever is no
/// client gets nothing, what cannot be read is refused by its header alone, and every reply
/// echoes id and question, is as long as the client can take, and is well-formed. What is
/// remembered of it answers the same.
pub fn stub(packet: &[u8]) {
    // As much as the fast lane takes.
    let packet = &packet[..packet.len().min(4_096)];
    runtime().block_on(async {
        let server = server();
        let by = (ANYBODY, &Waiters::default());
        let reply = (server.answer(packet, by, Transport::Udp, clock::now())).await;
        let (bytes, fill) = reply.map(|reply| (reply.bytes, reply.fill)).unzip();
        check(packet, bytes.as_deref());
        let plain = shortcut::read(packet, Way::Loopback);
        if let (Some(fill), Some(slow)) = (fill.flatten(), bytes) {
            let plain = plain.expect("what is remembered is ordinary");
            server.keep(fill);
            check_remembered(&server, packet, &plain, &slow);
        }
    });
}

fn check_remembered(server: &Server, packet: &[u8], plain: &Plain, slow: &[u8]) {
    let mut out = Framed::default();
    assert!(
        server
            .memory(Transport::Udp)
            .give(packet, plain, clock::lately(), &mut out),
        "forgotten"
    );
    let fast = &out.as_bytes()[2..];
    check(packet, Some(fast));
    // The same but for the order of its records.
    assert_eq!((fast.len(), &fast[..12]), (slow.len(), &slow[..12]));
}

fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Where the question of a packet ends that has one which is not compressed.
fn question_end(packet: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match *packet.get(at)? {
            0 => return (at + 5 <= packet.len()).then_some(at + 5),
            length @ 1..=63 => at += usize::from(length) + 1,
            _ => return None,
        }
    }
}

/// What has to be so of the reply to a datagram, byte by byte.
fn check(packet: &[u8], reply: Option<&[u8]>) {
    let is_question = packet.len() >= 12 && packet[2] & 0x80 == 0;
    assert_eq!(
        reply.is_some(),
        is_question,
        "answered or dropped: {packet:02x?}"
    );
    let Some(reply) = reply else { return };
    let code = reply[3] & 0x0F;
    assert_eq!(reply[..2], packet[..2], "another id");
    assert_eq!(reply[2] & 0xF8, packet[2] & 0xF8 | 0x80, "QR and opcode");
    assert_eq!(reply[2] & 0x01, packet[2] & 0x01, "RD");
    // RA, Z, AD: nothing of it is so.
    assert_eq!(reply[3] & 0xE0, 0, "claims what is not so: {reply:02x?}");
    assert!(
        wire::shape(reply).is_some(),
        "not well-formed: {reply:02x?}"
    );
    let bare = |expected| {
        assert_eq!(code, expected, "{packet:02x?}");
        assert_eq!(reply.len(), 12, "more than a header: {reply:02x?}");
    };
    if packet[2] & 0x78 != 0 {
        return bare(4);
    }
    if number(packet, 4) != 1 || wire::shape(packet).is_none() {
        return bare(1);
    }
    if code == 1 {
        return bare(1);
    }
    let end = question_end(packet).expect("the first name has nothing to point to");
    assert_eq!(reply.get(12..end), packet.get(12..end), "another question");
    assert_eq!(number(reply, 4), 1);
    // Without EDNS there is no room for more (RFC 1035, section 4.2.1), and no OPT.
    let opts = records(reply, end)
        .filter(|record| record.kind == 41)
        .count();
    match number(packet, 10) {
        0 => assert!(reply.len() <= 512 && opts == 0, "{} bytes", reply.len()),
        _ => assert!(reply.len() <= 4_096 && opts <= 1, "{} bytes", reply.len()),
    }
    let asks_for_web = packet[12..].starts_with(b"\x03web\x07service\x06consul\0\0\x01\0\x01");
    // Of another version of EDNS it is told that alone.
    if asks_for_web && number(packet, 10) == 0 {
        let has_web = records(reply, end).any(|record| record.data == WEB);
        assert!(has_web, "nobody is told of the service: {reply:02x?}");
    }
}

struct Told<'a> {
    kind: u16,
    data: &'a [u8],
}

/// The records behind the question of a reply that is well-formed.
fn records(reply: &[u8], mut at: usize) -> impl Iterator<Item = Told<'_>> {
    std::iter::from_fn(move || {
        loop {
            match *reply.get(at)? {
                0 => break at += 1,
                0xC0.. => break at += 2,
                length => at += usize::from(length) + 1,
            }
        }
        let (kind, length) = (number(reply, at), usize::from(number(reply, at + 8)));
        let data = reply.get(at + 10..at + 10 + length)?;
        at += 10 + length;
        Some(Told { kind, data })
    })
}

/// Any bytes on a connection: whole messages are answered, each once, however they were cut
/// and whatever else came; what is too short ends the connection; and no client, slow, deaf
/// or gone, holds it for longer than it may. The first byte says how the client behaves, the
/// second how it cuts; the rest is what it sends, in frames or raw.
pub fn stream(bytes: &[u8]) {
    let Some((&[manner, cut], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let sent = match manner & 1 {
        0 => rest.to_vec(),
        _ => framed(rest),
    };
    runtime().block_on(converse(manner, usize::from(cut) + 1, &sent));
}

/// Cuts bytes into messages: a length, and so many bytes.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let (mut all, mut rest) = (Vec::new(), bytes);
    while let Some((&length, more)) = rest.split_first() {
        let (message, more) = more.split_at(more.len().min(length.into()));
        let length = u16::try_from(message.len()).expect("at most 255");
        all.extend(length.to_be_bytes());
        all.extend_from_slice(message);
        rest = more;
    }
    all
}

/// What is in a stream, read by another reader: whole messages, and whether it then goes on
/// with one that is shorter than a header.
fn messages(mut stream: &[u8]) -> (Vec<&[u8]>, bool) {
    let mut all = Vec::new();
    while let Some((&length, rest)) = stream.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(length));
        if length < 12 {
            return (all, true);
        }
        let Some((message, rest)) = rest.split_at_checked(length) else {
            break;
        };
        all.push(message);
        stream = rest;
    }
    (all, false)
}

/// What of a reply is the same whenever it is made.
type Reply = (Vec<u8>, u8, usize);

fn essence(packet: &[u8], reply: &[u8]) -> Reply {
    let end = question_end(packet).unwrap_or(12).min(reply.len());
    (reply[..end].to_vec(), reply[3], reply.len())
}

async fn converse(manner: u8, piece: usize, sent: &[u8]) {
    let (is_deaf, is_slow, half_closes) = (manner & 2 != 0, manner & 4 != 0, manner & 8 != 0);
    let (messages, too_short) = messages(sent);
    let mut expected: BTreeMap<Reply, i32> = BTreeMap::new();
    let twin = server();
    for message in &messages {
        let by = (ANYBODY, &Waiters::default());
        if let Some(reply) = (twin.answer(message, by, Transport::Tcp, clock::now())).await {
            *expected.entry(essence(message, &reply.bytes)).or_default() += 1;
        }
    }
    let (ours, theirs) = duplex(usize::from(manner >> 4) * 64 + 64);
    let (_stopping, stopped) = watch::channel(());
    let (server, crowd) = (server(), AtomicBool::new(manner & 16 != 0));
    let (mut reader, mut writer) = split(ours);
    let write = async {
        for piece in sent.chunks(piece) {
            // Whoever is slow needs longer than a message may take.
            sleep(Duration::from_millis(if is_slow { 700 } else { 0 })).await;
            if writer.write_all(piece).await.is_err() {
                return;
            }
        }
        if half_closes {
            _ = writer.shutdown().await;
        }
    };
    let read = async {
        let mut told = Vec::new();
        if !is_deaf {
            _ = reader.read_to_end(&mut told).await;
        }
        told
    };
    let began = clock::now();
    let serve = async {
        // The end of it is the end of the connection.
        let ended = connection::over(split(theirs), ANYBODY, &server, &crowd, stopped).await;
        (ended, clock::now() - began)
    };
    let (_, told, (ended, took)) = tokio::join!(write, read, serve);
    assert!(took <= LONGEST, "held for {took:?}");
    if is_deaf {
        return;
    }
    let (replies, broken) = self::messages(&told);
    assert!(!broken, "a reply of no length");
    let mut framed = 0;
    for reply in &replies {
        framed += reply.len() + 2;
        let asked = messages.iter().find(|message| {
            let known = essence(message, reply);
            expected.get(&known).is_some_and(|left| *left > 0)
        });
        let asked = asked.unwrap_or_else(|| panic!("asked by nobody: {reply:02x?}"));
        *expected.entry(essence(asked, reply)).or_default() -= 1;
    }
    // Whoever is cut off loses what was due, and the reply that is being written.
    if !too_short && ended.is_ok() && !is_slow {
        assert!(
            expected.values().all(|left| *left == 0),
            "not answered: {expected:?}"
        );
        assert_eq!(framed, told.len());
    }
    assert!(
        !too_short || ended.is_err() || is_slow,
        "went on after what is no message"
    );
}
