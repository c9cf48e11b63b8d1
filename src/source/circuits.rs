//! **Shell.** The circuits of one rung's addresses, shared by all who ask there.
//! When one opens and closes is [`circuit`](crate::circuit)'s to say.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::info;

use crate::{
    circuit::{Asker, Circuit, Gate, Mode, Pace},
    clock,
    endpoint::{Outcome, Source},
};

/// One circuit an address.
#[derive(Debug)]
pub(crate) struct Circuits {
    source: Source,
    names: Box<[Box<str>]>,
    /// A std mutex: held for one look, never across an await.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    circuits: Vec<Circuit>,
    /// What the answers of each take.
    paces: Vec<Pace>,
    /// Circuits that opened or closed, so far.
    transitions: u64,
    /// When a question last failed.
    failed: Option<Instant>,
}

impl Circuits {
    /// For the addresses of `source`, as they are to be named.
    pub(crate) fn new(source: Source, names: impl Iterator<Item = String>) -> Self {
        let names: Box<[Box<str>]> = names.map(Into::into).collect();
        let state = State {
            circuits: vec![Circuit::default(); names.len()],
            paces: vec![Pace::default(); names.len()],
            transitions: 0,
            failed: None,
        };
        Self {
            source,
            names,
            state: Mutex::new(state),
        }
    }

    /// What the rung as a whole may be asked: what its best address may.
    pub(crate) fn gate(&self, now: Instant) -> Gate {
        let state = self.state();
        let gates = state.circuits.iter().map(|circuit| circuit.gate(now));
        let best = gates.reduce(|best, gate| match (best, gate) {
            (Gate::Pass, _) | (_, Gate::Pass) => Gate::Pass,
            (Gate::Overdue, _) | (_, Gate::Overdue) => Gate::Overdue,
            (Gate::Awaited, _) | (_, Gate::Awaited) => Gate::Awaited,
            (Gate::Probe, _) | (_, Gate::Probe) => Gate::Probe,
            (Gate::Shut(one), Gate::Shut(other)) => Gate::Shut(one.min(other)),
        });
        best.unwrap_or(Gate::Shut(Duration::MAX))
    }

    /// Whether any address is due for a probe.
    pub(crate) fn is_probe_due(&self, now: Instant) -> bool {
        let state = self.state();
        (state.circuits.iter()).any(|circuit| Mode::Probe.is_let_in(circuit.gate(now)))
    }

    /// Whether an address is left alone because of what may be one name's fault.
    pub(crate) fn is_silent(&self) -> bool {
        self.state().circuits.iter().any(Circuit::is_silent)
    }

    /// The addresses that may be asked, by their place in the list.
    pub(crate) fn admitted(&self, mode: Mode, now: Instant) -> Vec<usize> {
        let state = self.state();
        let all = state.circuits.iter().enumerate();
        let admitted = all.filter(|(_, circuit)| mode.is_let_in(circuit.gate(now)));
        admitted.map(|(index, _)| index).collect()
    }

