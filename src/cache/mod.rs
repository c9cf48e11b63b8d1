//! **Pure.** What was found, kept for as long as it holds. Time comes in as an
//! argument; the resolver's door owns the lock.
//!
//! | what | holds for |
//! | --- | --- |
//! | a set | its TTL, at least [`Limits::floor`], at most [`Limits::cap`] |
//! | "no such name" | its SOA's minimum (RFC 2308), within [`Limits::negative`] |
//! | a failure | not at all: it says nothing about the name |
//! | a set that holds no more | is kept as stale for [`Limits::keep`] from when it was found; [`stale`] says who is given it |
//! | a set that is asked for in the last eighth to quarter of its time, at most twice [`MOST_AHEAD`](ahead::MOST_AHEAD) | is given, and asked for anew beside that |
//! | a set that is followed by events | until its follower says otherwise, for as long as [followers live](Cache::followers_live) |
//!
//! A set that is not known to be whole holds for the floor only, so that the next
//! look-up tries again for the rest. An NXDOMAIN covers its own name and nothing
//! below it: Consul's zone has no empty non-terminals, so RFC 8020 would cut off
//! every service.
//!
//! Bounded in entries and in bytes; what was not used for longest goes first. Names that
//! do not exist have a sixteenth of the bytes for themselves, and never push out a set.

mod ahead;
mod entry;
pub(crate) mod fate;
pub(crate) mod stale;
mod was;
mod weight;

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
    num::NonZeroUsize,
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use lru::LruCache;

pub(crate) use self::{
    ahead::ahead,
    was::{Before, Was},
};
use self::{
    entry::{Entry, Rare},
    fate::Term,
    weight::{OVERHEAD, weigh},
};
use crate::{
    endpoint::{Freshness, Source},
    found::{Found, Held},
};

/// Whoever follows names is heard of once a second. Without word for so long they may not have
/// run: a process that was stopped knows nothing of the time in between.
pub(crate) const ALIVE: Duration = Duration::from_secs(3);

/// What bounds a cache.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Limits {
    pub(crate) entries: NonZeroUsize,
    pub(crate) bytes: usize,
    pub(crate) floor: Duration,
    pub(crate) cap: Duration,
    pub(crate) negative: RangeInclusive<Duration>,
    /// How old a stale set may become. 0: none is kept.
    pub(crate) keep: Duration,
}

/// What the cache holds of a name.
#[derive(Clone, Debug)]
pub(crate) enum Look {
    /// A set that still holds, the time since it was found, and whether the sources are to
    /// be asked beside.
    Fresh(Arc<Held>, Duration, Rest),
    /// A set that holds no more, the time since a source gave it, and whether the
    /// sources are to be asked again.
    Stale(Arc<Held>, Duration, Rest),
    /// The name does not exist, as of not long ago.
    Nothing,
    /// Nothing that holds.
    Unknown,
}

/// How often what is known of a name was given by who does not ask here each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hits {
    pub(crate) fresh: u32,
    /// Marked as stale.
    pub(crate) stale: u32,
}

/// Whether a set is to be asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    Due,
    /// Beside whoever is given it, who does not wait: it holds for a little while yet, or it
    /// was asked for in vain not long ago. Once: see [`Cache::renews`].
    Aside,
    /// It holds, or it was asked for in vain just now.
    Resting,
}

/// A name with what is known of it. The name of a set stands in the set itself,
/// beside the count of those who share it: a hit waits for memory once, not twice.
#[derive(Debug)]
enum Known {
    Set(Arc<Held>),
    /// There is no such name.
    Nothing(Box<str>),
}

/// Sets by name, as [`ConsulName::key`](crate::name::ConsulName::key) writes it.
#[derive(Debug)]
pub(crate) struct Cache {
    entries: LruCache<Known, Entry>,
    /// Names that do not exist, apart and with room of their own: whoever asks for
    /// thousands of them pushes out no set.
    nothing: LruCache<Known, Entry>,
    nothing_bytes: usize,
    /// Fresh sets given, by source.
    hits: [u64; 4],
    bytes: usize,
    limits: Limits,
    /// Until then those who follow names are known to live.
    alive: Option<Instant>,
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

impl Drop for Cache {
    fn drop(&mut self) {
        self.end();
    }
}

impl Cache {
    pub(crate) fn new(limits: Limits) -> Self {
        // Not allocated ahead: a service that knows ten names pays for ten.
        Self {
            entries: LruCache::unbounded(),
            nothing: LruCache::unbounded(),
            nothing_bytes: 0,
            hits: [0; 4],
            bytes: 0,
            limits,
            alive: None,
        }
    }

