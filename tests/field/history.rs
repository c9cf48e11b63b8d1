//! What was registered when: the truth that answers are held against.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Mutex,
};

use tokio::time::Instant;

/// One set that a name had.
struct State {
    ports: BTreeSet<u16>,
    /// The change to it was begun.
    from: Instant,
    /// The change to another one was confirmed. A change that nobody confirmed ends nothing:
    /// both are possible then.
    until: Option<Instant>,
}

/// All sets of all names.
#[derive(Default)]
pub(crate) struct History(Mutex<HashMap<String, Vec<State>>>);

impl History {
    /// From `began` on the name may have this set; with `confirmed` it has no other since
    /// then.
    pub(crate) fn changed(
        &self,
        name: &str,
        ports: BTreeSet<u16>,
        began: Instant,
        confirmed: Option<Instant>,
    ) {
        let mut names = self.0.lock().expect("nothing panics with the lock held");
        let states = names.entry(name.to_owned()).or_default();
        if confirmed.is_some() {
            for state in states.iter_mut().filter(|state| state.until.is_none()) {
                state.until = confirmed;
            }
        }
        states.push(State {
            ports,
            from: began,
            until: None,
        });
    }

    /// What the name has now, as far as is known.
    pub(crate) fn now(&self, name: &str) -> BTreeSet<u16> {
        let names = self.0.lock().expect("nothing panics with the lock held");
        let last = names.get(name).and_then(|states| states.last());
        last.map(|state| state.ports.clone()).unwrap_or_default()
    }

    /// Whether this was the set at some moment between these.
    pub(crate) fn was(
        &self,
        name: &str,
        ports: &BTreeSet<u16>,
        from: Option<Instant>,
        to: Instant,
    ) -> bool {
        let names = self.0.lock().expect("nothing panics with the lock held");
        let states = names.get(name).map_or(&[][..], Vec::as_slice);
        states.iter().any(|state| {
            let ended = from.zip(state.until).is_some_and(|(from, end)| end < from);
            state.ports == *ports && state.from <= to && !ended
        })
    }
}
