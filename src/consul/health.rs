//! **Pure.** The catalog's answer to a name: which request asks for it, and what
//! the reply's JSON says of it. The request is carried by
//! [`http`](crate::consul::http), the shape of one entry lives in `entry`, what they
//! are together in `entries`, the names of targets in `target`.
//!
//! An entry that cannot be read, or that belongs to something else than was
//! asked, is skipped and counted; more than one such in ten, and the whole reply
//! is not believed. An entry that is whole but has an address where nobody can
//! connect is skipped and counted, and costs the others nothing.
//!
//! A reply is [read](Reading) as it comes: of a list of instances no more than one entry is held,
//! beside what was made of those before.

// What comes from outside is read here: nothing that it says may end in a panic.
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

pub(crate) mod ask;
mod entries;
mod entry;
mod list;
pub(crate) mod reverse;
pub(crate) mod target;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;

use self::{
    ask::{Ask, Question},
    entries::Entries,
    entry::Node,
    list::{List, is_space},
    target::{Registered, registered},
};
use crate::found::{Found, Host};

/// What a reply told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Read {
    pub(crate) found: Found,
    /// Entries left out, though healthy, because they could not be used.
    pub(crate) skipped: usize,
    /// Why the first of them was.
    pub(crate) first_reason: Option<Box<str>>,
    /// The time to live that a prepared query sets.
    pub(crate) ttl: Option<Duration>,
    /// What a prepared query found instances of.
    pub(crate) service: Option<Box<str>>,
    /// The datacenter that answered, where the reply says it.
    pub(crate) datacenter: Option<Box<str>>,
}

/// Why a reply gives nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// There is no such name, or nothing healthy behind it: so many instances
    /// have a critical check.
    NotFound { unhealthy: usize },
    /// The reply is not what was asked for.
    Malformed(Box<str>),
}

/// Reads the body of a reply with status 200, as it comes.
pub(crate) struct Reading<'q> {
    list: List,
    entries: Entries<'q>,
    /// What is no list of entries is read when all of it is there, from its first sign on.
    whole: Vec<u8>,
}

impl<'q> Reading<'q> {
    /// `translated` is what the agent's `X-Consul-Translate-Addresses` said.
    pub(crate) fn new(question: &'q Question<'q>, translated: bool) -> Self {
        Self {
            list: List::default(),
            entries: Entries::new(question, translated),
            whole: Vec::new(),
        }
    }

    /// The next piece.
    pub(crate) fn more(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        if !self.list.is_begun() && self.whole.is_empty() {
            let first = bytes.iter().position(|byte| !is_space(*byte));
            bytes = bytes
                .get(first.unwrap_or(bytes.len())..)
                .unwrap_or_default();
        }
        let begins = || self.whole.is_empty() && bytes.first() == Some(&b'[');
        if self.entries.question.ask.is_listed() && (self.list.is_begun() || begins()) {
            let entries = &mut self.entries;
            self.list.more(bytes, |element| entries.element(element));
        } else {
            self.whole.extend_from_slice(bytes);
        }
    }

    /// What all of it told.
    pub(crate) fn end(self) -> Result<Read, Unread> {
        let Self {
            list,
            mut entries,
            whole,
        } = self;
        let question = entries.question;
        if list.is_begun() {
            list.end().map_err(not_json)?;
            return entries.end();
        }
        match question.ask {
            Ask::Service { .. } | Ask::Connect { .. } | Ask::Ingress { .. } | Ask::Servers => {
                // No list: `null` is an empty one.
                let _: Option<Vec<IgnoredAny>> = json(&whole)?;
                entries.end()
            }
            Ask::Query { .. } => {
                let reply: Option<Executed<'_>> = object(&whole)?;
                let reply = reply.ok_or(Unread::NotFound { unhealthy: 0 })?;
                entries.answered = reply.datacenter.filter(|name| !name.is_empty());
                for raw in reply.nodes.unwrap_or_default() {
                    entries.entry(raw.get());
                }
                let mut read = entries.end()?;
                read.ttl = reply.dns.and_then(|dns| go_duration(dns.ttl.as_deref()?));
                read.service = reply.service;
                Ok(read)
            }
            Ask::Node { name } => node(name, &whole),
            Ask::Reverse { ip } => {
                let found = reverse::node(&whole, ip, question.domain);
                let found = found.map_err(|why| Unread::Malformed(why.into()))?;
                let name = found.ok_or(Unread::NotFound { unhealthy: 0 })?;
                Ok(pointer(name))
            }
        }
    }
}

