//! **Pure.** What is to be done next to keep one service registered. Time comes in as an
//! argument.
//!
//! | known | next |
//! | --- | --- |
//! | nothing, or a request failed | look, after a pause |
//! | the id is not there, or is ours from before | register |
//! | the id belongs to another address or port | leave it alone, and look again each [`LOOK`] |
//! | it is there | say what has not been said: maintenance, a heartbeat; look again each [`LOOK`] |
//!
//! An agent that forgets, or comes back without what it knew, is found out within [`LOOK`]
//! and the pause of a failure: less than 2 s together. What the servers forgot is missed in
//! the catalog ([`Agenda::is_missed`]), and the agent told again.

use std::time::{Duration, Instant};

use super::leaving::Leaving;
use crate::endpoint::Health;

/// Time between two looks.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// Pause after a request that failed, and after one that is not permitted.
const FAILED: Duration = Duration::from_millis(400);
const DENIED: Duration = Duration::from_secs(5);

/// Pause where the agent has forgotten.
const FORGOTTEN: Duration = Duration::from_millis(50);

/// What the user wants the agent to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// The reason of maintenance.
    pub(crate) maintenance: Option<Box<str>>,
    /// What heartbeats say, and a text with it.
    pub(crate) health: (Health, Box<str>),
    pub(crate) stop: bool,
}

impl Default for Wishes {
    fn default() -> Self {
        Self {
            maintenance: None,
            health: (Health::Passing, Box::default()),
            stop: false,
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Look,
    Register,
    /// Into maintenance with a reason, or out of it.
    Maintain(Option<Box<str>>),
    /// All heartbeats.
    Beat,
    Rest(Instant),
}

/// What a look saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Nothing,
    /// The same id at our address and port.
    Ours,
    /// The same id elsewhere.
    Another,
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    Denied,
    /// The agent does not know what it was told before.
    Forgotten,
    /// No answer came: it may be carried out all the same, and later.
    Unheard,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    Absent,
    Present,
    Taken,
}

/// The state of one service at its agent.
#[derive(Clone, Debug)]
pub(crate) struct Agenda {
    known: Known,
    /// Whose it was when that was seen last.
    last: Seen,
    /// The agent was asked to register it, and may have.
    sent: bool,
    /// One of those had no answer yet.
    may_arrive: bool,
    /// It was registered by us.
    registered: bool,
    /// What is there is not all that we said.
    renew: bool,
    /// How often in a row the agent had forgotten what it had just been told.
    forgotten: u32,
    /// What the agent was told last.
    maintenance: Option<Box<str>>,
    health: Option<(Health, Box<str>)>,
    /// Time between two heartbeats, if there are any.
    beat: Option<Duration>,
    beaten: Instant,
    looked: Instant,
    pause: Instant,
}

impl Agenda {
    /// `ttl`: the shortest of those of its heartbeats.
    pub(crate) fn new(ttl: Option<Duration>, now: Instant) -> Self {
        Self {
            known: Known::Nothing,
            last: Seen::Nothing,
            sent: false,
            may_arrive: false,
            registered: false,
            renew: false,
            forgotten: 0,
            maintenance: None,
            health: None,
            // Two may be lost.
            beat: ttl.map(|ttl| ttl / 3),
            beaten: now,
            looked: now,
            pause: now,
        }
    }

    pub(crate) fn next(&self, wishes: &Wishes, now: Instant) -> Step {
        if now < self.pause {
            return Step::Rest(self.pause);
        }
        let look = self.looked + LOOK;
        match self.known {
            Known::Nothing => Step::Look,
            Known::Absent => Step::Register,
            Known::Taken | Known::Present if now >= look => Step::Look,
            Known::Taken => Step::Rest(look),
            Known::Present if self.maintenance != wishes.maintenance => {
                Step::Maintain(wishes.maintenance.clone())
            }
            Known::Present => match self.beat.map(|beat| self.beaten + beat) {
                Some(due) if now >= due || self.health.as_ref() != Some(&wishes.health) => {
                    Step::Beat
                }
                Some(due) => Step::Rest(look.min(due)),
                None => Step::Rest(look),
            },
        }
    }

