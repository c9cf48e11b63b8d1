//! **Pure.** Whether "there is nothing" may delete what was there. Empty is not
//! proof: rights can be lost, servers can lose their data or be far behind, and
//! all of them then say the same as when a service was taken down.
//!
//! | heard where there was a set before | judged |
//! | --- | --- |
//! | the operator let the name go | gone at once |
//! | a lower index than was heard of that name, as long as that may pass, or without a leader ([`Progress`]) | held: [`Reason::Unconfirmed`]: a server that reads its log again |
//! | instances there are, all critical | gone: that is known, not missing |
//! | another source says that we may not know, or this one shows nothing at all | held: [`Reason::Denied`] |
//! | the server that answered knows no leader | held: [`Reason::NoLeader`] |
//! | Consul's own service is gone too, which that source showed before | held: [`Reason::NoCanary`] |
//! | DNS alone says so | held until [`DNS_TIMES`] such answers over [`DNS_TIME`]: [`Reason::Unconfirmed`] |
//! | of [`OTHERS`] other services that are known most are gone as well | held: [`Reason::Mass`] |
//! | more than [`FEW`] services, and a share of all that are known, vanish within [`WINDOW`] | held: [`Reason::Mass`], and those that were believed gone within [`AT_ONCE`] before are [given again](Evidence::take_back) |
//! | asked for once more with those others, it is there, or most do not answer | held: [`Reason::Unconfirmed`] |
//! | anything else | gone at once |
//!
//! The canary is `consul`, which every healthy cluster serves about itself. It is met at each
//! source soon after something was found there. A source that showed a name and not the canary
//! proves nothing by not showing it: then the other rules stand alone. One where it was not
//! met yet may not know if it shows nothing else either. While a mass is held, or it is gone
//! itself, what it said holds for [`LATELY`] for all names.
//!
//! Held for a mass means held for at most [`LONGEST`], less when the canary has
//! been fine for [`WINDOW`] and most others are there: that is a cluster that works
//! and really has no such services. A service whose instances went one
//! by one did not vanish, it was taken down.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    consul::progress::Progress,
    found::Held,
    ladder::{Nothing, Rung},
    protection::{Protection, Reason},
};

/// Answers of DNS alone that delete, and the time they have to span.
const DNS_TIMES: u8 = 3;
const DNS_TIME: Duration = Duration::from_secs(2);

/// So many services may vanish together in a system of any size.
const FEW: usize = 3;

/// So many others are asked for before one is believed gone, where more than
/// [`FEW`] are known: does this one go while the others stay?
const OTHERS: usize = 4;

/// While a mass is held, others are asked for no more often than this.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// For so long a canary is not asked again that holds what is said to be gone anyway.
const LATELY: Duration = Duration::from_secs(1);

/// Share of the services known that may: one in so many, 15 % rounded.
const SHARE: (usize, usize) = (15, 100);

/// What counts as together.
pub(crate) const WINDOW: Duration = Duration::from_secs(30);

/// Those that were believed gone for no longer than this when a mass is seen are of it.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A mass is held for so long.
const LONGEST: Duration = Duration::from_secs(300);

/// Names that are held or remembered at most; beyond that nothing is held anew.
const MOST: usize = 10_000;

/// What was heard of Consul's own service when something was said to be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Canary {
    There,
    Gone,
    /// Nobody answered that.
    Silent,
}

/// What is done with what is said to be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Belief {
    Gone,
    Held(Reason),
    /// Nothing speaks against it yet: so many other names are to be asked for first.
    AskOthers(usize),
}

