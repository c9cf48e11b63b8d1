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
    hash::{Hash, Hasher},
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

/// A name with what is known of it. The name of a set stands in the set itself,
/// beside the count of those who share it: a hit waits for memory once, not twice.
#[derive(Debug)]
enum Known {
    Set(Arc<Held>),
    /// There is no such name.
    Nothing(Box<str>),
}

#[derive(Debug)]
struct Entry {
    until: Instant,
    bytes: usize,
}

/// Sets by name, as [`ConsulName::key`](crate::name::ConsulName::key) writes it.
#[derive(Debug)]
pub(crate) struct Cache {
    entries: LruCache<Known, Entry>,
    bytes: usize,
    limits: Limits,
}

impl Borrow<str> for Known {
    fn borrow(&self) -> &str {
        match self {
            Self::Set(held) => &held.key,
            Self::Nothing(key) => key,
        }
    }
}

impl Hash for Known {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Borrow::<str>::borrow(self).hash(state);
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        Borrow::<str>::borrow(self) == Borrow::<str>::borrow(other)
    }
}

impl Eq for Known {}

impl Cache {
    pub(crate) fn new(limits: Limits) -> Self {
        // Not allocated ahead: a service that knows ten names pays for ten.
        Self {
            entries: LruCache::unbounded(),
            bytes: 0,
            limits,
        }
    }

    /// What holds at `now`. Serving moves an entry to the front and renews nothing.
    pub(crate) fn look(&mut self, key: &str, now: Instant) -> Look {
        match self.entries.get_key_value_mut(key) {
            Some((known, entry)) if now < entry.until => match known {
                Known::Set(held) => {
                    let age = now.saturating_duration_since(held.since);
                    Look::Fresh(Arc::clone(held), age)
                }
                Known::Nothing(_) => Look::Nothing,
            },
            _ => Look::Unknown,
        }
    }

    /// Keeps a set, from the time when it was found.
    pub(crate) fn put(&mut self, held: Arc<Held>) {
        let Limits { floor, cap, .. } = self.limits;
        let holds = if held.complete {
            held.ttl.max(floor).min(cap)
        } else {
            floor
        };
        let bytes = weigh(&held);
        let until = held.since + holds;
        self.insert(Known::Set(held), Entry { until, bytes }, holds);
    }

    /// Keeps the word that there is no such name; `ttl` as its SOA says, `None`
    /// without one.
    pub(crate) fn put_nothing(&mut self, key: &str, ttl: Option<Duration>, now: Instant) {
        let (least, most) = (*self.limits.negative.start(), *self.limits.negative.end());
        let holds = ttl.unwrap_or(least).clamp(least, most);
        let entry = Entry {
            until: now + holds,
            bytes: OVERHEAD + key.len(),
        };
        self.insert(Known::Nothing(key.into()), entry, holds);
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

    fn insert(&mut self, known: Known, entry: Entry, holds: Duration) {
        // The key of an entry is what is known: it is never left in place.
        self.forget(&known);
        // One set may not push out a cache full of others.
        if holds.is_zero() || entry.bytes > self.limits.bytes / 4 {
            return;
        }
        self.bytes += entry.bytes;
        self.entries.put(known, entry);
        while self.bytes > self.limits.bytes || self.entries.len() > self.limits.entries.get() {
            let Some((_, old)) = self.entries.pop_lru() else {
                break;
            };
            self.bytes = self.bytes.saturating_sub(old.bytes);
        }
    }

    fn forget(&mut self, known: &Known) {
        if let Some(old) = self.entries.pop(known) {
            self.bytes = self.bytes.saturating_sub(old.bytes);
        }
    }
}

/// Bytes that the map itself, its links and the texts of a name cost an entry,
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
