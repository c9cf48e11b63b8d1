//! **Door.** The endpoints of one service as one user of it sees them: which are used,
//! which rest, and the [`Set`] that picks are made from. It is made anew when the service
//! changes and when an endpoint is to rest or to be tried again, and never by a pick.

mod lease;
mod loads;
mod near;
mod place;
mod policy;
mod set;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use arc_swap::ArcSwap;
use tokio::{runtime::Handle, sync::watch};
use tracing::info;

pub use self::{
    lease::{Lease, Standing},
    place::{BreakerState, Feedback},
    policy::{Breaker, Filter, Policy},
};
use self::{
    loads::Slots,
    place::{Failing, Place, Turn},
    set::{Caller, Hold, Member, Seats, Set, View},
};
use crate::{
    balance::{self, Strategy},
    call::{Budget, Calls},
    clock,
    endpoint::Endpoint,
    error::{Error, ErrorKind},
    found::Held,
    records,
};

/// Threads that have seats of their own, at most; more share them.
const MOST_THREADS: usize = 16;

/// Turns of one thread. On a line of the cache of its own: it is written by each pick.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cursor(AtomicUsize);

/// Numbers of pools.
static POOLS: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug)]
pub(crate) struct Pool {
    number: usize,
    /// Of the set: one that was remembered is as good while it is the same.
    version: AtomicU64,
    /// Nobody tells it any more what is known.
    lone: AtomicBool,
    set: ArcSwap<Set>,
    /// As many as a power of two.
    cursors: Box<[Cursor]>,
    failing: Failing,
    policy: Policy,
    /// The name, for errors.
    name: Box<str>,
    roster: Mutex<Roster>,
    /// Whoever waits for an endpoint waits here.
    there: watch::Sender<There>,
    pub(crate) budget: Budget,
    pub(crate) calls: Calls,
    runtime: Handle,
    own: Weak<Self>,
}

/// What there is to pick from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct There {
    endpoints: usize,
    /// Of each name that is followed something is known.
    all_heard: bool,
}

/// What the set is made of. A std mutex: held for a rebuild.
#[derive(Debug)]
struct Roster {
    /// What is known by each name that is followed: the service's own, then those in other
    /// datacenters.
    feeds: Box<[Feed]>,
    seats: HashMap<(IpAddr, u16), Seats>,
    /// Where their calls are counted.
    slots: Slots,
    /// The endpoints that the set was made of, resting or not.
    chosen: Vec<(IpAddr, u16)>,
    alarm: Option<Alarm>,
}

/// Somebody looks again then.
#[derive(Debug)]
struct Alarm {
    at: Instant,
    /// Gone with whoever does: when it has looked, or its runtime has ended.
    alive: Weak<()>,
}

#[derive(Clone, Debug, Default)]
enum Feed {
    #[default]
    Unheard,
    Set(Arc<Held>),
    Gone,
}