/// One word that a name with a set is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word<'a> {
    pub(crate) key: &'a str,
    /// The datacenter asked for, empty for the agent's own.
    pub(crate) place: &'a str,
    pub(crate) by: Rung,
    pub(crate) nothing: &'a Nothing,
    /// We may not know, as another source said or as this one shows nothing at all.
    pub(crate) denied: bool,
    pub(crate) canary: Canary,
    /// Its instances went one by one, not long ago.
    pub(crate) trickled: bool,
    /// Names with a set.
    pub(crate) known: usize,
    /// Of other names with a set so many were asked for just now, and so many of
    /// these are said to be gone.
    /// `None`: none were asked for yet.
    pub(crate) others: Option<Others>,
}

/// Other names that were asked for, and the name itself once more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Others {
    /// Those that something was said of.
    pub(crate) asked: usize,
    pub(crate) gone: usize,
    /// Those that nothing was heard of.
    pub(crate) silent: usize,
    /// The name is there again: whoever missed it was well a moment later.
    pub(crate) back: bool,
}

/// What was seen of names that vanish.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    protection: Protection,
    /// Places whose canary is being asked for, or is known to be shown or not.
    met: HashSet<Box<str>>,
    /// What each rung is known to show of that of each place.
    canaries: HashMap<Rung, HashMap<Box<str>, Sight>>,
    /// Since when the canaries asked for have all been there.
    canary_fine: Option<Instant>,
    /// What each rung said last of that of each place, and when.
    last_canaries: HashMap<Rung, HashMap<Box<str>, (Canary, Instant)>>,
    /// Names that vanished within the window, and when.
    vanished: HashMap<Box<str>, Instant>,
    /// Those of them that were believed gone not long ago.
    believed: VecDeque<Believed>,
    /// Words of DNS alone: the first, and how many.
    by_dns: HashMap<Box<str>, (Instant, u8)>,
    /// Of names that were followed.
    progress: HashMap<Box<str>, Progress>,
    /// Why, and when that was last judged.
    held: HashMap<Box<str>, (Reason, Instant)>,
    /// Names that the operator let go, until they are found or gone.
    released: HashSet<Box<str>>,
    mass: Option<Mass>,
}

/// A name that was believed gone.
#[derive(Clone, Debug)]
struct Believed {
    when: Instant,
    place: Box<str>,
    /// What it was, and since when that was known.
    held: Arc<Held>,
    since: Instant,
}

/// Whether a source shows Consul's own service at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    Seen,
    /// Others are shown, and that one is not.
    Hidden,
}

#[derive(Clone, Copy, Debug)]
struct Mass {
    since: Instant,
    /// When others were last asked for.
    asked: Instant,
}

impl Evidence {
    pub(crate) fn new(protection: Protection) -> Self {
        Self {
            protection,
            ..Self::default()
        }
    }

    /// Begins with what another one has seen. `same_rights`: what could be seen then can be seen
    /// now.
    pub(crate) fn take_over(&mut self, other: &Self, same_rights: bool) {
        self.progress = other.progress.clone();
        if self.protection != other.protection {
            return;
        }
        let (met, canaries) = match same_rights {
            true => (other.met.clone(), other.canaries.clone()),
            false => Default::default(),
        };
        *self = Self {
            met,
            canaries,
            ..other.clone()
        };
    }

    /// Whether it is worth asking for the canary before this is judged.
    pub(crate) fn wants_canary(&self, key: &str, nothing: &Nothing) -> bool {
        self.protection == Protection::Evidence && nothing.unhealthy == 0 && !self.is_released(key)
    }

    /// Whether the canary of a place is still to be met. Says so once, unless it is
    /// [missed](Self::misses_canary).
    pub(crate) fn meets_canary(&mut self, place: &str) -> bool {
        self.protection == Protection::Evidence
            && self.met.len() < MOST
            && !self.met.contains(place)
            && self.met.insert(place.into())
    }

    /// A source said nothing certain of the canary of a place.
    pub(crate) fn misses_canary(&mut self, place: &str) {
        self.met.remove(place);
    }

    /// This rung shows others at a place, and not the canary.
    pub(crate) fn hides_canary(&mut self, by: Rung, place: &str) {
        self.sight(by, place, Sight::Hidden);
    }

