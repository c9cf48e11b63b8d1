//! **Pure.** When an address that fails is left alone, and when it is tried again.
//!
//! | heard | circuit |
//! | --- | --- |
//! | an answer, also "no such name" and "not permitted" | closed |
//! | refused, unreachable, throttled | open at once |
//! | silent, garbled | open after [`IN_A_ROW`] in a row |
//! | silent to a question for evidence | unchanged: it may have been given little time |
//! | SERVFAIL, HTTP 5xx | unchanged: they cost no waiting and may be about one name |
//!
//! While a circuit is open the address costs nothing: nobody waits for it. It is
//! probed by copies of questions that are asked anyway, one at a time, every
//! [`PROBE`] give or take a fifth. That does not grow with the time: a probe is one
//! datagram or one request, and whoever is back is to be found within a second. Only an
//! address that comes and goes is asked more seldom: each time that it fails within
//! [`STEADY`] of being well again doubles the pause, [`FLAPS`] times at most, and then only
//! a probe closes its circuit. That others were quicker is no failure of that kind.
//!
//! Who was silent may have been so about one name alone: it is probed by a question for
//! Consul's own service instead of a copy. Where nobody has asked for [`IDLE`] since a probe
//! was due, the circuit tells of then and not of now: who has nobody else to ask puts the
//! question itself, and waits for it, and so do others until something is heard.
//!
//! What is asked of another datacenter, or by a prepared query, says nothing of the agent
//! that passes it on, unless nobody is there at all.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt as _};

use crate::endpoint::Outcome;

/// Failures in a row that open a circuit.
const IN_A_ROW: u8 = 3;

/// Time between two probes.
const PROBE: Duration = Duration::from_millis(400);

/// Who fails so soon after being well again comes and goes.
const STEADY: Duration = Duration::from_secs(10);

/// The pause doubles so often: 12.8 s, or about ten openings and closings a minute.
const FLAPS: u8 = 5;

/// The same where the address asked to be left alone.
const THROTTLED: Duration = Duration::from_secs(1);

/// A probe that has told nothing for so long was lost with whoever sent it.
const LOST: Duration = Duration::from_secs(5);

/// Who was due for a probe so long ago may be well by now, and nobody has looked.
const IDLE: Duration = Duration::from_secs(1);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A look-up: whoever is known to be gone is passed over.
    Ask,
    /// One that has nobody else to ask: who was not probed for long may be well by now.
    Try,
    /// A question that nobody waits for, to see whether who is gone is back.
    Probe,
    /// A question for evidence, beside a look-up: that it is late is nobody's failure.
    Beside,
}

impl Mode {
    pub(crate) fn is_let_in(self, gate: Gate) -> bool {
        match self {
            Self::Ask | Self::Beside => gate == Gate::Pass,
            Self::Try => matches!(gate, Gate::Pass | Gate::Overdue | Gate::Awaited),
            Self::Probe => matches!(gate, Gate::Probe | Gate::Overdue),
        }
    }
}

/// Who asks, and about what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) mode: Mode,
    /// It is about the agent's own datacenter, and how long it takes is the agent's doing.
    pub(crate) home: bool,
}

/// What may be put to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Any question.
    Pass,
    /// A question that nobody waits for.
    Probe,
    /// The same, and one that is waited for where there is nobody else to ask.
    Overdue,
    /// Only such a one: nobody has heard yet from the probe that was overdue.
    Awaited,
    /// Nothing; the next probe is due in so long.
    Shut(Duration),
}

/// The circuit of one address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Circuit {
    failures: u8,
    /// `Some`: open; when the next probe is due.
    probe: Option<Instant>,
    /// When one was sent that was overdue, and has told nothing yet.
    awaited: Option<Instant>,
    /// When it opened.
    since: Option<Instant>,
    /// When it closed last.
    closed: Option<Instant>,
    /// How often in a row it opened soon after that.
    flaps: u8,
    /// What keeps it open is silence, or what cannot be read.
    silent: bool,
}

impl Circuit {
    /// What may be asked at `now`. Changes nothing.
    pub(crate) fn gate(&self, now: Instant) -> Gate {
        match self.probe {
            None => Gate::Pass,
            Some(due) if now >= due + IDLE => match self.awaited {
                Some(sent) if now < sent + LOST => Gate::Awaited,
                _ => Gate::Overdue,
            },
            Some(due) if now >= due => Gate::Probe,
            Some(due) => Gate::Shut(due - now),
        }
    }

