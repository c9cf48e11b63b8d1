//! **Pure.** The rule of the cache: it is compared with a model that forgets nothing and has
//! no bounds.

use std::{
    collections::{BTreeSet, HashMap},
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    cache::{ALIVE, Cache, Hits, Limits, Look, Rest, ahead, fate::Fate, stale::LATELY},
    clock,
    endpoint::{Source, Transport},
    found::{Found, Held, Host},
};

const KEEP: Duration = Duration::from_secs(600);

fn limits(bytes: usize, entries: usize) -> Limits {
    Limits {
        entries: NonZeroUsize::new(entries).expect("some"),
        bytes,
        floor: Duration::from_secs(1),
        cap: Duration::from_secs(60),
        negative: Duration::from_millis(500)..=Duration::from_secs(10),
        keep: KEEP,
    }
}

/// A set with so many addresses.
fn set(name: u8, addresses: u8, ttl: Duration, complete: bool) -> Arc<Held> {
    let addresses = (0..addresses).map(|at| [10, 0, 0, at].into()).collect();
    let host = Host {
        addresses,
        ..Host::default()
    };
    let found = Found::Host(host);
    let fqdn = format!("n{name}.node.consul.");
    Arc::new(Held {
        key: format!("n{name}.node").as_str().into(),
        endpoints: crate::records::endpoints(&found, &fqdn),
        ttl,
        source: Source::Dns,
        transport: Transport::Udp,
        complete,
        name: fqdn.into(),
        found,
        warnings: Box::new([]),
        part: false,
        carried: None,
    })
}

/// What is known of a name that nobody ever pushed out.
enum Known {
    Set {
        held: Arc<Held>,
        /// When a source last gave it. Giving it to somebody is not that.
        since: Instant,
        until: Instant,
        /// Followed until then, it holds on for as long as followers live.
        followed: Option<Instant>,
        /// When it is to be asked for anew, ahead of its time.
        renew: Instant,
        again: Option<(Instant, Instant)>,
        /// How often it was given.
        asked: u32,
    },
    Nothing {
        until: Instant,
    },
}

struct Model {
    now: Instant,
    /// Until then followers live.
    alive: Option<Instant>,
    known: HashMap<u8, Known>,
    /// Bytes that each set is reckoned at.
    bytes: HashMap<u8, usize>,
    /// Names of which sets or refusals may have been pushed out.
    pressed: bool,
    /// What was promised to whoever gives a name without asking.
    fates: Vec<(u8, Fate)>,
}