impl Pool {
    /// Of a service that is followed by so many names. Within a runtime.
    /// `open`: breakers of all pools that are open.
    pub(crate) fn new(
        name: &str,
        policy: Policy,
        feeds: usize,
        open: &Arc<AtomicU64>,
    ) -> Arc<Self> {
        let threads = thread::available_parallelism().map_or(1, |cores| cores.get());
        let threads = threads.min(MOST_THREADS).next_power_of_two();
        let failing = Failing::of(open);
        let number = POOLS.fetch_add(1, Ordering::Relaxed);
        if policy.strategy == Strategy::Latency {
            clock::hurry();
        }
        let slots = match policy.strategy {
            Strategy::LeastLoaded | Strategy::Latency => Slots::new(threads),
            Strategy::Weighted
            | Strategy::RoundRobin
            | Strategy::Random
            | Strategy::First
            | Strategy::Hash => Slots::none(threads),
        };
        let empty = Set::new(
            number,
            &[],
            policy.strategy,
            policy.slow_start,
            slots.loads(),
            &failing,
            clock::now(),
        );
        let roster = Roster {
            feeds: vec![Feed::default(); feeds].into(),
            seats: HashMap::new(),
            slots,
            chosen: Vec::new(),
            alarm: None,
        };
        Arc::new_cyclic(|own| Self {
            number,
            version: AtomicU64::new(0),
            lone: AtomicBool::new(false),
            set: ArcSwap::from_pointee(empty),
            // Not all begin with the same endpoint.
            cursors: (0..threads)
                .map(|_| Cursor(AtomicUsize::new(clock::roll() as u32 as usize)))
                .collect(),
            failing,
            policy,
            name: name.into(),
            roster: Mutex::new(roster),
            there: watch::Sender::default(),
            budget: Budget::default(),
            calls: Calls::default(),
            runtime: Handle::current(),
            own: Weak::clone(own),
        })
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name is known to have these endpoints; `None`: there is no such name.
    pub(crate) fn feed(&self, feed: usize, held: Option<Arc<Held>>) {
        self.set_feed(feed, held.map_or(Feed::Gone, Feed::Set));
    }

    /// Nothing is known of a name any more.
    pub(crate) fn forget(&self, feed: usize) {
        self.set_feed(feed, Feed::Unheard);
    }

    /// Whether those who follow a name for it ended with their runtime.
    pub(crate) fn is_lone(&self) -> bool {
        self.lone.load(Ordering::Relaxed)
    }

    pub(crate) fn set_lone(&self, lone: bool) {
        self.lone.store(lone, Ordering::Relaxed);
    }

    fn set_feed(&self, feed: usize, heard: Feed) {
        let mut roster = self.roster();
        if let Some(known) = roster.feeds.get_mut(feed) {
            *known = heard;
        }
        self.rebuild(&mut roster);
    }

    /// An endpoint to call. Without a lock or an allocation.
    pub(crate) fn pick(&self, key: Option<u64>) -> Option<Lease> {
        self.pick_by(|view, caller| view.pick(key, caller))
    }

    /// One that was not called before; `None`: all were.
    pub(crate) fn pick_other(&self, called: &[SocketAddr]) -> Option<Lease> {
        self.pick_by(|view, caller| view.pick_other(called, caller))
    }

    fn pick_by(&self, pick: impl Fn(&View, &mut Here<'_>) -> Option<(u32, bool)>) -> Option<Lease> {
        // The set is read after it: at worst it is read once more.
        let version = self.version.load(Ordering::Acquire);
        let look = || self.set.load().view(clock::thread()).map(Arc::clone);
        near::with((self.number, version), look, |view| {
            let mut caller = Here {
                pool: self,
                since: 0,
            };
            let (at, trial) = pick(&view, &mut caller)?;
            let hold = Hold::new(view.handle(), at);
            Some(Lease::new(hold, trial, caller.since))
        })
    }

    /// Waits until there is an endpoint to pick.
    pub(crate) async fn ready(&self) {
        self.until(|there| there.endpoints > 0).await;
    }

    /// Waits until there is an endpoint to pick, or it is known that there is none.
    pub(crate) async fn heard(&self) {
        self.until(|there| there.endpoints > 0 || there.all_heard)
            .await;
    }

    async fn until(&self, is_so: impl Fn(&There) -> bool) {
        // The sender is ours: it is there as long as this is.
        _ = self.there.subscribe().wait_for(is_so).await;
    }

    /// Whether nothing is known of it, yet or any more.
    pub(crate) fn is_unheard(&self) -> bool {
        let unheard = |feed: &Feed| matches!(feed, Feed::Unheard);
        self.roster().feeds.iter().all(unheard)
    }

    /// Why there is nothing to pick.
    pub(crate) fn why_empty(&self) -> Error {
        let roster = self.roster();
        let name = &self.name;
        let known: Vec<_> = (roster.feeds.iter())
            .filter_map(|feed| match feed {
                Feed::Set(held) => Some(held.endpoints.len()),
                Feed::Gone => Some(0),
                Feed::Unheard => None,
            })
            .collect();
        let (kind, why) = if known.is_empty() {
            let why = "nothing is known of it: wait with ready() or pick()";
            (ErrorKind::Unavailable, why.to_owned())
        } else if known.iter().sum::<usize>() == 0 {
            let why = "Consul knows no healthy instance of it";
            (ErrorKind::NotFound, why.to_owned())
        } else if roster.seats.is_empty() {
            let why = format!(
                "none of its {} instances has a port",
                known.iter().sum::<usize>()
            );
            (ErrorKind::NotFound, why)
        } else if roster.chosen.is_empty() {
            let why = format!(
                "none of its {} instances is what is required",
                roster.seats.len()
            );
            (ErrorKind::NotFound, why)
        } else {
            let chosen = roster.chosen.iter().filter_map(|one| roster.seats.get(one));
            let mute = chosen.filter(|one| !one.member.place.serves()).count();
            let why = match roster.chosen.len() {
                all if mute == 0 => format!("all of its {all} instances failed and rest"),
                all if mute == all => {
                    format!("all of its {all} instances say that they do not serve")
                }
                all => format!(
                    "{mute} of its {all} instances say that they do not serve, the others \
                     failed and rest"
                ),
            };
            (ErrorKind::Unavailable, why)
        };
        Error::new(kind, format!("no endpoint of {name} can be picked: {why}"))
    }

    /// What is known of each endpoint that is used.
    pub(crate) fn standings(&self) -> Vec<Standing> {
        let (now, roster) = (clock::now(), self.roster());
        let seats = roster
            .chosen
            .iter()
            .filter_map(|place| roster.seats.get(place));
        let standing = |seats: &Seats| {
            let place = &seats.member.place;
            let breaker = place.state(now);
            Standing {
                endpoint: seats.member.endpoint.clone(),
                breaker,
                in_flight: (roster.slots.count()).then(|| roster.slots.load(seats.slot)),
                failures: place.failures(),
                serves: place.serves(),
                latency: place.latency(),
            }
        };
        seats.map(standing).collect()
    }

    /// How many there are to pick from.
    pub(crate) fn choices(&self) -> usize {
        self.there.borrow().endpoints
    }

    /// The same, where it is known.
    pub(crate) fn there(&self) -> Option<usize> {
        let there = *self.there.borrow();
        (there.endpoints > 0 || there.all_heard).then_some(there.endpoints)
    }

    /// Lets go what is kept for endpoints that are known no more.
    pub(crate) fn retain<T>(&self, kept: &mut HashMap<SocketAddr, T>) {
        let roster = self.roster();
        kept.retain(|known, _| roster.seats.contains_key(&(known.ip(), known.port())));
    }

    /// A server told `who` whether it serves: who does not is not given.
    /// False: there is no such endpoint.
    #[cfg(feature = "grpc")]
    pub(crate) fn set_serving(&self, address: SocketAddr, who: u64, serves: bool) -> bool {
        let mut roster = self.roster();
        let Some(seats) = roster.seats.get(&(address.ip(), address.port())) else {
            return false;
        };
        if seats.member.place.set_serving(who, serves) {
            self.rebuild(&mut roster);
        }
        true
    }

    /// Nobody could connect to an endpoint, which took so long: a failure of its own, whatever
    /// became of the calls that waited.
    #[cfg(feature = "grpc")]
    pub(crate) fn unreached(&self, address: SocketAddr, took: std::time::Duration) {
        let place = (address.ip(), address.port());
        let member = (self.roster().seats.get(&place)).map(|seats| Arc::clone(&seats.member));
        let Some(member) = member else {
            return;
        };
        if self.policy.strategy == Strategy::Latency {
            (member.place).took_in_vain(took, clock::nanoseconds());
        }
        // Who has rested and still cannot be connected to has been tried.
        let trial = member.place.state(clock::now()) == BreakerState::HalfOpen;
        let breaker = &self.policy.breaker;
        let turn = (member.place).report(Feedback::Failure, trial, breaker, clock::now);
        self.turned(&member, turn);
    }

    /// A call of ours ended.
    fn turned(&self, member: &Member, turn: Turn) {
        match turn {
            Turn::Nothing => return,
            Turn::Opened => info!(endpoint = %member.endpoint, "failed, and rests"),
            Turn::Closed => info!(endpoint = %member.endpoint, "works again"),
        }
        self.rebuild(&mut self.roster());
    }

    /// Makes the set that is picked from.
    fn rebuild(&self, roster: &mut Roster) {
        let now = clock::now();
        let first = roster.seats.is_empty();
        let all: Vec<Vec<Endpoint>> = roster.feeds.iter().map(Feed::usable).collect();
        let places = |endpoints: &Vec<Endpoint>| endpoints.iter().map(place).collect();
        let listed: Vec<Vec<_>> = all.iter().map(places).collect();
        let mut before = std::mem::take(&mut roster.seats);
        for endpoint in records::places(all.into_iter().flatten()) {
            let at = place(&endpoint);
            let seats = match before.remove(&at) {
                Some(seats) => {
                    // DNS tells less of it than is known.
                    let endpoint = endpoint.completed_by(&seats.member.endpoint);
                    if endpoint == seats.member.endpoint {
                        seats
                    } else {
                        self.seats(endpoint, Arc::clone(&seats.member.place), seats.slot)
                    }
                }
                None => self.seats(
                    endpoint,
                    Arc::new(Place::new(now, !first, &self.failing)),
                    roster.slots.take(),
                ),
            };
            roster.seats.insert(at, seats);
        }
        // Those that are left in no feed.
        for seats in before.values() {
            seats.member.place.retire();
            roster.slots.leave(seats.slot);
        }
        let (chosen, given) = self.choose(&listed, &roster.seats, now);
        let (strategy, slow_start) = (self.policy.strategy, self.policy.slow_start);
        let places: HashSet<_> = given
            .iter()
            .map(|one| place(&one.member.endpoint))
            .collect();
        for (at, seats) in &roster.seats {
            seats.member.place.set_given(places.contains(at), now);
        }
        let set = Set::new(
            self.number,
            &given,
            strategy,
            slow_start,
            roster.slots.loads(),
            &self.failing,
            now,
        );
        let count = set.len();
        self.set.store(Arc::new(set));
        self.version.fetch_add(1, Ordering::Release);
        roster.chosen = chosen;
        let unheard = |feed: &Feed| matches!(feed, Feed::Unheard);
        let there = There {
            endpoints: count,
            all_heard: !roster.feeds.iter().any(unheard),
        };
        self.there
            .send_if_modified(|before| std::mem::replace(before, there) != there);
        self.set_alarm(roster, now);
    }

    fn seats(&self, endpoint: Endpoint, place: Arc<Place>, slot: u32) -> Seats {
        let member = Member {
            endpoint,
            place,
            pool: Weak::clone(&self.own),
        };
        Seats {
            member: Arc::new(member),
            slot,
        }
    }

    /// Those that are used, and those of them that are given: the first in the order of
    /// preference of whom any is well, and with them whoever is preferred and to be tried.
    fn choose<'a>(
        &self,
        listed: &[Vec<(IpAddr, u16)>],
        seats: &'a HashMap<(IpAddr, u16), Seats>,
        now: Instant,
    ) -> (Vec<(IpAddr, u16)>, Vec<&'a Seats>) {
        let required = |places: &Vec<_>| -> Vec<&'a Seats> {
            let seats = places.iter().filter_map(|one| seats.get(one));
            seats
                .filter(|one| self.policy.require.matches(&one.member.endpoint))
                .collect()
        };
        let required: Vec<_> = listed.iter().map(required).collect();
        let any = Filter::new();
        let wishes = || self.policy.prefer.iter().chain([&any]);
        let tiers: Vec<Vec<&'a Seats>> = (required.iter())
            .flat_map(|all| wishes().map(move |wish| (all, wish)))
            .map(|(all, wish)| {
                let wished = |one: &&&Seats| wish.matches(&one.member.endpoint);
                all.iter().filter(wished).copied().collect()
            })
            .filter(|tier: &Vec<_>| !tier.is_empty())
            .collect();
        let serves = |one: &&Seats| one.member.place.serves();
        let rests = |one: &Seats| one.member.place.rests();
        let is_closed = |one: &&'a Seats| serves(one) && rests(one).is_none();
        let is_awake = |one: &&'a Seats| serves(one) && rests(one).is_none_or(|until| until <= now);
        // Where all rest, the first have to do.
        let which = (tiers.iter().position(|tier| tier.iter().any(is_closed)))
            .or_else(|| tiers.iter().position(|tier| tier.iter().any(is_awake)))
            .or_else(|| tiers.iter().position(|tier| tier.iter().any(serves)))
            .unwrap_or_default();
        let Some((tier, earlier)) = tiers.get(..=which).and_then(<[_]>::split_last) else {
            return (Vec::new(), Vec::new());
        };
        let serving: Vec<_> = tier.iter().copied().filter(serves).collect();
        let mut given = self.without_resting(serving, now);
        // What is preferred and has rested is tried.
        given.extend(earlier.iter().flatten().copied().filter(is_awake));
        let mut seen = HashSet::new();
        given.retain(|one| seen.insert(place(&one.member.endpoint)));
        let used = tier.iter().chain(earlier.iter().flatten());
        let mut used: Vec<_> = used.map(|one| place(&one.member.endpoint)).collect();
        let mut seen = HashSet::new();
        used.retain(|one| seen.insert(*one));
        (used, given)
    }

