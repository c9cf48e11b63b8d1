//! **Shell.** The rung that asks Consul's DNS interface: which server, which
//! transport, and what each attempt came to.
//!
//! The first question to a server goes over UDP, and so does every other while its
//! connection is closed or has questions waiting: Consul answers one question of a
//! connection after the other, so that a slow one would hold up the rest. On a free
//! connection TCP is quicker than a new socket for each question.
//!
//! | heard | then |
//! | --- | --- |
//! | a reply proven whole | done |
//! | a reply over UDP that may be cut | the same question over TCP |
//! | a reply over TCP that is roomy, without proof | once more over UDP, on loopback with room for 60 kB: two roomy replies prove each other |
//! | no such name | done |
//! | FORMERR or NOTIMP without an OPT record | the same question without EDNS, as all others for [`WITHOUT_EDNS`] |
//! | refused, silent, SERVFAIL, unreadable | the next server; after the last the rung has failed |
//!
//! What may be cut and what proves the opposite is decided in
//! [`crate::complete`]; what a reply means in [`crate::records`]. A name that did
//! not fit a datagram is asked over TCP at once the next time.

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
pub(crate) mod message;
mod tcp;
mod udp;

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};
use tokio::time::{error::Elapsed, timeout_at};

use self::{
    message::{Query, Strangers},
    tcp::Connection,
    udp::Sockets,
};
use crate::{
    clock,
    complete::{self, Reason, Seen, Verdict},
    endpoint::{Attempt, Outcome, Source, Transport},
    source::circuits::{Asker, Circuits},
};

/// EDNS sizes, in bytes. Odd on purpose: Consul echoes a client's own number,
/// any name server between us and Consul says one of its own.
const LOOPBACK_PAYLOAD: u16 = 4_093;
const REMOTE_PAYLOAD: u16 = 1_229;
const ROOMY_PAYLOAD: u16 = 59_989;

/// After this long without a reply a second datagram is sent. A reply on loopback
/// takes less than a millisecond.
const FIRST_TRY: Duration = Duration::from_millis(100);

/// A server that does not know EDNS is asked without it for so long.
const WITHOUT_EDNS: Duration = Duration::from_secs(15 * 60);
const NO_EDNS: &str = "does not know EDNS: asked again without it";

/// TXT records of one reply that are compared with all the others of it.
const MOST_TEXTS: usize = 16;

/// Names whose transport is remembered. A forgotten name costs one datagram.
const MOST_LEARNED: usize = 4_096;

/// One message from a name server.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) message: Box<Message>,
    /// Its length in bytes.
    pub(crate) size: usize,
    /// The length that it was cut to.
    pub(crate) limit: usize,
    /// The EDNS size that the question advertised.
    pub(crate) advertised: u16,
    pub(crate) transport: Transport,
}

/// Why there is no reply.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    Refused,
    TimedOut,
    /// The connection ended before the reply came.
    Closed,
    Malformed,
    /// More stray datagrams than we look at for one question.
    Flooded,
    /// The name has no wire form.
    NoQuestion,
    Io(io::ErrorKind),
}

impl Trouble {
    fn from_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Closed,
            other => Self::Io(other),
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Refused => Outcome::Refused,
            Self::TimedOut => Outcome::TimedOut,
            Self::Closed | Self::NoQuestion | Self::Io(_) => Outcome::Unreachable,
            Self::Malformed | Self::Flooded => Outcome::Malformed,
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Refused => "nothing listens there".to_owned(),
            Self::TimedOut => "no reply".to_owned(),
            Self::Closed => "the connection was closed before the reply".to_owned(),
            Self::Malformed => "the reply is not a DNS message".to_owned(),
            Self::Flooded => "too many datagrams that answer another question".to_owned(),
            Self::NoQuestion => "the name has no wire form".to_owned(),
            Self::Io(kind) => kind.to_string(),
        }
    }
}

/// What the rung heard.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Records. `doubt` says why they may not be all.
    Records { reply: Reply, doubt: Option<Reason> },
    /// NXDOMAIN, or NOERROR with no records: the reply carries the SOA, if any.
    Nothing { reply: Reply },
    /// No server answered.
    Failed,
}

