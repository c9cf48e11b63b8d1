//! **Pure.** A service that is kept registered in the made-up world: what `keeper.rs` does
//! with the agenda's steps and those of leaving, and an agent that is made up. It takes what
//! it is told while it is well, and tells the cluster while that has a leader; it forgets all
//! when it loses its data; and an instance whose heartbeat is over is not found any more.

use std::time::{Duration, Instant};

use rand::RngExt as _;

use super::{Event, World, source::Condition};
use crate::{
    ladder::Rung,
    registration::{
        agenda::{Agenda, Failed, Seen, Step, Wishes},
        leaving::{Leaving, Move},
    },
};

/// The service, and its port.
pub(super) const NAME: &str = "ours";
pub(super) const PORT: u16 = 9_000;

/// How long a heartbeat holds.
pub(super) const TTL: Duration = Duration::from_secs(9);

/// Longer than any run.
const FOREVER: Duration = Duration::from_secs(86_400);

/// As in `keeper.rs`.
const REQUEST: Duration = Duration::from_secs(2);

/// What a client takes for a reply that is lost and sent again.
const AGAIN: Duration = Duration::from_millis(200);

/// What an agent is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Keep(Step),
    TakeAway,
}

/// The keeper, its agent, and what the cluster knows.
#[derive(Debug)]
pub(super) struct Keeper {
    agenda: Agenda,
    wishes: Wishes,
    /// Without heartbeats it is healthy as long as it is there.
    beats: bool,
    /// What the agent has: until when the last heartbeat holds.
    there: Option<Instant>,
    /// How often it was registered though it was there.
    pub(super) needless: u32,
    /// Answers that never came to what was done all the same.
    pub(super) unheard: u32,
    /// When one of those came: the fault that it is of lasted until then.
    pub(super) disturbed: Option<Instant>,
    /// How far it is with taking it away.
    leaving: Option<Leaving>,
    /// It was seen to be gone, or taken away, when it had to be; or whoever takes it away says so.
    pub(super) deregistered: bool,
    /// A registration came that nobody waited for any more, and nothing was taken away since.
    came_late: bool,
    /// A request that has no answer yet.
    asking: Option<Request>,
    /// What was planned for another turn is void.
    turn: usize,
}

impl World {
    /// From now on the service is kept registered, with heartbeats or without.
    pub(super) fn register(&mut self, beats: bool) {
        self.keeper = Some(Keeper {
            agenda: Agenda::new(beats.then_some(TTL), self.now),
            beats,
            wishes: Wishes::default(),
            there: None,
            needless: 0,
            unheard: 0,
            disturbed: None,
            leaving: None,
            deregistered: false,
            came_late: false,
            asking: None,
            turn: 0,
        });
        self.later(self.now, Event::Keep(0));
    }

    /// The guard is shut down, which waits for what is asked; or it is dropped, and nobody does.
    pub(super) fn deregister(&mut self, drops: bool) {
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        keeper.wishes.stop = true;
        if !drops && keeper.asking.is_some() {
            return;
        }
        let asking = keeper.asking.take();
        if drops {
            let last = match keeper.agenda.is_present() {
                true => Seen::Ours,
                false => Seen::Nothing,
            };
            let is_sent = asking == Some(Request::Keep(Step::Register));
            keeper.leaving = Some(Leaving::dropped(last, is_sent));
        }
        keeper.turn += 1;
        let turn = keeper.turn;
        self.later(self.now, Event::Keep(turn));
    }

    /// What is next to be asked, or when.
    fn next_request(&mut self) -> Result<Request, Option<Instant>> {
        let now = self.now;
        let Some(keeper) = self.keeper.as_mut() else {
            return Err(None);
        };
        if !keeper.wishes.stop {
            return match keeper.agenda.next(&keeper.wishes, now) {
                Step::Rest(until) => Err(Some(until)),
                step => Ok(Request::Keep(step)),
            };
        }
        if keeper.leaving.is_none() {
            keeper.leaving = keeper.agenda.leaving();
        }
        match keeper.leaving.as_mut().map(Leaving::next) {
            Some(Move::Look) => Ok(Request::Keep(Step::Look)),
            Some(Move::TakeAway) => Ok(Request::TakeAway),
            Some(Move::Rest(pause)) => Err(Some(now + pause)),
            // Where nothing was ever there, there is nothing to take away.
            None | Some(Move::Gone) => {
                keeper.deregistered = !keeper.came_late;
                Err(None)
            }
            Some(Move::GiveUp) => Err(None),
        }
    }

