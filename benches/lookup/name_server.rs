//! A name server that knows every service: one instance each, in the form that
//! Consul gives it. Only to fill caches with many names.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use hickory_resolver::proto::{
    op::{Message, MessageType},
    rr::{
        Name, RData, Record,
        rdata::{A, SRV, TXT},
    },
};

const TTL: u32 = 3_600;

pub(crate) struct NameServer {
    address: SocketAddr,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    pub(crate) fn start() -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = socket.local_addr()?;
        let ending = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let ending = Arc::clone(&ending);
            move || serve(&socket, &ending)
        });
        Ok(Self {
            address,
            ending,
            thread: Some(thread),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        // A datagram wakes it.
        if let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) {
            let _ = socket.send_to(b"end", self.address);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, ending: &AtomicBool) {
    let mut buffer = [0; 4_096];
    while !ending.load(Ordering::Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        if let Some(reply) = answer(&buffer[..length]) {
            let _ = socket.send_to(&reply, from);
        }
    }
}

/// As an agent on the node `bench` answers an SRV question: the address in the
/// target and beside it, the node's metadata, and the asker's own EDNS size.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let mut message = Message::from_vec(question).ok()?;
    let owner = message.queries.first()?.name().clone();
    let target = Name::from_ascii("7f000101.addr.dc1.consul.").ok()?;
    let node = Name::from_ascii("bench.node.dc1.consul.").ok()?;
    let text = TXT::new(vec!["consul-network-segment=".to_owned()]);
    let service = SRV::new(1, 1, 8_000, target.clone());
    let address = A(Ipv4Addr::new(127, 0, 1, 1));
    message.metadata.message_type = MessageType::Response;
    message.metadata.authoritative = true;
    message.add_answer(Record::from_rdata(owner, TTL, RData::SRV(service)));
    message.add_additional(Record::from_rdata(target, TTL, RData::A(address)));
    message.add_additional(Record::from_rdata(node, TTL, RData::TXT(text)));
    message.to_vec().ok()
}
