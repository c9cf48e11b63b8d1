//! **Pure.** Which source is asked next, and what is given in the end. It asks
//! nobody itself: [`Ladder::step`] says what to do, [`Ladder::hear`] takes in
//! what came of it.
//!
//! | asked | heard | then |
//! | --- | --- | --- |
//! | DNS | the whole set | give it |
//! | DNS | a set that may be cut | HTTP; if that has no set, give the cut one, marked |
//! | DNS | no such name, and nothing else was ever heard | not found |
//! | DNS | no such name, but there was a set before | HTTP is to confirm it; [`evidence`](crate::evidence) judges |
//! | DNS | no such name, and Consul's own service is none either | as not permitted: HTTP, whose token may see more |
//! | DNS | refused, garbled, SERVFAIL | HTTP at once |
//! | DNS | nothing yet, for longer than its answers take | HTTP beside it; who has a whole set first wins |
//! | HTTP | a set | give it |
//! | HTTP | no such name | not found; [`evidence`](crate::evidence) judges where there was a set before |
//! | HTTP | not permitted, refused, silent, 5xx | the set known before, however old |
//! | both | failed, and there was no set before | the static catalog, then the default address |
//! | static | a set | give it |
//! | static | not in it | not found if nothing else is configured, else the worst that was heard |
//!
//! The set known before is in the [`cache`](crate::cache), where the snapshot is
//! read into: a look-up that has one does not climb below HTTP, and whoever asked
//! has it after a moment, whatever is still being waited for. A source that is not
//! configured, or whose [`circuit`] is open, is passed over. One that was not
//! probed for long is asked where those that are well gave nothing, and like any other where
//! none of them is.

use std::time::{Duration, Instant};

use crate::{circuit, endpoint::Source, error::ErrorKind};

/// A source, as the ladder sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rung {
    Dns,
    Http,
    Static,
}

impl Rung {
    /// The one that a set of that source comes from.
    pub(crate) fn of(source: Source) -> Self {
        match source {
            Source::Dns => Self::Dns,
            Source::Http => Self::Http,
            Source::Snapshot | Source::Static => Self::Static,
        }
    }
}

/// What a rung said. `S` is a set.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard<S> {
    Whole(S),
    /// May lack instances.
    Partial(S),
    Nothing(Nothing),
    /// Not permitted.
    Denied,
    Failed,
    TimedOut,
}

impl<S> Heard<S> {
    /// Whether that is an answer, whatever it says.
    pub(crate) fn is_an_answer(&self) -> bool {
        matches!(self, Self::Whole(_) | Self::Partial(_) | Self::Nothing(_))
    }
}

/// "There is no such name", and what was said with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nothing {
    /// For how long that may be believed, if it was said.
    pub(crate) ttl: Option<Duration>,
    /// Instances that there are, all critical.
    pub(crate) unhealthy: usize,
    /// Whether the server that answered knew its leader; `None`: it did not say.
    pub(crate) leader: Option<bool>,
    /// Consul's index of the word; `None`: it was not said.
    pub(crate) index: Option<u64>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step<S> {
    /// Put the question to this rung, at most until then, and go on.
    Ask(Rung, Instant),
    /// Wait until something is heard, or until then.
    Wait(Instant),
    Give(S),
    /// There is no such name, says this rung.
    Nothing(Rung, Nothing),
    GiveUp(ErrorKind),
}

/// What a climb begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start<'a> {
    /// The rungs that may be asked, in this order; what is on this machine is the last.
    pub(crate) rungs: &'a [Rung],
    /// Those that are left alone and may be well by now, in this order.
    pub(crate) overdue: &'a [Rung],
    /// A rung was passed over because its circuit is open.
    pub(crate) shut: bool,
    /// There is a set from before.
    pub(crate) known: bool,
    /// How long DNS is given before HTTP is asked beside it.
    pub(crate) hedge: Duration,
    pub(crate) deadline: Instant,
    /// What is on this machine has until then.
    pub(crate) end: Instant,
}

/// One look-up on its way.
#[derive(Clone, Debug)]
pub(crate) struct Ladder<S> {
    /// The rungs not yet asked, last first.
    left: Vec<Rung>,
    /// Those of them that say more only where the others say nothing.
    doubtful: Vec<Rung>,
    /// Those asked that have said nothing yet, and since when.
    in_air: Vec<(Rung, Instant)>,
    known: bool,
    hedge: Duration,
    deadline: Instant,
    last: Instant,
    partial: Option<S>,
    nothing: Option<(Rung, Nothing)>,
    end: Option<Step<S>>,
    /// The worst that was heard, for the error.
    worst: Option<ErrorKind>,
}

impl<S> Ladder<S> {
    pub(crate) fn start(start: Start<'_>) -> Self {
        // Below a set that is known there is nothing better.
        let worth = |rung: &&Rung| !(start.known && rung.is_local());
        let well = start.rungs.iter().take_while(|rung| !rung.is_local());
        let (consul, local) = start.rungs.split_at(well.count());
        let doubtful = match consul {
            [] => &[],
            _ => start.overdue,
        };
        let last_first = (local.iter().filter(worth).rev())
            .chain(start.overdue.iter().rev())
            .chain(consul.iter().rev());
        Self {
            left: last_first.copied().collect(),
            doubtful: doubtful.to_vec(),
            in_air: Vec::new(),
            known: start.known,
            hedge: start.hedge,
            deadline: start.deadline,
            last: start.end,
            partial: None,
            nothing: None,
            end: None,
            worst: start.shut.then_some(ErrorKind::Unavailable),
        }
    }