    pub(crate) fn saw(&mut self, seen: Seen, now: Instant) {
        (self.looked, self.last) = (now, seen);
        self.known = match seen {
            Seen::Another => Known::Taken,
            Seen::Ours if self.registered && !self.renew => Known::Present,
            // Of an earlier run: its checks may be others.
            Seen::Ours | Seen::Nothing => Known::Absent,
        };
    }

    /// True: it was before.
    pub(crate) fn has_registered(&mut self, now: Instant) -> bool {
        (self.known, self.last, self.looked) = (Known::Present, Seen::Ours, now);
        (self.sent, self.may_arrive) = (true, false);
        // With it everything else begins anew.
        (self.maintenance, self.health, self.renew) = (None, None, false);
        std::mem::replace(&mut self.registered, true)
    }

    /// The catalog had it, and has it no more, whatever the agent says. That is said once,
    /// and so remembered until it is registered again.
    pub(crate) fn is_missed(&mut self) {
        self.renew = true;
        if self.known == Known::Present {
            self.known = Known::Nothing;
        }
    }

    pub(crate) fn has_maintained(&mut self, reason: Option<Box<str>>) {
        (self.maintenance, self.forgotten) = (reason, 0);
    }

    pub(crate) fn has_beaten(&mut self, health: (Health, Box<str>), now: Instant) {
        (self.health, self.beaten, self.forgotten) = (Some(health), now, 0);
    }

    pub(crate) fn failed(&mut self, how: Failed, now: Instant) {
        if std::mem::replace(&mut self.known, Known::Nothing) == Known::Absent {
            self.sent = true;
            self.may_arrive |= how == Failed::Unheard;
        }
        let forgotten = how == Failed::Forgotten;
        self.renew |= forgotten;
        self.forgotten = self.forgotten.saturating_add(u32::from(forgotten));
        self.pause = match how {
            Failed::Forgotten if self.forgotten == 1 => now + FORGOTTEN,
            Failed::Forgotten | Failed::Unheard | Failed::Other => now + FAILED,
            Failed::Denied => now + DENIED,
        };
    }

    /// How it is taken away; where nothing that is there is ours, not at all.
    pub(crate) fn leaving(&self) -> Option<Leaving> {
        let is_anothers = self.last == Seen::Another && !self.may_arrive;
        (self.sent && !is_anothers).then(|| Leaving::new(self.last, self.may_arrive))
    }

    /// Whether the id was another's when that was seen last.
    pub(crate) fn is_taken(&self) -> bool {
        self.last == Seen::Another
    }

    /// Whether the agent knows it as we said it.
    pub(crate) fn is_present(&self) -> bool {
        self.known == Known::Present
    }

