//! **Shell.** The rung that asks Consul's DNS interface: which servers there are, which of
//! them is asked next, and what is known of each. One question to one of them is
//! [`round`].
//!
//! What a reply means is decided in [`crate::records`]. A name that did not fit a datagram
//! is asked over TCP at once the next time.

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod line;
pub(crate) mod message;
mod round;
mod seats;
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
    rr::RecordType,
};

use self::{
    message::{Query, Strangers},
    round::{Peer, Round},
    tcp::Connection,
    udp::Datagrams,
};
use crate::{
    circuit::Asker,
    clock,
    complete::Reason,
    endpoint::{Attempt, Outcome, Source, Transport},
    source::circuits::Circuits,
};

/// A server that does not know EDNS is asked without it for so long.
const WITHOUT_EDNS: Duration = Duration::from_secs(15 * 60);
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
    /// Nothing was heard over its socket for long, and another one is used now.
    Deaf,
    /// More questions wait for this server than there are ids for.
    Crowded,
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
            Self::TimedOut | Self::Deaf => Outcome::TimedOut,
            Self::Closed | Self::NoQuestion | Self::Io(_) => Outcome::Unreachable,
            // The server is well.
            Self::Crowded => Outcome::Failed,
            Self::Malformed | Self::Flooded => Outcome::Malformed,
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Refused => "nothing listens there".to_owned(),
            Self::TimedOut | Self::Deaf => "no reply".to_owned(),
            Self::Closed => "the connection was closed before the reply".to_owned(),
            Self::Malformed => "the reply is not a DNS message".to_owned(),
            Self::Flooded => "too many datagrams that answer another question".to_owned(),
            Self::Crowded => "too many questions wait for it".to_owned(),
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
    datagrams: Datagrams,
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
        self.datagrams.exchange(query).await
    }

    async fn pipelined(&self, query: &Query) -> Result<Reply, Trouble> {
        self.connection.exchange(query).await
    }

    fn is_crowded(&self) -> bool {
        self.datagrams.are_crowded()
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
            datagrams: Datagrams::new(address, Arc::clone(&strangers)),
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
        let mut now = clock::now();
        let admitted = self.circuits.admitted(asker.mode, now);
        let servers = (admitted.iter())
            .filter_map(|&index| Some((index, self.servers.get(index)?)))
            .enumerate();
        for (asked, (index, server)) in servers {
            if now >= limit {
                break;
            }
            let Some(asking) = self.circuits.begin(index, asker, now) else {
                continue;
            };
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
            // In a box: one that is not too large is had at once.
            let heard = Box::pin(round.run()).await;
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
            now = clock::now();
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
