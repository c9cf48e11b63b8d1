//! **Pure.** A set that is picked from: immutable, with everything worked out before.
//! Whoever rests is not in it, so that a pick asks nobody.
//!
//! What threads write when they pick, others do not read: a call in the air holds its
//! thread's own view of the set, and is counted in its thread's own [`loads`](super::loads)
//! where a strategy asks for them.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{
    Pool,
    loads::Loads,
    near::Handle,
    place::{Failing, Place},
};
use crate::{
    balance::{Draw, Plan, Strategy},
    clock,
    endpoint::Endpoint,
};

/// An endpoint and what is known of it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) endpoint: Endpoint,
    pub(crate) place: Arc<Place>,
    pub(crate) pool: Weak<Pool>,
}

/// A set as one thread picks from it: on a line of the processor's cache of its own.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct View {
    core: Arc<Core>,
    loads: Loads,
}

/// What all threads read.
#[derive(Debug)]
struct Core {
    /// The number of their pool.
    pool: usize,
    plan: Plan,
    /// Beside each other: a call wants no more.
    addresses: Box<[SocketAddr]>,
    members: Box<[Arc<Member>]>,
    /// Theirs, at hand for who compares.
    places: Box<[Arc<Place>]>,
    /// In the same order; empty where loads do not count.
    slots: Box<[u32]>,
    failing: Failing,
    /// Some are looked at before they are given.
    watched: bool,
    slow_start: Duration,
    /// When the first began, where all began slowly.
    eldest: Option<Instant>,
}

/// What a call in the air holds.
#[derive(Debug)]
pub(super) struct Hold {
    view: Handle,
    at: u32,
}

impl Hold {
    /// A call begins.
    pub(super) fn new(view: Handle, at: u32) -> Self {
        if let Some(slot) = view.slot(at) {
            view.loads.begin(slot, clock::thread());
        }
        Self { view, at }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.view.core.addresses[self.at as usize]
    }

    pub(crate) fn member(&self) -> &Member {
        &self.view.core.members[self.at as usize]
    }

    /// Whether calls of its endpoint are counted.
    pub(crate) fn is_counted(&self) -> bool {
        self.view.slot(self.at).is_some()
    }

    /// Whether nobody has failed lately, so that a success is no news.
    pub(crate) fn is_all_well(&self) -> bool {
        self.view.core.failing.is_none()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(slot) = self.view.slot(self.at) {
            self.view.loads.end(slot, clock::thread());
        }
    }
}

/// An endpoint of a pool, and the slot that its calls are counted in.
#[derive(Clone, Debug)]
pub(crate) struct Seats {
    pub(crate) member: Arc<Member>,
    pub(crate) slot: u32,
}

/// A set for all threads: a view for each of some.
#[derive(Debug)]
pub(crate) struct Set(Box<[Arc<View>]>);

/// What a pick takes from outside.
pub(crate) trait Caller {
    /// 64 random bits.
    fn bits(&mut self) -> u64;
    /// How often this thread asked before.
    fn turn(&mut self) -> usize;
    fn now(&mut self) -> Instant;
    /// The same exactly, since a moment of the process.
    fn nanoseconds(&mut self) -> u64;
}

/// Draws that may meet somebody who is not to be given now, before all are looked at.
const TRIES: u32 = 8;

impl Set {
    /// Of members in the order of [`usable`](crate::balance::usable), for the threads whose
    /// loads are given: as many as a power of two.
    pub(crate) fn new(
        pool: usize,
        all: &[&Seats],
        strategy: Strategy,
        slow_start: Duration,
        loads: Vec<Loads>,
        failing: &Failing,
        now: Instant,
    ) -> Self {
        let endpoints: Vec<_> = all.iter().map(|one| one.member.endpoint.clone()).collect();
        let watched = |one: &&Seats| one.member.place.is_watched(now, slow_start);
        let core = Arc::new(Core {
            pool,
            plan: Plan::new(&endpoints, strategy),
            addresses: endpoints.iter().map(Endpoint::socket_addr).collect(),
            members: all.iter().map(|one| Arc::clone(&one.member)).collect(),
            places: (all.iter())
                .map(|one| Arc::clone(&one.member.place))
                .collect(),
            slots: match loads.iter().any(Loads::count) {
                true => all.iter().map(|one| one.slot).collect(),
                false => Box::default(),
            },
            failing: failing.clone(),
            watched: all.iter().any(watched),
            slow_start,
            eldest: eldest(all.iter().map(|one| &one.member.place)),
        });
        let view = |loads| {
            let core = Arc::clone(&core);
            Arc::new(View { core, loads })
        };
        Self(loads.into_iter().map(view).collect())
    }