impl Heard {
    fn records(&self) -> usize {
        match self {
            Self::Records { reply, .. } => reply.message.answers.len() + 1,
            Self::Nothing { .. } | Self::Failed => 0,
        }
    }
}

/// The name servers of one resolver, in the order they are asked.
#[derive(Debug)]
pub(crate) struct DnsSource {
    servers: Vec<Server>,
    /// Names that did not fit a datagram. A std mutex: held for one look-up,
    /// never across an await.
    large: Mutex<HashSet<Box<str>>>,
    strangers: Arc<Strangers>,
    pub(crate) circuits: Circuits,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    name: Box<str>,
    connection: Arc<Connection>,
    sockets: Sockets,
    edns: Edns,
}

/// Whether a server knows EDNS, as far as it has said.
#[derive(Debug, Default)]
struct Edns {
    /// It is asked without until then. A std mutex: held for one look.
    without: Mutex<Option<Instant>>,
}

impl Edns {
    fn is_known(&self) -> bool {
        let until = (self.without.lock()).unwrap_or_else(PoisonError::into_inner);
        until.is_none_or(|until| clock::now() >= until)
    }

    /// Whether a reply says that EDNS is what was wrong with the question (RFC 6891,
    /// section 7). It is remembered.
    fn is_refused(&self, query: &Query, reply: &Reply) -> bool {
        let code = reply.message.metadata.response_code;
        let refused = query.has_edns()
            && reply.message.edns.is_none()
            && matches!(code, ResponseCode::FormErr | ResponseCode::NotImp);
        if refused {
            let mut until = (self.without.lock()).unwrap_or_else(PoisonError::into_inner);
            *until = Some(clock::now() + WITHOUT_EDNS);
        }
        refused
    }
}

/// Beyond loopback no datagram is to be sent in fragments (RFC 9715, section 3.1).
fn payload(server: SocketAddr) -> u16 {
    match server.ip().is_loopback() {
        true => LOOPBACK_PAYLOAD,
        false => REMOTE_PAYLOAD,
    }
}

/// One server, as a round of questions sees it.
trait Peer {
    fn address(&self) -> SocketAddr;

    /// The same as text.
    fn name(&self) -> &str;

    fn edns(&self) -> &Edns;

    /// Asks by a datagram and waits for the reply.
    async fn datagram(&self, query: &Query) -> Result<Reply, Trouble>;

    /// Asks over the connection and waits for the reply.
    async fn pipelined(&self, query: &Query) -> Result<Reply, Trouble>;

    /// Whether the connection is open, and nobody waits for a reply on it.
    fn is_free(&self) -> bool;

    /// Opens the connection in the background.
    fn open_soon(&self);

    /// The connection stopped answering.
    fn give_up(&self);
}

impl Peer for Server {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn edns(&self) -> &Edns {
        &self.edns
    }

    async fn datagram(&self, query: &Query) -> Result<Reply, Trouble> {
        self.sockets.exchange(query).await
    }

    async fn pipelined(&self, query: &Query) -> Result<Reply, Trouble> {
        self.connection.exchange(query).await
    }

    fn is_free(&self) -> bool {
        self.connection.is_free()
    }

    fn open_soon(&self) {
        self.connection.open_soon();
    }

    fn give_up(&self) {
        self.connection.give_up();
    }
}

impl DnsSource {
    pub(crate) fn new(servers: &[SocketAddr]) -> Self {
        let strangers = Arc::<Strangers>::default();
        let server = |&address: &SocketAddr| Server {
            address,
            name: address.to_string().into(),
            connection: Arc::new(Connection::new(address, Arc::clone(&strangers))),
            sockets: Sockets::new(address, Arc::clone(&strangers)),
            edns: Edns::default(),
        };
        Self {
            servers: servers.iter().map(server).collect(),
            large: Mutex::default(),
            strangers,
            circuits: Circuits::new(Source::Dns, servers.iter().map(ToString::to_string)),
        }
    }

