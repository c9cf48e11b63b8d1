//! **Shell.** The HTTP rung: puts one question to an agent's catalog, address
//! after address as long as there is time.
//!
//! | told | outcome | next |
//! | --- | --- | --- |
//! | 200 with instances | answered; partial where some were left out | done |
//! | 200 with none; 404 to a query; 500 `No path to datacenter` | not found | done |
//! | 200 with none, results filtered by ACLs | denied | done |
//! | 401, 403 | denied | next address: one that lags behind may not know a token that is good |
//! | 400, 405, other 4xx | failed: asking elsewhere mends nothing | done |
//! | 429, 503 | throttled | next address |
//! | other 5xx, a redirect | failed | next address |
//! | refused; too late; no connection, TLS | refused; timeout; unreachable | next address |
//! | what cannot be read | malformed | next address |
//!
//! Addresses whose circuit is open are passed over. One that has said nothing for longer than
//! answers take has the next one beside it, and who knows first is believed.

pub(crate) mod reverse;

use std::{
    collections::VecDeque,
    fmt::Write as _,
    time::{Duration, Instant},
};

use crate::{
    air::Air,
    circuit::Asker,
    consul::{
        address::HttpAddress,
        blocking::Turn,
        health::{
            Read, Reading, Unread,
            ask::{self, Ask, Question},
        },
        http::{Agent, Head, LAST_CONTACT, Reply, Trouble, reading::Made},
    },
    endpoint::{Attempt, Outcome, Source, Transport},
    found::Found,
    source::circuits::{Asking, Circuits},
};

/// Addresses that are asked at the same time.
const BESIDE: usize = 2;

/// Where one address knows nothing, one that was asked before is given so long to know more.
const KNOWS_MORE: Duration = Duration::from_millis(150);

/// What a catalog told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    pub(crate) read: Read,
    /// The token may not see all of it.
    pub(crate) filtered_by_acls: bool,
    /// Whether the server that answered knew its leader.
    pub(crate) known_leader: Option<bool>,
    /// How long it had not heard of the leader.
    pub(crate) last_contact: Option<Duration>,
}

/// Why a catalog told nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    NotFound {
        /// Instances there are, with a critical check each.
        unhealthy: usize,
        /// False where the server knew no leader: it may have lost sight of what
        /// there is.
        confirmed: bool,
        /// `X-Consul-Index` of the reply.
        index: Option<u64>,
    },
    /// The token may not see it, with the agent's words.
    Denied(Box<str>),
    /// No address answered. The outcome and detail of the attempt that says most.
    Failed { outcome: Outcome, detail: Box<str> },
}