    /// What is known at `now`. Serving renews nothing; once the cache is half full it
    /// moves an entry to the front.
    pub(crate) fn look(&mut self, key: &str, now: Instant) -> Look {
        // Relinking touches four more places in memory: it waits until there is a need.
        let roomy = self.bytes < self.limits.bytes / 2
            && self.entries.len() < self.limits.entries.get() / 2;
        let entry = if roomy {
            self.entries.peek_mut(key)
        } else {
            self.entries.get_mut(key)
        };
        let Some(entry) = entry else {
            let nothing = self.nothing.get(key);
            return match nothing.is_some_and(|entry| now < entry.until && entry.since < entry.until)
            {
                true => Look::Nothing,
                false => Look::Unknown,
            };
        };
        if now >= entry.until {
            entry.until = entry.until(self.alive);
        }
        // A clock that is a tick behind must not make something of no time at all.
        let holds = now < entry.until && entry.since < entry.until;
        let Some(held) = &entry.set else {
            return Look::Unknown;
        };
        let age = now.saturating_duration_since(entry.since);
        if holds {
            self.hits[held.source as usize] += 1;
            entry.asked = entry.asked.saturating_add(1);
            // Who asks once may not come back.
            let ageing = now >= entry.renew && entry.asked > 1;
            let rest = if ageing { Rest::Aside } else { Rest::Resting };
            Look::Fresh(Arc::clone(held), age, rest)
        } else if age < self.limits.keep {
            let rest = match entry.rare.as_ref().and_then(|rare| rare.again) {
                Some((again, _)) if now < again => Rest::Resting,
                Some((_, aside)) if now < aside => Rest::Aside,
                _ => Rest::Due,
            };
            Look::Stale(Arc::clone(held), age, rest)
        } else {
            Look::Unknown
        }
    }

    /// Keeps a set, from the time when it was found. Gives what was known before.
    pub(crate) fn put(&mut self, held: Arc<Held>, since: Instant) -> Was {
        let Limits { floor, cap, .. } = self.limits;
        let holds = if held.complete {
            held.ttl.max(floor).min(cap)
        } else {
            floor
        };
        let until = since + holds;
        let renew = until - ahead(&held.key, holds);
        self.put_set(held, since, (until, renew), None)
    }

    /// Keeps a set that is followed `now`: it holds until then.
    pub(crate) fn put_followed(
        &mut self,
        held: Arc<Held>,
        since: Instant,
        until: Instant,
        now: Instant,
    ) -> Was {
        let holds = until.min(now + self.alive_for());
        self.put_set(held, since, (holds, until), Some(until))
    }

    /// Those who follow names have run until now: what they said holds on.
    pub(crate) fn followers_live(&mut self, now: Instant) {
        self.alive = Some(now + self.alive_for());
    }

    /// Who wants no question before the floor has its time.
    fn alive_for(&self) -> Duration {
        ALIVE.max(self.limits.floor)
    }

    fn put_set(
        &mut self,
        held: Arc<Held>,
        since: Instant,
        (until, renew): (Instant, Instant),
        followed: Option<Instant>,
    ) -> Was {
        // Whether a name goes on being followed is asked of the time since that was last asked.
        let asked = followed.map_or(0, |_| self.take_asked(&held.key));
        let before = self.set(&held.key);
        let was_nothing = self.nothing.contains(&*held.key);
        let shrunk = before.as_ref().and_then(|(before, shrunk)| {
            let lost = before.found.len() > held.found.len();
            if lost { Some(since) } else { *shrunk }
        });
        let fate = (self.entries.peek_mut(&*held.key)).and_then(Entry::fate);
        let entry = Entry {
            until,
            renew,
            since,
            bytes: weigh(&held),
            asked,
            set: None,
            rare: (shrunk.or(followed)).map(|_| {
                Box::new(Rare {
                    shrunk,
                    followed,
                    ..Rare::default()
                })
            }),
        };
        self.insert(Known::Set(held), entry);
        match before {
            Some((held, _)) => Was::Set(Before { held, fate }),
            None if was_nothing => Was::Nothing,
            None => Was::Unknown,
        }
    }

