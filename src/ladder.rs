//! **Pure.** Which source is asked next, and what is given in the end. It asks
//! nobody itself: [`Ladder::step`] says what to do, [`Ladder::hear`] takes in
//! what came of it.
//!
//! | asked | heard | then |
//! | --- | --- | --- |
//! | DNS | the whole set | give it |
//! | DNS | a set that may be cut | HTTP; if that has no set, give the cut one, marked |
//! | DNS | no such name | give up: not found |
//! | DNS | refused, silent, SERVFAIL | HTTP |
//! | HTTP | a set | give it |
//! | HTTP | no such name | give up: not found |
//! | HTTP | not permitted, refused, silent, 5xx | the static catalog |
//! | static | a set | give it |
//! | static | not in it | give up: not found if nothing else is configured, else the worst that was heard |
//!
//! A rung that is not configured is passed over. DNS may use up at most
//! [`DNS_SHARE`] of the time while HTTP is still to be asked.

use std::time::{Duration, Instant};

use crate::error::ErrorKind;

/// Share of the time left that DNS may take, as a divisor: with the default limit
/// of 1 s a silent port leaves 600 ms to HTTP.
const DNS_SHARE: (u32, u32) = (2, 5);

/// A source, as the ladder sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rung {
    Dns,
    Http,
    Static,
}

/// What a rung said. `S` is a set.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard<S> {
    Whole(S),
    /// May lack instances.
    Partial(S),
    /// There is no such name; for how long that may be believed, if it was said.
    Nothing(Option<Duration>),
    /// Not permitted.
    Denied,
    Failed,
    TimedOut,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step<S> {
    Ask(Rung, Instant),
    Give(S),
    /// There is no such name.
    Nothing(Option<Duration>),
    GiveUp(ErrorKind),
}

/// One look-up on its way.
#[derive(Debug)]
pub(crate) struct Ladder<S> {
    /// The rungs not yet asked, last first.
    left: Vec<Rung>,
    asked: Option<Rung>,
    deadline: Instant,
    partial: Option<S>,
    end: Option<Step<S>>,
    /// The worst that was heard, for the error.
    worst: Option<ErrorKind>,
}

impl<S> Ladder<S> {
    /// Starts below the first of `rungs`, which are in the order to be asked.
    pub(crate) fn start(rungs: &[Rung], deadline: Instant) -> Self {
        Self {
            left: rungs.iter().rev().copied().collect(),
            asked: None,
            deadline,
            partial: None,
            end: None,
            worst: None,
        }
    }

    /// What to do at `now`. An `Ask` is to be followed by [`hear`](Self::hear);
    /// the other steps end the look-up.
    pub(crate) fn step(&mut self, now: Instant) -> Step<S> {
        if let Some(end) = self.end.take() {
            return end;
        }
        match self.left.pop() {
            // The catalog on this machine costs no waiting.
            Some(Rung::Static) if self.partial.is_none() => self.ask(Rung::Static, self.deadline),
            Some(rung @ (Rung::Dns | Rung::Http)) if now < self.deadline => {
                let share = if rung == Rung::Dns && self.left.contains(&Rung::Http) {
                    let (part, of) = DNS_SHARE;
                    now + (self.deadline - now) * part / of
                } else {
                    self.deadline
                };
                self.ask(rung, share)
            }
            Some(_) => {
                self.worst.get_or_insert(ErrorKind::Timeout);
                self.step(now)
            }
            None => match self.partial.take() {
                Some(set) => Step::Give(set),
                None => Step::GiveUp(self.worst.unwrap_or(ErrorKind::Unavailable)),
            },
        }
    }

    /// Takes in what the rung asked last said.
    pub(crate) fn hear(&mut self, heard: Heard<S>) {
        let rung = self.asked.take();
        match heard {
            Heard::Whole(set) => self.end = Some(Step::Give(set)),
            Heard::Partial(set) if rung == Some(Rung::Dns) => self.partial = Some(set),
            Heard::Partial(set) => {
                // A set that DNS could cut is no better than one with a bad entry.
                self.end = Some(Step::Give(set));
            }
            // A name that DNS has just listed exists.
            Heard::Nothing(_) if self.partial.is_some() => {}
            // The last rung says so for all only where it is the only one.
            Heard::Nothing(ttl) if rung != Some(Rung::Static) || self.worst.is_none() => {
                self.end = Some(Step::Nothing(ttl));
            }
            Heard::Nothing(_) => {}
            Heard::Denied => self.worst = Some(ErrorKind::Denied),
            Heard::Failed => self.failed(ErrorKind::Unavailable),
            Heard::TimedOut => self.failed(ErrorKind::Timeout),
        }
    }