/// Asks the catalog until `deadline`. The attempts are in the order in which
/// they ended, whatever came of them, the one that counts last; none means that
/// there was no address or no time.
///
/// Cancel-safe: nothing but the requests is lost.
pub(crate) async fn ask(
    agent: &Agent,
    question: &Question<'_>,
    circuits: &Circuits,
    asker: Asker,
    deadline: Instant,
    now: impl Fn() -> Instant,
) -> (Result<Told, Miss>, Vec<Attempt>) {
    let path = ask::path(&question.ask, &question.place, question.reader);
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut left: VecDeque<usize> = circuits.admitted(asker.mode, now()).into();
    let mut air = Air::default();
    let (mut told, mut limit) = (None, deadline);
    loop {
        let start = now();
        if start >= limit {
            break;
        }
        let next = (air.len() < BESIDE).then(|| left.pop_front()).flatten();
        if let Some(at) = next {
            let asking = circuits
                .begin(at, asker, start)
                .zip(agent.addresses().nth(at));
            let Some((asking, address)) = asking else {
                continue;
            };
            air.ask(
                (asking, address),
                read_from(agent, question, address, &path, deadline - start),
                start,
            );
        } else if air.len() == 0 {
            break;
        }
        let until = match next {
            Some(last) if air.len() < BESIDE && !left.is_empty() => {
                let share = u32::try_from(left.len() + 1).unwrap_or(u32::MAX);
                start + circuits.hedge_of(last).min((limit - start) / share)
            }
            _ => limit,
        };
        let Some(((asking, address), asked, replied)) = air.hear(until).await else {
            continue;
        };
        let took = now().saturating_duration_since(asked);
        let (done, step) = heard_from(question, (asking, address, &path), replied, took);
        attempts.push(step);
        let waits = match done {
            None => continue,
            Some(Ok(found)) => {
                told = Some((Ok(found), asked, attempts.len() - 1));
                false
            }
            Some(Err(miss @ Miss::NotFound { .. })) => {
                told = Some((Err(miss), asked, attempts.len() - 1));
                air.oldest().is_some_and(|since| since < asked)
            }
            Some(Err(_)) => true,
        };
        if !waits {
            break;
        }
        // Nobody else is asked, and who was asked already may know more.
        left.clear();
        limit = limit.min(now() + KNOWS_MORE);
    }
    let end = now();
    let answer = told.as_ref().map(|(.., at)| attempts.remove(*at));
    for ((asking, address), since) in air.leave() {
        let (outcome, detail) = match end < deadline {
            true => (Outcome::Late, "another address was quicker".to_owned()),
            false => (Outcome::TimedOut, Trouble::TimedOut.to_string()),
        };
        if outcome == Outcome::TimedOut {
            asking.heard(outcome);
        } else if told.as_ref().is_some_and(|(_, asked, _)| since > *asked) {
            // Whoever was asked later than who answered is not slow.
            asking.unheard();
        }
        let took = end.saturating_duration_since(since);
        attempts.push(attempt(address, &path, outcome, took, detail.into()));
    }
    attempts.extend(answer);
    // Nothing there, says one; that we may not know, said another.
    if let Some((told, ..)) = told.filter(|(told, ..)| told.is_ok() || !is_denied(&attempts)) {
        return (told, attempts);
    }
    let telling = attempts
        .iter()
        .max_by_key(|attempt| telling(attempt.outcome));
    let miss = match telling {
        Some(attempt) if attempt.outcome == Outcome::Denied => Miss::Denied(attempt.detail.clone()),
        Some(attempt) => Miss::Failed {
            outcome: attempt.outcome,
            detail: attempt.detail.clone(),
        },
        None => Miss::Failed {
            outcome: Outcome::TimedOut,
            detail: "no time was left to ask".into(),
        },
    };
    (Err(miss), attempts)
}

/// Asks all addresses at once until `deadline`, and gives the first set that one of them tells
/// who heard of a leader not long ago: where nobody leads, one server may not know yet what
/// another one does.
///
/// Cancel-safe: nothing but the requests is lost.
pub(crate) async fn ask_each(
    agent: &Agent,
    question: &Question<'_>,
    circuits: &Circuits,
    asker: Asker,
    deadline: Instant,
    now: impl Fn() -> Instant,
) -> (Option<Told>, Vec<Attempt>) {
    let path = ask::path(&question.ask, &question.place, question.reader);
    let (start, mut attempts, mut air) = (now(), Vec::new(), Air::default());
    for at in circuits.admitted(asker.mode, start) {
        let asking = circuits.begin(at, asker, start);
        if let Some((asking, address)) = asking.zip(agent.addresses().nth(at)) {
            let reading = read_from(agent, question, address, &path, deadline - start);
            air.ask((asking, address), reading, start);
        }
    }
    while air.len() > 0 {
        let Some(((asking, address), asked, replied)) = air.hear(deadline).await else {
            break;
        };
        let took = now().saturating_duration_since(asked);
        let (done, step) = heard_from(question, (asking, address, &path), replied, took);
        attempts.push(step);
        if let Some(Ok(told)) = done.filter(is_recent) {
            return (Some(told), attempts);
        }
    }
    (None, attempts)
}

/// Whether it was told by a server that heard of a leader a moment ago: one that was cut off does
/// not know what was taken away since.
fn is_recent(told: &Result<Told, Miss>) -> bool {
    let since = told.as_ref().ok().and_then(|told| told.last_contact);
    since.is_none_or(|since| since <= LAST_CONTACT)
}

