//! A name server that says what a test tells it to, over UDP and TCP.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_proto::{
    op::{Edns, Message, MessageType, ResponseCode},
    rr::{
        Name, RData, Record,
        rdata::{A, CNAME, SRV, TXT},
    },
};
use proconsul::Transport;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
};

type Edit = Box<dyn Fn(&mut Vec<u8>) + Send>;

type Script = dyn Fn(&Message, Transport) -> Vec<Reply> + Send + Sync;

/// One reply, or an end of the connection.
pub(crate) struct Reply {
    message: Option<Message>,
    edits: Vec<Edit>,
    raw: Option<Vec<u8>>,
    hang_up: bool,
    other_port: bool,
}

/// `count` instances as Consul tells them, without node metadata.
pub(crate) fn srv(question: &Message, count: u8) -> Reply {
    let mut message = question.clone();
    message.metadata.message_type = MessageType::Response;
    message.metadata.authoritative = true;
    let size = question.edns.as_ref().map_or(512, Edns::max_payload);
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    let mut reply = Reply {
        message: Some(message),
        edits: Vec::new(),
        raw: None,
        hang_up: false,
        other_port: false,
    };
    for at in 1..=count {
        let target = format!("0a0000{at:02x}.addr.dc1.consul.");
        reply = reply
            .srv(&target, u16::from(at))
            .glue(&target, [10, 0, 0, at]);
    }
    reply
}

impl Reply {
    pub(crate) fn bytes(bytes: &[u8]) -> Self {
        Self {
            message: None,
            edits: Vec::new(),
            raw: Some(bytes.to_vec()),
            hang_up: false,
            other_port: false,
        }
    }

    /// Closes the connection; over UDP nothing.
    pub(crate) fn hang_up() -> Self {
        Self {
            hang_up: true,
            raw: None,
            ..Self::bytes(b"")
        }
    }

    pub(crate) fn srv(mut self, target: &str, port: u16) -> Self {
        let message = self.message.as_mut().unwrap();
        let owner = message.queries[0].name().clone();
        let srv = SRV::new(1, 1, port, Name::from_ascii(target).unwrap());
        message.add_answer(Record::from_rdata(owner, 0, RData::SRV(srv)));
        self
    }

    pub(crate) fn glue(mut self, owner: &str, address: [u8; 4]) -> Self {
        let data = RData::A(A(Ipv4Addr::from(address)));
        let owner = Name::from_ascii(owner).unwrap();
        self.message
            .as_mut()
            .unwrap()
            .add_additional(Record::from_rdata(owner, 0, data));
        self
    }

    /// The TTLs of the answers, in their order; those of others stay 0.
    pub(crate) fn ttls(mut self, ttls: &[u32]) -> Self {
        let answers = &mut self.message.as_mut().unwrap().answers;
        for (record, ttl) in answers.iter_mut().zip(ttls) {
            record.ttl = *ttl;
        }
        self
    }

    /// One more answer of any kind, whosever it is.
    pub(crate) fn answer(mut self, owner: &str, ttl: u32, data: RData) -> Self {
        let owner = Name::from_ascii(owner).unwrap();
        let record = Record::from_rdata(owner, ttl, data);
        self.message.as_mut().unwrap().add_answer(record);
        self
    }

    /// One more record of the authority section.
    pub(crate) fn authority(mut self, owner: &str, ttl: u32, data: RData) -> Self {
        let owner = Name::from_ascii(owner).unwrap();
        let record = Record::from_rdata(owner, ttl, data);
        self.message.as_mut().unwrap().add_authority(record);
        self
    }

    /// A host name that another one stands for, in the additional section.
    pub(crate) fn alias(mut self, owner: &str, target: &str) -> Self {
        let data = RData::CNAME(CNAME(Name::from_ascii(target).unwrap()));
        let owner = Name::from_ascii(owner).unwrap();
        let record = Record::from_rdata(owner, 0, data);
        self.message.as_mut().unwrap().add_additional(record);
        self
    }

    /// Node metadata, which proves that nothing was cut.
    pub(crate) fn with_text(mut self) -> Self {
        let text = RData::TXT(TXT::new(vec!["rack=a".to_owned()]));
        let owner = Name::from_ascii("vm.node.dc1.consul.").unwrap();
        self.message
            .as_mut()
            .unwrap()
            .add_additional(Record::from_rdata(owner, 0, text));
        self
    }