    fn ask(&mut self, rung: Rung, until: Instant) -> Step<S> {
        self.asked = Some(rung);
        Step::Ask(rung, until)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    const TTL: Option<Duration> = Some(Duration::from_secs(3));
    const ALL: &[Rung] = &[Rung::Dns, Rung::Http, Rung::Static];

    /// Climbs `rungs`, each saying what is listed; gives the rungs asked and the end.
    fn climb(rungs: &[Rung], said: &[Heard<u8>]) -> (Vec<Rung>, Step<u8>) {
        let now = clock::now();
        let mut ladder = Ladder::start(rungs, now + Duration::from_secs(1));
        let (mut asked, mut said) = (Vec::new(), said.iter());
        loop {
            match ladder.step(now) {
                Step::Ask(rung, _) => {
                    asked.push(rung);
                    ladder.hear(said.next().expect("a rung too many").clone());
                }
                end => return (asked, end),
            }
        }
    }

    #[test]
    fn the_failure_table() {
        use ErrorKind as E;
        use Heard::*;
        use Rung::*;
        type Row = (&'static [Heard<u8>], &'static [Rung], Step<u8>);
        let table: &[Row] = &[
            (&[Whole(1)], &[Dns], Step::Give(1)),
            (&[Nothing(TTL)], &[Dns], Step::Nothing(TTL)),
            (&[Partial(1), Whole(2)], &[Dns, Http], Step::Give(2)),
            (&[Partial(1), Partial(2)], &[Dns, Http], Step::Give(2)),
            (&[Partial(1), Nothing(TTL)], &[Dns, Http], Step::Give(1)),
            (&[Partial(1), Failed], &[Dns, Http], Step::Give(1)),
            (&[Partial(1), Denied], &[Dns, Http], Step::Give(1)),
            (&[Failed, Whole(2)], &[Dns, Http], Step::Give(2)),
            (&[TimedOut, Whole(2)], &[Dns, Http], Step::Give(2)),
            (&[Failed, Nothing(TTL)], &[Dns, Http], Step::Nothing(TTL)),
            (&[Failed, Failed, Whole(3)], ALL, Step::Give(3)),
            (&[Failed, Denied, Whole(3)], ALL, Step::Give(3)),
            (
                &[Failed, Denied, Nothing(TTL)],
                ALL,
                Step::GiveUp(E::Denied),
            ),
            (
                &[Failed, Failed, Nothing(TTL)],
                ALL,
                Step::GiveUp(E::Unavailable),
            ),
            (
                &[TimedOut, TimedOut, Nothing(TTL)],
                ALL,
                Step::GiveUp(E::Timeout),
            ),
            (
                &[Failed, TimedOut, Nothing(TTL)],
                ALL,
                Step::GiveUp(E::Unavailable),
            ),
            (&[Failed, Failed, Failed], ALL, Step::GiveUp(E::Unavailable)),
        ];
        for (said, asked, end) in table {
            assert_eq!(climb(ALL, said), (asked.to_vec(), end.clone()), "{said:?}");
        }
    }

    #[test]
    fn a_rung_that_is_not_configured_is_passed_over() {
        assert_eq!(
            climb(&[Rung::Http], &[Heard::Whole(2)]),
            (vec![Rung::Http], Step::Give(2))
        );
        assert_eq!(
            climb(&[Rung::Dns], &[Heard::Partial(1)]),
            (vec![Rung::Dns], Step::Give(1))
        );
        assert_eq!(
            climb(&[], &[]),
            (vec![], Step::GiveUp(ErrorKind::Unavailable))
        );
    }

    #[test]
    fn a_name_that_only_the_static_catalog_could_have_is_not_found() {
        let (_, end) = climb(&[Rung::Static], &[Heard::Nothing(TTL)]);
        assert_eq!(end, Step::Nothing(TTL));
    }

    #[test]
    fn dns_leaves_time_to_http_and_the_last_rung_gets_all_that_is_left() {
        let now = clock::now();
        let deadline = now + Duration::from_secs(1);
        let mut ladder = Ladder::<u8>::start(ALL, deadline);
        assert_eq!(
            ladder.step(now),
            Step::Ask(Rung::Dns, now + Duration::from_millis(400))
        );
        ladder.hear(Heard::TimedOut);
        assert_eq!(ladder.step(now), Step::Ask(Rung::Http, deadline));
        let mut alone = Ladder::<u8>::start(&[Rung::Dns, Rung::Static], deadline);
        assert_eq!(alone.step(now), Step::Ask(Rung::Dns, deadline));
    }

    #[test]
    fn after_the_deadline_only_the_catalog_on_this_machine_is_asked() {
        let now = clock::now();
        let mut ladder = Ladder::<u8>::start(ALL, now);
        assert_eq!(ladder.step(now), Step::Ask(Rung::Static, now));
        ladder.hear(Heard::Nothing(None));
        assert_eq!(ladder.step(now), Step::GiveUp(ErrorKind::Timeout));
    }
}