    /// A question to one address begins, if it may still be asked: an address is probed by
    /// one question at a time, but for those who [try](Mode::Try) it.
    pub(crate) fn begin(&self, index: usize, asker: Asker, start: Instant) -> Option<Asking<'_>> {
        let mut state = self.state();
        let circuit = state.circuits.get_mut(index)?;
        let gate = circuit.gate(start);
        if !asker.mode.is_let_in(gate) {
            return None;
        }
        if asker.mode == Mode::Probe {
            circuit.probing(start);
        }
        let mode = match (asker.mode, gate) {
            (Mode::Try, Gate::Pass) => Mode::Ask,
            (Mode::Try, _) => Mode::Probe,
            (mode, _) => mode,
        };
        let asker = Asker { mode, ..asker };
        Some(Asking {
            circuits: self,
            index,
            asker,
            start,
            heard: false,
            blames: true,
        })
    }

    /// How long this rung is given before the next one is asked beside it: as long as its
    /// first address that is asked.
    pub(crate) fn hedge(&self, now: Instant) -> Duration {
        let state = self.state();
        let passes = |circuit: &Circuit| circuit.gate(now) == Gate::Pass;
        let first = state.circuits.iter().position(passes).unwrap_or(0);
        let pace = state.paces.get(first).copied();
        pace.unwrap_or_default().hedge()
    }

    /// How long one address is given before the next one is asked beside it.
    pub(crate) fn hedge_of(&self, index: usize) -> Duration {
        let pace = self.state().paces.get(index).copied();
        pace.unwrap_or_default().hedge()
    }

    /// The addresses, and since when each has been left alone.
    pub(crate) fn states(&self) -> Vec<(&str, Option<Instant>)> {
        let state = self.state();
        let since = state.circuits.iter().map(Circuit::open_since);
        self.names.iter().map(|name| &**name).zip(since).collect()
    }

    /// Circuits that opened or closed, so far.
    pub(crate) fn transitions(&self) -> u64 {
        self.state().transitions
    }

    /// Whether a question failed so lately.
    pub(crate) fn failed_within(&self, time: Duration, now: Instant) -> bool {
        let failed = self.state().failed;
        failed.is_some_and(|failed| now.saturating_duration_since(failed) < time)
    }

    /// A question failed which nobody is blamed for.
    pub(crate) fn failed(&self, now: Instant) {
        self.state().failed = Some(now);
    }

    /// What came of a question that was put to one address, whatever its circuit; `took`:
    /// the time of one that did not wait for anything.
    pub(crate) fn hear(
        &self,
        index: usize,
        outcome: Outcome,
        asker: Asker,
        took: Option<Duration>,
        now: Instant,
    ) {
        let mut state = self.state();
        if let (Outcome::Answered | Outcome::NotFound, Some(took)) = (outcome, took)
            && let Some(pace) = state.paces.get_mut(index)
        {
            pace.observe(took);
        }
        // What is probed failed before, and what is slow elsewhere says nothing of here.
        if asker.home
            && asker.mode == Mode::Ask
            && matches!(
                outcome,
                Outcome::Refused | Outcome::TimedOut | Outcome::Failed | Outcome::Unreachable
            )
        {
            state.failed = Some(now);
        }
        let Some(circuit) = state.circuits.get_mut(index) else {
            return;
        };
        if !circuit.hear(outcome, asker, now, &mut clock::dice()) {
            return;
        }
        let opened = circuit.open_since().is_some();
        state.transitions = state.transitions.saturating_add(1);
        drop(state);
        let (source, address) = (self.source, self.names.get(index).map_or("", |name| name));
        if opened {
            info!(%source, address, %outcome, "left alone until a probe finds it well");
        } else {
            info!(%source, address, "answers again");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question on its way to one address. Dropped before anything was heard, it
/// counts as late: somebody else was quicker, or the time was over.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    circuits: &'a Circuits,
    index: usize,
    asker: Asker,
    start: Instant,
    heard: bool,
    /// Whoever asks may leave because others were quicker.
    blames: bool,
}

impl Asking<'_> {
    /// What came of it.
    pub(crate) fn heard(mut self, outcome: Outcome) {
        self.heard = true;
        let now = clock::now();
        let took = clock::took_by(self.start, now);
        (self.circuits).hear(self.index, outcome, self.asker, Some(took), now);
    }

    /// Nothing came of it, and the address is not to blame.
    pub(crate) fn unheard(self) {
        drop(self.without_blame());
    }

    /// That it is dropped says nothing of the address.
    pub(crate) fn without_blame(mut self) -> Self {
        self.blames = false;
        self
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.heard {
            let now = clock::now();
            let took = clock::took_by(self.start, now);
            // Whoever was given no time is not to blame.
            if self.blames && took >= self.circuits.hedge_of(self.index) {
                (self.circuits).hear(self.index, Outcome::Late, self.asker, Some(took), now);
            } else if self.asker.mode == Mode::Probe
                && let Some(circuit) = self.circuits.state().circuits.get_mut(self.index)
            {
                circuit.unprobed(now);
            }
        }
    }
}