    /// The loop of `keep`, up to a request. What is told reaches the agent at once, or when
    /// it goes on.
    pub(super) fn keep_on(&mut self, turn: usize) {
        let now = self.now;
        if self
            .keeper
            .as_ref()
            .is_none_or(|keeper| keeper.turn != turn)
        {
            return;
        }
        let request = match self.next_request() {
            Ok(request) => request,
            Err(Some(until)) => return self.later(until, Event::Keep(turn)),
            Err(None) => return,
        };
        let lossy = |dice: &mut rand::rngs::SmallRng, percent| dice.random_range(0..100) < percent;
        let (heard, at) = match self
            .condition(Rung::Http, now)
            .unwrap_or(Condition::Refused)
        {
            Condition::Well(takes) | Condition::Cut(takes) => (Ok(()), now + takes),
            Condition::Lost | Condition::Leaderless | Condition::Limited => {
                (Ok(()), now + Duration::from_millis(1))
            }
            Condition::Lossy(percent, delay) if lossy(&mut self.dice, percent) => {
                // Whatever is lost of it is sent again; or it comes too late.
                match self.dice.random_range(0..4_u32) {
                    0 => (Err(Failed::Unheard), now + REQUEST),
                    times => (Ok(()), now + delay + times * AGAIN),
                }
            }
            Condition::Lossy(_, delay) => (Ok(()), now + delay),
            Condition::Refused => (Err(Failed::Other), now),
            Condition::Failing => (Err(Failed::Other), now + Duration::from_millis(1)),
            Condition::Denied | Condition::Blind => (Err(Failed::Denied), now),
            Condition::Silent => (Err(Failed::Unheard), now + REQUEST),
        };
        let is_slow = at >= now + REQUEST;
        let result = match heard {
            Ok(()) => self.agent(&request),
            // Who is stopped, or behind a lossy line, may have taken it all the same.
            Err(_) if is_slow && self.dice.random_range(0..2) == 0 => {
                let late = match self.condition(Rung::Http, now) {
                    Some(Condition::Silent) => self.next_condition(Rung::Http, now).unwrap_or(at),
                    // Sent again and again, for a while after nobody waits for it any more.
                    _ => now + Duration::from_millis(self.dice.random_range(0..4_000)),
                };
                self.later(late, Event::Unheard(request.clone()));
                Err(Failed::Unheard)
            }
            Err(how) => Err(how),
        };
        if let Some(keeper) = &mut self.keeper {
            keeper.asking = Some(request);
        }
        self.later(at, Event::Kept(turn, result));
    }

    /// What the agent does with a request, and says.
    fn agent(&mut self, request: &Request) -> Result<Option<Seen>, Failed> {
        let now = self.now;
        let Some(keeper) = &mut self.keeper else {
            return Err(Failed::Other);
        };
        let Request::Keep(step) = request else {
            let was_there = keeper.there.take().is_some();
            (keeper.deregistered, keeper.came_late) = (true, false);
            self.catalog();
            return was_there.then_some(None).ok_or(Failed::Forgotten);
        };
        let said = match step {
            Step::Look => {
                keeper.deregistered |= keeper.leaving.is_some() && keeper.there.is_none();
                Ok(Some(match keeper.there {
                    Some(_) => Seen::Ours,
                    None => Seen::Nothing,
                }))
            }
            Step::Register => {
                keeper.needless += u32::from(keeper.there.is_some());
                // Until its first heartbeat it is not healthy.
                let holds = if keeper.beats {
                    Duration::ZERO
                } else {
                    FOREVER
                };
                keeper.there = Some(now + holds);
                Ok(None)
            }
            Step::Beat if keeper.there.is_some() => {
                keeper.there = Some(now + TTL);
                self.later(now + TTL, Event::Catalog);
                Ok(None)
            }
            Step::Maintain(_) if keeper.there.is_some() => Ok(None),
            Step::Beat | Step::Maintain(_) => Err(Failed::Forgotten),
            Step::Rest(_) => Ok(None),
        };
        self.catalog();
        said
    }

    /// What was taken, though nobody heard that it was.
    pub(super) fn unheard(&mut self, request: &Request) {
        if let Some(keeper) = &mut self.keeper {
            keeper.unheard += 1;
            keeper.disturbed = Some(self.now);
            // Overtaken by what took it away: it is there again, and its checks decide.
            if *request == Request::Keep(Step::Register) {
                (keeper.deregistered, keeper.came_late) = (false, true);
            }
        }
        _ = self.agent(request);
    }

    /// The loop of `keep`, from the reply on.
    pub(super) fn kept(&mut self, turn: usize, result: Result<Option<Seen>, Failed>) {
        let now = self.now;
        let Some(keeper) = self.keeper.as_mut().filter(|keeper| keeper.turn == turn) else {
            return;
        };
        let Some(request) = keeper.asking.take() else {
            return;
        };
        let agenda = &mut keeper.agenda;
        match (&mut keeper.leaving, request, result) {
            (Some(leaving), Request::TakeAway, result) => leaving.took_away(result.map(|_| ())),
            (Some(leaving), Request::Keep(_), result) => {
                leaving.looked(result.map(|seen| seen.unwrap_or(Seen::Nothing)));
            }
            (None, _, Err(how)) => agenda.failed(how, now),
            (None, _, Ok(Some(seen))) => agenda.saw(seen, now),
            (None, Request::Keep(Step::Register), _) => _ = agenda.has_registered(now),
            (None, Request::Keep(Step::Maintain(reason)), _) => agenda.has_maintained(reason),
            (None, ..) => agenda.has_beaten(keeper.wishes.health.clone(), now),
        }
        self.later(now, Event::Keep(turn));
    }

    /// Something may have changed that is found of the service: the agent tells the cluster
    /// as soon as that can take it.
    pub(super) fn catalog(&mut self) {
        let now = self.now;
        let Some(keeper) = &self.keeper else { return };
        let there = keeper.there.is_some_and(|until| now < until);
        if self.condition(Rung::Http, now) == Some(Condition::Leaderless) {
            if let Some(next) = self.next_condition(Rung::Http, now) {
                self.later(next + Duration::from_millis(100), Event::Catalog);
            }
            return;
        }
        let ports = there.then_some(PORT);
        if self.truth_at(NAME, now) != ports.into_iter().collect() {
            self.serve(NAME, now, ports);
            self.expect(NAME);
        }
    }

    /// The agent loses what it was told.
    pub(super) fn forget(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            keeper.there = None;
        }
        self.catalog();
    }

    fn next_condition(&self, rung: Rung, at: Instant) -> Option<Instant> {
        let all = self.conditions.get(&rung)?;
        all.range(at..).map(|(at, _)| *at).find(|next| *next > at)
    }
}
