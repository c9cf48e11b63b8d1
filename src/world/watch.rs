//! **Pure.** Names that are followed in the made-up world: what `follow.rs` does with the
//! replies of a blocking query, and what a Consul that is made up says to one.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    ASKS, Event, LIMIT, Landed, PROBES, World,
    source::{Condition, held},
};
use crate::{
    balance,
    cache::stale::Wish,
    circuit::{Gate, Pace},
    consul::blocking::{self, Blocking, Failure, Turn},
    endpoint::{Outcome, Source},
    found::Held,
    ladder::{Nothing, Rung},
};

/// As in `follow.rs`.
const POLL: Duration = Duration::from_secs(1);
const RECHECK: Duration = Duration::from_secs(1);

/// What a server needs for a refusal of whatever kind.
const QUICK: Duration = Duration::from_millis(1);

/// A name that is followed.
#[derive(Debug)]
pub(super) struct Follower {
    blocking: Blocking,
    /// What was last told.
    before: Option<Arc<Held>>,
    /// The query that is in the air: when it was asked, what it asks, and when it is given up.
    asked: Option<(Instant, Turn, Instant)>,
    /// It probes an address that failed.
    probes: bool,
    /// An event that was planned for another turn is void.
    turn: usize,
}

/// What came of a blocking query.
#[derive(Clone, Debug)]
pub(super) enum Told {
    Set(BTreeSet<u16>, u64),
    Nothing(Nothing, u64),
    Failed(Failure),
}

impl World {
    /// From now on a name is followed.
    pub(super) fn follow(&mut self, name: &str) {
        let follower = Follower {
            blocking: Blocking::after(self.evidence.progress(name), self.now),
            before: None,
            asked: None,
            probes: false,
            turn: 0,
        };
        self.followers.insert(name.to_owned(), follower);
        self.later(self.now, Event::Turn(name.to_owned(), 0));
    }

    /// The loop of `Following::block`, up to the query; until that is due the others are
    /// asked.
    pub(super) fn turn(&mut self, name: &str, number: usize) {
        let now = self.now;
        let Some(follower) = (self.followers.get_mut(name)).filter(|one| one.turn == number) else {
            return;
        };
        let turn = follower.blocking.turn(LIMIT);
        if now < turn.due {
            self.later(
                turn.due.min(now + POLL),
                Event::Turn(name.to_owned(), number),
            );
            return self.ask(name, Wish::default());
        }
        if turn.index.is_none() {
            let circuit = self.circuits.entry(Rung::Http).or_default();
            follower.probes = false;
            match circuit.gate(now) {
                Gate::Pass => {}
                Gate::Probe | Gate::Overdue => {
                    circuit.probing(now);
                    follower.probes = true;
                }
                Gate::Awaited | Gate::Shut(_) => {
                    self.later(now + POLL, Event::Turn(name.to_owned(), number));
                    return self.ask(name, Wish::default());
                }
            }
        }
        follower.asked = Some((now, turn, now + turn.limit));
        self.blocked.push(now);
        if turn.index.is_none() {
            let late = now + Pace::default().hedge();
            self.later(late, Event::Beside(name.to_owned(), now));
        }
        self.expect(name);
    }

    /// `Following::poll_beside`.
    pub(super) fn poll_beside(&mut self, name: &str, asked: Instant) {
        let follower = self.followers.get(name);
        let in_air = follower.and_then(|follower| follower.asked);
        if in_air.is_some_and(|(began, turn, _)| began == asked && turn.index.is_none()) {
            self.later(self.now + POLL, Event::Beside(name.to_owned(), asked));
            self.ask(name, Wish::default());
        }
    }

    /// Plans what comes of the query that is in the air, as things are now.
    pub(super) fn expect(&mut self, name: &str) {
        let Some(follower) = self.followers.get_mut(name) else {
            return;
        };
        let Some((_, turn, end)) = follower.asked else {
            return;
        };
        follower.turn += 1;
        let number = follower.turn;
        let (told, at) = self.block(name, &turn, end);
        self.later(at, Event::Told(name.to_owned(), number, told));
    }