    /// Keeps a set of before, as stale; one that is known already wins. Whether it is kept.
    pub(crate) fn restore(&mut self, held: Arc<Held>, since: Instant) -> bool {
        let is_new = !self.entries.contains(&*held.key);
        if is_new {
            let entry = Entry {
                until: since,
                renew: since,
                since,
                bytes: weigh(&held),
                asked: 0,
                set: None,
                rare: None,
            };
            self.insert(Known::Set(held), entry);
        }
        is_new
    }

    /// Keeps the word that there is no such name; `ttl` as its SOA says, `None`
    /// without one. Gives the set that it had, and since when it was known.
    pub(crate) fn put_nothing(
        &mut self,
        key: &str,
        ttl: Option<Duration>,
        now: Instant,
    ) -> Option<(Arc<Held>, Instant)> {
        let before = self.entries.peek(key);
        let before = before.and_then(|entry| Some((entry.set.clone()?, entry.since)));
        let (least, most) = (*self.limits.negative.start(), *self.limits.negative.end());
        let holds = ttl.unwrap_or(least).clamp(least, most);
        let until = now + holds;
        let entry = Entry {
            until,
            renew: until,
            since: now,
            bytes: OVERHEAD + key.len(),
            asked: 0,
            set: None,
            rare: None,
        };
        self.insert(Known::Nothing(key.into()), entry);
        before
    }

    /// The same, said to whoever follows the name.
    pub(crate) fn put_followed_nothing(
        &mut self,
        key: &str,
        ttl: Option<Duration>,
        now: Instant,
    ) -> Option<(Arc<Held>, Instant)> {
        let before = self.put_nothing(key, ttl, now);
        if let Some(entry) = self.nothing.peek_mut(key) {
            entry.rare().followed = Some(entry.until);
        }
        before
    }

    /// The source of a name that is followed `now` says that nothing changed since then.
    /// False: it is not that set which is known now.
    pub(crate) fn confirm(
        &mut self,
        key: &str,
        held: &Arc<Held>,
        (since, until): (Instant, Instant),
        now: Instant,
    ) -> bool {
        let holds = until.min(now + self.alive_for());
        match self.entries.peek_mut(key) {
            Some(entry) if entry.set.as_ref().is_some_and(|set| Arc::ptr_eq(set, held)) => {
                (entry.since, entry.until, entry.renew) = (since, holds, until);
                entry.rare().followed = Some(until);
                true
            }
            _ => false,
        }
    }

    /// What the follower of a name was told later than `asked`: who was asked then may say what
    /// was before. A set of it holds.
    pub(crate) fn told_since(&self, key: &str, asked: Instant, now: Instant) -> Option<Look> {
        let entry = (self.entries.peek(key)).or_else(|| self.nothing.peek(key))?;
        entry.followed()?;
        match &entry.set {
            _ if entry.since < asked => None,
            Some(held) => {
                let age = now.saturating_duration_since(entry.since);
                let look = Look::Fresh(Arc::clone(held), age, Rest::Resting);
                (now < entry.until(self.alive)).then_some(look)
            }
            None => Some(Look::Nothing),
        }
    }

    /// When a source last gave just this of a name, if that is what is known of it.
    pub(crate) fn known_since(&self, key: &str, found: &Found) -> Option<Instant> {
        let entry = self.entries.peek(key)?;
        let set = entry.set.as_ref()?;
        (set.found == *found).then_some(entry.since)
    }

    /// A refresh of the name failed: none is due before then. Whether none had failed lately.
    pub(crate) fn rest(&mut self, key: &str, now: Instant, until: Instant) -> bool {
        let Some(entry) = self.entries.peek_mut(key) else {
            return false;
        };
        let again = &mut entry.rare().again;
        let is_first = again.is_none_or(|(_, aside)| aside <= now);
        *again = Some((until, until + stale::LATELY));
        is_first
    }

    /// Whether whoever was told to ask [aside](Rest::Aside) is the one who does. Of a set that
    /// holds no more nobody is told so again before `rest`.
    pub(crate) fn renews(&mut self, key: &str, now: Instant, rest: Instant) -> bool {
        let Some(entry) = self.entries.peek_mut(key) else {
            return false;
        };
        if now < entry.until {
            let renews = now >= entry.renew;
            if renews {
                entry.renew = entry.until;
            }
            return renews;
        }
        match &mut entry.rare().again {
            // What comes of it says more; nobody waits no longer for it.
            Some((again, _)) if now >= *again => *again = rest,
            _ => return false,
        }
        true
    }

