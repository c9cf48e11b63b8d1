//! A name server of bytes: what it gets and sends is not read by anybody's library. And
//! clients of bytes, many at once.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use hickory_proto::{op::Message, rr::RecordType};
use proconsul::{
    Resolver,
    stub::{Stub, Upstreams},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    time::{Instant, timeout_at},
};

use crate::support::{Over, ask_udp};

type Script = dyn Fn(&[u8], Over) -> Vec<Vec<u8>> + Send + Sync;

/// How the names begin by which a stub finds out whether its questions come back.
pub(crate) const LOOP: &[u8] = b"\x0eproconsul-loop";

/// Ends with its test's runtime.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// One question, and where it came from.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) packet: Vec<u8>,
    pub(crate) port: u16,
    pub(crate) over: Over,
    pub(crate) at: Instant,
}

impl Upstream {
    /// Says one thing, or nothing.
    pub(crate) async fn start(
        script: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        Self::late(Duration::ZERO, script).await
    }

    /// The same, so long after it was asked over UDP.
    pub(crate) async fn late(
        delay: Duration,
        script: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        Self::telling(delay, move |packet, _| script(packet).into_iter().collect()).await
    }

    /// Says any number of things.
    pub(crate) async fn telling(
        delay: Duration,
        script: impl Fn(&[u8], Over) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let script: Arc<Script> = Arc::new(script);
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let address = tcp.local_addr().unwrap();
        tokio::spawn(datagrams(
            Arc::new(udp),
            Arc::clone(&script),
            Arc::clone(&asked),
            delay,
        ));
        let heard = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, client)) = tcp.accept().await {
                let (script, asked) = (Arc::clone(&script), Arc::clone(&heard));
                tokio::spawn(
                    async move { converse(stream, client.port(), &*script, &asked).await },
                );
            }
        });
        Self { address, asked }
    }

    /// Questions so far, without the stub's own, whether we send its questions back.
    pub(crate) fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    pub(crate) fn questions(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn datagrams(
    socket: Arc<UdpSocket>,
    script: Arc<Script>,
    asked: Arc<Mutex<Vec<Asked>>>,
    delay: Duration,
) {
    let mut packet = [0; 4_096];
    while let Ok((length, client)) = socket.recv_from(&mut packet).await {
        let packet = &packet[..length];
        // The stub's own question, whether we send its questions back.
        if packet[12..].starts_with(LOOP) {
            continue;
        }
        asked.lock().unwrap().push(Asked {
            packet: packet.to_vec(),
            port: client.port(),
            over: Over::Udp,
            at: Instant::now(),
        });
        let replies = script(packet, Over::Udp);
        let socket = Arc::clone(&socket);
        let tell = async move {
            for reply in replies {
                // The asker may have heard enough and be gone.
                _ = socket.send_to(&reply, client).await;
            }
        };
        if delay.is_zero() {
            tell.await;
        } else {
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                tell.await;
            });
        }
    }
}

async fn converse(
    mut stream: TcpStream,
    port: u16,
    script: &Script,
    asked: &Mutex<Vec<Asked>>,
) -> Option<()> {
    loop {
        let mut packet = vec![0; stream.read_u16().await.ok()?.into()];
        stream.read_exact(&mut packet).await.ok()?;
        asked.lock().unwrap().push(Asked {
            packet: packet.clone(),
            port,
            over: Over::Tcp,
            at: Instant::now(),
        });
        let replies = script(&packet, Over::Tcp);
        if replies.is_empty() {
            return None;
        }
        for reply in replies {
            let length = u16::try_from(reply.len()).unwrap();
            stream.write_u16(length).await.ok()?;
            stream.write_all(&reply).await.ok()?;
        }
    }
}

/// A stub that sends other names there.
pub(crate) async fn stub_of(resolver: Resolver, upstreams: &[&str]) -> SocketAddr {
    forwarding(resolver, Upstreams::parse(upstreams).unwrap()).await
}

pub(crate) async fn forwarding(resolver: Resolver, upstreams: Upstreams) -> SocketAddr {
    let any = "127.0.0.1:0".parse().unwrap();
    let stub = Stub::bind(resolver, &[any]).await.unwrap();
    let stub = stub.forwarding(upstreams);
    let address = stub.addresses()[0];
    tokio::spawn(stub.run(std::future::pending()));
    address
}

/// A stub that knows no Consul.
pub(crate) async fn stub(upstreams: &[&str]) -> SocketAddr {
    let builder = Resolver::builder().dns("none").http("none");
    stub_of(builder.build().unwrap(), upstreams).await
}

pub(crate) fn addresses(reply: &Message) -> Vec<String> {
    let answers = reply.answers.iter();
    answers
        .map(|record| format!("{} {}", record.ttl, record.data))
        .collect()
}

