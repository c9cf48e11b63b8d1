//! **Pure.** A made-up world for tests of cache, ladder, circuits, evidence, blocking
//! queries and registration: a clock that is moved by hand, sources that are well, silent
//! or wrong at given times, and the truth they should tell. It drives the pure rooms as
//! [`resolver`](crate::resolver) and [`registration`](crate::registration) do, event by
//! event, and asks nobody.
//!
//! What is `climb.rs` and `lookup.rs` there is [`World::climb`], [`World::land`] and
//! [`World::ask`] here; `weigh.rs` is in `weigh.rs`, `follow.rs` in `watch.rs`, `keeper.rs` in
//! `registration.rs`. Read them side by side.

mod registration;
mod scenario;
mod source;
#[cfg(test)]
mod tests;
mod watch;
mod weigh;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{SeedableRng as _, rngs::SmallRng};

use self::{
    registration::Keeper,
    source::{Condition, held},
    watch::{Follower, Told},
};
use crate::{
    cache::{
        Cache, Limits, Look, Rest,
        stale::{PATIENCE, SNAPSHOT_PATIENCE, Waits, Wish},
    },
    circuit::{Asker, Circuit, Gate, Mode, Pace},
    endpoint::{Outcome, Source},
    error::ErrorKind,
    evidence::Evidence,
    found::Held,
    ladder::{Heard, Ladder, Nothing, Rung, Start, Step},
    protection::{Protection, Reason},
    registration::agenda::{Failed, Seen},
};

/// Limit of a look-up, as by default.
const LIMIT: Duration = Duration::from_secs(1);

/// And what is on this machine has so much more.
const SPARE: Duration = Duration::from_millis(100);

const ASKS: Asker = Asker {
    mode: Mode::Ask,
    home: true,
};
const PROBES: Asker = Asker {
    mode: Mode::Probe,
    ..ASKS
};

/// As in `climb.rs` and `weigh.rs`.
const REST: Duration = Duration::from_millis(500);
const REST_OF_MANY: Duration = Duration::from_secs(2);
const MEET: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(150);
const TIMES: u32 = 3;

/// The ports of a service's instances, from a time on.
type Truth = BTreeMap<Instant, BTreeSet<u16>>;

/// Rungs that were asked, with what came of it.
type Steps = Vec<(Rung, Outcome)>;

/// What a caller was given.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) name: String,
    pub(super) asked: Instant,
    pub(super) at: Instant,
    pub(super) answer: Result<Set, ErrorKind>,
    /// When a source last gave the name's set.
    pub(super) found: Option<Instant>,
    pub(super) steps: Steps,
}

/// A set, as a caller sees it.
#[derive(Clone, Debug)]
pub(super) struct Set {
    pub(super) ports: BTreeSet<u16>,
    pub(super) source: Source,
    pub(super) fresh: bool,
    pub(super) age: Duration,
    pub(super) complete: bool,
    pub(super) protected: Option<Reason>,
}

#[derive(Clone, Debug)]
enum End {
    Give(Arc<Held>),
    Nothing(Rung, Nothing, bool),
    GiveUp(ErrorKind),
}

#[derive(Clone, Debug)]
enum Landed {
    Found(Arc<Held>, Duration),
    Nothing,
    Kept(ErrorKind),
}

/// What happens at a time.
#[derive(Clone, Debug)]
enum Event {
    Land(String, End),
    Probed(String, Option<Arc<Held>>),
    /// Consul's own service is met where this was found.
    Meet(String),
    Answer(Waiting),
    /// The next turn of a name that is followed, and what came of one.
    Turn(String, usize),
    /// The state that was asked for then is late: the others are asked.
    Beside(String, Instant),
    Told(String, usize, Told),
    /// The next step of what is kept registered, what came of one, and one that was carried
    /// out though nobody heard of it.
    Keep(usize),
    Kept(usize, Result<Option<Seen>, Failed>),
    Unheard(registration::Request),
    /// What is found of what is registered may be something else.
    Catalog,
    /// The agent loses what it was told.
    Forget,
}