    /// Whether the agent forgets again and again.
    pub(crate) fn is_in_vain(&self) -> bool {
        self.forgotten > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const TTL: Duration = Duration::from_secs(9);

    #[test]
    fn what_is_forgotten_is_registered_again_and_told_everything_again() {
        let mut now = clock::now();
        let mut agenda = Agenda::new(Some(TTL), now);
        let wishes = Wishes {
            maintenance: Some("upgrade".into()),
            ..Wishes::default()
        };
        for round in 0..2 {
            assert_eq!(agenda.next(&wishes, now), Step::Look);
            agenda.saw(Seen::Nothing, now);
            assert_eq!(agenda.next(&wishes, now), Step::Register);
            assert_eq!(agenda.has_registered(now), round == 1);
            let reason = Some("upgrade".into());
            assert_eq!(agenda.next(&wishes, now), Step::Maintain(reason.clone()));
            agenda.has_maintained(reason);
            assert_eq!(agenda.next(&wishes, now), Step::Beat);
            agenda.has_beaten(wishes.health.clone(), now);
            assert_eq!(agenda.next(&wishes, now), Step::Rest(now + LOOK));
            now += LOOK;
        }
        assert_eq!(agenda.next(&wishes, now), Step::Look);
        agenda.saw(Seen::Ours, now);
        now += TTL / 3;
        assert_eq!(agenda.next(&wishes, now), Step::Look);
        agenda.saw(Seen::Ours, now);
        assert_eq!(agenda.next(&wishes, now), Step::Beat);
        // A check alone is gone.
        agenda.failed(Failed::Forgotten, now);
        now += FORGOTTEN;
        assert_eq!(agenda.next(&wishes, now), Step::Look);
        agenda.saw(Seen::Ours, now);
        assert_eq!(agenda.next(&wishes, now), Step::Register);
    }

    #[test]
    fn what_the_catalog_misses_is_registered_again_unless_it_is_somebody_elses() {
        let now = clock::now();
        let mut agenda = Agenda::new(None, now);
        agenda.is_missed();
        agenda.saw(Seen::Nothing, now);
        agenda.has_registered(now);
        agenda.is_missed();
        assert_eq!(agenda.next(&Wishes::default(), now), Step::Look);
        agenda.saw(Seen::Ours, now);
        assert_eq!(agenda.next(&Wishes::default(), now), Step::Register);
        agenda.has_registered(now);
        agenda.saw(Seen::Another, now);
        agenda.is_missed();
        assert_eq!(agenda.next(&Wishes::default(), now), Step::Rest(now + LOOK));
    }

    #[test]
    fn what_the_catalog_misses_while_the_agent_is_left_alone_is_not_forgotten() {
        for how in [Failed::Other, Failed::Denied] {
            let now = clock::now();
            let mut agenda = Agenda::new(None, now);
            agenda.saw(Seen::Nothing, now);
            agenda.has_registered(now);
            agenda.failed(how, now);
            agenda.is_missed();
            let Step::Rest(until) = agenda.next(&Wishes::default(), now) else {
                panic!("it does not rest");
            };
            assert_eq!(agenda.next(&Wishes::default(), until), Step::Look);
            agenda.saw(Seen::Ours, until);
            assert_eq!(agenda.next(&Wishes::default(), until), Step::Register);
        }
    }

    #[test]
    fn a_word_of_the_user_is_told_at_once() {
        let now = clock::now();
        let mut agenda = Agenda::new(Some(TTL), now);
        agenda.saw(Seen::Nothing, now);
        agenda.has_registered(now);
        agenda.has_beaten(Wishes::default().health, now);
        let wishes = Wishes {
            health: (Health::Warning, "disk is full".into()),
            ..Wishes::default()
        };
        assert_eq!(agenda.next(&wishes, now), Step::Beat);
    }

    #[test]
    fn an_id_of_somebody_else_is_left_alone() {
        let mut now = clock::now();
        let mut agenda = Agenda::new(None, now);
        for _ in 0..5 {
            assert_eq!(agenda.next(&Wishes::default(), now), Step::Look);
            agenda.saw(Seen::Another, now);
            assert_eq!(agenda.next(&Wishes::default(), now), Step::Rest(now + LOOK));
            now += LOOK;
        }
        assert!(!agenda.is_present());
    }

    #[test]
    fn an_agent_that_forgets_at_once_is_not_kept_busy() {
        let mut now = clock::now();
        let mut agenda = Agenda::new(Some(TTL), now);
        let wishes = Wishes::default();
        let mut steps = 0;
        let end = now + Duration::from_secs(10);
        while now < end {
            match agenda.next(&wishes, now) {
                Step::Rest(until) => now = until,
                Step::Look => agenda.saw(Seen::Nothing, now),
                Step::Register => _ = agenda.has_registered(now),
                Step::Maintain(_) | Step::Beat => agenda.failed(Failed::Forgotten, now),
            }
            steps += 1;
        }
        assert!(agenda.is_in_vain() && steps < 120, "{steps}");
    }

    #[test]
    fn a_failure_costs_a_pause_and_then_a_look() {
        let now = clock::now();
        let mut agenda = Agenda::new(None, now);
        agenda.saw(Seen::Nothing, now);
        agenda.failed(Failed::Other, now);
        let wishes = Wishes::default();
        let Step::Rest(until) = agenda.next(&wishes, now) else {
            panic!("it does not rest");
        };
        assert!(until <= now + LOOK);
        assert_eq!(agenda.next(&wishes, until), Step::Look);
    }
}