    /// Whether something is held because of what Consul no longer lets us see.
    pub(crate) fn is_blinded(&mut self, now: Instant) -> bool {
        self.forget(now);
        let blind = |reason| matches!(reason, Reason::Denied | Reason::NoCanary);
        self.held.values().any(|(reason, _)| blind(*reason))
    }

    /// What nobody has asked for in the time that anything is held is not held, it is
    /// of no interest.
    fn forget(&mut self, now: Instant) {
        self.forget_believed(now);
        self.held
            .retain(|_, (_, judged)| now.saturating_duration_since(*judged) < LONGEST);
        if self.held.is_empty() {
            self.mass = None;
        }
    }

    /// Why a name is held.
    pub(crate) fn reason(&self, key: &str) -> Option<Reason> {
        self.held.get(key).map(|(reason, _)| *reason)
    }

    /// Whether this rung ever showed the canary of a place.
    pub(crate) fn knows_canary(&self, by: Rung, place: &str) -> bool {
        self.sight_of(by, place) == Some(Sight::Seen)
    }

    /// Whether this rung is not known to show the canary of a place, nor to hide it.
    pub(crate) fn is_unmet(&self, by: Rung, place: &str) -> bool {
        self.sight_of(by, place).is_none()
    }

    fn sight_of(&self, by: Rung, place: &str) -> Option<Sight> {
        self.canaries.get(&by)?.get(place).copied()
    }

    fn sight(&mut self, by: Rung, place: &str, sight: Sight) {
        let known = self.canaries.entry(by).or_default();
        if let Some(known) = known.get_mut(place) {
            *known = sight;
        } else if known.len() < MOST {
            known.insert(place.into(), sight);
        }
    }

    /// What this rung said of the canary of a place not long ago, where that is as good as to
    /// ask for it again: one that is not there holds, and what a mass holds was judged by
    /// others.
    pub(crate) fn canary_lately(&self, by: Rung, place: &str, now: Instant) -> Option<Canary> {
        let (canary, at) = self.last_canaries.get(&by)?.get(place)?;
        let holds = self.mass.is_some() || *canary != Canary::There;
        let lately = now.saturating_duration_since(*at) < LATELY;
        (holds && lately).then_some(*canary)
    }

    /// Consul's own service was asked for at a place.
    pub(crate) fn canary(&mut self, by: Rung, place: &str, canary: Canary, now: Instant) {
        let last = self.last_canaries.entry(by).or_default();
        if last.len() < MOST || last.contains_key(place) {
            last.insert(place.into(), (canary, now));
        }
        match canary {
            Canary::There => {
                self.sight(by, place, Sight::Seen);
                self.canary_fine.get_or_insert(now);
            }
            Canary::Gone | Canary::Silent => self.canary_fine = None,
        }
    }

    /// A name with a set is said to be gone.
    pub(crate) fn judge(&mut self, word: Word<'_>, now: Instant) -> Belief {
        let belief = match self.doubt(word, now) {
            _ if self.is_released(word.key) => Belief::Gone,
            None if self.wants_others(word, now) => return Belief::AskOthers(OTHERS),
            None if self.is_mass(word, now) => Belief::Held(Reason::Mass),
            None => Belief::Gone,
            Some(reason) => Belief::Held(reason),
        };
        match belief {
            Belief::AskOthers(_) => {}
            Belief::Gone => {
                if self.mass.is_some() {
                    // It is let go: nobody takes it back.
                    self.vanished.remove(word.key);
                }
                self.held.remove(word.key);
                self.released.remove(word.key);
                self.by_dns.remove(word.key);
                self.progress.remove(word.key);
                if self.held.is_empty() {
                    self.mass = None;
                }
            }
            Belief::Held(reason) => self.hold(word.key, reason, now),
        }
        belief
    }