    /// Without those that rest: not more of them than their share, those that began to
    /// first.
    fn without_resting<'a>(&self, all: Vec<&'a Seats>, now: Instant) -> Vec<&'a Seats> {
        let until = |one: &Seats| one.member.place.rests().filter(|until| now < *until);
        let mut resting: Vec<_> = (all.iter())
            .filter_map(|one| Some((until(one)?, place(&one.member.endpoint))))
            .collect();
        resting.sort_unstable();
        resting.truncate((all.len() as f64 * self.policy.breaker.share) as usize);
        let out: HashSet<_> = resting.into_iter().map(|(_, place)| place).collect();
        let mut given = all;
        given.retain(|one| !out.contains(&place(&one.member.endpoint)));
        given
    }

    /// Looks again when the next rest is over.
    fn set_alarm(&self, roster: &mut Roster, now: Instant) {
        let due = |seats: &Seats| seats.member.place.due(now, self.policy.slow_start);
        let Some(due) = roster.seats.values().filter_map(due).min() else {
            return;
        };
        let is_set = |alarm: &Alarm| now < alarm.at && alarm.at <= due && alarm.is_alive();
        if roster.alarm.as_ref().is_some_and(is_set) {
            return;
        }
        let mut alarm = self.alarm(due, &self.runtime);
        // The one that it was made in may have ended.
        if !alarm.is_alive()
            && let Ok(here) = Handle::try_current()
        {
            alarm = self.alarm(due, &here);
        }
        roster.alarm = Some(alarm);
    }

    fn alarm(&self, at: Instant, runtime: &Handle) -> Alarm {
        let token = Arc::new(());
        let alive = Arc::downgrade(&token);
        let pool = Weak::clone(&self.own);
        // Ends by itself, and does nothing where the pool is gone.
        runtime.spawn(async move {
            clock::sleep_until(at).await;
            drop(token);
            if let Some(pool) = pool.upgrade() {
                pool.rebuild(&mut pool.roster());
            }
        });
        Alarm { at, alive }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let roster = self.roster.get_mut();
        // Threads remember them for longer.
        for seats in roster
            .unwrap_or_else(PoisonError::into_inner)
            .seats
            .values()
        {
            seats.member.place.retire();
        }
    }
}

impl Alarm {
    fn is_alive(&self) -> bool {
        self.alive.strong_count() > 0
    }
}

fn place(endpoint: &Endpoint) -> (IpAddr, u16) {
    (endpoint.address, endpoint.port)
}

impl Feed {
    fn usable(&self) -> Vec<Endpoint> {
        match self {
            Self::Set(held) => balance::usable(held.endpoints.iter()),
            Self::Unheard | Self::Gone => Vec::new(),
        }
    }
}

/// A pick, where it is made.
struct Here<'a> {
    pool: &'a Pool,
    /// When the call begins, where that counts; else 0.
    since: u64,
}

impl Caller for Here<'_> {
    fn bits(&mut self) -> u64 {
        clock::roll()
    }

    fn turn(&mut self) -> usize {
        let cursors = &self.pool.cursors;
        let cursor = cursors.get(clock::thread() & cursors.len().wrapping_sub(1));
        cursor.map_or(0, |cursor| cursor.0.fetch_add(1, Ordering::Relaxed))
    }

    fn now(&mut self) -> Instant {
        clock::lately()
    }

    fn nanoseconds(&mut self) -> u64 {
        self.since = clock::nanoseconds();
        self.since
    }
}

#[cfg(test)]
mod tests;