    /// Others may know what is said of the name now: a refresh is due at once.
    pub(crate) fn wake(&mut self, key: &str) {
        if let Some(entry) = self.entries.peek_mut(key) {
            entry.rare().again = None;
        }
    }

    /// How long what is known of a name may be given without asking again. `held`: the set
    /// that is meant; `None`: that there is no such name.
    pub(crate) fn hold(&mut self, key: &str, held: Option<&Arc<Held>>) -> Option<Term> {
        let keep = held.map_or(Duration::ZERO, |_| self.limits.keep);
        let entry = match held {
            Some(held) => {
                let entry = self.entries.get_mut(key)?;
                entry.until = entry.until(self.alive);
                let set = entry.set.as_ref();
                set.is_some_and(|set| Arc::ptr_eq(set, held))
                    .then_some(entry)?
            }
            None => self.nothing.get_mut(key)?,
        };
        let fate = entry.rare().fate.get_or_insert_default().clone();
        Some(Term {
            // Whoever gives it on looks here in time.
            until: entry.until.min(entry.renew),
            kept: entry.until.max(entry.since + keep),
            fate: Some(fate),
        })
    }

    /// A name was given so often by whoever [holds](Self::hold) it. Gives the source of the set:
    /// what was given of it as stale is not counted here.
    pub(crate) fn served(&mut self, key: &str, given: Hits) -> Option<Source> {
        let entry = self.entries.get_mut(key)?;
        entry.asked = (entry.asked.saturating_add(given.fresh)).saturating_add(given.stale);
        let source = entry.set.as_ref()?.source;
        self.hits[source as usize] += u64::from(given.fresh);
        Some(source)
    }

    /// How often a name was given since it was put, or since this was asked.
    pub(crate) fn take_asked(&mut self, key: &str) -> u32 {
        let asked = self.entries.peek_mut(key).map(|entry| &mut entry.asked);
        asked.map(std::mem::take).unwrap_or_default()
    }

    /// Whoever gives on what stands here looks anew where it is known.
    pub(crate) fn end(&mut self) {
        let sets = self.entries.iter_mut();
        for (_, entry) in sets.chain(self.nothing.iter_mut()) {
            entry.end();
        }
    }

    /// Takes over the sets of another cache, which stays as it is. Nobody follows them here
    /// yet: they hold for the floor at most.
    pub(crate) fn take_over(&mut self, other: &Self, now: Instant) {
        let longest = now + self.limits.floor;
        // What was used last comes last, and stays.
        for (known, entry) in other.entries.iter().rev() {
            let Known::Set(held) = known else { continue };
            let shrunk = entry.shrunk().map(|when| Rare {
                shrunk: Some(when),
                ..Rare::default()
            });
            let taken = Entry {
                until: entry.until(other.alive).min(longest),
                renew: entry.renew.min(longest),
                set: None,
                rare: shrunk.map(Box::new),
                ..*entry
            };
            self.insert(Known::Set(Arc::clone(held)), taken);
        }
    }

    /// What is known of a name holds no longer.
    pub(crate) fn expire(&mut self, key: &str, now: Instant) {
        let sets = self.entries.peek_mut(key).into_iter();
        for entry in sets.chain(self.nothing.peek_mut(key)) {
            entry.end_by(now, self.alive);
            entry.end();
        }
    }

    /// Whether the set of a name lost instances within `window` before `now`.
    pub(crate) fn shrank_within(&self, key: &str, window: Duration, now: Instant) -> bool {
        (self.entries.peek(key)).is_some_and(|entry| entry.shrank_within(window, now))
    }

    /// The full names of up to `most` sets that count, used last first; without those that
    /// lost instances within `window`: they may be on their way out.
    pub(crate) fn others(
        &self,
        most: usize,
        window: Duration,
        now: Instant,
        counts: impl Fn(&str) -> bool,
    ) -> Vec<Box<str>> {
        let others = self
            .entries
            .iter()
            .filter_map(|(known, entry)| match known {
                Known::Set(held) if counts(&held.key) && !entry.shrank_within(window, now) => {
                    let age = now.saturating_duration_since(entry.since);
                    (age < self.limits.keep).then(|| held.name.clone())
                }
                Known::Set(_) | Known::Nothing(_) => None,
            });
        others.take(most).collect()
    }