/// A caller that waits.
#[derive(Clone, Debug)]
struct Waiting {
    name: String,
    asked: Instant,
    known: Option<(Arc<Held>, Instant)>,
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) cache: Cache,
    pub(super) evidence: Evidence,
    circuits: HashMap<Rung, Circuit>,
    pace: Pace,
    dice: SmallRng,
    conditions: HashMap<Rung, BTreeMap<Instant, Condition>>,
    pub(super) truth: BTreeMap<String, Truth>,
    pub(super) listed: BTreeMap<String, BTreeSet<u16>>,
    events: BTreeMap<(Instant, usize), Event>,
    /// Questions in the air by name: when they began, when they land, and the steps
    /// until then.
    flights: HashMap<String, (Instant, Instant, Steps)>,
    /// What the last question of a name came to.
    landed: HashMap<String, (Instant, Steps, Landed)>,
    /// When a source last gave each set.
    found: HashMap<String, Instant>,
    given: Vec<Given>,
    /// As in `Inner`.
    waits: Waits,
    /// Every question to a source.
    pub(super) asked: Vec<(Instant, Rung, String)>,
    /// Names that are followed, and every blocking query.
    followers: BTreeMap<String, Follower>,
    pub(super) blocked: Vec<Instant>,
    keeper: Option<Keeper>,
    count: usize,
}

impl World {
    pub(super) fn new(now: Instant, protection: Protection, seed: u64) -> Self {
        let limits = Limits {
            entries: NonZeroUsize::MAX,
            bytes: 16 << 20,
            floor: Duration::from_secs(1),
            cap: Duration::from_secs(86_400),
            negative: Duration::from_millis(500)..=Duration::from_secs(10),
            keep: Duration::from_secs(86_400),
        };
        Self {
            now,
            cache: Cache::new(limits),
            evidence: Evidence::new(protection),
            circuits: HashMap::new(),
            pace: Pace::default(),
            dice: SmallRng::seed_from_u64(seed),
            conditions: HashMap::new(),
            truth: BTreeMap::new(),
            listed: BTreeMap::new(),
            events: BTreeMap::new(),
            flights: HashMap::new(),
            landed: HashMap::new(),
            found: HashMap::new(),
            given: Vec::new(),
            waits: Waits::default(),
            asked: Vec::new(),
            followers: BTreeMap::new(),
            blocked: Vec::new(),
            keeper: None,
            count: 0,
        }
    }

    /// From `at` on a source does that.
    fn set(&mut self, rung: Rung, at: Instant, condition: Condition) {
        if (rung, condition) == (Rung::Http, Condition::Lost) {
            self.restart(at);
        }
        self.conditions
            .entry(rung)
            .or_default()
            .insert(at, condition);
    }

    /// The agent comes back without what it was told, before anybody sees that it was away.
    pub(super) fn restart(&mut self, at: Instant) {
        self.later(at, Event::Forget);
    }

    /// From `at` on a service has instances on these ports.
    pub(super) fn serve(&mut self, name: &str, at: Instant, ports: impl IntoIterator<Item = u16>) {
        let truth = self.truth.entry(name.to_owned()).or_default();
        truth.insert(at, ports.into_iter().collect());
    }

    /// What an earlier run found.
    pub(super) fn snapshot(&mut self, name: &str, age: Duration, ports: &BTreeSet<u16>) {
        let held = held(name, ports, Source::Snapshot, true);
        self.cache.restore(Arc::new(held), self.now - age);
        self.found.insert(name.to_owned(), self.now - age);
    }

    fn condition(&self, rung: Rung, at: Instant) -> Option<Condition> {
        let conditions = self.conditions.get(&rung)?;
        conditions
            .range(..=at)
            .next_back()
            .map(|(_, condition)| *condition)
    }

