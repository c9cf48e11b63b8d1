//! **Pure.** What was found, kept for as long as it holds. Time comes in as an
//! argument; the resolver's door owns the lock.
//!
//! | what | holds for |
//! | --- | --- |
//! | a set | its TTL, at least [`Limits::floor`], at most [`Limits::cap`] |
//! | "no such name" | its SOA's minimum (RFC 2308), within [`Limits::negative`] |
//! | a failure | not at all: it says nothing about the name |
//!
//! A set that is not known to be whole holds for the floor only, so that the next
//! look-up tries again for the rest. An NXDOMAIN covers its own name and nothing
//! below it: Consul's zone has no empty non-terminals, so RFC 8020 would cut off
//! every service.
//!
//! Bounded in entries and in bytes; what was not used for longest goes first.

use std::{
    borrow::Borrow,
    hash::Hash,
    num::NonZeroUsize,
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use lru::LruCache;

use crate::{
    endpoint::Endpoint,
    found::{Found, Held, Instance},
};

/// What bounds a cache.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Limits {
    pub(crate) entries: NonZeroUsize,
    pub(crate) bytes: usize,
    pub(crate) floor: Duration,
    pub(crate) cap: Duration,
    pub(crate) negative: RangeInclusive<Duration>,
}

/// What the cache holds of a name.
#[derive(Clone, Debug)]
pub(crate) enum Look {
    /// A set that still holds, and the time since it was found.
    Fresh(Arc<Held>, Duration),
    /// The name does not exist, as of not long ago.
    Nothing,
    /// Nothing that holds.
    Unknown,
}

#[derive(Debug)]
struct Entry {
    /// `None`: there is no such name.
    held: Option<Arc<Held>>,
    until: Instant,
    bytes: usize,
}

/// Sets by name.
#[derive(Debug)]
pub(crate) struct Cache<K: Hash + Eq> {
    entries: LruCache<K, Entry>,
    bytes: usize,
    limits: Limits,
}

impl<K: Hash + Eq> Cache<K> {
    pub(crate) fn new(limits: Limits) -> Self {
        // Not allocated ahead: a service that knows ten names pays for ten.
        Self {
            entries: LruCache::unbounded(),
            bytes: 0,
            limits,
        }
    }

    /// What holds at `now`. Serving moves an entry to the front and renews nothing.
    pub(crate) fn look<Q>(&mut self, name: &Q, now: Instant) -> Look
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        match self.entries.get(name) {
            Some(entry) if now < entry.until => match &entry.held {
                Some(held) => {
                    let age = now.saturating_duration_since(held.since);
                    Look::Fresh(Arc::clone(held), age)
                }
                None => Look::Nothing,
            },
            _ => Look::Unknown,
        }
    }

    /// Keeps a set, from the time when it was found.
    pub(crate) fn put(&mut self, name: K, held: Arc<Held>) {
        let Limits { floor, cap, .. } = self.limits;
        let holds = if held.complete {
            held.ttl.max(floor).min(cap)
        } else {
            floor
        };
        let bytes = size_of::<Entry>() + size_of::<K>() + weigh(&held);
        let until = held.since + holds;
        self.insert(
            name,
            Entry {
                held: Some(held),
                until,
                bytes,
            },
            holds,
        );
    }

    /// Keeps the word that there is no such name; `ttl` as its SOA says, `None`
    /// without one.
    pub(crate) fn put_nothing(&mut self, name: K, ttl: Option<Duration>, now: Instant) {
        let (least, most) = (*self.limits.negative.start(), *self.limits.negative.end());
        let holds = ttl.unwrap_or(least).clamp(least, most);
        let bytes = size_of::<Entry>() + size_of::<K>() + OVERHEAD;
        self.insert(
            name,
            Entry {
                held: None,
                until: now + holds,
                bytes,
            },
            holds,
        );
    }

    /// Names held, whether or not they still hold.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes held, reckoned.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn insert(&mut self, name: K, entry: Entry, holds: Duration) {
        // One set may not push out a cache full of others.
        if holds.is_zero() || entry.bytes > self.limits.bytes / 4 {
            self.forget(&name);
            return;
        }
        self.bytes += entry.bytes;
        if let Some((_, old)) = self.entries.push(name, entry) {
            self.bytes = self.bytes.saturating_sub(old.bytes);
        }
        while self.bytes > self.limits.bytes || self.entries.len() > self.limits.entries.get() {
            let Some((_, old)) = self.entries.pop_lru() else {
                break;
            };
            self.bytes = self.bytes.saturating_sub(old.bytes);
        }
    }

    fn forget(&mut self, name: &K) {
        if let Some(old) = self.entries.pop(name) {
            self.bytes = self.bytes.saturating_sub(old.bytes);
        }
    }
}

/// Bytes that the map itself, its links and the key's own text cost an entry,
/// rounded up.
const OVERHEAD: usize = 256;

/// Bytes that a set costs: what it points to, not only what it is.
fn weigh(held: &Held) -> usize {
    let instances = match &held.found {
        Found::Instances(instances) => instances.iter().map(weigh_instance).sum(),
        Found::Host(host) => {
            64 + host.text.iter().map(|text| text.len() + 16).sum::<usize>()
                + host.addresses.len() * 17
        }
        Found::Pointers(names) => names.iter().map(|name| name.len() + 16).sum(),
        Found::Servers(servers) => servers.iter().map(|(name, _)| name.len() + 96).sum(),
    };
    let warnings: usize = held.warnings.iter().map(|warning| warning.len() + 16).sum();
    OVERHEAD
        + size_of::<Held>()
        + held.name.len()
        + held.endpoints.len() * size_of::<Endpoint>()
        + instances
        + warnings
}

fn weigh_instance(instance: &Instance) -> usize {
    let facts = instance.facts.as_ref().map_or(0, |facts| {
        let meta = facts
            .meta
            .iter()
            .map(|(key, value)| key.len() + value.len() + 64);
        let tags = facts.tags.iter().map(|tag| tag.len() + 16);
        // The endpoint has a copy of them.
        2 * (64 + meta.sum::<usize>() + tags.sum::<usize>())
    });
    // The text of a node is shared by its instances; each pays for it all the same.
    let text = instance.text.as_ref().map_or(0, |text| {
        text.owner.len()
            + 64
            + text
                .strings
                .iter()
                .map(|string| string.len() + 16)
                .sum::<usize>()
    });
    size_of::<Instance>() + instance.target.len() + instance.addresses.len() * 17 + facts + text
}

#[cfg(test)]
mod tests;