    /// All sets that are not too old to be given, with their age.
    pub(crate) fn sets(&self, now: Instant) -> impl Iterator<Item = (&Arc<Held>, Duration)> {
        let keep = self.limits.keep;
        self.entries.iter().filter_map(move |(known, entry)| {
            let age = now.saturating_duration_since(entry.since);
            match known {
                Known::Set(held) if age < keep => Some((held, age)),
                Known::Set(_) | Known::Nothing(_) => None,
            }
        })
    }

    /// The same, and whether each would be given without asking again.
    pub(crate) fn list(
        &self,
        now: Instant,
    ) -> impl Iterator<Item = (&Arc<Held>, Duration, Freshness)> {
        let keep = self.limits.keep;
        self.entries.iter().filter_map(move |(known, entry)| {
            let age = now.saturating_duration_since(entry.since);
            let until = entry.until(self.alive);
            let freshness = match now < until {
                true => Freshness::Fresh,
                false => Freshness::Stale,
            };
            match known {
                Known::Set(held) if age < keep || now < until => Some((held, age, freshness)),
                Known::Set(_) | Known::Nothing(_) => None,
            }
        })
    }

    /// Names known, whether or not what is known of them still holds.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() + self.nothing.len()
    }

    /// Fresh sets given, by source in the order in which [`Source`] lists them.
    ///
    /// [`Source`]: crate::endpoint::Source
    pub(crate) fn hits(&self) -> [u64; 4] {
        self.hits
    }

    /// Counts on from those of another cache.
    pub(crate) fn count_on(&mut self, hits: [u64; 4]) {
        self.hits = hits;
    }

    /// Names that have a set, whether or not it still holds.
    pub(crate) fn sets_held(&self) -> usize {
        self.entries.len()
    }

    /// Bytes used, reckoned.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.nothing_bytes
    }

    /// The set of a name, and when it last lost instances.
    fn set(&mut self, key: &str) -> Option<(Arc<Held>, Option<Instant>)> {
        match self.entries.get_key_value_mut(key) {
            Some((Known::Set(held), entry)) => Some((Arc::clone(held), entry.shrunk())),
            _ => None,
        }
    }

    fn insert(&mut self, known: Known, entry: Entry) {
        let most = self.limits.entries.get();
        // One set may not push out a cache full of others. What was known before it stays, to
        // be given as stale.
        if let Known::Set(held) = &known
            && entry.bytes > self.limits.bytes / LARGEST
        {
            if let Some(before) = self.entries.peek_mut(&*held.key) {
                before.end_by(entry.since, self.alive);
                before.end();
            }
            if let Some((known, mut nothing)) = self.nothing.pop_entry(&known) {
                self.left(&known, &mut nothing);
            }
            return;
        }
        // The key of an entry is what is known: it is never left in place.
        self.forget(&known);
        let Known::Set(held) = &known else {
            self.nothing_bytes += entry.bytes;
            self.nothing.put(known, entry);
            while (self.nothing_bytes > self.limits.bytes / NOTHING || self.nothing.len() > most)
                && let Some((known, mut old)) = self.nothing.pop_lru()
            {
                self.left(&known, &mut old);
            }
            return;
        };
        let set = Some(Arc::clone(held));
        self.bytes += entry.bytes;
        self.entries.put(known, Entry { set, ..entry });
        while (self.bytes > self.limits.bytes || self.entries.len() > most)
            && let Some((known, mut old)) = self.entries.pop_lru()
        {
            self.left(&known, &mut old);
        }
    }

    fn forget(&mut self, known: &Known) {
        let sets = self.entries.pop_entry(known).into_iter();
        for (known, mut old) in sets.chain(self.nothing.pop_entry(known)) {
            self.left(&known, &mut old);
        }
    }

    fn left(&mut self, known: &Known, entry: &mut Entry) {
        let bytes = match known {
            Known::Set(_) => &mut self.bytes,
            Known::Nothing(_) => &mut self.nothing_bytes,
        };
        *bytes = bytes.saturating_sub(entry.bytes);
        entry.end();
    }
}

/// Of a cache's bytes, what one set may use: one in so many.
const LARGEST: usize = 2;

/// Of a cache's bytes, what names that do not exist may use beside them: one in so many.
const NOTHING: usize = 16;

#[cfg(test)]
mod tests;