/// What one address said, and what is written down of it.
fn heard_from(
    question: &Question<'_>,
    (asking, address, path): (Asking<'_>, &HttpAddress, &str),
    replied: Result<Reply<Reading<'_>>, Trouble>,
    took: Duration,
) -> (Option<Result<Told, Miss>>, Attempt) {
    let received = replied.as_ref().map_or(0, |reply| reply.received);
    let heard = hear(question, replied);
    asking.heard(heard.outcome);
    let step = Attempt {
        received,
        count: heard.count,
        ..attempt(address, path, heard.outcome, took, heard.detail)
    };
    (heard.done, step)
}

/// A step that brought nothing.
fn attempt(
    address: &HttpAddress,
    path: &str,
    outcome: Outcome,
    elapsed: Duration,
    detail: Box<str>,
) -> Attempt {
    Attempt {
        source: Source::Http,
        address: format!("{address}{path}").into(),
        transport: Transport::Http,
        outcome,
        elapsed,
        received: 0,
        count: 0,
        detail,
    }
}

fn is_denied(attempts: &[Attempt]) -> bool {
    let mut outcomes = attempts.iter().map(|attempt| attempt.outcome);
    outcomes.any(|outcome| outcome == Outcome::Denied)
}

/// What a query that waited for a change came to.
#[derive(Debug)]
pub(crate) struct Blocked {
    pub(crate) told: Result<Told, Miss>,
    /// `X-Consul-Index` of the reply.
    pub(crate) index: Option<u64>,
    /// See [`Head::is_led`].
    pub(crate) led: bool,
    pub(crate) outcome: Outcome,
    /// The pause that was asked for.
    pub(crate) after: Option<Duration>,
}

/// Puts one question to the address of that place in the list, by a query that
/// waits for a change where `turn` has an index.
///
/// Cancel-safe: a dropped query closes its connection.
pub(crate) async fn block(
    agent: &Agent,
    question: &Question<'_>,
    address: usize,
    turn: &Turn,
) -> Blocked {
    let mut path = ask::path(&question.ask, &question.place, question.reader);
    if let Some(index) = turn.index {
        let _ = write!(path, "&index={index}&wait={}s", turn.wait.as_secs());
    }
    let replied = match agent.addresses().nth(address) {
        Some(address) => read_from(agent, question, address, &path, turn.limit).await,
        None => Err(Trouble::Config("there is no such address".into())),
    };
    let index = replied.as_ref().ok().and_then(|reply| reply.head.index);
    let led = replied.as_ref().is_ok_and(|reply| reply.head.is_led());
    let after = replied.as_ref().err().and_then(Trouble::after);
    let heard = hear(question, replied);
    let miss = || Miss::Failed {
        outcome: heard.outcome,
        detail: heard.detail.clone(),
    };
    let told = heard.done.unwrap_or_else(|| Err(miss()));
    Blocked {
        told,
        index,
        led,
        outcome: heard.outcome,
        after,
    }
}

/// One reply, judged.
struct Heard {
    outcome: Outcome,
    count: usize,
    detail: Box<str>,
    /// `None`: the next address may know more.
    done: Option<Result<Told, Miss>>,
}

impl Heard {
    fn done(outcome: Outcome, detail: Box<str>, told: Result<Told, Miss>) -> Self {
        Self {
            outcome,
            count: 0,
            detail,
            done: Some(told),
        }
    }

    fn next(outcome: Outcome, detail: impl Into<Box<str>>) -> Self {
        Self {
            outcome,
            count: 0,
            detail: detail.into(),
            done: None,
        }
    }
}

/// One request, and its reply as it is read.
async fn read_from<'q>(
    agent: &Agent,
    question: &'q Question<'q>,
    address: &HttpAddress,
    path: &str,
    limit: Duration,
) -> Result<Reply<Reading<'q>>, Trouble> {
    let begin = |head: &Head| Reading::new(question, head.translate_addresses);
    agent.get_into(address, path, limit, begin).await
}

impl Made for Reading<'_> {
    fn more(&mut self, bytes: &[u8]) {
        Reading::more(self, bytes);
    }
}