    pub(super) fn truth_at(&self, name: &str, at: Instant) -> BTreeSet<u16> {
        let truth = self
            .truth
            .get(name)
            .and_then(|truth| truth.range(..=at).next_back());
        truth.map(|(_, ports)| ports.clone()).unwrap_or_default()
    }

    /// Somebody asks at `now`.
    pub(super) fn ask(&mut self, name: &str, wish: Wish) {
        let (asked, at) = (self.now, self.now);
        let known = match self.cache.look(name, at) {
            Look::Fresh(held, age, rest) if wish.takes(age, true) => {
                self.renew(name, rest);
                return self.give(name, asked, Ok(self.set_of(&held, age, true)), Vec::new());
            }
            Look::Stale(held, age, rest @ (Rest::Resting | Rest::Aside))
                if wish.takes(age, false) =>
            {
                self.renew(name, rest);
                return self.give(name, asked, Ok(self.set_of(&held, age, false)), Vec::new());
            }
            Look::Nothing => return self.give(name, asked, Err(ErrorKind::NotFound), Vec::new()),
            Look::Stale(held, age, _) if wish.takes(age, false) => Some((held, at - age)),
            Look::Fresh(..) | Look::Stale(..) | Look::Unknown => None,
        };
        let lands = self.fly(name);
        let until = match &known {
            None => lands,
            Some(_) if self.waits.are_in_vain(at) => lands.min(at),
            Some((held, _)) if held.source == Source::Snapshot => lands.min(at + SNAPSHOT_PATIENCE),
            Some(_) => lands.min(at + PATIENCE),
        };
        let name = name.to_owned();
        self.later(until, Event::Answer(Waiting { name, asked, known }));
    }

    /// `Inner::renew`.
    fn renew(&mut self, name: &str, rest: Rest) {
        if rest == Rest::Aside && self.cache.renews(name, self.now, self.now + REST) {
            self.fly(name);
        }
    }

    /// `Inner::fly`: when the question lands.
    fn fly(&mut self, name: &str) -> Instant {
        if let Some((_, lands, _)) = self.flights.get(name) {
            return *lands;
        }
        let (end, lands, steps) = self.climb(name);
        self.flights
            .insert(name.to_owned(), (self.now, lands, steps));
        self.later(lands, Event::Land(name.to_owned(), end));
        lands
    }

    /// Moves the clock, and lets happen what is due; gives what callers were given.
    pub(super) fn advance(&mut self, to: Instant) -> Vec<Given> {
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > to {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.is_now(at);
            match event {
                Event::Land(name, end) => self.land(&name, end),
                Event::Probed(name, held) => {
                    self.waits.heard();
                    match held {
                        Some(held) => _ = self.keep(&name, held, at),
                        None => self.cache.wake(&name),
                    }
                }
                Event::Meet(name) => self.meet(&name),
                Event::Answer(waiting) => self.answer(waiting),
                Event::Turn(name, number) => self.turn(&name, number),
                Event::Beside(name, asked) => self.poll_beside(&name, asked),
                Event::Told(name, number, told) => self.told(&name, number, told),
                Event::Keep(turn) => self.keep_on(turn),
                Event::Kept(turn, result) => self.kept(turn, result),
                Event::Unheard(request) => self.unheard(&request),
                Event::Catalog => self.catalog(),
                Event::Forget => self.forget(),
            }
        }
        self.is_now(to);
        std::mem::take(&mut self.given)
    }

    /// Here nobody stands still.
    fn is_now(&mut self, now: Instant) {
        self.now = now;
        self.cache.followers_live(now);
    }