/// Any list of things that happen to a cache. Whatever it gives is what was put last; its age
/// is that of the last success, whoever was given it since; as fresh it gives nothing that is
/// due; as stale nothing that is older than may be kept; what is not due is there unless there
/// was no room; and it never holds more than it may.
pub fn cache(bytes: &[u8]) {
    let Some((&[room, entries], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let limits = limits(
        4_096 * (1 + usize::from(room % 16)),
        1 + usize::from(entries % 16),
    );
    let mut cache = Cache::new(limits.clone());
    let mut model = Model {
        now: clock::now(),
        alive: None,
        known: HashMap::new(),
        bytes: HashMap::new(),
        pressed: false,
        fates: Vec::new(),
    };
    for turn in rest.chunks_exact(3).take(512) {
        let (name, more) = (turn[1] % 24, turn[2]);
        model.turn(&mut cache, &limits, turn[0], name, more);
        model.check(&mut cache, &limits, name);
    }
    for name in 0..24 {
        model.check(&mut cache, &limits, name);
    }
}

impl Model {
    fn turn(&mut self, cache: &mut Cache, limits: &Limits, what: u8, name: u8, more: u8) {
        let now = self.now;
        let key = format!("n{name}.node");
        match what % 10 {
            0 | 1 => {
                let ttl = Duration::from_secs(u64::from(more));
                let complete = what & 16 == 0;
                let held = set(name, more % 32, ttl, complete);
                let holds = match complete {
                    true => ttl.clamp(limits.floor, limits.cap),
                    false => limits.floor,
                };
                // It may have been under way for a while.
                let since = now - Duration::from_millis(u64::from(what >> 4) * 10);
                cache.put(Arc::clone(&held), since);
                self.put(limits, name, held, since, since + holds);
            }
            2 => {
                let ttl = (more & 1 == 0).then(|| Duration::from_secs(u64::from(more)));
                cache.put_nothing(&key, ttl, now);
                let (least, most) = limits.negative.clone().into_inner();
                let until = now + ttl.unwrap_or(least).clamp(least, most);
                self.changed(name);
                self.known.insert(name, Known::Nothing { until });
                self.bytes.remove(&name);
                self.press(limits);
            }
            3 => {
                cache.expire(&key, now);
                self.changed(name);
                match self.known.get_mut(&name) {
                    Some(Known::Set {
                        until, followed, ..
                    }) => (*until, *followed) = (now.min(*until), None),
                    Some(Known::Nothing { until }) => *until = now.min(*until),
                    None => {}
                }
            }
            4 => {
                let at = now + Duration::from_millis(u64::from(more) * 10);
                cache.rest(&key, now, at);
                if let Some(Known::Set { again, .. }) = self.known.get_mut(&name) {
                    *again = Some((at, at + LATELY));
                }
            }
            5 => {
                let held = match self.known.get(&name) {
                    Some(Known::Set { held, .. }) => Some(Arc::clone(held)),
                    _ => None,
                };
                if let Some(hold) = cache.hold(&key, held.as_ref()) {
                    let known = self.known.get(&name).expect("it knows what was never put");
                    let (due, kept) = match known {
                        Known::Set {
                            since,
                            until,
                            renew,
                            ..
                        } => (*until.min(renew), (*since + limits.keep).max(*until)),
                        Known::Nothing { until } => (*until, *until),
                    };
                    assert_eq!(hold.until, due, "held for another time");
                    assert_eq!(hold.kept, kept, "kept for another time");
                    self.fates
                        .push((name, hold.fate.expect("a fate of its own")));
                }
            }
            6 => {
                // A name that is followed: it was said again just now.
                let Some(Known::Set { held, .. }) = self.known.get(&name) else {
                    return;
                };
                let (held, end) = (Arc::clone(held), now + Duration::from_secs(u64::from(more)));
                if cache.confirm(&key, &held, (now, end), now)
                    && let Some(Known::Set {
                        since,
                        until,
                        followed,
                        renew,
                        ..
                    }) = self.known.get_mut(&name)
                {
                    (*since, *until, *renew) = (now, end.min(now + ALIVE), end);
                    *followed = Some(end);
                    self.holds_on();
                }
            }
            7 => {
                let given = Hits {
                    fresh: u32::from(more),
                    stale: 0,
                };
                cache.served(&key, given);
                if let Some(Known::Set { asked, .. }) = self.known.get_mut(&name) {
                    *asked += u32::from(more);
                }
            }
            8 => {
                // Of all who are told to ask one does.
                let was = cache.look(&key, now);
                self.given(&was, name);
                let aside = matches!(
                    was,
                    Look::Fresh(.., Rest::Aside) | Look::Stale(.., Rest::Aside)
                );
                let rest = now + Duration::from_millis(1 + u64::from(more));
                let renews = cache.renews(&key, now, rest);
                assert!(renews || !aside, "nobody asks");
                assert!(!cache.renews(&key, now, rest), "two ask");
                if let Some(Known::Set {
                    until,
                    renew,
                    again,
                    ..
                }) = self.known.get_mut(&name)
                {
                    match again {
                        _ if now < *until && now >= *renew => *renew = *until,
                        _ if now < *until => {}
                        Some((again, _)) if now >= *again => *again = rest,
                        _ => {}
                    }
                }
            }
            _ => {
                self.now += Duration::from_millis(u64::from(more) * u64::from(what) * 10);
                // They may stand still.
                if what & 16 == 0 {
                    cache.followers_live(self.now);
                    self.alive = Some(self.now + ALIVE);
                    self.holds_on();
                }
            }
        }
    }

    fn holds_on(&mut self) {
        for known in self.known.values_mut() {
            if let Known::Set {
                until, followed, ..
            } = known
                && let Some((end, alive)) = followed.zip(self.alive)
            {
                *until = (*until).max(end.min(alive));
            }
        }
    }

    fn put(&mut self, limits: &Limits, name: u8, held: Arc<Held>, since: Instant, until: Instant) {
        self.changed(name);
        // By itself in a cache with room for everything.
        let mut alone = Cache::new(self::limits(usize::MAX, 1));
        alone.put(Arc::clone(&held), since);
        if alone.bytes() > limits.bytes / 2 {
            match self.known.get_mut(&name) {
                Some(Known::Set {
                    until, followed, ..
                }) => (*until, *followed) = (since.min(*until), None),
                _ => drop(self.known.remove(&name)),
            }
            return;
        }
        self.bytes.insert(name, alone.bytes());
        let known = Known::Set {
            held,
            since,
            until,
            followed: None,
            renew: until - ahead(&format!("n{name}.node"), until - since),
            again: None,
            asked: 0,
        };
        self.known.insert(name, known);
        self.press(limits);
    }

    /// Whoever was promised something of a name has to know that it is over.
    fn changed(&mut self, name: u8) {
        self.fates.retain(|(whose, fate)| {
            assert!(*whose != name || fate.is_over() || self.pressed, "not told");
            *whose != name
        });
    }

    fn press(&mut self, limits: &Limits) {
        let sets = self.bytes.len();
        let all: usize = self.bytes.values().sum();
        // What does not exist has room of its own: so many names of that length do fit.
        let nothing = self.known.len() - sets;
        self.pressed |= all > limits.bytes
            || self.known.len() > limits.entries.get()
            || nothing * 300 > limits.bytes / 16;
    }

    fn given(&mut self, look: &Look, name: u8) {
        if let (Look::Fresh(..), Some(Known::Set { asked, .. })) = (look, self.known.get_mut(&name))
        {
            *asked += 1;
        }
    }

    fn check(&mut self, cache: &mut Cache, limits: &Limits, name: u8) {
        let now = self.now;
        assert!(
            cache.bytes() <= limits.bytes + limits.bytes / 16,
            "{} bytes",
            cache.bytes()
        );
        assert!(cache.sets_held() <= limits.entries.get());
        if !self.pressed {
            let sets: usize = self.bytes.values().sum();
            assert!(cache.bytes() >= sets, "reckoned too low");
        }
        let listed: BTreeSet<_> = cache.sets(now).map(|(held, _)| held.key.clone()).collect();
        for (held, age) in cache.sets(now) {
            assert!(age < KEEP && listed.contains(&held.key));
        }
        let key = format!("n{name}.node");
        let look = cache.look(&key, now);
        self.given(&look, name);
        match (look, self.known.get(&name)) {
            (
                Look::Fresh(given, age, rest),
                Some(Known::Set {
                    held,
                    since,
                    until,
                    renew,
                    asked,
                    ..
                }),
            ) => {
                assert!(Arc::ptr_eq(&given, held), "another set than was put");
                assert_eq!(
                    age,
                    now.saturating_duration_since(*since),
                    "an age of its own"
                );
                assert!(now < *until, "given as fresh when it is due");
                assert_eq!(rest == Rest::Aside, now >= *renew && *asked > 1);
            }
            (
                Look::Stale(given, age, rest),
                Some(Known::Set {
                    held,
                    since,
                    until,
                    again,
                    ..
                }),
            ) => {
                assert!(Arc::ptr_eq(&given, held), "another set than was put");
                assert_eq!(
                    age,
                    now.saturating_duration_since(*since),
                    "an age of its own"
                );
                assert!(age < KEEP, "given when it is too old");
                assert!(now >= *until || *since >= *until, "stale before it is due");
                let told = match again {
                    Some((again, _)) if now < *again => Rest::Resting,
                    Some((_, aside)) if now < *aside => Rest::Aside,
                    _ => Rest::Due,
                };
                assert_eq!(rest, told);
            }
            (Look::Nothing, Some(Known::Nothing { until })) => {
                assert!(now < *until, "denied when that is due");
            }
            (Look::Unknown, Some(Known::Set { since, until, .. })) => {
                let kept = now < *until || now.saturating_duration_since(*since) < KEEP;
                assert!(!kept || self.pressed, "lost before it is due");
            }
            (Look::Unknown, Some(Known::Nothing { until })) => {
                assert!(now >= *until || self.pressed, "lost before it is due");
            }
            (Look::Unknown, None) => {}
            (look, _) => panic!("{look:?} of what was never put"),
        }
    }
}