    /// Replies that answered no question of ours, so far.
    pub(crate) fn strangers(&self) -> u64 {
        self.strangers.total()
    }

    /// Asks one server after the other until one answers, at most until `limit`;
    /// those whose circuit does not let `asker` pass are passed over. Each step is
    /// written to `attempts`.
    pub(crate) async fn ask(
        &self,
        name: &str,
        kind: RecordType,
        asker: Asker,
        limit: Instant,
        attempts: &mut Vec<Attempt>,
    ) -> Heard {
        let mut best = Heard::Failed;
        let admitted = self.circuits.admitted(asker.mode, clock::now());
        let servers = (admitted.iter())
            .filter_map(|&index| Some((index, self.servers.get(index)?)))
            .enumerate();
        for (asked, (index, server)) in servers {
            let now = clock::now();
            if now >= limit {
                break;
            }
            // The servers still to be asked get their share of the time.
            let left = u32::try_from(admitted.len() - asked).unwrap_or(u32::MAX);
            let limit = now + (limit - now) / left;
            let mut round = Round {
                source: self,
                server,
                name,
                kind,
                limit,
                attempts,
            };
            let asking = self.circuits.begin(index, asker.home);
            let heard = round.run().await;
            asking.heard(match &heard {
                Heard::Records { .. } => Outcome::Answered,
                Heard::Nothing { .. } => Outcome::NotFound,
                Heard::Failed => {
                    (round.attempts.last()).map_or(Outcome::Failed, |last| last.outcome)
                }
            });
            match heard {
                Heard::Failed => {}
                heard @ (Heard::Records { doubt: None, .. } | Heard::Nothing { .. }) => {
                    return heard;
                }
                heard if heard.records() > best.records() => best = heard,
                Heard::Records { .. } => {}
            }
        }
        best
    }

    fn is_large(&self, name: &str) -> bool {
        self.large
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(name)
    }

    fn learn(&self, name: &str, large: bool) {
        let mut names = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        if !large {
            names.remove(name);
        } else if names.len() < MOST_LEARNED {
            names.insert(name.into());
        }
    }
}

/// One question to one server.
struct Round<'a, P> {
    source: &'a DnsSource,
    server: &'a P,
    name: &'a str,
    kind: RecordType,
    limit: Instant,
    attempts: &'a mut Vec<Attempt>,
}

