//! **Shell.** The rules of asking a name server, for the fuzzer: what is taken for a reply,
//! and a whole conversation over a network that is made up. No socket is opened, and the
//! time is tokio's own, which nobody waits for.

use std::{
    cell::{Cell, RefCell},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query as Asked, ResponseCode},
    rr::{
        DNSClass, RData, Record, RecordType,
        rdata::{A, SOA, SRV, TXT},
    },
    serialize::binary::{BinDecodable as _, BinDecoder},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, split},
    runtime::Builder,
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    DnsSource, Edns, Heard, Reply, Trouble,
    message::{self, Hearing, Query, Strangers},
    round::{Peer, Round},
    tcp,
};
use crate::{
    clock,
    endpoint::{Outcome, Transport},
    records::wire_name,
};

const NAME: &str = "web.service.consul.";

/// A reply to our question is taken, and nothing else is, as RFC 5452 (section 9.1) has it:
/// compared with what that says byte by byte. The input is the id that was sent, and either
/// a reply whole or where the right reply is changed.
pub fn accept(bytes: &[u8]) {
    let Some((&[high, low, mode], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let id = u16::from_be_bytes([high, low]);
    // Types 65 and 97 are one letter in two cases.
    let kinds = [RecordType::SRV, RecordType::ANY, RecordType::from(65)];
    let kind = kinds[usize::from(mode >> 1) % kinds.len()];
    let query = Query::new(NAME, kind, 4_093).expect("a plain name");
    let sent = query.with_id(id);
    let mut reply = sent.clone();
    reply[2] |= 0x80;
    match mode & 1 {
        0 => reply = rest.to_vec(),
        _ => {
            for change in rest.chunks_exact(2) {
                let at = usize::from(change[0]);
                match reply.get_mut(at) {
                    Some(byte) => *byte ^= change[1],
                    None => reply.push(change[1]),
                }
            }
        }
    }
    let may = answers(&sent, &reply);
    assert_eq!(
        query.is_answered_by(id, &reply).is_ok(),
        may,
        "{reply:02x?}"
    );
    // What is forwarded is judged by the same law.
    let forwarded = crate::stub::answers_forwarded(&reply, &sent, id.to_be_bytes());
    assert_eq!(forwarded, may, "{reply:02x?}");
    let mut hearing = Hearing::new(&query, id);
    match hearing.hear(&reply) {
        message::Heard::Reply(read) => {
            assert!(may, "a stranger was heard");
            let count = |at: usize| usize::from(u16::from_be_bytes([reply[at], reply[at + 1]]));
            // The OPT record is counted, and stands apart; so does what is signed.
            let told = count(6) + count(8) + count(10);
            let held = read.answers.len() + read.authorities.len() + read.additionals.len();
            let apart = usize::from(read.edns.is_some()) + usize::from(read.signature.is_some());
            // Those of other classes than IN are nobody's.
            let mut whole = BinDecoder::new(&reply);
            let whole = Message::read(&mut whole).expect("it was read");
            let all = [&whole.answers, &whole.authorities, &whole.additionals];
            let foreign = |record: &&Record| record.dns_class != DNSClass::IN;
            let foreign = all.into_iter().flatten().filter(foreign).count();
            assert_eq!(held + apart + foreign, told, "records lost or made up");
        }
        message::Heard::Stranger(stranger) => {
            assert!(!may || stranger == message::Stranger::Malformed);
        }
        message::Heard::Enough(_) => panic!("one datagram is not enough"),
    }
}

/// What is said of a reply to a question that was sent so: the id, QR, and the question as
/// a whole, the name in any case.
fn answers(sent: &[u8], reply: &[u8]) -> bool {
    let mut at = 12;
    while sent[at] != 0 {
        at += usize::from(sent[at]) + 1;
    }
    let end = at + 5;
    if reply.len() < end {
        return false;
    }
    let same = |at: usize| match at {
        0 | 1 | 4 | 5 => reply[at] == sent[at],
        2 => reply[at] >= 0x80 && (reply[at] ^ sent[at]) & 0x78 == 0,
        3 | 6..12 => true,
        _ if at < end - 4 => reply[at].eq_ignore_ascii_case(&sent[at]),
        _ => reply[at] == sent[at],
    };
    (0..end).all(same)
}

/// One question to one server, whatever it and others send, and when: truths, strangers,
/// cut replies, a connection that ends or is silent. It ends in time, asks no more often
/// than it may, believes no stranger, and loses no truth that was heard in time.
pub fn conversation(bytes: &[u8]) {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let runtime = runtime.expect("a runtime without sockets");
    runtime.block_on(converse(bytes));
}

async fn converse(bytes: &[u8]) {
    let script = Script(RefCell::new(bytes.iter().rev().copied().collect()));
    let first = script.next();
    let source = DnsSource::new(&[]);
    source.learn(NAME, first & 1 != 0);
    let limit = Duration::from_millis(200 + 10 * u64::from(script.next()));
    let peer = MadeUp {
        // On loopback a third size is tried.
        address: match first & 2 {
            0 => SocketAddr::from(([127, 0, 0, 1], 8_600)),
            _ => SocketAddr::from(([192, 0, 2, 1], 8_600)),
        },
        script,
        free: Cell::new(first & 4 != 0),
        edns: Edns::default(),
        heard: Cell::new(false),
        datagrams: Cell::new(0),
        pipelined: Cell::new(0),
    };
    let mut attempts = Vec::new();
    let began = clock::now();
    let mut round = Round {
        source: &source,
        server: &peer,
        name: NAME,
        kind: if first & 8 == 0 {
            RecordType::SRV
        } else {
            RecordType::ANY
        },
        limit: began + limit,
        attempts: &mut attempts,
    };
    let heard = round.run().await;
    let took = clock::now() - began;
    // A timer has a millisecond's grain.
    assert!(
        took <= limit + Duration::from_millis(2),
        "{took:?} of {limit:?}"
    );
    assert!(
        peer.datagrams.get() <= 6 && peer.pipelined.get() <= 2,
        "asked too often"
    );
    assert!(!attempts.is_empty(), "nothing was written down");
    for attempt in &attempts {
        assert!(attempt.elapsed <= limit + Duration::from_millis(2));
        assert!(attempt.outcome != Outcome::Late);
    }
    match heard {
        Heard::Records { reply, doubt } => {
            assert!(
                doubt.is_some() || !reply.message.metadata.truncation,
                "cut, and whole"
            );
            assert!(
                !reply.message.answers.iter().any(is_poison),
                "a stranger is believed"
            );
        }
        Heard::Nothing { reply } => assert!(!reply.message.answers.iter().any(is_poison)),
        Heard::Failed => assert!(!peer.heard.get(), "a truth was heard and is lost"),
    }
}

/// What nobody says but strangers.
const POISON: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);

fn is_poison(record: &Record) -> bool {
    match &record.data {
        RData::SRV(srv) => srv.port == 666,
        RData::A(address) => address.0 == POISON,
        _ => false,
    }
}

/// Bytes that say what happens next, from the end; nothing more happens when they are over.
struct Script(RefCell<Vec<u8>>);

impl Script {
    fn next(&self) -> u8 {
        self.0.borrow_mut().pop().unwrap_or(255)
    }

    fn is_over(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Something that may come back for a question, and whether it is a truth.
    fn reply(&self, question: &[u8]) -> (Vec<u8>, bool) {
        let what = self.next();
        let asked = Message::from_vec(question).expect("our own question");
        let mut message = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
        message.metadata.authoritative = true;
        message.add_query(asked.queries[0].clone());
        if what & 0x80 == 0
            && let Some(edns) = asked.edns.clone()
        {
            message.set_edns(edns);
        }
        let name = asked.queries[0].name().clone();
        let tell = |message: &mut Message, port: u16, address: Ipv4Addr| {
            let target = format!("{:08x}.addr.dc1.consul.", address.to_bits());
            let target = wire_name::from_text(&target).expect("a plain name");
            let srv = RData::SRV(SRV::new(1, 1, port, target.clone()));
            message.add_answer(Record::from_rdata(name.clone(), 0, srv));
            message.add_additional(Record::from_rdata(target, 0, RData::A(A(address))));
        };
        let truth = Ipv4Addr::new(10, 0, 0, what >> 4 & 7);
        let mut is_true = false;
        match what & 0x0F {
            0..=3 => {
                for port in 0..u16::from(what >> 4 & 3) + 1 {
                    tell(&mut message, 8_000 + port, truth);
                }
                message.metadata.truncation = what & 0x0F == 3;
                if what & 0x40 != 0 {
                    let owner = wire_name::from_text("n1.node.dc1.consul.").expect("a plain name");
                    let text = RData::TXT(TXT::new(vec!["a=b".to_owned()]));
                    message.add_additional(Record::from_rdata(owner, 0, text));
                }
                is_true = true;
            }
            // Others than those who were asked.
            4..=6 => tell(&mut message, 666, POISON),
            7 => message.metadata.response_code = ResponseCode::ServFail,
            8 | 9 => {
                message.metadata.response_code = ResponseCode::NXDomain;
                let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, 5);
                message.add_authority(Record::from_rdata(name.clone(), 0, RData::SOA(soa)));
                is_true = true;
            }
            10 => is_true = true,
            _ => message.metadata.response_code = ResponseCode::Refused,
        }
        match what & 0x0F {
            4 => message.metadata.id ^= 1 + u16::from(what >> 4),
            5 => message.metadata.message_type = MessageType::Query,
            6 => {
                let other = wire_name::from_text("db.service.consul.").expect("a plain name");
                message.queries = vec![Asked::query(other, asked.queries[0].query_type())];
            }
            _ => {}
        }
        let mut reply = message.to_vec().expect("a plain message");
        // Or with a byte too many, which makes it none.
        if what & 0x0F == 11 {
            reply.push(0);
        }
        (reply, is_true)
    }
}

/// A server that does what a script says.
struct MadeUp {
    address: SocketAddr,
    script: Script,
    free: Cell<bool>,
    edns: Edns,
    /// A truth was given to who asked, in time.
    heard: Cell<bool>,
    datagrams: Cell<u32>,
    pipelined: Cell<u32>,
}

impl Peer for MadeUp {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn name(&self) -> &str {
        "192.0.2.1:53"
    }

    fn edns(&self) -> &Edns {
        &self.edns
    }

    fn is_crowded(&self) -> bool {
        false
    }

    async fn datagram(&self, query: &Query) -> Result<Reply, Trouble> {
        self.datagrams.set(self.datagrams.get() + 1);
        let id = clock::query_id();
        let mut hearing = Hearing::new(query, id);
        while !self.script.is_over() {
            let wait = self.script.next();
            if wait == 255 {
                return Err(Trouble::Refused);
            }
            sleep(Duration::from_millis(u64::from(wait))).await;
            let (datagram, is_true) = self.script.reply(&query.with_id(id));
            // So many of one kind: a flood is not written out.
            let times = if is_true {
                1
            } else {
                self.script.next() % 20 + 1
            };
            for _ in 0..times {
                match hearing.hear(&datagram) {
                    message::Heard::Reply(message) => {
                        self.heard.set(self.heard.get() || is_true);
                        return Ok(Reply {
                            message,
                            size: datagram.len(),
                            limit: usize::from(query.payload()),
                            advertised: query.payload(),
                            transport: Transport::Udp,
                        });
                    }
                    message::Heard::Stranger(_) => {}
                    message::Heard::Enough(_) => return Err(Trouble::Flooded),
                }
            }
        }
        std::future::pending().await
    }

    async fn pipelined(&self, query: &Query) -> Result<Reply, Trouble> {
        self.pipelined.set(self.pipelined.get() + 1);
        if self.script.next() == 255 {
            return Err(Trouble::Refused);
        }
        let (ours, theirs) = duplex(512);
        let (questions, asked) = mpsc::channel(tcp::QUEUE);
        let strangers = Arc::<Strangers>::default();
        let talk = tcp::converse(self.address, split(ours), asked, strangers);
        let (reply, heard) = oneshot::channel();
        let query = query.clone();
        let sent = tcp::Asked {
            query: query.clone(),
            reply,
        };
        questions.send(sent).await.expect("there is room");
        drop(questions);
        let told = async { heard.await.map_err(|_| Trouble::Closed)? };
        // It goes on until nobody waits; the server may go on for longer.
        let bytes = tokio::select! {
            ((), told) = async { tokio::join!(talk, told) } => told,
            () = serve(&self.script, theirs) => Err(Trouble::Closed),
        }?;
        tcp::read(&query, &bytes)
    }

    fn is_free(&self) -> bool {
        self.free.get()
    }

    fn open_soon(&self) {
        self.free.set(self.script.next() & 1 == 0);
    }

    fn give_up(&self) {
        self.free.set(false);
    }
}

/// The other end of a connection: replies in pieces, with pauses, until the script is over.
async fn serve(script: &Script, mut stream: DuplexStream) {
    let mut question = Vec::new();
    let Ok(length) = stream.read_u16().await else {
        return;
    };
    let mut head = (&mut stream).take(length.into());
    if head.read_to_end(&mut question).await.is_err() {
        return;
    }
    while !script.is_over() {
        let (wait, piece) = (script.next(), usize::from(script.next() % 64) + 1);
        if wait == 255 {
            return;
        }
        sleep(Duration::from_millis(u64::from(wait))).await;
        let (reply, _) = script.reply(&question);
        let mut framed = u16::try_from(reply.len())
            .unwrap_or(0)
            .to_be_bytes()
            .to_vec();
        framed.extend(reply);
        for piece in framed.chunks(piece) {
            if stream.write_all(piece).await.is_err() {
                // Whoever asked has what was asked for.
                std::future::pending::<()>().await;
            }
        }
    }
    std::future::pending().await
}
