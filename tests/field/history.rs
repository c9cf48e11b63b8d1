//! What was registered when: the truth that answers are held against.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Mutex,
    time::Duration,
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

    /// How long before a question this had been the set, when it was told at `to`.
    pub(crate) fn told(
        &self,
        name: &str,
        ports: &BTreeSet<u16>,
        asked: Instant,
        to: Instant,
    ) -> String {
        let names = self.0.lock().expect("nothing panics with the lock held");
        let states = names.get(name).map_or(&[][..], Vec::as_slice);
        let was = |state: &&State| state.ports == *ports && state.from <= to;
        let Some(last) = states.iter().rfind(was) else {
            return "was never so".to_owned();
        };
        let ago = last
            .until
            .map(|until| asked.saturating_duration_since(until));
        format!(
            "was so {:.2} s before",
            ago.unwrap_or_default().as_secs_f64()
        )
    }

    /// Whether this was the set until `to`, or until a moment that is not too long ago.
    pub(crate) fn was(
        &self,
        name: &str,
        ports: &BTreeSet<u16>,
        to: Instant,
        is_recent: impl Fn(Instant) -> bool,
    ) -> bool {
        let names = self.0.lock().expect("nothing panics with the lock held");
        let states = names.get(name).map_or(&[][..], Vec::as_slice);
        states.iter().any(|state| {
            let lasts = || state.until.is_none_or(&is_recent);
            state.ports == *ports && state.from <= to && lasts()
        })
    }
}

/// All sets that one large name had: too large to be written down each time, so that only what
/// changes is.
#[derive(Default)]
pub(crate) struct Versions {
    /// Of each instance its ports, and the version from which on it had them. `None`: it was
    /// not registered. It has no port twice.
    instances: Vec<Vec<(usize, Option<u16>)>>,
    /// Of each version how many instances it had, when the change to it was begun, and when
    /// that was confirmed.
    versions: Vec<(usize, Instant, Option<Instant>)>,
}

/// What a set that was told is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Told {
    /// It was true so long ago, and is no more; zero where it still is.
    True(Duration),
    /// It never was.
    Never,
}

impl Versions {
    /// All instances as they are first.
    pub(crate) fn new(ports: impl IntoIterator<Item = u16>, now: Instant) -> Self {
        let instances = ports.into_iter().map(|port| vec![(0, Some(port))]);
        let instances: Vec<_> = instances.collect();
        let versions = vec![(instances.len(), now, Some(now))];
        Self {
            instances,
            versions,
        }
    }

    /// The port of an instance now.
    pub(crate) fn port(&self, instance: usize) -> Option<u16> {
        self.instances[instance].last().and_then(|(_, port)| *port)
    }

    /// From now on these instances may have these ports, all at once.
    pub(crate) fn begins(&mut self, changes: &[(usize, Option<u16>)], now: Instant) {
        let version = self.versions.len();
        for (instance, port) in changes {
            self.instances[*instance].push((version, *port));
        }
        let all = self.instances.iter().enumerate();
        let count = all.filter(|(at, _)| self.port(*at).is_some()).count();
        self.versions.push((count, now, None));
    }

    /// By now they have.
    pub(crate) fn confirmed(&mut self, now: Instant) {
        if let Some((.., confirmed)) = self.versions.last_mut() {
            *confirmed = Some(now);
        }
    }

    /// When these instances with these ports were the set, or where it is not `whole` a part
    /// of it, that was told at some time between `asked` and `heard`.
    pub(crate) fn told(
        &self,
        told: &HashMap<usize, u16>,
        whole: bool,
        asked: Instant,
        heard: Instant,
    ) -> Told {
        let (mut since, mut until) = (0, self.versions.len());
        for (instance, port) in told {
            let ports = self.instances.get(*instance).map_or(&[][..], Vec::as_slice);
            let Some(at) = ports.iter().position(|(_, had)| *had == Some(*port)) else {
                return Told::Never;
            };
            since = since.max(ports[at].0);
            until = until.min(ports.get(at + 1).map_or(usize::MAX, |(next, _)| *next));
        }
        let is_it = |version: &usize| {
            let (count, began, _) = self.versions[*version];
            (!whole || count == told.len()) && began <= heard
        };
        match (since..until).rev().find(is_it) {
            None => Told::Never,
            Some(last) => {
                let ended = self.versions.get(last + 1).and_then(|next| next.2);
                Told::True(ended.map_or(Duration::ZERO, |ended| {
                    asked.saturating_duration_since(ended)
                }))
            }
        }
    }
}

#[cfg(test)]
#[allow(
    unused_imports,
    reason = "the runner of all rows has no test of its own"
)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_as_old_as_the_change_that_ended_it_and_a_mixture_never_was() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut versions = Versions::new([1, 2, 3], start);
        versions.begins(&[(0, Some(11)), (1, None)], at(10));
        versions.confirmed(at(11));
        versions.begins(&[(0, Some(12)), (1, Some(21))], at(20));
        versions.confirmed(at(21));
        let told = |set: &[(usize, u16)], whole, asked| {
            let set = set.iter().copied().collect();
            versions.told(&set, whole, at(asked), at(asked))
        };
        let ago = |seconds| Told::True(Duration::from_secs(seconds));
        let (first, last) = ([(0, 1), (1, 2), (2, 3)], [(0, 12), (1, 21), (2, 3)]);
        assert_eq!(told(&first, true, 5), ago(0));
        assert_eq!(told(&first, true, 15), ago(4));
        assert_eq!(told(&last, true, 100), ago(0));
        // Not before the change to it was begun, not by half, not of two times.
        assert_eq!(told(&last, true, 15), Told::Never);
        assert_eq!(told(&last[..2], true, 100), Told::Never);
        assert_eq!(told(&last[..2], false, 100), ago(0));
        assert_eq!(told(&[(0, 12), (1, 2)], false, 100), Told::Never);
        assert_eq!(told(&[(0, 11), (2, 3)], true, 30), ago(9));
        // Not confirmed yet: both may be seen.
        versions.begins(&[(0, None)], at(40));
        let told = |set: &[(usize, u16)], asked| {
            let set = set.iter().copied().collect();
            versions.told(&set, true, at(asked), at(asked))
        };
        assert_eq!(told(&last, 60), ago(0));
        assert_eq!(told(&last[1..], 60), ago(0));
        assert_eq!(told(&[(0, 99)], 60), Told::Never);
    }
}
