//! **Pure.** The rule of keeping a service registered.

use std::time::{Duration, Instant};

use crate::{
    Health, clock,
    registration::agenda::{Agenda, Failed, Seen, Step, Wishes},
};

/// A world made of bytes: the agent forgets, is away, has the id of somebody else, the servers
/// lose their data, and the user changes his mind. Whatever happened, five quiet seconds later
/// the service is there and in the catalog, once, with all that was said; what belongs to
/// somebody else never is overwritten; and no agent is asked more than a few times a second.
pub fn registration(bytes: &[u8]) {
    const TTL: Duration = Duration::from_secs(9);
    let start = clock::now();
    let mut world = World {
        now: start,
        agenda: Agenda::new(Some(TTL), start),
        wishes: Wishes::default(),
        there: None,
        in_catalog: false,
        told: (None, None),
        away: false,
        asked: 0,
    };
    let mut changes = 0_u32;
    for byte in bytes.iter().take(512) {
        match byte % 8 {
            0 => world.there = None,
            1 => world.away = !world.away,
            2 => world.there = Some(Owner::Another),
            3 if world.there == Some(Owner::Another) => world.there = None,
            4 => {
                let reason = byte.is_multiple_of(3).then(|| "upgrade".into());
                world.wishes.maintenance = reason;
            }
            5 => world.wishes.health = (Health::Warning, byte.to_string().into()),
            // The heartbeat's check alone is gone.
            6 => world.told.1 = None,
            // The agent has not noticed.
            7 if std::mem::take(&mut world.in_catalog) => world.agenda.is_missed(),
            _ => {}
        }
        changes += 1;
        world.pass(Duration::from_millis(u64::from(*byte) * 10));
    }
    world.away = false;
    world.pass(Duration::from_secs(5));
    if world.there != Some(Owner::Another) {
        assert_eq!(world.there, Some(Owner::Ours), "it is not registered");
        assert!(world.in_catalog, "the catalog misses it");
        assert_eq!(world.told.0, world.wishes.maintenance, "maintenance");
        assert_eq!(world.told.1.as_ref(), Some(&world.wishes.health), "health");
    }
    let seconds = world.now.duration_since(start).as_secs_f64();
    let most = seconds * 4.0 + f64::from(changes) * 6.0 + 10.0;
    assert!(
        f64::from(world.asked) <= most,
        "{} in {seconds} s",
        world.asked
    );
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Ours,
    Another,
}

/// What a heartbeat says.
type Word = (Health, Box<str>);

struct World {
    now: Instant,
    agenda: Agenda,
    wishes: Wishes,
    there: Option<Owner>,
    /// Ours; told by the agent when it is told.
    in_catalog: bool,
    /// Maintenance and heartbeat, as the agent has them.
    told: (Option<Box<str>>, Option<Word>),
    away: bool,
    asked: u32,
}

impl World {
    /// Time goes by, and what is due is done.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            match self.agenda.next(&self.wishes, self.now) {
                Step::Rest(until) => {
                    assert!(until > self.now, "it rests and does not");
                    if until > end {
                        self.now = end;
                        return;
                    }
                    self.now = until;
                }
                step => self.take(step),
            }
        }
    }

    /// The agent's side of one request.
    fn take(&mut self, step: Step) {
        self.asked += 1;
        let now = self.now;
        if self.away {
            return self.agenda.failed(Failed::Other, now);
        }
        match step {
            Step::Look => {
                let seen = match self.there {
                    None => Seen::Nothing,
                    Some(Owner::Ours) => Seen::Ours,
                    Some(Owner::Another) => Seen::Another,
                };
                self.agenda.saw(seen, now);
            }
            Step::Register => {
                // It was looked at just before.
                assert_ne!(
                    self.there,
                    Some(Owner::Another),
                    "somebody else's is overwritten"
                );
                (self.there, self.in_catalog) = (Some(Owner::Ours), true);
                self.told = (None, Some((Health::Critical, Box::default())));
                self.agenda.has_registered(now);
            }
            Step::Maintain(reason) if self.there == Some(Owner::Ours) => {
                self.told.0.clone_from(&reason);
                self.agenda.has_maintained(reason);
            }
            Step::Beat if self.there == Some(Owner::Ours) && self.told.1.is_some() => {
                self.told.1 = Some(self.wishes.health.clone());
                self.agenda.has_beaten(self.wishes.health.clone(), now);
            }
            Step::Maintain(_) | Step::Beat => self.agenda.failed(Failed::Forgotten, now),
            Step::Rest(_) => {}
        }
    }
}