fn hear(question: &Question<'_>, replied: Result<Reply<Reading<'_>>, Trouble>) -> Heard {
    match replied {
        Ok(Reply { head, .. }) if head.status == 404 => match question.ask {
            Ask::Query { .. } => not_found(0, &head, "no such query".into()),
            _ => final_failure("status 404: the agent does not know this request".into()),
        },
        Ok(Reply { head, body, .. }) => match body.end() {
            Ok(read) => answered(read, &head),
            Err(Unread::NotFound { unhealthy }) => match (unhealthy, head.filtered_by_acls) {
                (0, true) => denied("the token may not see what there is".into()),
                (0, false) => not_found(0, &head, Box::default()),
                (1, _) => not_found(1, &head, "1 instance, which is critical".into()),
                (many, _) => {
                    let detail = format!("{many} instances, all critical");
                    not_found(many, &head, detail.into())
                }
            },
            Err(Unread::Malformed(why)) => Heard::next(Outcome::Malformed, why),
        },
        Err(trouble) => failed(trouble),
    }
}

fn failed(trouble: Trouble) -> Heard {
    let (outcome, detail): (_, Box<str>) = (trouble.outcome(), trouble.to_string().into());
    match trouble {
        Trouble::Denied(_) => Heard::next(outcome, detail),
        Trouble::Status {
            code: 500, text, ..
        } if text.contains("No path to datacenter") => {
            // The agent says that it knows no leader *there*.
            let miss = Miss::NotFound {
                unhealthy: 0,
                confirmed: true,
                index: None,
            };
            Heard::done(Outcome::NotFound, "no such datacenter".into(), Err(miss))
        }
        Trouble::Status { code, .. } if code < 500 && code != 429 => final_failure(detail),
        _ => Heard::next(outcome, detail),
    }
}

fn answered(read: Read, head: &Head) -> Heard {
    let mut details = Vec::new();
    if head.filtered_by_acls {
        details.push("the token may not see all of it".to_owned());
    }
    if let Some(reason) = &read.first_reason {
        details.push(format!("{} left out; {reason}", read.skipped));
    }
    let whole = details.is_empty();
    if head.known_leader == Some(false) {
        details.push("the server knows no leader".to_owned());
    }
    Heard {
        outcome: if whole {
            Outcome::Answered
        } else {
            Outcome::Partial
        },
        count: count(&read.found),
        detail: details.join("; ").into(),
        done: Some(Ok(Told {
            read,
            filtered_by_acls: head.filtered_by_acls,
            known_leader: head.known_leader,
            last_contact: head.last_contact,
        })),
    }
}

fn not_found(unhealthy: usize, head: &Head, detail: Box<str>) -> Heard {
    let miss = Miss::NotFound {
        unhealthy,
        confirmed: head.known_leader != Some(false),
        index: head.index,
    };
    Heard {
        count: unhealthy,
        ..Heard::done(Outcome::NotFound, detail, Err(miss))
    }
}

fn denied(detail: Box<str>) -> Heard {
    let miss = Miss::Denied(detail.clone());
    Heard::done(Outcome::Denied, detail, Err(miss))
}

fn final_failure(detail: Box<str>) -> Heard {
    let outcome = Outcome::Failed;
    let miss = Miss::Failed {
        outcome,
        detail: detail.clone(),
    };
    Heard::done(outcome, detail, Err(miss))
}

fn count(found: &Found) -> usize {
    match found {
        Found::Instances(instances) => instances.len(),
        Found::Host(_) => 1,
        Found::Pointers(names) => names.len(),
        Found::Servers(servers) => servers.len(),
    }
}

/// Of several that failed, who came nearest to an answer says most.
fn telling(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Refused => 0,
        Outcome::Unreachable => 1,
        Outcome::TimedOut => 2,
        Outcome::Malformed => 3,
        Outcome::Failed => 4,
        Outcome::Throttled => 5,
        Outcome::Answered
        | Outcome::Partial
        | Outcome::NotFound
        | Outcome::Late
        | Outcome::Skipped => 6,
        Outcome::Denied => 7,
    }
}

#[cfg(test)]
mod tests;