    /// A probe is on its way: no other is due before it has told something. One that was
    /// overdue comes late: those who have nobody else to ask are not to fail for its sake.
    pub(crate) fn probing(&mut self, now: Instant) {
        match self.gate(now) {
            Gate::Overdue => self.awaited = Some(now),
            _ => self.probe = Some(now + LOST),
        }
    }

    /// Whether it is open because of what may be one name's fault.
    pub(crate) fn is_silent(&self) -> bool {
        self.probe.is_some() && self.silent
    }

    /// Since when it has been open.
    pub(crate) fn open_since(&self) -> Option<Instant> {
        self.since
    }

    /// Takes in what came of a question. Gives whether the circuit opened or closed by it.
    pub(crate) fn hear(
        &mut self,
        outcome: Outcome,
        asker: Asker,
        now: Instant,
        dice: &mut impl Rng,
    ) -> bool {
        let was_open = self.probe.is_some();
        let (home, probed) = (asker.home, asker.mode == Mode::Probe);
        match outcome {
            Outcome::Answered | Outcome::Partial | Outcome::NotFound | Outcome::Denied => {
                self.close(probed, now);
            }
            Outcome::Refused | Outcome::Unreachable | Outcome::Throttled => {
                self.open(outcome, now, dice);
            }
            Outcome::TimedOut | Outcome::Late if asker.mode == Mode::Beside => {}
            Outcome::TimedOut | Outcome::Late | Outcome::Malformed if home => {
                self.failures = self.failures.saturating_add(1);
                if was_open || self.failures >= IN_A_ROW {
                    self.open(outcome, now, dice);
                }
            }
            // It answers, if not this.
            Outcome::Failed if home && was_open => self.close(probed, now),
            // Another place is silent, and the agent is as before.
            Outcome::TimedOut | Outcome::Late | Outcome::Malformed | Outcome::Failed if probed => {
                self.unprobed(now);
            }
            Outcome::TimedOut
            | Outcome::Late
            | Outcome::Malformed
            | Outcome::Failed
            | Outcome::Skipped => {}
        }
        was_open != self.probe.is_some()
    }

    /// Whoever was to probe it heard nothing, and not for its sake.
    pub(crate) fn unprobed(&mut self, now: Instant) {
        self.probe = self.probe.map(|due| due.min(now));
        self.awaited = None;
    }

    fn open(&mut self, outcome: Outcome, now: Instant, dice: &mut impl Rng) {
        let pause = match outcome {
            Outcome::Throttled => THROTTLED,
            _ => PROBE,
        };
        if self.since.is_none() {
            let since = self.closed.map(|at| now.saturating_duration_since(at));
            let again = since.is_some_and(|since| since < STEADY);
            self.flaps = if again && outcome != Outcome::Late {
                (self.flaps + 1).min(FLAPS)
            } else {
                0
            };
        }
        self.silent = matches!(
            outcome,
            Outcome::TimedOut | Outcome::Late | Outcome::Malformed
        );
        let share = dice.random_range(800..=1_200_u32) << self.flaps;
        (self.probe, self.awaited) = (Some(now + pause * share / 1_000), None);
        self.since.get_or_insert(now);
    }

    /// It answers. Of who comes and goes that counts where a probe heard it.
    fn close(&mut self, probed: bool, now: Instant) {
        let is_open = self.probe.is_some();
        if is_open && self.flaps > 0 && !probed {
            return;
        }
        self.failures = 0;
        if is_open {
            (self.probe, self.awaited) = (None, None);
            (self.since, self.closed) = (None, Some(now));
        }
    }
}

/// How long a source is given before the next one is asked beside it: what its
/// answers have taken, as TCP reckons it (RFC 6298, section 2).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    smoothed: Option<Duration>,
    varies: Duration,
}

/// Before anything was heard.
const FIRST_HEDGE: Duration = Duration::from_millis(100);

/// Below it a busy machine would hedge for nothing; above it a person notices.
const LEAST_HEDGE: Duration = Duration::from_millis(20);
pub(crate) const LATEST_HEDGE: Duration = Duration::from_millis(150);

impl Pace {
    /// An answer took so long.
    pub(crate) fn observe(&mut self, took: Duration) {
        match self.smoothed {
            None => (self.smoothed, self.varies) = (Some(took), took / 2),
            Some(smoothed) => {
                self.varies = self.varies * 3 / 4 + smoothed.abs_diff(took) / 4;
                self.smoothed = Some(smoothed * 7 / 8 + took / 8);
            }
        }
    }