    pub(crate) fn truncated(mut self) -> Self {
        self.message.as_mut().unwrap().metadata.truncation = true;
        self
    }

    pub(crate) fn code(mut self, code: u16) -> Self {
        self.message.as_mut().unwrap().metadata.response_code = ResponseCode::from(0, code as u8);
        self
    }

    /// An EDNS size of its own, as every server but Consul says it.
    pub(crate) fn with_size(mut self, size: u16) -> Self {
        let message = self.message.as_mut().unwrap();
        message.edns.as_mut().unwrap().set_max_payload(size);
        self
    }

    pub(crate) fn edit(mut self, edit: impl Fn(&mut Vec<u8>) + Send + 'static) -> Self {
        self.edits.push(Box::new(edit));
        self
    }

    pub(crate) fn sent_from_elsewhere(mut self) -> Self {
        self.other_port = true;
        self
    }

    fn encoded(&self) -> Option<Vec<u8>> {
        let mut bytes = match (&self.raw, &self.message) {
            (Some(raw), _) => raw.clone(),
            (None, Some(message)) => message.to_vec().unwrap(),
            (None, None) => return None,
        };
        for edit in &self.edits {
            edit(&mut bytes);
        }
        Some(bytes)
    }
}

/// The server; it ends with its test's runtime.
pub(crate) struct Server {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) async fn start(
        script: impl Fn(&Message, Transport) -> Vec<Reply> + Send + Sync + 'static,
    ) -> Self {
        let script: Arc<Script> = Arc::new(script);
        let (udp, tcp) = bind().await;
        let server = Self::at(udp.local_addr().unwrap());
        tokio::spawn(datagrams(
            udp,
            Arc::clone(&script),
            Arc::clone(&server.asked),
        ));
        let (asked, connections) = (Arc::clone(&server.asked), Arc::clone(&server.connections));
        tokio::spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(converse(stream, Arc::clone(&script), Arc::clone(&asked)));
            }
        });
        server
    }

    /// Truncates every datagram; over TCP it gathers `count` questions and answers
    /// the last first.
    pub(crate) async fn reversing(
        count: usize,
        reply: impl Fn(&Message) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp) = bind().await;
        let server = Self::at(udp.local_addr().unwrap());
        let truncate: Arc<Script> = Arc::new(|question, _| vec![srv(question, 0).truncated()]);
        tokio::spawn(datagrams(udp, truncate, Arc::clone(&server.asked)));
        let connections = Arc::clone(&server.connections);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                let mut questions = Vec::new();
                while questions.len() < count {
                    questions.push(read(&mut stream).await.unwrap());
                }
                for question in questions.iter().rev() {
                    write(&mut stream, &reply(question).encoded().unwrap()).await;
                }
            }
        });
        server
    }

    fn at(address: SocketAddr) -> Self {
        Self {
            address,
            asked: Arc::default(),
            connections: Arc::default(),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Questions so far, over UDP and TCP.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn bind() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

async fn datagrams(socket: UdpSocket, script: Arc<Script>, asked: Arc<AtomicUsize>) {
    let mut packet = [0; 65_535];
    while let Ok((length, client)) = socket.recv_from(&mut packet).await {
        let Ok(question) = Message::from_vec(&packet[..length]) else {
            continue;
        };
        asked.fetch_add(1, Ordering::Relaxed);
        for reply in script(&question, Transport::Udp) {
            let Some(bytes) = reply.encoded() else {
                continue;
            };
            // The asker may have heard enough and be gone.
            if reply.other_port {
                let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                let _ = other.send_to(&bytes, client).await;
            } else {
                let _ = socket.send_to(&bytes, client).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, script: Arc<Script>, asked: Arc<AtomicUsize>) {
    while let Some(question) = read(&mut stream).await {
        asked.fetch_add(1, Ordering::Relaxed);
        for reply in script(&question, Transport::Tcp) {
            if reply.hang_up {
                return;
            }
            write(&mut stream, &reply.encoded().unwrap()).await;
        }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Message> {
    let length = stream.read_u16().await.ok()?;
    let mut packet = vec![0; length.into()];
    stream.read_exact(&mut packet).await.ok()?;
    Message::from_vec(&packet).ok()
}

async fn write(stream: &mut TcpStream, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap();
    let _ = stream
        .write_all(&[&length.to_be_bytes()[..], bytes].concat())
        .await;
}
