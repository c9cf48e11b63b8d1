//! **Pure.** A service that is kept registered in the made-up world: what `keeper.rs` does
//! with the agenda's steps, and an agent that is made up. It takes what it is told while it
//! is well, and tells the cluster while that has a leader; it forgets all when it loses its
//! data; and an instance whose heartbeat is over is not found any more.

use std::time::{Duration, Instant};

use rand::RngExt as _;

use super::{Event, World, source::Condition};
use crate::{
    ladder::Rung,
    registration::agenda::{Agenda, Failed, Seen, Step, Wishes},
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
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// What a client takes for a reply that is lost and sent again.
const AGAIN: Duration = Duration::from_millis(200);

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
    /// Tries to take it away that are left, and whether it is the turn of a look.
    tries: u32,
    looks: bool,
    /// The agent was told to take it away, and did.
    pub(super) deregistered: bool,
    /// An event that was planned for another turn is void.
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
            tries: TRIES,
            looks: true,
            deregistered: false,
            turn: 0,
        });
        self.later(self.now, Event::Keep(0));
    }

    /// The guard is dropped.
    pub(super) fn deregister(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            keeper.wishes.stop = true;
            keeper.turn += 1;
            let turn = keeper.turn;
            self.later(self.now, Event::Keep(turn));
        }
    }

    /// The loop of `keep`, up to a request. What is told reaches the agent at once, or when
    /// it goes on.
    pub(super) fn keep_on(&mut self, turn: usize) {
        let now = self.now;
        let Some(keeper) = self.keeper.as_mut().filter(|keeper| keeper.turn == turn) else {
            return;
        };
        let step = match keeper.wishes.stop {
            true if keeper.tries == 0 => return,
            true => keeper.looks.then_some(Step::Look),
            false => match keeper.agenda.next(&keeper.wishes, now) {
                Step::Rest(until) => return self.later(until, Event::Keep(turn)),
                step => Some(step),
            },
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
                    0 => (Err(Failed::Other), now + REQUEST),
                    times => (Ok(()), now + delay + times * AGAIN),
                }
            }
            Condition::Lossy(_, delay) => (Ok(()), now + delay),
            Condition::Refused => (Err(Failed::Other), now),
            Condition::Failing => (Err(Failed::Other), now + Duration::from_millis(1)),
            Condition::Denied | Condition::Blind => (Err(Failed::Denied), now),
            Condition::Silent => (Err(Failed::Other), now + REQUEST),
        };
        let is_slow = at >= now + REQUEST;
        let result = match heard {
            Ok(()) => self.agent(step.as_ref()),
            // Who is stopped, or behind a lossy line, may have taken it all the same.
            Err(_) if is_slow && self.dice.random_range(0..2) == 0 => {
                let late = match self.condition(Rung::Http, now) {
                    Some(Condition::Silent) => self.next_condition(Rung::Http, now).unwrap_or(at),
                    // Sent again and again, for a while after nobody waits for it any more.
                    _ => now + Duration::from_millis(self.dice.random_range(0..4_000)),
                };
                self.later(late, Event::Unheard(step.clone()));
                Err(Failed::Other)
            }
            Err(how) => Err(how),
        };
        self.later(at, Event::Kept(turn, step, result));
    }

    /// What the agent does with a request, and says.
    fn agent(&mut self, step: Option<&Step>) -> Result<Option<Seen>, Failed> {
        let now = self.now;
        let Some(keeper) = &mut self.keeper else {
            return Err(Failed::Other);
        };
        let said = match step {
            None => {
                keeper.there = None;
                keeper.deregistered = true;
                Ok(None)
            }
            Some(Step::Look) => Ok(Some(match keeper.there {
                Some(_) => Seen::Ours,
                None => Seen::Nothing,
            })),
            Some(Step::Register) => {
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
            Some(Step::Beat) if keeper.there.is_some() => {
                keeper.there = Some(now + TTL);
                self.later(now + TTL, Event::Catalog);
                Ok(None)
            }
            Some(Step::Maintain(_)) if keeper.there.is_some() => Ok(None),
            Some(Step::Beat | Step::Maintain(_)) => Err(Failed::Forgotten),
            Some(Step::Rest(_)) => Ok(None),
        };
        self.catalog();
        said
    }

    /// What was taken, though nobody heard that it was.
    pub(super) fn unheard(&mut self, step: Option<&Step>) {
        if let Some(keeper) = &mut self.keeper {
            keeper.unheard += 1;
            keeper.disturbed = Some(self.now);
            // Overtaken by what took it away: it is there again, and its checks decide.
            keeper.deregistered &= step != Some(&Step::Register);
        }
        _ = self.agent(step);
    }

    /// The loop of `keep`, from the reply on.
    pub(super) fn kept(
        &mut self,
        turn: usize,
        step: Option<Step>,
        result: Result<Option<Seen>, Failed>,
    ) {
        let now = self.now;
        let Some(keeper) = self.keeper.as_mut().filter(|keeper| keeper.turn == turn) else {
            return;
        };
        if keeper.wishes.stop {
            match result {
                Ok(None) => return,
                Ok(Some(Seen::Nothing)) => {
                    keeper.deregistered = true;
                    return;
                }
                Ok(Some(_)) => keeper.looks = false,
                // In the end it is told in the dark.
                Err(_) if keeper.looks && keeper.tries == 1 => keeper.looks = false,
                Err(_) => {
                    (keeper.tries, keeper.looks) = (keeper.tries - 1, true);
                    return self.later(now + PAUSE, Event::Keep(turn));
                }
            }
            return self.later(now, Event::Keep(turn));
        }
        let agenda = &mut keeper.agenda;
        match (result, step) {
            (_, None) => return,
            (Err(how), Some(_)) => agenda.failed(how, now),
            (Ok(Some(seen)), _) => agenda.saw(seen, now),
            (Ok(None), Some(Step::Register)) => _ = agenda.has_registered(now),
            (Ok(None), Some(Step::Maintain(reason))) => agenda.has_maintained(reason),
            (Ok(None), Some(_)) => agenda.has_beaten(keeper.wishes.health.clone(), now),
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