    /// A name was believed gone that was this, as of then.
    pub(crate) fn went(&mut self, held: Arc<Held>, since: Instant, place: &str, now: Instant) {
        self.forget_believed(now);
        // What went one by one was taken down.
        if self.believed.len() < MOST && self.vanished.contains_key(&*held.key) {
            let (when, place) = (now, place.into());
            self.believed.push_back(Believed {
                when,
                place,
                held,
                since,
            });
        }
    }

    fn forget_believed(&mut self, now: Instant) {
        let is_old = |one: &Believed| now.saturating_duration_since(one.when) >= AT_ONCE;
        while self.believed.front().is_some_and(is_old) {
            self.believed.pop_front();
        }
    }

    /// What was believed gone at a place as the first of a mass, and since when it was known: it
    /// is held now, as the rest is.
    pub(crate) fn take_back(&mut self, place: &str, now: Instant) -> Vec<(Arc<Held>, Instant)> {
        self.forget_believed(now);
        // What was found since is there.
        let (vanished, mut back) = (&self.vanished, Vec::new());
        self.believed.retain(|one| {
            let is_of_it = *one.place == *place;
            if is_of_it && vanished.contains_key(&*one.held.key) {
                back.push((Arc::clone(&one.held), one.since));
            }
            !is_of_it
        });
        for (held, _) in &back {
            self.hold(&held.key, Reason::Mass, now);
        }
        back
    }

    /// A name is given all the same.
    pub(crate) fn hold(&mut self, key: &str, reason: Reason, now: Instant) {
        if self.held.len() < MOST || self.held.contains_key(key) {
            self.held.insert(key.into(), (reason, now));
        }
    }

    /// What was told of a name that is followed has this index. A lower one counts when that
    /// does not pass, and whoever told it hears of its leader (`led`).
    pub(crate) fn followed(&mut self, key: &str, index: Option<u64>, led: bool, now: Instant) {
        if let Some(index) = index
            && (self.progress.len() < MOST || self.progress.contains_key(key))
        {
            let known = self.progress.entry(key.into()).or_default();
            known.believes(index, led, now);
        }
    }

    /// A name could not be followed for a moment: whoever tells less of it next has its time
    /// from then on.
    pub(crate) fn lost(&mut self, key: &str) {
        if let Some(known) = self.progress.get_mut(key) {
            known.forget_who_is_behind();
        }
    }

    /// How far was told of a name that was followed.
    pub(crate) fn progress(&self, key: &str) -> Progress {
        self.progress.get(key).cloned().unwrap_or_default()
    }

    fn is_behind(&mut self, word: Word<'_>, now: Instant) -> bool {
        let known = self.progress.get_mut(word.key);
        let led = word.nothing.leader != Some(false);
        (word.nothing.index.zip(known))
            .is_some_and(|(index, known)| !known.believes(index, led, now))
    }

    /// A name was found.
    pub(crate) fn found(&mut self, key: &str) {
        self.held.remove(key);
        self.released.remove(key);
        self.vanished.remove(key);
        self.by_dns.remove(key);
        // Should it go again, it is what it is now that is held.
        self.believed.retain(|one| *one.held.key != *key);
        if self.held.is_empty() {
            self.mass = None;
        }
    }

    /// Names that are held at `now`, and why.
    pub(crate) fn held(&mut self, now: Instant) -> impl ExactSizeIterator<Item = (&str, Reason)> {
        self.forget(now);
        self.held.iter().map(|(key, (reason, _))| (&**key, *reason))
    }

    /// Lets go of all that is held: what the sources say next of these names is believed.
    /// Gives them.
    pub(crate) fn release(&mut self) -> Vec<Box<str>> {
        self.by_dns.clear();
        self.vanished.clear();
        self.mass = None;
        let names: Vec<_> = std::mem::take(&mut self.held).into_keys().collect();
        let room = MOST.saturating_sub(self.released.len());
        self.released.extend(names.iter().take(room).cloned());
        names
    }