impl<P: Peer> Round<'_, P> {
    async fn run(&mut self) -> Heard {
        let mut datagram = None;
        if !self.source.is_large(self.name) && !self.server.is_free() {
            self.server.open_soon();
            match self.over_udp(self.payload()).await {
                Ok(Heard::Records {
                    reply,
                    doubt: Some(doubt),
                }) => {
                    self.source.learn(self.name, doubt != Reason::NoText);
                    datagram = Some((reply, doubt));
                }
                Ok(heard) => return heard,
                // TCP is no way round a server that is not there or does not answer.
                Err(Trouble::Flooded | Trouble::Malformed) => {}
                Err(_) => return Heard::Failed,
            }
        }
        // In a box: who is answered by a datagram is not to carry its room.
        Box::pin(self.go_on(datagram)).await
    }

    /// Over TCP, after a datagram that may be cut, or instead of one.
    async fn go_on(&mut self, datagram: Option<(Reply, Reason)>) -> Heard {
        let earlier = datagram.as_ref().map(|(reply, _)| seen(reply));
        let heard = match (self.over_tcp(earlier.as_ref()).await, datagram) {
            (Ok(Heard::Failed) | Err(_), Some((reply, doubt))) => {
                self.source.learn(self.name, false);
                return Heard::Records {
                    reply,
                    doubt: Some(doubt),
                };
            }
            (Ok(heard), _) => heard,
            (Err(_), None) => {
                self.source.learn(self.name, false);
                let udp = Box::pin(self.over_udp(self.payload()));
                udp.await.unwrap_or(Heard::Failed)
            }
        };
        let Heard::Records { reply, doubt } = heard else {
            return heard;
        };
        let small = usize::from(self.payload()) / 2;
        if reply.transport == Transport::Tcp && reply.size < small {
            self.source.learn(self.name, false);
        }
        // A limit far from TCP's, and from that of a datagram heard before.
        let other = match earlier {
            _ if self.is_local() => Some(ROOMY_PAYLOAD),
            None => Some(REMOTE_PAYLOAD),
            Some(_) => None,
        };
        match (doubt, other) {
            (Some(Reason::NoText), Some(payload)) if self.kind == RecordType::SRV => {
                Box::pin(self.second_opinion(reply, payload)).await
            }
            (doubt, _) => Heard::Records { reply, doubt },
        }
    }

    /// A reply that looks roomy and holds no proof, asked once more with a limit
    /// that is far from its own.
    async fn second_opinion(&mut self, reply: Reply, payload: u16) -> Heard {
        let before = seen(&reply);
        let Ok(Heard::Records { reply: other, .. }) = self.over_udp(payload).await else {
            return Heard::Records {
                reply,
                doubt: Some(Reason::NoText),
            };
        };
        let after = seen(&other);
        let proven =
            complete::judge(&after) == Verdict::Whole || complete::second_opinion(&before, &after);
        let (reply, doubt) = if proven {
            (other, None)
        } else if complete::second_opinion(&after, &before) {
            (reply, None)
        } else {
            (reply, Some(Reason::NoText))
        };
        if let (None, Some(last)) = (doubt, self.attempts.last_mut()) {
            last.outcome = Outcome::Answered;
            last.detail = "two roomy replies prove each other whole".into();
        }
        Heard::Records { reply, doubt }
    }

    fn is_local(&self) -> bool {
        self.server.address().ip().is_loopback()
    }

    fn payload(&self) -> u16 {
        payload(self.server.address())
    }

    /// One datagram, and a second one where no reply to the first has come for
    /// [`FIRST_TRY`]; whichever is answered first counts. A lost datagram costs no
    /// more than that, and a slow answer still has all the time there is.
    async fn over_udp(&mut self, payload: u16) -> Result<Heard, Trouble> {
        let query = self.query(payload)?;
        let (server, start) = (self.server, clock::now());
        let mut first = std::pin::pin!(server.datagram(&query));
        let soon = self.limit.min(start + FIRST_TRY);
        let mut reply = timeout_at(soon.into(), &mut first).await;
        if reply.is_err() {
            // In a box, as all that is seldom: no question is to carry its room.
            reply = Box::pin(timeout_at(self.limit.into(), async {
                let mut second = Box::pin(server.datagram(&query));
                // An error of one says nothing of the other.
                tokio::select! {
                    reply = &mut first => if reply.is_ok() { reply } else { second.await },
                    reply = &mut second => if reply.is_ok() { reply } else { first.await },
                }
            }))
            .await;
        }
        let (reply, elapsed) = self.took(Transport::Udp, start, reply);
        let reply = reply?;
        if self.server.edns().is_refused(&query, &reply) {
            self.note_reply(&reply, Outcome::Failed, elapsed, NO_EDNS.to_owned());
            return Box::pin(self.over_udp(payload)).await;
        }
        self.judge(reply, elapsed, None)
    }

    async fn over_tcp(&mut self, earlier: Option<&Seen>) -> Result<Heard, Trouble> {
        let query = self.query(LOOPBACK_PAYLOAD)?;
        let exchange = self.server.pipelined(&query);
        // Where no datagram was asked before, UDP may yet have to do: a connection
        // that only seems to be open leaves it time.
        let start = clock::now();
        let until = match earlier {
            Some(_) => self.limit,
            None if self.source.is_large(self.name) => {
                start + self.limit.saturating_duration_since(start) / 2
            }
            None => self.limit.min(start + 2 * FIRST_TRY),
        };
        let reply = timeout_at(until.into(), exchange).await;
        let (reply, elapsed) = self.took(Transport::Tcp, start, reply);
        if let Err(Trouble::TimedOut) = reply {
            self.server.give_up();
        }
        let reply = reply?;
        if self.server.edns().is_refused(&query, &reply) {
            self.note_reply(&reply, Outcome::Failed, elapsed, NO_EDNS.to_owned());
            return Box::pin(self.over_tcp(earlier)).await;
        }
        self.judge(reply, elapsed, earlier)
    }

    fn query(&mut self, payload: u16) -> Result<Query, Trouble> {
        let query = Query::new(self.name, self.kind, payload).ok_or(Trouble::NoQuestion)?;
        Ok(if self.server.edns().is_known() {
            query
        } else {
            query.without_edns()
        })
    }

    /// What came of one exchange, and how long it took; a failure is written down.
    fn took(
        &mut self,
        transport: Transport,
        start: Instant,
        reply: Result<Result<Reply, Trouble>, Elapsed>,
    ) -> (Result<Reply, Trouble>, Duration) {
        let reply = reply.unwrap_or(Err(Trouble::TimedOut));
        let elapsed = clock::now().saturating_duration_since(start);
        if let Err(trouble) = &reply {
            self.note(
                transport,
                trouble.outcome(),
                elapsed,
                0,
                0,
                trouble.detail(),
            );
        }
        (reply, elapsed)
    }

    /// What a reply is worth, written down.
    fn judge(
        &mut self,
        reply: Reply,
        elapsed: Duration,
        earlier: Option<&Seen>,
    ) -> Result<Heard, Trouble> {
        let flags = reply.message.metadata;
        let code = flags.response_code;
        let seen = seen(&reply);
        let (outcome, detail) = match code {
            ResponseCode::NoError if reply.message.answers.is_empty() && !seen.truncated => {
                (Outcome::NotFound, "no such record".to_owned())
            }
            // Consul before 1.17 says so of an address that it does not know. It
            // is no failure of the zone's: that one has AA set.
            ResponseCode::ServFail
                if self.kind == RecordType::PTR && !flags.authoritative && seen.echoed =>
            {
                (Outcome::NotFound, "no such address".to_owned())
            }
            ResponseCode::NXDomain => (Outcome::NotFound, "no such name".to_owned()),
            ResponseCode::NoError => match self.doubt(&seen, earlier) {
                None => (Outcome::Answered, String::new()),
                Some(doubt) => {
                    self.note_reply(&reply, Outcome::Partial, elapsed, doubt.to_string());
                    return Ok(Heard::Records {
                        reply,
                        doubt: Some(doubt),
                    });
                }
            },
            code => (Outcome::Failed, format!("{code}")),
        };
        self.note_reply(&reply, outcome, elapsed, detail);
        Ok(match outcome {
            Outcome::Answered => Heard::Records { reply, doubt: None },
            Outcome::NotFound => Heard::Nothing { reply },
            _ => Heard::Failed,
        })
    }

    fn doubt(&self, seen: &Seen, earlier: Option<&Seen>) -> Option<Reason> {
        // Name servers other than Consul may answer ANY with whatever one set they
        // like (RFC 8482).
        if self.kind == RecordType::ANY && !seen.echoed {
            return Some(Reason::Forwarded);
        }
        if self.kind != RecordType::SRV {
            let whole = complete::holds_all(seen.truncated, seen.size, seen.limit);
            return (!whole).then_some(Reason::SizeLimit);
        }
        match complete::judge(seen) {
            Verdict::Whole => None,
            Verdict::Unproven(_) if earlier.is_some_and(|e| complete::second_opinion(e, seen)) => {
                None
            }
            Verdict::Cut(reason) | Verdict::Unproven(reason) => Some(reason),
        }
    }

    fn note_reply(&mut self, reply: &Reply, outcome: Outcome, elapsed: Duration, detail: String) {
        let count = reply.message.answers.len();
        self.note(reply.transport, outcome, elapsed, reply.size, count, detail);
    }

    fn note(
        &mut self,
        transport: Transport,
        outcome: Outcome,
        elapsed: Duration,
        received: usize,
        count: usize,
        detail: String,
    ) {
        self.attempts.push(Attempt {
            source: Source::Dns,
            address: self.server.name().into(),
            transport,
            outcome,
            elapsed,
            received,
            count,
            detail: detail.into(),
        });
    }
}

