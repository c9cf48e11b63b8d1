//! **Shell.** One question to one name server: over which transport, how often, and what
//! each attempt came to.
//!
//! The first question to a server goes over UDP, and so does every other while its
//! connection is closed or has questions waiting: Consul answers one question of a
//! connection after the other, so that a slow one would hold up the rest. What comes over a free
//! connection is not cut.
//!
//! | heard | then |
//! | --- | --- |
//! | a reply proven whole | done |
//! | a reply over UDP that may be cut | the same question over TCP |
//! | a reply over TCP that is roomy, without proof | once more over UDP, on loopback with room for 60 kB: two roomy replies prove each other |
//! | no such name | done |
//! | FORMERR or NOTIMP without an OPT record | the same question without EDNS, as all others for a quarter of an hour |
//! | refused, silent, SERVFAIL, unreadable | the next server; after the last the rung has failed |
//!
//! What may be cut and what proves the opposite is decided in [`crate::complete`].

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};
use tokio::time::error::Elapsed;

use super::{DnsSource, Edns, Heard, Reply, Trouble, message::Query};
use crate::{
    clock,
    complete::{self, Reason, Seen, Verdict},
    endpoint::{Attempt, Outcome, Source, Transport},
};

/// EDNS sizes, in bytes. Odd on purpose: Consul echoes a client's own number,
/// any name server between us and Consul says one of its own.
const LOOPBACK_PAYLOAD: u16 = 4_093;
const REMOTE_PAYLOAD: u16 = 1_229;
const ROOMY_PAYLOAD: u16 = 59_989;

/// After this long without a reply a second datagram is sent. A reply on loopback
/// takes less than a millisecond.
const FIRST_TRY: Duration = Duration::from_millis(100);

const NO_EDNS: &str = "does not know EDNS: asked again without it";

/// TXT records of one reply that are compared with all the others of it.
const MOST_TEXTS: usize = 16;

/// One server, as a round of questions sees it.
pub(super) trait Peer {
    fn address(&self) -> SocketAddr;

    /// The same as text.
    fn name(&self) -> &str;

    fn edns(&self) -> &Edns;

    /// Asks by a datagram and waits for the reply.
    async fn datagram(&self, query: &Query) -> Result<Reply, Trouble>;

    /// Asks over the connection and waits for the reply.
    async fn pipelined(&self, query: &Query) -> Result<Reply, Trouble>;

    /// Whether a datagram would wait for its turn.
    fn is_crowded(&self) -> bool;

    /// Whether the connection is open, and nobody waits for a reply on it.
    fn is_free(&self) -> bool;

    /// Opens the connection in the background.
    fn open_soon(&self);

    /// The connection stopped answering.
    fn give_up(&self);
}

/// One question to one server.
pub(super) struct Round<'a, P> {
    pub(super) source: &'a DnsSource,
    pub(super) server: &'a P,
    pub(super) name: &'a str,
    pub(super) kind: RecordType,
    pub(super) limit: Instant,
    pub(super) attempts: &'a mut Vec<Attempt>,
}

impl<P: Peer> Round<'_, P> {
    pub(super) async fn run(&mut self) -> Heard {
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
                Err(Trouble::Flooded | Trouble::Malformed | Trouble::Deaf) => {}
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
        let mut soon = self.limit.min(start + FIRST_TRY);
        let mut reply = clock::timeout_at(soon, &mut first).await;
        // It may not even be sent: a second one would wait behind it.
        while reply.is_err() && soon < self.limit && server.is_crowded() {
            soon = self.limit.min(soon + FIRST_TRY);
            reply = clock::timeout_at(soon, &mut first).await;
        }
        if reply.is_err() && soon < self.limit {
            // In a box, as all that is seldom: no question is to carry its room.
            reply = Box::pin(clock::timeout_at(self.limit, async {
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
        let reply = clock::timeout_at(until, exchange).await;
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
        let elapsed = clock::took(start);
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

/// Beyond loopback no datagram is to be sent in fragments (RFC 9715, section 3.1).
fn payload(server: SocketAddr) -> u16 {
    match server.ip().is_loopback() {
        true => LOOPBACK_PAYLOAD,
        false => REMOTE_PAYLOAD,
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
        let payloads = servers.map(|server| payload(server.parse().unwrap()));
        assert_eq!(payloads, [4_093, 4_093, 1_229, 1_229]);
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