    /// `Inner::find`, up to the end of the ladder.
    fn climb(&mut self, name: &str) -> (End, Instant, Steps) {
        let start = self.now;
        let known = self.knows(name);
        let (mut rungs, mut overdue, mut steps) = (Vec::new(), Vec::new(), Vec::new());
        for rung in [Rung::Dns, Rung::Http] {
            if !self.conditions.contains_key(&rung) {
                continue;
            }
            match self.circuits.entry(rung).or_default().gate(start) {
                Gate::Pass => rungs.push(rung),
                Gate::Overdue | Gate::Awaited => overdue.push(rung),
                Gate::Probe => {
                    self.probe(rung, name);
                    steps.push((rung, Outcome::Skipped));
                }
                Gate::Shut(_) => steps.push((rung, Outcome::Skipped)),
            }
        }
        if !self.listed.is_empty() {
            rungs.push(Rung::Static);
        }
        let mut ladder = Ladder::start(Start {
            rungs: &rungs,
            overdue: &overdue,
            shut: !steps.is_empty(),
            known,
            hedge: self.pace.hedge(),
            deadline: start + LIMIT,
            end: start + LIMIT + SPARE,
        });
        let asker = |rung| match overdue.contains(&rung) {
            true => PROBES,
            false => ASKS,
        };
        let mut now = start;
        let mut air: Vec<(Instant, Rung, Heard<Arc<Held>>, Outcome)> = Vec::new();
        let end = loop {
            match ladder.step(now) {
                Step::Ask(rung, limit) => {
                    if overdue.contains(&rung) && self.is_probed_apart(rung) {
                        self.probe(rung, name);
                    }
                    let (heard, outcome, takes) = self.reply(rung, name, now);
                    let (at, heard, outcome) = match now + takes {
                        at if at < limit => (at, heard, outcome),
                        _ => (limit, Heard::TimedOut, Outcome::TimedOut),
                    };
                    air.push((at, rung, heard, outcome));
                }
                Step::Wait(until) => {
                    let first = air
                        .iter()
                        .map(|(at, ..)| *at)
                        .enumerate()
                        .min_by_key(|(_, at)| *at);
                    match first {
                        Some((index, at)) if at <= until => {
                            let (at, rung, heard, outcome) = air.remove(index);
                            let took = at.saturating_duration_since(now);
                            self.hear(rung, outcome, asker(rung), at, took);
                            steps.push((rung, outcome));
                            now = at;
                            ladder.hear(rung, heard);
                        }
                        _ => now = until,
                    }
                }
                Step::Give(held) => break End::Give(held),
                Step::Nothing(rung, nothing) => {
                    break End::Nothing(rung, nothing, ladder.was_denied());
                }
                Step::GiveUp(kind) => break End::GiveUp(kind),
            }
        };
        for (_, rung, ..) in air {
            self.hear(rung, Outcome::Late, asker(rung), now, Duration::ZERO);
            steps.push((rung, Outcome::Late));
        }
        for &rung in &overdue {
            if !steps.iter().any(|(asked, _)| *asked == rung) {
                self.probe(rung, name);
            }
        }
        (end, now, steps)
    }

    fn hear(&mut self, rung: Rung, outcome: Outcome, asker: Asker, at: Instant, took: Duration) {
        if rung == Rung::Dns && matches!(outcome, Outcome::Answered | Outcome::NotFound) {
            self.pace.observe(took);
        }
        if rung != Rung::Static {
            let circuit = self.circuits.entry(rung).or_default();
            circuit.hear(outcome, asker, at, &mut self.dice);
        }
    }

    /// `Inner::find`, from the end of the ladder on.
    fn land(&mut self, name: &str, end: End) {
        let began = self
            .flights
            .get(name)
            .map_or(self.now, |(began, ..)| *began);
        let took = self.now.saturating_duration_since(began);
        let landed = match end {
            End::Give(held) => self.keep(name, held, began),
            End::GiveUp(kind) => Landed::Kept(kind),
            End::Nothing(rung, nothing, denied) => {
                self.weigh(name, rung, &nothing, denied, took, Some(began))
            }
        };
        if let Landed::Kept(_) = landed {
            let is_of_many = self.evidence.reason(name) == Some(Reason::Mass);
            let rest = if is_of_many { REST_OF_MANY } else { REST };
            let is_first = self.cache.rest(name, self.now, self.now + rest);
            let is_denied = matches!(landed, Landed::Kept(ErrorKind::Denied));
            if is_first && is_denied && self.knows(name) {
                self.waits.denied(self.now);
            }
        }
        let (began, lands, steps) =
            (self.flights.remove(name)).unwrap_or((self.now, self.now, Vec::new()));
        if lands - began < PATIENCE && !matches!(landed, Landed::Kept(_)) {
            self.waits.heard();
        }
        self.landed.insert(name.to_owned(), (lands, steps, landed));
    }