/// A TXT record that cutting would have removed. What is made anew after a cut has
/// one record at most for each target, the first of that name whatever its type: a
/// TXT record of a target, alone, may be that one.
fn has_proof(message: &Message) -> bool {
    let texts = message
        .additionals
        .iter()
        .filter(|record| record.record_type() == RecordType::TXT);
    let is_target = |name: &Name| {
        message
            .answers
            .iter()
            .any(|record| matches!(&record.data, RData::SRV(srv) if srv.target == *name))
    };
    let times = |name: &Name| {
        message
            .additionals
            .iter()
            .filter(|record| record.name == *name)
            .count()
    };
    // Where nothing was cut the first one proves it.
    let mut texts = texts.take(MOST_TEXTS);
    texts.any(|text| times(&text.name) > 1 || !is_target(&text.name))
}

fn seen(reply: &Reply) -> Seen {
    let message = &reply.message;
    let is = |kind| move |record: &&Record| record.record_type() == kind;
    Seen {
        transport: reply.transport,
        limit: reply.limit,
        size: reply.size,
        instances: message.answers.iter().filter(is(RecordType::SRV)).count(),
        text: has_proof(message),
        truncated: message.metadata.truncation,
        echoed: message
            .edns
            .as_ref()
            .is_some_and(|edns| edns.max_payload() == reply.advertised),
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::{SRV, TXT};

    use super::*;

    #[test]
    fn beyond_loopback_no_more_is_asked_for_than_a_datagram_carries_whole() {
        let servers = [
            "127.0.0.1:8600",
            "[::1]:8600",
            "10.0.0.1:53",
            "[2001:db8::1]:53",
        ];
        let servers = servers.map(|server| server.parse().unwrap());
        let source = DnsSource::new(&servers);
        let payloads: Vec<_> = source
            .servers
            .iter()
            .map(|server| payload(server.address))
            .collect();
        assert_eq!(payloads, [4_093, 4_093, 1_229, 1_229]);
    }

    #[tokio::test(start_paused = true)]
    async fn that_a_server_does_not_know_edns_is_remembered_for_a_quarter_of_an_hour() {
        let source = DnsSource::new(&["127.0.0.1:8600".parse().unwrap()]);
        let edns = &source.servers[0].edns;
        let query = Query::new("web.service.consul.", RecordType::SRV, 4_093).unwrap();
        let mut refusal = query.clone().without_edns().with_id(1);
        refusal[2..4].copy_from_slice(&[0x81, 1]);
        let reply = Reply {
            message: message::decode(&refusal).unwrap(),
            size: refusal.len(),
            limit: 4_093,
            advertised: 4_093,
            transport: Transport::Udp,
        };
        assert!(edns.is_known());
        assert!(edns.is_refused(&query, &reply));
        // Without EDNS it was wrong for another reason.
        assert!(!edns.is_refused(&query.without_edns(), &reply));
        for (minutes, knows) in [(14, false), (1, true)] {
            assert!(!edns.is_known());
            tokio::time::advance(Duration::from_secs(60 * minutes)).await;
            assert_eq!(edns.is_known(), knows, "{minutes}");
        }
    }

    /// If each text were compared with all the others, this would take minutes.
    #[test]
    fn texts_of_a_hundred_thousand_targets_prove_nothing_and_cost_little() {
        let mut message = Message::query();
        for at in 0..100_000_u32 {
            let name = Name::from_ascii(format!("n{at}.node.consul.")).unwrap();
            let srv = RData::SRV(SRV::new(1, 1, 80, name.clone()));
            message
                .answers
                .push(Record::from_rdata(name.clone(), 0, srv));
            let text = RData::TXT(TXT::new(vec!["a=b".to_owned()]));
            message.additionals.push(Record::from_rdata(name, 0, text));
        }
        assert!(!has_proof(&message));
        let twice = message.additionals[9].clone();
        message.additionals.push(twice);
        assert!(has_proof(&message));
    }
}
