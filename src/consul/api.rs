//! **Shell.** Requests to an agent that are no look-up: lists of the catalog, settings,
//! certificates. Address after address, as long as that may help:
//!
//! | told | then |
//! | --- | --- |
//! | 2xx, 404 | that is the reply |
//! | 401, 403 | denied: asking elsewhere mends nothing |
//! | 400 and other 4xx but 429 | the caller's mistake |
//! | refused | the next address |
//! | anything else | the next address, unless it may have been done and must not be twice |

use std::{
    fmt::{self, Write as _},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tracing::debug;

use super::{
    blocking::{Blocking, Failure},
    health::ask::{add, escaped},
    http::{Agent, Reply, Trouble, Verb},
};
use crate::{
    clock,
    endpoint::{Attempt, Outcome, Source, Transport},
    error::{Error, ErrorKind},
    name::Locality,
};

/// After a failure the servers may be others, or have other data.
const SETTLING: Duration = Duration::from_secs(60);

/// A path of several segments, whose slashes stay.
pub(crate) fn segments(text: &str) -> String {
    text.split('/').map(escaped).collect::<Vec<_>>().join("/")
}

/// A place as it stands in a query, each part with `&` before.
pub(crate) fn place(home: &Locality) -> String {
    let mut query = String::new();
    add(
        &mut query,
        [
            ("dc", home.datacenter.as_deref()),
            ("ns", home.namespace.as_deref()),
            ("partition", home.partition.as_deref()),
        ],
    );
    query
}

/// Reads a reply about `what`.
pub(crate) fn json<'a, T: Deserialize<'a>>(what: &str, reply: &'a Reply) -> Result<T, Error> {
    serde_json::from_slice(&reply.body).map_err(|error| unread(what, &error))
}

/// A reply about `what` that cannot be read, and why.
pub(crate) fn unread(what: &str, why: &dyn fmt::Display) -> Error {
    let message = format!("{what}: the reply is not the JSON asked for: {why}");
    Error::new(ErrorKind::Unavailable, message)
}

/// A reply that shows nothing because the token may see nothing: whoever gave it has
/// denied it.
pub(crate) fn unseen(message: String, mut attempts: Vec<Attempt>) -> Error {
    if let Some(last) = attempts.last_mut() {
        last.outcome = Outcome::Denied;
    }
    Error::with_attempts(ErrorKind::Denied, message, attempts)
}

/// The requests of one resolver.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    agent: Arc<Agent>,
    /// For one request to one address.
    limit: Duration,
    /// Datacenter, namespace and partition, as they stand in a query, each with `&` before.
    place: Box<str>,
}

/// Whether a request that failed somewhere is put to another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    Safe,
    /// Only where it was not even taken.
    Unsafe,
}

impl Api {
    pub(crate) fn new(agent: Arc<Agent>, limit: Duration, place: Box<str>) -> Self {
        Self {
            agent,
            limit,
            place,
        }
    }

    /// Whether requests are about a namespace or a partition.
    pub(crate) fn is_in_a_namespace(&self) -> bool {
        self.place.contains("&ns=") || self.place.contains("&partition=")
    }

    /// The same, about what is in no namespace.
    pub(crate) fn anywhere(&self) -> Self {
        Self {
            place: Box::default(),
            ..self.clone()
        }
    }

    pub(crate) async fn get(&self, path: &str, what: &str) -> Result<Reply, Error> {
        self.ask(Verb::Get, path, what, Repeat::Safe).await
    }

    /// The same, and who was asked, in order: for a reply that may turn out to be a refusal.
    pub(crate) async fn get_from(
        &self,
        path: &str,
        what: &str,
    ) -> Result<(Reply, Vec<Attempt>), Error> {
        self.put_to(Verb::Get, path, what, Repeat::Safe).await
    }

    /// `path`: encoded, with a `?` in it. `what` it is about, for errors.
    ///
    /// Cancel-safe: what was sent may have been done.
    pub(crate) async fn ask(
        &self,
        verb: Verb,
        path: &str,
        what: &str,
        repeat: Repeat,
    ) -> Result<Reply, Error> {
        let (reply, _) = self.put_to(verb, path, what, repeat).await?;
        Ok(reply)
    }