pub(crate) async fn a(stub: SocketAddr, name: &str) -> Message {
    ask_udp(stub, name, RecordType::A).await.unwrap()
}

/// A name on the wire.
pub(crate) fn wire(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut wire: Vec<u8> = labels
        .flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat())
        .collect();
    wire.push(0);
    wire
}

/// A plain question under the id 0, without EDNS.
pub(crate) fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut packet = b"\0\0\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    packet.extend(wire(name));
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1]);
    packet
}

/// The same with an OPT record of that size and with these options.
pub(crate) fn with_opt(mut packet: Vec<u8>, size: u16, options: &[u8]) -> Vec<u8> {
    packet[11] = 1;
    packet.extend([0, 0, 41]);
    packet.extend(size.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(u16::try_from(options.len()).unwrap().to_be_bytes());
    packet.extend(options);
    packet
}

/// Where the question ends.
pub(crate) fn end(packet: &[u8]) -> usize {
    let mut at = 12;
    while packet[at] != 0 {
        at += usize::from(packet[at]) + 1;
    }
    at + 5
}

/// A pointer to the question's name.
pub(crate) const OWNER: &[u8] = &[0xC0, 12];

/// One record of class IN.
pub(crate) fn rr(owner: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut record = owner.to_vec();
    record.extend(kind.to_be_bytes());
    record.extend([0, 1]);
    record.extend(ttl.to_be_bytes());
    record.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    record.extend(data);
    record
}

/// An SOA record of that zone.
pub(crate) fn soa(zone: &str, ttl: u32, minimum: u32) -> Vec<u8> {
    let mut data = [wire("ns.example."), wire("admin.example.")].concat();
    data.extend([0, 0, 0, 1].repeat(4));
    data.extend(minimum.to_be_bytes());
    rr(&wire(zone), 6, ttl, &data)
}

/// A reply with that code and these sections, without OPT.
pub(crate) fn reply(packet: &[u8], code: u8, sections: [&[Vec<u8>]; 3]) -> Vec<u8> {
    let mut reply = packet[..end(packet)].to_vec();
    reply[2] |= 0x80;
    reply[3] = 0x80 | code;
    for (at, section) in (6..).step_by(2).zip(sections) {
        let count = u16::try_from(section.len()).unwrap();
        reply[at..at + 2].copy_from_slice(&count.to_be_bytes());
        reply.extend(section.concat());
    }
    reply
}

/// A reply of one record of that type, TTL and data, with OPT if it was asked with one.
pub(crate) fn record(packet: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut reply = reply(packet, 0, [&[rr(OWNER, kind, ttl, data)], &[], &[]]);
    reply[11] = packet[11];
    reply.extend(&packet[end(packet)..]);
    reply
}

/// A reply of nothing but a code.
pub(crate) fn coded(packet: &[u8], code: u8) -> Vec<u8> {
    reply(packet, code, [&[]; 3])
}

/// What came back to each packet, and after how long; each goes under its number as id.
pub(crate) type Told = Vec<Option<(Vec<u8>, Duration)>>;

/// Many clients at once: puts the packets from so many sockets, and hears for at most
/// that long.
pub(crate) async fn crowd(
    server: SocketAddr,
    packets: Vec<Vec<u8>>,
    sockets: usize,
    time: Duration,
) -> Told {
    let count = packets.len();
    let mut shares: Vec<Vec<(u16, Vec<u8>)>> = vec![Vec::new(); sockets];
    for (id, mut packet) in (0_u16..).zip(packets) {
        packet[..2].copy_from_slice(&id.to_be_bytes());
        shares[usize::from(id) % sockets].push((id, packet));
    }
    let mut clients = tokio::task::JoinSet::new();
    for share in shares {
        clients.spawn(async move {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(server).await.unwrap();
            let mut sent = Vec::new();
            for (id, packet) in &share {
                socket.send(packet).await.unwrap();
                sent.push((*id, Instant::now()));
                // All at once, and still no more than sockets take.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let deadline = Instant::now() + time;
            let (mut heard, mut packet) = (Vec::new(), [0; 4_096]);
            while heard.len() < share.len() {
                let Ok(got) = timeout_at(deadline, socket.recv(&mut packet)).await else {
                    break;
                };
                let reply = packet[..got.unwrap()].to_vec();
                let id = u16::from_be_bytes([reply[0], reply[1]]);
                let since = sent.iter().find(|(own, _)| *own == id).unwrap().1;
                heard.push((id, reply, since.elapsed()));
            }
            heard
        });
    }
    let mut told = vec![None; count];
    while let Some(heard) = clients.join_next().await {
        for (id, reply, took) in heard.unwrap() {
            told[usize::from(id)] = Some((reply, took));
        }
    }
    told
}