    /// The time to wait before the next source is asked too.
    pub(crate) fn hedge(&self) -> Duration {
        (self.smoothed).map_or(FIRST_HEDGE, |smoothed| {
            (smoothed + self.varies * 4).clamp(LEAST_HEDGE, LATEST_HEDGE)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use rand::{SeedableRng as _, rngs::SmallRng};

    const ASKS: Asker = Asker {
        mode: Mode::Ask,
        home: true,
    };
    const PROBES: Asker = Asker {
        mode: Mode::Probe,
        home: true,
    };
    const ELSEWHERE: Asker = Asker {
        mode: Mode::Ask,
        home: false,
    };

    /// Hears `outcomes`, one each millisecond; gives the circuit and the time.
    fn after(outcomes: &[Outcome]) -> (Circuit, Instant) {
        let (mut circuit, mut now) = (Circuit::default(), clock::now());
        let mut dice = SmallRng::seed_from_u64(1);
        for outcome in outcomes {
            circuit.hear(*outcome, ASKS, now, &mut dice);
            now += Duration::from_millis(1);
        }
        (circuit, now)
    }

    fn is_open(outcomes: &[Outcome]) -> bool {
        let (circuit, now) = after(outcomes);
        circuit.gate(now) != Gate::Pass
    }

    #[test]
    fn one_refusal_opens_it_and_silence_does_so_the_third_time() {
        use Outcome::*;
        assert!(is_open(&[Refused]));
        assert!(is_open(&[Throttled]));
        assert!(!is_open(&[TimedOut, TimedOut]));
        assert!(is_open(&[TimedOut, Late, Malformed]));
        assert!(!is_open(&[
            TimedOut, TimedOut, Answered, TimedOut, TimedOut
        ]));
        assert!(!is_open(&[Failed; 9]));
    }

    #[test]
    fn any_answer_closes_it() {
        use Outcome::*;
        for answer in [Answered, Partial, NotFound, Denied, Failed] {
            assert!(!is_open(&[Refused, answer]), "{answer}");
        }
    }

    #[test]
    fn it_is_probed_every_half_second_and_by_one_at_a_time() {
        let (mut circuit, now) = after(&[Outcome::Refused]);
        let at = |ms| now + Duration::from_millis(ms);
        assert!(matches!(circuit.gate(at(300)), Gate::Shut(_)));
        assert_eq!(circuit.gate(at(600)), Gate::Probe);
        circuit.probing(at(600));
        assert!(matches!(circuit.gate(at(4_000)), Gate::Shut(_)));
        assert_eq!(circuit.gate(at(5_700)), Gate::Probe, "the probe was lost");
        let since = circuit.open_since();
        circuit.hear(
            Outcome::TimedOut,
            PROBES,
            at(700),
            &mut SmallRng::seed_from_u64(1),
        );
        assert!(matches!(circuit.gate(at(750)), Gate::Shut(_)));
        assert_eq!(circuit.gate(at(1_400)), Gate::Probe);
        assert_eq!(circuit.open_since(), since);
    }

    #[test]
    fn after_an_idle_second_all_who_have_to_wait_are_let_in_until_one_is_told() {
        for (outcome, gate) in [
            (Outcome::Answered, Gate::Pass),
            (Outcome::Refused, Gate::Shut(PROBE)),
        ] {
            let (mut circuit, now) = after(&[Outcome::Refused]);
            let at = |ms| now + Duration::from_millis(ms);
            assert_eq!(circuit.gate(at(1_300)), Gate::Probe);
            assert_eq!(circuit.gate(at(1_600)), Gate::Overdue);
            circuit.probing(at(1_600));
            for (mode, is_let_in) in [(Mode::Try, true), (Mode::Probe, false), (Mode::Ask, false)] {
                assert_eq!(
                    mode.is_let_in(circuit.gate(at(1_601))),
                    is_let_in,
                    "{mode:?}"
                );
            }
            assert_eq!(circuit.gate(at(6_700)), Gate::Overdue, "the probe was lost");
            circuit.hear(outcome, PROBES, at(1_602), &mut SmallRng::seed_from_u64(1));
            let now = circuit.gate(at(1_602));
            assert_eq!(std::mem::discriminant(&now), std::mem::discriminant(&gate));
        }
    }

    #[test]
    fn what_keeps_it_open_says_what_it_is_probed_with() {
        use Outcome::*;
        let is_silent = |outcomes: &[Outcome]| after(outcomes).0.is_silent();
        assert!(is_silent(&[TimedOut, Late, TimedOut]));
        assert!(is_silent(&[Refused, TimedOut]));
        assert!(!is_silent(&[TimedOut, TimedOut]), "it is closed");
        assert!(!is_silent(&[TimedOut, TimedOut, TimedOut, Refused]));
        assert!(!is_silent(&[TimedOut, TimedOut, TimedOut, Answered]));
    }

    #[test]
    fn who_comes_and_goes_is_asked_more_seldom_until_that_ends() {
        let (mut circuit, mut now) = (Circuit::default(), clock::now());
        let mut dice = SmallRng::seed_from_u64(1);
        let mut pauses = Vec::new();
        for round in 0..9 {
            circuit.hear(Outcome::Refused, ASKS, now, &mut dice);
            let Gate::Shut(pause) = circuit.gate(now) else {
                panic!("it is open");
            };
            pauses.push(pause.as_millis());
            if pauses.len() > 1 && pauses.len() < 9 {
                // Who asks without being let through says nothing.
                circuit.hear(Outcome::Answered, ASKS, now, &mut dice);
                assert_ne!(circuit.gate(now), Gate::Pass);
            }
            now += pause;
            circuit.probing(now);
            // Nor does one that asked before it was open.
            circuit.hear(Outcome::Answered, ASKS, now, &mut dice);
            assert_eq!(
                circuit.gate(now) == Gate::Pass,
                pauses.len() == 1 || pauses.len() == 9
            );
            circuit.hear(Outcome::Answered, PROBES, now, &mut dice);
            assert_eq!(circuit.gate(now), Gate::Pass);
            now += Duration::from_secs(if round == 7 { 11 } else { 1 });
            circuit.hear(Outcome::Answered, ASKS, now, &mut dice);
        }
        let within = |pause: u128, of: u128| (of * 4 / 5..=of * 6 / 5).contains(&pause);
        for (pause, of) in pauses
            .iter()
            .zip([400, 800, 1_600, 3_200, 6_400, 12_800, 12_800])
        {
            assert!(within(*pause, of), "{pauses:?}");
        }
        assert!(within(pauses[8], 400), "{pauses:?}");
    }

    #[test]
    fn silence_about_another_datacenter_says_nothing_of_the_agent() {
        let (mut circuit, now) = (Circuit::default(), clock::now());
        let mut dice = SmallRng::seed_from_u64(1);
        for _ in 0..9 {
            circuit.hear(Outcome::TimedOut, ELSEWHERE, now, &mut dice);
        }
        assert_eq!(circuit.gate(now), Gate::Pass);
        circuit.hear(Outcome::Refused, ELSEWHERE, now, &mut dice);
        assert_ne!(circuit.gate(now), Gate::Pass);
        // Nor is the next probe later for it.
        let now = now + Duration::from_millis(600);
        circuit.probing(now);
        let probes = Asker {
            mode: Mode::Probe,
            ..ELSEWHERE
        };
        circuit.hear(Outcome::TimedOut, probes, now, &mut dice);
        assert_eq!(circuit.gate(now), Gate::Probe);
    }

    #[test]
    fn silence_to_questions_for_evidence_opens_nothing_and_a_refusal_does() {
        let (mut circuit, now) = (Circuit::default(), clock::now());
        let mut dice = SmallRng::seed_from_u64(1);
        let beside = Asker {
            mode: Mode::Beside,
            ..ASKS
        };
        for outcome in [Outcome::TimedOut, Outcome::Late].repeat(5) {
            circuit.hear(outcome, beside, now, &mut dice);
        }
        assert_eq!(circuit.gate(now), Gate::Pass);
        circuit.hear(Outcome::Refused, beside, now, &mut dice);
        assert_ne!(circuit.gate(now), Gate::Pass);
    }

    #[test]
    fn the_hedge_is_learned_within_its_bounds() {
        let mut pace = Pace::default();
        assert_eq!(pace.hedge(), FIRST_HEDGE);
        for _ in 0..50 {
            pace.observe(Duration::from_micros(200));
        }
        assert_eq!(pace.hedge(), Duration::from_millis(20));
        for _ in 0..50 {
            pace.observe(Duration::from_millis(40));
        }
        let hedge = pace.hedge();
        assert!(hedge > Duration::from_millis(40) && hedge < Duration::from_millis(60));
        pace.observe(Duration::from_secs(9));
        assert_eq!(pace.hedge(), Duration::from_millis(150));
    }
}