/// The reply to a prepared query.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Executed<'a> {
    #[serde(borrow, default)]
    nodes: Option<Vec<&'a RawValue>>,
    #[serde(rename = "DNS", default)]
    dns: Option<ExecutedDns>,
    #[serde(default)]
    datacenter: Option<Box<str>>,
    #[serde(default)]
    service: Option<Box<str>>,
}

#[derive(Deserialize)]
struct ExecutedDns {
    #[serde(rename = "TTL", default)]
    ttl: Option<Box<str>>,
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Unread> {
    serde_json::from_slice(body).map_err(|error| match body.trim_ascii_start().first() {
        None => Unread::Malformed("the reply is empty".into()),
        Some(b'<') => Unread::Malformed("the reply is a web page, not JSON".into()),
        Some(_) => not_json(&error.to_string()),
    })
}

fn not_json(why: &str) -> Unread {
    Unread::Malformed(format!("the reply is not the JSON asked for: {why}").into())
}

/// An object or `null`. Serde would take a list for a struct too, and an empty
/// one for an empty answer.
fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<Option<T>, Unread> {
    match body.trim_ascii_start().first() {
        Some(b'[') => Err(Unread::Malformed(
            "the reply is a list, not an object".into(),
        )),
        _ => json(body),
    }
}

fn node(name: &str, body: &[u8]) -> Result<Read, Unread> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Catalogued {
        #[serde(default)]
        node: Option<Node>,
    }
    let reply: Option<Catalogued> = object(body)?;
    let node = reply.and_then(|reply| reply.node);
    let node = node.ok_or(Unread::NotFound { unhealthy: 0 })?;
    let malformed = |why: &str| Unread::Malformed(why.into());
    if !node.node.eq_ignore_ascii_case(name) {
        let told = node.node.escape_debug();
        return Err(malformed(&format!(
            "node {told} where another was asked for"
        )));
    }
    let address = node
        .address()
        .ok_or_else(|| malformed("the node has no address"))?;
    let mut host = Host {
        text: node.strings(),
        ..Host::default()
    };
    match registered(address).map_err(|why| malformed(&why))? {
        Registered::Ip(ip) => host.addresses.push(ip),
        Registered::Host(alias) => host.alias = Some(alias.into()),
    }
    Ok(Read {
        found: Found::Host(host),
        skipped: 0,
        first_reason: None,
        ttl: None,
        service: None,
        datacenter: node.datacenter().map(Into::into),
    })
}

/// The name that an address leads to.
fn pointer(name: String) -> Read {
    Read {
        found: Found::Pointers(vec![name.into()]),
        skipped: 0,
        first_reason: None,
        ttl: None,
        service: None,
        datacenter: None,
    }
}

/// A duration as Go writes it: `25s`, `1m30s`, `1.5h`, `0`. Nothing that is
/// negative, and nothing longer than DNS carries.
pub(super) fn go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    let mut rest = text;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let (unit, scale) = UNITS.iter().find(|(unit, _)| after.starts_with(unit))?;
        seconds += number.parse::<f64>().ok()? * scale;
        rest = after.strip_prefix(unit)?;
        if rest.is_empty() {
            let longest = f64::from(i32::MAX);
            return (seconds <= longest).then(|| Duration::from_secs_f64(seconds));
        }
    }
}