    async fn put_to(
        &self,
        verb: Verb,
        path: &str,
        what: &str,
        repeat: Repeat,
    ) -> Result<(Reply, Vec<Attempt>), Error> {
        let path = format!("{path}{}", self.place);
        let mut attempts = Vec::new();
        let mut telling = None;
        for address in self.agent.addresses() {
            let start = clock::now();
            let replied = (self.agent)
                .send(address, verb.clone(), &path, self.limit)
                .await;
            let attempt = Attempt {
                source: Source::Http,
                address: format!("{address}{path}").into(),
                transport: Transport::Http,
                outcome: Outcome::Answered,
                elapsed: clock::took(start),
                received: 0,
                count: 0,
                detail: Box::default(),
            };
            let trouble = match replied {
                Ok(reply) => {
                    let received = reply.body.len();
                    attempts.push(Attempt {
                        received,
                        ..attempt
                    });
                    return Ok((reply, attempts));
                }
                Err(trouble) => trouble,
            };
            attempts.push(Attempt {
                outcome: trouble.outcome(),
                detail: trouble.to_string().into(),
                ..attempt
            });
            let (kind, next) = judge(&trouble, repeat);
            // Who does not answer says less than who refused, unless it may have done it.
            let tells_less = repeat == Repeat::Safe || matches!(trouble, Trouble::Refused);
            if !tells_less || !matches!(telling, Some((ErrorKind::Denied, _))) {
                telling = Some((kind, trouble));
            }
            if !next {
                break;
            }
        }
        Err(match telling {
            None => Error::new(
                ErrorKind::Invalid,
                format!(
                    "{what}: the HTTP API is turned off; give its address (CONSUL_HTTP_ADDR, --http)"
                ),
            ),
            Some((kind, trouble)) => {
                let whom: Vec<_> = attempts.iter().map(|one| &*one.address).collect();
                let mut message = format!("{what}: {trouble} (asked {})", whom.join(", "));
                if kind == ErrorKind::Denied {
                    message.push_str(
                        "; give a token that may: CONSUL_HTTP_TOKEN_FILE or --token-file",
                    );
                }
                Error::with_attempts(kind, message, attempts)
            }
        })
    }

    /// Whether there is nobody to ask.
    pub(crate) fn is_off(&self) -> bool {
        self.agent.addresses().len() == 0
    }

    /// Follows a path by blocking queries, for ever: `heard` is given each reply, and says
    /// whether it is news; and each failure. In the first minute, and in the minute after each
    /// failure, no query waits longer for news than `at_first`: an agent whose server comes back
    /// with other data hands the query that waits on to it, where the index that is waited for
    /// may be far away.
    ///
    /// Cancel-safe: a dropped query closes its connection.
    pub(crate) async fn follow(
        &self,
        path: &str,
        at_first: Option<Duration>,
        mut heard: impl FnMut(Result<Reply, Trouble>) -> bool,
    ) {
        let mut blocking = Blocking::new(clock::now());
        let mut unsettled = clock::now() + SETTLING;
        let mut turns = 0_usize;
        loop {
            blocking.wait(at_first.filter(|_| clock::now() < unsettled));
            let turn = blocking.turn(self.limit);
            clock::sleep_until(turn.due).await;
            let count = self.agent.addresses().len().max(1);
            let Some(address) = self.agent.addresses().nth(turns % count) else {
                heard(Err(Trouble::Config("the HTTP API is turned off".into())));
                return;
            };
            let mut path = format!("{path}{}", self.place);
            if let Some(index) = turn.index {
                let _ = write!(path, "&index={index}&wait={}s", turn.wait.as_secs());
            }
            let start = clock::now();
            let replied = tokio::select! {
                replied = self.agent.get(address, &path, turn.limit) => replied,
                () = clock::resumed() => {
                    blocking.again(clock::now());
                    continue;
                }
            };
            let now = clock::now();
            let dice = &mut clock::dice();
            match replied {
                Ok(reply) => {
                    let (index, led) = (reply.head.index, reply.head.is_led());
                    if !blocking.believes(index, led, now) {
                        debug!(%address, index, led, "older than what is known");
                        turns = turns.wrapping_add(1);
                        continue;
                    }
                    let news = heard(Ok(reply));
                    let took = clock::took(start);
                    if !blocking.answered(index, news, took, now, dice) {
                        blocking.again(later(now));
                    }
                }
                Err(trouble) => {
                    debug!(%address, %trouble, "not followed for now");
                    unsettled = now + SETTLING;
                    let failure = match trouble {
                        Trouble::Refused => Failure::Refused,
                        _ => Failure::Other,
                    };
                    blocking.failed(failure, None, now, dice);
                    turns = turns.wrapping_add(1);
                    heard(Err(trouble));
                }
            }
        }
    }
}

/// What cannot be followed is asked once a second.
fn later(now: Instant) -> Instant {
    now + Duration::from_secs(1)
}

/// What it means, and whether another address may do better.
fn judge(trouble: &Trouble, repeat: Repeat) -> (ErrorKind, bool) {
    let safe = repeat == Repeat::Safe;
    match trouble {
        Trouble::Refused => (ErrorKind::Unavailable, true),
        Trouble::TimedOut => (ErrorKind::Timeout, safe),
        // It did nothing, and may only not know the token yet.
        Trouble::Denied(_) => (ErrorKind::Denied, true),
        Trouble::Status { code, .. } if *code < 500 && *code != 429 => (ErrorKind::Invalid, false),
        Trouble::Config(_) => (ErrorKind::Invalid, false),
        Trouble::Status { .. }
        | Trouble::TooLarge
        | Trouble::Redirected(_)
        | Trouble::Tls(_)
        | Trouble::Transport(_) => (ErrorKind::Unavailable, safe),
    }
}