    /// What an agent says to a blocking query, and when.
    fn block(&self, name: &str, turn: &Turn, end: Instant) -> (Told, Instant) {
        let now = self.now;
        let news = turn.index.map_or(Some(now), |index| {
            let changes = self.truth.get(name)?;
            let differs = |at: &Instant| self.index(name, *at) != index;
            let now = differs(&now).then_some(now);
            now.or_else(|| changes.range(self.now..).map(|(at, _)| *at).find(differs))
        });
        let began = self.followers.get(name).and_then(|one| one.asked);
        let began = began.map_or(now, |(began, ..)| began);
        let ripe = news.unwrap_or(end).min((began + turn.wait).max(now));
        let told = |at| {
            let ports = self.truth_at(name, at);
            let index = self.index(name, at);
            match ports.is_empty() {
                true => Told::Nothing(nothing(true), index),
                false => Told::Set(ports, index),
            }
        };
        // What the agent does from now on, piece by piece.
        let mut from = now;
        loop {
            let next = self.conditions.get(&Rung::Http).and_then(|all| {
                let later = all.range(from..).map(|(at, _)| *at);
                later.into_iter().find(|at| *at > from)
            });
            let condition = self.condition(Rung::Http, from);
            let holds = |at: Instant| next.is_none_or(|next| at < next);
            let heard = match condition.unwrap_or(Condition::Refused) {
                Condition::Well(takes) | Condition::Cut(takes) => {
                    let at = ripe.max(from);
                    holds(at).then(|| (told(at), at + takes))
                }
                // A connection brings everything, but late.
                Condition::Lossy(_, delay) => {
                    let at = ripe.max(from);
                    holds(at).then(|| (told(at), at + 2 * delay))
                }
                // Who is stopped goes on where he was.
                Condition::Silent => None,
                Condition::Refused => Some((Told::Failed(Failure::Refused), from)),
                Condition::Failing | Condition::Denied => {
                    Some((Told::Failed(Failure::Other), from + QUICK))
                }
                Condition::Lost if from > now => Some((Told::Failed(Failure::Refused), from)),
                Condition::Lost => Some((Told::Nothing(nothing(true), 1), from + QUICK)),
                Condition::Blind => {
                    let index = self.index(name, from);
                    Some((Told::Nothing(nothing(true), index), from + QUICK))
                }
                Condition::Limited => {
                    let at = ripe.max(from);
                    holds(at).then(|| (told(at), at + QUICK))
                }
                Condition::Leaderless if turn.index.is_some() => None,
                Condition::Leaderless => {
                    let index = self.index(name, from);
                    Some((Told::Nothing(nothing(false), index), from + QUICK))
                }
            };
            match (heard, next) {
                (Some((told, at)), _) if at <= end => return (told, at),
                (None, Some(next)) if next < end => from = next,
                _ => return (Told::Failed(Failure::Other), end),
            }
        }
    }

    /// The index of a name: it grows with each change.
    fn index(&self, name: &str, at: Instant) -> u64 {
        let truth = self.truth.get(name);
        let changes = truth.map_or(0, |truth| truth.range(..=at).count());
        u64::try_from(changes).unwrap_or(u64::MAX) + 1
    }

    /// The loop of `Following::block`, from the reply on.
    pub(super) fn told(&mut self, name: &str, number: usize, told: Told) {
        let now = self.now;
        let Some(mut follower) = self.followers.remove(name) else {
            return;
        };
        // Another reply was planned since, when something changed.
        let asked = (follower.turn == number).then(|| follower.asked.take());
        let Some((began, turn, _)) = asked.flatten() else {
            self.followers.insert(name.to_owned(), follower);
            return;
        };
        let took = now.saturating_duration_since(began);
        let blocking = &mut follower.blocking;
        let outcome = match told {
            Told::Set(..) => Outcome::Answered,
            Told::Nothing(..) => Outcome::NotFound,
            Told::Failed(Failure::Refused) => Outcome::Refused,
            Told::Failed(Failure::Other) => Outcome::Failed,
        };
        if turn.index.is_none() || !matches!(told, Told::Failed(_)) {
            let circuit = self.circuits.entry(Rung::Http).or_default();
            let asker = match follower.probes && turn.index.is_none() {
                true => PROBES,
                false => ASKS,
            };
            circuit.hear(outcome, asker, now, &mut self.dice);
        }
        let led = !matches!(&told, Told::Nothing(nothing, _) if nothing.leader == Some(false));
        if let Told::Set(_, index) | Told::Nothing(_, index) = &told {
            self.evidence.followed(name, Some(*index), led, now);
        }
        match told {
            Told::Set(_, index) | Told::Nothing(_, index)
                if !blocking.believes(Some(index), led, now) =>
            {
                follower.before = None;
                self.cache.expire(name, now);
                self.cache.rest(name, now, now + RECHECK + LIMIT);
            }
            Told::Set(ports, index) => {
                let set = held(name, &ports, Source::Http, true);
                let same = follower.before.take();
                let same = same.filter(|before| before.found == set.found);
                blocking.answered(Some(index), same.is_none(), took, now, &mut self.dice);
                let pauses = blocking.turn(LIMIT).due > now + POLL;
                let until = now + if pauses { POLL } else { blocking::longest() };
                let confirmed =
                    same.filter(|held| self.cache.confirm(name, held, (now, until), now));
                let held = confirmed.unwrap_or_else(|| {
                    let held = Arc::new(set);
                    (self.cache).put_followed(Arc::clone(&held), now, until, now);
                    self.evidence.found(name);
                    self.meet_canary(name);
                    held
                });
                follower.before = Some(held);
                self.found.insert(name.to_owned(), now);
            }
            Told::Nothing(nothing, index) => {
                let news = follower.before.take().is_some();
                blocking.answered(Some(index), news, took, now, &mut self.dice);
                match self.weigh(name, Rung::Http, &nothing, false, took, None) {
                    Landed::Nothing => {}
                    Landed::Found(..) | Landed::Kept(_) => {
                        self.cache.expire(name, now);
                        self.cache.rest(name, now, now + RECHECK + LIMIT);
                        follower.blocking.again(now + RECHECK);
                    }
                }
            }
            Told::Failed(failure) => {
                if follower.before.take().is_some() {
                    let part = balance::hash(name.as_bytes()) % 1_000;
                    let share = POLL * u32::try_from(part).unwrap_or(0) / 1_000;
                    self.cache.expire(name, now + share);
                }
                self.evidence.lost(name);
                blocking.failed(failure, None, now, &mut self.dice);
            }
        }
        follower.turn += 1;
        self.later(now, Event::Turn(name.to_owned(), follower.turn));
        self.followers.insert(name.to_owned(), follower);
    }
}

fn nothing(leader: bool) -> Nothing {
    Nothing {
        ttl: None,
        unhealthy: 0,
        leader: Some(leader),
        index: None,
    }
}