    /// Whether the operator let a name go. It says nothing of others either.
    pub(crate) fn is_released(&self, key: &str) -> bool {
        self.released.contains(key)
    }

    fn doubt(&mut self, word: Word<'_>, now: Instant) -> Option<Reason> {
        match self.protection {
            Protection::Off => return None,
            Protection::KeepAll => return Some(Reason::KeepAll),
            Protection::Evidence => {}
        }
        if self.is_behind(word, now) {
            return Some(Reason::Unconfirmed);
        }
        if word.nothing.unhealthy > 0 {
            return None;
        }
        if word.denied {
            return Some(Reason::Denied);
        }
        if word.nothing.leader == Some(false) {
            return Some(Reason::NoLeader);
        }
        // A cluster that cannot be asked for its own service proves nothing either.
        if word.canary != Canary::There && self.knows_canary(word.by, word.place) {
            return Some(Reason::NoCanary);
        }
        let counted = word.others.is_some();
        let unanswered = |others: Others| others.silent > others.asked;
        if word
            .others
            .is_some_and(|others| others.back || unanswered(others))
        {
            return Some(Reason::Unconfirmed);
        }
        if word.by == Rung::Dns && !counted && !self.is_said_for_long(word.key, now) {
            return Some(Reason::Unconfirmed);
        }
        None
    }

    fn wants_others(&self, word: Word<'_>, now: Instant) -> bool {
        self.protection == Protection::Evidence
            && word.nothing.unhealthy == 0
            && word.others.is_none()
            && word.known > FEW
            && self.mass.is_none_or(|mass| {
                let pause = now.saturating_duration_since(mass.asked);
                pause >= ASK_AGAIN && self.is_settled(mass, now)
            })
    }

    /// The mass is some time ago, and Consul's own service was there all the while.
    fn is_settled(&self, mass: Mass, now: Instant) -> bool {
        let fine = |since| now.saturating_duration_since(since) >= WINDOW;
        fine(mass.since) && self.canary_fine.is_some_and(fine)
    }

    fn is_said_for_long(&mut self, key: &str, now: Instant) -> bool {
        if self.by_dns.len() >= MOST && !self.by_dns.contains_key(key) {
            return true;
        }
        let (first, times) = self.by_dns.entry(key.into()).or_insert((now, 0));
        *times = times.saturating_add(1);
        *times >= DNS_TIMES && now.saturating_duration_since(*first) >= DNS_TIME
    }

    fn is_mass(&mut self, word: Word<'_>, now: Instant) -> bool {
        if self.protection != Protection::Evidence || word.nothing.unhealthy > 0 {
            return false;
        }
        self.vanished
            .retain(|_, when| now.saturating_duration_since(*when) < WINDOW);
        let counts = !word.trickled && !self.held.contains_key(word.key);
        if counts && self.vanished.len() < MOST {
            self.vanished.entry(word.key.into()).or_insert(now);
        }
        let Others { asked, gone, .. } = word.others.unwrap_or_default();
        if let Some(mass) = &mut self.mass {
            if word.others.is_some() {
                mass.asked = now;
            }
            let mass = *mass;
            let stay = asked > 0 && 2 * gone <= asked;
            let works = stay && self.is_settled(mass, now);
            // What was held is let go name by name, as each is asked for again.
            return !works && now.saturating_duration_since(mass.since) < LONGEST;
        }
        let (part, of) = SHARE;
        // Those that have vanished and were believed are no longer known.
        let all = word.known + self.vanished.len().saturating_sub(1);
        let many = !word.trickled && self.vanished.len() > FEW.max(all * part / of);
        let is_mass = many || 2 * gone > asked;
        if is_mass {
            self.mass = Some(Mass {
                since: now,
                asked: now,
            });
        }
        is_mass
    }
}

#[cfg(test)]
mod tests;