    /// What to do at `now`. All but `Ask` and `Wait` end the look-up; whoever is
    /// still in the air then is not waited for.
    pub(crate) fn step(&mut self, now: Instant) -> Step<S> {
        if let Some(end) = self.end.take() {
            return end;
        }
        if now >= self.deadline {
            let asked = self.in_air.iter().map(|(rung, _)| rung);
            let late = asked.chain(&self.left).any(|rung| !rung.is_local());
            let has_time = now < self.last;
            (self.in_air).retain(|(rung, _)| rung.is_local() && has_time);
            self.left.retain(Rung::is_local);
            if late {
                self.failed(ErrorKind::Timeout);
            }
        }
        match (self.in_air.first(), self.left.last()) {
            (None, Some(_)) => self.ask(now),
            (None, None) => self.finish(),
            (Some((_, asked)), Some(rung)) if !rung.is_local() => {
                let beside = *asked + self.hedge;
                if now >= beside || self.partial.is_some() {
                    self.ask(now)
                } else {
                    Step::Wait(beside.min(self.deadline))
                }
            }
            (Some((rung, _)), _) => Step::Wait(self.until(*rung)),
        }
    }

    /// Many are late: one more question beside is not for a single reply that is, and is as little
    /// as it may be.
    pub(crate) fn hedge_later(&mut self) {
        self.hedge = self.hedge.max(circuit::LATEST_HEDGE);
    }

    /// Takes in what a rung said. Whoever was given up is not heard any more.
    pub(crate) fn hear(&mut self, rung: Rung, heard: Heard<S>) {
        let Some(at) = self.in_air.iter().position(|(asked, _)| *asked == rung) else {
            return;
        };
        self.in_air.remove(at);
        match heard {
            Heard::Whole(set) => self.end = Some(Step::Give(set)),
            // What only DNS can cut, HTTP may have whole.
            Heard::Partial(set) if rung == Rung::Dns && self.asks(Rung::Http) => {
                self.partial = Some(set);
            }
            Heard::Partial(set) => self.end = Some(Step::Give(set)),
            // A name that DNS has just listed exists.
            Heard::Nothing(_) if self.partial.is_some() => {}
            Heard::Nothing(nothing) if rung == Rung::Dns && self.known && self.asks(Rung::Http) => {
                self.nothing = Some((rung, nothing));
            }
            // The last rung says so for all only where it is the only one.
            Heard::Nothing(nothing) if rung != Rung::Static || self.worst.is_none() => {
                self.end = Some(Step::Nothing(rung, nothing));
            }
            Heard::Nothing(_) => {}
            Heard::Denied => self.worst = Some(ErrorKind::Denied),
            Heard::Failed => self.failed(ErrorKind::Unavailable),
            Heard::TimedOut => self.failed(ErrorKind::Timeout),
        }
    }

    /// Whether a rung said that we may not know.
    pub(crate) fn was_denied(&self) -> bool {
        self.worst == Some(ErrorKind::Denied)
    }

    /// Whether a rung that is worth waiting for is still to say something.
    fn asks(&self, rung: Rung) -> bool {
        let asked = self.left.contains(&rung) || self.in_air.iter().any(|(one, _)| *one == rung);
        asked && !self.doubtful.contains(&rung)
    }

    fn ask(&mut self, now: Instant) -> Step<S> {
        // With a set or a word from Consul itself, the operator's list has no say.
        let settled = self.partial.is_some() || self.nothing.is_some();
        match self.left.pop() {
            Some(rung) if !(settled && rung.is_local()) => {
                self.in_air.push((rung, now));
                Step::Ask(rung, self.until(rung))
            }
            _ => self.finish(),
        }
    }

    fn until(&self, rung: Rung) -> Instant {
        match rung.is_local() {
            true => self.last,
            false => self.deadline,
        }
    }

    fn finish(&mut self) -> Step<S> {
        match (self.partial.take(), self.nothing.take()) {
            (Some(set), _) => Step::Give(set),
            (None, Some((rung, nothing))) => Step::Nothing(rung, nothing),
            (None, None) => Step::GiveUp(self.worst.unwrap_or(ErrorKind::Unavailable)),
        }
    }

    /// Time-outs alone are a time-out; with any other failure among them nobody
    /// is reachable. What was denied stays denied.
    fn failed(&mut self, kind: ErrorKind) {
        self.worst = match self.worst {
            None => Some(kind),
            Some(ErrorKind::Denied) => Some(ErrorKind::Denied),
            Some(before) if before == kind => Some(kind),
            Some(_) => Some(ErrorKind::Unavailable),
        };
    }
}

impl Rung {
    /// On this machine: asking costs no waiting.
    fn is_local(&self) -> bool {
        *self == Self::Static
    }
}

#[cfg(test)]
mod tests;