    /// `Inner::keep`, of what was asked for then.
    fn keep(&mut self, name: &str, held: Arc<Held>, asked: Instant) -> Landed {
        if let Some(told) = self.cache.told_since(name, asked, self.now) {
            return self.told_meanwhile(name, told);
        }
        let of_consul = held.source != Source::Static;
        self.cache.put(Arc::clone(&held), self.now);
        self.found.insert(name.to_owned(), self.now);
        self.evidence.found(name);
        if of_consul {
            self.meet_canary(name);
        }
        Landed::Found(held, Duration::ZERO)
    }

    /// `Inner::landed`.
    fn told_meanwhile(&mut self, name: &str, told: Look) -> Landed {
        match told {
            Look::Fresh(held, age, _) | Look::Stale(held, age, _) => {
                self.evidence.found(name);
                Landed::Found(held, age)
            }
            Look::Nothing | Look::Unknown => Landed::Nothing,
        }
    }

    fn knows(&mut self, name: &str) -> bool {
        match self.cache.look(name, self.now) {
            Look::Fresh(held, ..) | Look::Stale(held, ..) => held.source != Source::Static,
            Look::Nothing | Look::Unknown => false,
        }
    }

    /// `Inner::wait`, when the wait is over.
    fn answer(&mut self, waiting: Waiting) {
        let Waiting { name, asked, known } = waiting;
        let landed = self
            .landed
            .get(&name)
            .filter(|(at, ..)| *at >= asked)
            .cloned();
        let (steps, landed) = match landed {
            Some((_, steps, landed)) => (steps, Some(landed)),
            None => {
                if self.now > asked {
                    self.waits.waited(self.now);
                }
                (Vec::new(), None)
            }
        };
        let answer = match (landed, known) {
            (Some(Landed::Found(held, age)), _) => Ok(self.set_of(&held, age, true)),
            (Some(Landed::Nothing), _) => Err(ErrorKind::NotFound),
            (kept, known) => match (self.cache.look(&name, self.now), known) {
                (Look::Fresh(held, age, _), _) => Ok(self.set_of(&held, age, true)),
                (Look::Stale(held, age, _), Some(_)) => Ok(self.set_of(&held, age, false)),
                (_, Some((held, since))) => Ok(self.set_of(&held, self.now - since, false)),
                (_, None) => match kept {
                    Some(Landed::Kept(kind)) => Err(kind),
                    _ => Err(ErrorKind::Timeout),
                },
            },
        };
        self.give(&name, asked, answer, steps);
    }

    fn set_of(&self, held: &Held, age: Duration, fresh: bool) -> Set {
        Set {
            ports: held
                .endpoints
                .iter()
                .map(|endpoint| endpoint.port)
                .collect(),
            source: held.source,
            fresh,
            age,
            complete: held.complete,
            protected: if fresh {
                None
            } else {
                self.evidence.reason(&held.key)
            },
        }
    }

    fn give(&mut self, name: &str, asked: Instant, answer: Result<Set, ErrorKind>, steps: Steps) {
        self.given.push(Given {
            name: name.to_owned(),
            asked,
            at: self.now,
            found: self.found.get(name).copied(),
            answer,
            steps,
        });
    }

    fn later(&mut self, at: Instant, event: Event) {
        self.count += 1;
        self.events.insert((at, self.count), event);
    }
}
