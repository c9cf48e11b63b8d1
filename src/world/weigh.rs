//! **Pure.** What a source of the made-up world says is gone, weighed as `resolver/weigh.rs` does.

use std::time::{Duration, Instant};

use super::{Event, LIMIT, Landed, MEET, SOON, TIMES, World};
use crate::{
    error::ErrorKind,
    evidence::{Belief, Canary, Others, WINDOW, Word},
    ladder::{Heard, Nothing, Rung},
    protection::Reason,
    world::source::Condition,
};

impl World {
    pub(super) fn meet_canary(&mut self, name: &str) {
        if self.evidence.meets_canary("") {
            self.later(self.now + MEET, Event::Meet(name.to_owned()));
        }
    }

    pub(super) fn meet(&mut self, name: &str) {
        let mut are_met = true;
        for rung in [Rung::Dns, Rung::Http] {
            if !self.conditions.contains_key(&rung) || !self.evidence.is_unmet(rung, "") {
                continue;
            }
            are_met &= match self.ask_canary(rung, LIMIT) {
                Canary::There => true,
                Canary::Silent => false,
                Canary::Gone => {
                    let (heard, _, takes) = self.reply(rung, name, self.now);
                    let there = matches!(heard, Heard::Whole(_) | Heard::Partial(_));
                    let hidden = there && takes <= LIMIT;
                    if hidden {
                        self.evidence.hides_canary(rung, "");
                    }
                    hidden
                }
            };
        }
        if !are_met {
            self.evidence.misses_canary("");
        }
    }

    /// `Inner::shows_nothing`.
    fn shows_nothing(&self, rung: Rung) -> bool {
        rung == Rung::Dns
            || match self.condition(rung, self.now) {
                Some(Condition::Blind | Condition::Leaderless) => true,
                Some(Condition::Limited) => {
                    (self.truth.keys()).all(|name| self.truth_at(name, self.now).is_empty())
                }
                _ => false,
            }
    }

    /// `Inner::weigh`. `asked`: when, unless whoever follows the name was told.
    pub(super) fn weigh(
        &mut self,
        name: &str,
        rung: Rung,
        nothing: &Nothing,
        denied: bool,
        took: Duration,
        asked: Option<Instant>,
    ) -> Landed {
        let told = asked.and_then(|asked| self.cache.told_since(name, asked, self.now));
        if let Some(told) = told {
            return self.told_meanwhile(name, told);
        }
        let limit = (took * TIMES).min(LIMIT.saturating_sub(took)).max(SOON);
        let known = self.knows(name);
        let wants = known && self.evidence.wants_canary(name, nothing);
        let blind = self.evidence.is_blinded(self.now) && rung != Rung::Static;
        let canary = match wants || blind {
            true => (self.evidence.canary_lately(rung, "", self.now))
                .unwrap_or_else(|| self.ask_canary(rung, limit)),
            false => Canary::Silent,
        };
        let unmet = known && canary == Canary::Gone && self.evidence.is_unmet(rung, "");
        let denied = denied || (unmet && self.shows_nothing(rung));
        let now = self.now;
        let belief = match (known, blind) {
            (true, _) => {
                let sets = self.cache.sets_held();
                let trickled = self.cache.shrank_within(name, WINDOW, now);
                let word = Word {
                    key: name,
                    place: "",
                    by: rung,
                    nothing,
                    denied,
                    canary,
                    trickled,
                    known: sets,
                    others: None,
                };
                match self.evidence.judge(word, now) {
                    Belief::AskOthers(most) => {
                        let others = Some(self.ask_others(rung, name, most, limit));
                        self.evidence.judge(Word { others, ..word }, now)
                    }
                    belief => belief,
                }
            }
            (false, true) if canary != Canary::There => Belief::Held(Reason::NoCanary),
            (false, _) => Belief::Gone,
        };
        match belief {
            Belief::Gone | Belief::AskOthers(_) => {
                let was = match asked {
                    Some(_) => self.cache.put_nothing(name, nothing.ttl, now),
                    None => self.cache.put_followed_nothing(name, nothing.ttl, now),
                };
                if let Some((held, since)) = was {
                    self.evidence.went(held, since, "", now);
                }
                Landed::Nothing
            }
            Belief::Held(Reason::Denied | Reason::NoCanary) => Landed::Kept(ErrorKind::Denied),
            Belief::Held(reason) => {
                if reason == Reason::Mass {
                    for (held, since) in self.evidence.take_back("", now) {
                        self.cache.restore(held, since);
                    }
                }
                Landed::Kept(ErrorKind::Unavailable)
            }
        }
    }

    fn ask_canary(&mut self, rung: Rung, limit: Duration) -> Canary {
        let (heard, _, takes) = self.reply(rung, "consul", self.now);
        let canary = match heard {
            _ if takes > limit => Canary::Silent,
            Heard::Whole(_) | Heard::Partial(_) => Canary::There,
            Heard::Nothing(_) | Heard::Denied => Canary::Gone,
            Heard::Failed | Heard::TimedOut => Canary::Silent,
        };
        self.evidence.canary(rung, "", canary, self.now);
        canary
    }

    fn ask_others(&mut self, rung: Rung, than: &str, most: usize, limit: Duration) -> Others {
        let (again, _, takes) = self.reply(rung, than, self.now);
        let mut others = Others {
            back: takes <= limit && matches!(again, Heard::Whole(_) | Heard::Partial(_)),
            ..Others::default()
        };
        let evidence = &self.evidence;
        let counts = |key: &str| key != than && !evidence.is_released(key);
        for other in self.cache.others(most, WINDOW, self.now, counts) {
            let (heard, _, takes) = self.reply(rung, &other, self.now);
            let gone = match heard {
                Heard::Whole(_) | Heard::Partial(_) if takes <= limit => false,
                Heard::Nothing(_) | Heard::Denied if takes <= limit => true,
                _ => {
                    others.silent += 1;
                    continue;
                }
            };
            others.asked += 1;
            others.gone += usize::from(gone);
        }
        others
    }
}