    /// How many there are to pick from.
    pub(crate) fn len(&self) -> usize {
        self.0.first().map_or(0, |view| view.core.members.len())
    }

    /// The view of a thread, by its number.
    pub(crate) fn view(&self, thread: usize) -> Option<&Arc<View>> {
        self.0.get(thread & self.0.len().wrapping_sub(1))
    }
}

impl View {
    pub(super) fn pool(&self) -> usize {
        self.core.pool
    }

    /// Where the calls of an endpoint are counted, if they are.
    fn slot(&self, at: u32) -> Option<u32> {
        self.core.slots.get(at as usize).copied()
    }

    /// Calls that this thread has in the air there.
    fn load(&self, at: u32) -> u32 {
        self.slot(at).map_or(0, |slot| self.loads.load(slot))
    }

    /// The place of the next one in the set, and whether the call tries an endpoint that
    /// rested.
    pub(super) fn pick(&self, key: Option<u64>, caller: &mut impl Caller) -> Option<(u32, bool)> {
        let mut own = Own {
            view: self,
            caller,
            now: None,
        };
        let at = self.core.plan.draw(key, &mut own)?;
        if self.core.watched {
            return self.pick_watched(at, key, &mut own);
        }
        Some((at, false))
    }

    /// As [`pick`](Self::pick), but none of these. `None`: there is nobody else.
    pub(super) fn pick_other(
        &self,
        called: &[SocketAddr],
        caller: &mut impl Caller,
    ) -> Option<(u32, bool)> {
        let mut own = Own {
            view: self,
            caller,
            now: None,
        };
        let core = &self.core;
        let at = core.plan.draw(None, &mut own)?;
        // However new they are: who was called has no share in this.
        let others = (core.addresses.iter().zip(&core.places))
            .filter(|(address, _)| !called.contains(address))
            .map(|(_, place)| place);
        self.seek(at, None, called, eldest(others), &mut own)
    }

    #[cold]
    fn pick_watched<C: Caller>(
        &self,
        first: u32,
        key: Option<u64>,
        own: &mut Own<'_, C>,
    ) -> Option<(u32, bool)> {
        let seen = self.seek(first, key, &[], self.core.eldest, own);
        // All are being tried: somebody has to.
        Some(seen.unwrap_or((first, false)))
    }

    /// The first who may be given from that draw on and was not called, and whether that is
    /// a trial. Where draws do not lead to one, all are looked at.
    #[cold]
    fn seek<C: Caller>(
        &self,
        first: u32,
        key: Option<u64>,
        called: &[SocketAddr],
        eldest: Option<Instant>,
        own: &mut Own<'_, C>,
    ) -> Option<(u32, bool)> {
        let (now, core) = (own.caller.now(), &self.core);
        let count = u32::try_from(core.members.len()).ok()?;
        let mut at = first;
        for again in 0..TRIES.saturating_add(count) {
            let lot = (own.caller.bits() >> 11) as f64 / (1_u64 << 53) as f64;
            let admits = || core.places[at as usize].admits(now, core.slow_start, eldest, lot);
            if !called.contains(&core.addresses[at as usize])
                && let Some(trial) = admits()
            {
                return Some((at, trial));
            }
            at = match again < TRIES && key.is_none() {
                true => core.plan.draw(None, own)?,
                false => (at + 1) % count,
            };
        }
        None
    }
}

/// When the first of them began, where all began slowly: not of those that are tried.
fn eldest<'a>(places: impl Iterator<Item = &'a Arc<Place>>) -> Option<Instant> {
    let steady = places.filter(|place| !place.is_on_trial());
    // `None` is less than any.
    steady.map(|place| place.begun()).min().flatten()
}

/// A thread's view, while it picks.
struct Own<'a, C> {
    view: &'a View,
    caller: &'a mut C,
    /// In nanoseconds, read once.
    now: Option<u64>,
}

impl<C: Caller> Draw for Own<'_, C> {
    fn bits(&mut self) -> u64 {
        self.caller.bits()
    }

    fn turn(&mut self) -> usize {
        self.caller.turn()
    }

    fn load(&mut self, at: u32) -> u32 {
        self.view.load(at)
    }

    fn cost(&mut self, at: u32) -> f64 {
        let load = self.load(at);
        let now = *self.now.get_or_insert_with(|| self.caller.nanoseconds());
        let place = self.view.core.places.get(at as usize);
        place.map_or(0.0, |place| place.cost(load, now))
    }
}
