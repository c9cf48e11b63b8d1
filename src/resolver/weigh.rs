//! **Door.** What a source says is gone, weighed: [`evidence`](crate::evidence) judges, and
//! what it has to know is asked here: Consul's own service, and others that are known.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tracing::info;

use super::{Inner, climb::Landed, told};
use crate::{
    cache::Cache,
    catalog,
    circuit::Mode,
    clock,
    consul::api::{self, Api},
    endpoint::Attempt,
    evidence::{Belief, Canary, Others, WINDOW, Word},
    ladder::{Heard, Nothing, Rung},
    name::{ConsulName, Locality},
    protection::Reason,
    source::{Finding, Question},
    task,
};

/// Consul's own service is met so long after something was found: who looks one name up and
/// ends is to ask for nothing else.
const MEET: Duration = Duration::from_secs(1);

/// A question for evidence is to be answered within this, or within so many times what the
/// word took that it is about: who is slow is slow for all.
const SOON: Duration = Duration::from_millis(150);
const TIMES: u32 = 3;

/// A leader may have been elected a moment ago. Nobody has anything else to be given meanwhile who
/// asks for a name that is new.
const LEADER: Duration = Duration::from_millis(350);

/// Who leads has answered by then, most likely; others are asked beside it from then on.
const LED: Duration = Duration::from_millis(100);

/// That there is no such name, who says so, and against what.
pub(super) struct Said {
    pub(super) rung: Rung,
    pub(super) nothing: Nothing,
    /// Another source said that we may not know.
    pub(super) denied: bool,
    /// There was a set before.
    pub(super) known: bool,
    /// When they were asked: what whoever follows the name was told since is newer. `None`: it
    /// was told this.
    pub(super) asked: Option<Instant>,
    pub(super) patience: Patience,
}

/// What the leader says of a name that another server says not to exist.
enum Confirmed {
    There(Landed),
    Gone,
    /// It was asked, and there was no answer.
    Unheard,
}

/// How long questions for evidence are waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// What the word took that is weighed.
    pub(super) took: Duration,
    /// The end of the look-up.
    pub(super) until: Instant,
}

impl Patience {
    fn limit(self) -> Instant {
        self.limit_of(SOON)
    }

    /// The same with so much time at least, where the look-up has it.
    fn limit_of(self, least: Duration) -> Instant {
        let now = clock::now();
        let fair = now + (self.took * TIMES).max(least);
        fair.min(self.until.max(now + SOON))
    }
}

impl Inner {
    /// A source says that there is no such name: what is made of that.
    pub(super) async fn weigh(
        self: &Arc<Self>,
        question: Question<'_>,
        said: &Said,
        mut attempts: Vec<Attempt>,
    ) -> Landed {
        let Question { name, fqdn } = question;
        let told_since = |cache: &Cache, now| cache.told_since(name.key(), said.asked?, now);
        let now = clock::now();
        let told = told_since(&self.cache(), now);
        if let Some(told) = told {
            return self.landed(name, told, attempts);
        }
        let place = name.locality().datacenter.as_deref().unwrap_or_default();
        // Who lost sight of what is known says nothing of what is not.
        let (blind, wants, asks, lately) = {
            let mut evidence = self.evidence();
            let wants = said.known && evidence.wants_canary(name.key(), &said.nothing);
            let blind = evidence.is_blinded(now) && said.rung != Rung::Static;
            let asks = wants || blind;
            let lately = || evidence.canary_lately(said.rung, place, now);
            (blind, wants, asks, asks.then(lately).flatten())
        };
        let canary = match (asks, lately) {
            (false, _) => Canary::Silent,
            (true, Some(canary)) => canary,
            (true, None) => {
                self.ask_canary(said.rung, place, said.patience.limit())
                    .await
            }
        };
        let unmet = said.known && canary == Canary::Gone;
        let unmet = unmet && self.evidence().is_unmet(said.rung, place);
        let unseen = unmet
            && self
                .shows_nothing(said.rung, place, said.patience.limit())
                .await;
        // What is asked takes its time.
        let now = if asks { clock::now() } else { now };
        let belief = match (said.known, blind) {
            (true, _) => {
                let (known, trickled) = {
                    let cache = self.cache();
                    (
                        cache.sets_held(),
                        cache.shrank_within(name.key(), WINDOW, now),
                    )
                };
                let word = Word {
                    key: name.key(),
                    place,
                    by: said.rung,
                    nothing: &said.nothing,
                    denied: said.denied || unseen,
                    canary,
                    trickled,
                    known,
                    others: None,
                };
                let first = self.evidence().judge(word, now);
                match first {
                    Belief::AskOthers(most) => {
                        let asking = Box::pin(self.ask_others(said, name, most));
                        let others = Some(asking.await);
                        self.evidence().judge(Word { others, ..word }, clock::now())
                    }
                    belief => belief,
                }
            }
            (false, true) if canary != Canary::There => Belief::Held(Reason::NoCanary),
            (false, _) => Belief::Gone,
        };
        // Of a name that nobody knew the leader is asked only where something failed lately: most
        // of them do not exist.
        let confirms = belief == Belief::Gone
            && said.rung != Rung::Static
            && match said.known {
                true => wants,
                false => self.sources.unsettled(now),
            };
        let confirmed = match confirms {
            true => self.confirm(question, said, &mut attempts).await,
            false => None,
        };
        let is_unheard = matches!(confirmed, Some(Confirmed::Unheard));
        let belief = match confirmed {
            Some(Confirmed::There(landed)) => return landed,
            Some(Confirmed::Unheard) if said.known => {
                let reason = Reason::Unconfirmed;
                self.evidence().hold(name.key(), reason, clock::now());
                Belief::Held(reason)
            }
            Some(Confirmed::Unheard | Confirmed::Gone) | None => belief,
        };
        match belief {
            Belief::Gone | Belief::AskOthers(_) => {
                let was = {
                    let mut cache = self.cache();
                    let (key, ttl) = (name.key(), said.nothing.ttl);
                    // It was weighed for a while.
                    if let Some(told) = told_since(&cache, clock::now()) {
                        drop(cache);
                        return self.landed(name, told, attempts);
                    }
                    match said.asked {
                        // Whoever asks next is to hear what the leader says.
                        _ if is_unheard => None,
                        Some(_) => cache.put_nothing(key, ttl, now),
                        None => cache.put_followed_nothing(key, ttl, now),
                    }
                };
                if let Some((held, since)) = was {
                    self.evidence().went(held, since, place, now);
                }
                if said.known {
                    self.counters.membership_changed();
                    // It is to be gone for the next run too.
                    self.will_save(true);
                }
                Landed::Nothing(self.not_found(name, attempts))
            }
            Belief::Held(reason) => {
                // With each look-up, as long as it lasts: the alerts tell it once.
                info!(name = fqdn, %reason, "said to be gone, and not believed");
                if reason == Reason::Mass {
                    self.take_back(place, now);
                }
                Landed::Kept(told::held(fqdn, reason, attempts))
            }
        }
    }

    /// What was believed gone at the beginning of a mass is given again, as stale.
    fn take_back(self: &Arc<Self>, place: &str, now: Instant) {
        let back = self.evidence().take_back(place, now);
        for (held, since) in back {
            if self.cache().restore(Arc::clone(&held), since) {
                self.counters.membership_changed();
                self.will_save(true);
                self.is_taken_back(&held.key);
            }
        }
    }

    /// What the leader says of a name that another server says not to exist: that one may have
    /// been started anew, and read its log still. `None`: it is not asked.
    async fn confirm(
        self: &Arc<Self>,
        question: Question<'_>,
        said: &Said,
        attempts: &mut Vec<Attempt>,
    ) -> Option<Confirmed> {
        // Who has a set waits no longer for this than for any source.
        let limit = match said.known {
            true => said.patience.until.max(said.patience.limit()),
            false => said.patience.limit_of(LEADER),
        };
        let asked = clock::now();
        let mut confirming = Box::pin(self.sources.confirm(question, limit));
        // Nobody may lead. Who has a set keeps it meanwhile.
        let mut others = Box::pin(async {
            if said.known {
                return None;
            }
            clock::sleep_until(limit.min(asked + LED)).await;
            self.sources.known_to_any(question, limit).await
        });
        // The leader's word counts, whoever says something before.
        let mut known = None;
        let (mut heard, made) = tokio::select! {
            biased;
            told = &mut confirming => told?,
            told = &mut others => {
                known = Some(told);
                confirming.await?
            }
        };
        attempts.extend(made);
        if let Heard::Failed | Heard::TimedOut = heard {
            let told = match known {
                Some(told) => told,
                None => others.await,
            };
            if let Some((told, made)) = told {
                attempts.extend(made);
                heard = told;
            }
        }
        let finding = match heard {
            Heard::Whole(finding) | Heard::Partial(finding) => finding,
            Heard::Nothing(_) => return Some(Confirmed::Gone),
            Heard::Denied | Heard::Failed | Heard::TimedOut => return Some(Confirmed::Unheard),
        };
        let limit = limit.max(said.patience.until);
        let addresses = Box::pin(self.addresses(&finding.found, limit, 0)).await;
        let attempts = std::mem::take(attempts);
        let landed = self.keep(question, *finding, addresses, asked, attempts);
        Some(Confirmed::There(landed))
    }

    /// Whether an agent that says "there is nothing" may show nothing at all: until Consul's
    /// own service, which is always there, was seen once.
    pub(super) fn may_see_nothing(&self, rung: Rung, name: &ConsulName, nothing: &Nothing) -> bool {
        // Another datacenter need not be there itself.
        let place = name.locality().datacenter.as_deref();
        if rung == Rung::Static || (place.is_some() && place != self.config.datacenter.as_deref()) {
            return false;
        }
        // That of the agent's own, which is there whatever datacenter is configured.
        let evidence = self.evidence();
        evidence.wants_canary(name.key(), nothing) && !evidence.knows_canary(rung, "")
    }

    /// Whether an agent shows nothing at all, not even Consul's own service. It has half of the
    /// time until `deadline` to say so: that is asked until it was seen once, and who is not heard
    /// is taken at its word.
    pub(super) async fn is_blind(&self, rung: Rung, deadline: Instant) -> bool {
        let now = clock::now();
        let limit = now + deadline.saturating_duration_since(now) / 2;
        self.ask_canary(rung, "", limit).await == Canary::Gone
            && self.shows_nothing(rung, "", limit).await
    }

    /// The same of one that does not show Consul's own service.
    async fn shows_nothing(&self, rung: Rung, place: &str, limit: Instant) -> bool {
        // DNS has other rights, and HTTP is asked next. A token of ours may see a few services
        // and not Consul's own.
        if rung == Rung::Dns {
            return true;
        }
        let place = Locality {
            datacenter: (!place.is_empty()).then(|| place.into()),
            ..Locality::default()
        };
        let agent = Arc::clone(self.sources.agent());
        let limit = limit.saturating_duration_since(clock::now());
        let api = Api::new(agent, limit, api::place(&place).into());
        let sees_any = Box::pin(catalog::sees_any(&api));
        sees_any
            .await
            .map_or_else(|error| error.is_denied(), |any| !any)
    }

    /// Asks for Consul's own service once a place, to know later whether it can be
    /// seen at all. `name`: it was found there.
    pub(super) fn meet_canary(self: &Arc<Self>, name: &ConsulName) {
        let place = name.locality().datacenter.as_deref().unwrap_or_default();
        if !self.evidence().meets_canary(place) {
            return;
        }
        let (inner, name) = (Arc::downgrade(self), name.clone());
        // Ends within the time limit of a look-up, and does nothing where the resolver is gone.
        tokio::spawn(task::outcome(async move {
            sleep(MEET).await;
            let Some(inner) = inner.upgrade() else { return };
            let place = name.locality().datacenter.as_deref().unwrap_or_default();
            let mut are_met = true;
            // Each has rights of its own.
            for &rung in inner.sources.rungs() {
                let unmet = rung != Rung::Static && inner.evidence().is_unmet(rung, place);
                are_met &= !unmet || inner.meets(rung, place, &name).await;
            }
            if !are_met {
                inner.evidence().misses_canary(place);
            }
        }));
    }

    /// Whether it is known now what a rung shows of Consul's own service.
    async fn meets(&self, rung: Rung, place: &str, name: &ConsulName) -> bool {
        // Nobody waits for it.
        let limit = || clock::now() + self.config.timeout;
        match self.ask_canary(rung, place, limit()).await {
            Canary::There => true,
            Canary::Silent => false,
            // The rights may have been lost in between.
            Canary::Gone => {
                let heard = self.ask_again(rung, name, limit()).await;
                let hidden = matches!(heard, Heard::Whole(_) | Heard::Partial(_));
                if hidden {
                    self.evidence().hides_canary(rung, place);
                }
                hidden
            }
        }
    }

    /// Asks for others that are known, and for the name itself once more: does it go
    /// while they stay?
    async fn ask_others(self: &Arc<Self>, said: &Said, name: &ConsulName, most: usize) -> Others {
        let (rung, limit) = (said.rung, said.patience.limit());
        let names = {
            let evidence = self.evidence();
            let counts = |key: &str| key != name.key() && !evidence.is_released(key);
            (self.cache()).others(most, WINDOW, clock::now(), counts)
        };
        let others =
            (names.iter()).filter_map(|fqdn| ConsulName::parse(fqdn, &self.config.domain).ok());
        let mut asked = tokio::task::JoinSet::new();
        for (other, is_it) in others
            .map(|other| (other, false))
            .chain([(name.clone(), true)])
        {
            let inner = Arc::clone(self);
            let asking = async move { (is_it, inner.ask_again(rung, &other, limit).await) };
            asked.spawn(task::outcome(asking));
        }
        let mut others = Others::default();
        while let Some(one) = asked.join_next().await {
            let gone = match one.ok().flatten() {
                Some((true, Heard::Whole(_) | Heard::Partial(_))) => {
                    others.back = true;
                    continue;
                }
                Some((false, Heard::Whole(_) | Heard::Partial(_))) => false,
                Some((false, Heard::Nothing(_) | Heard::Denied)) => true,
                Some((true, _)) => continue,
                Some((false, Heard::Failed | Heard::TimedOut)) | None => {
                    others.silent += 1;
                    continue;
                }
            };
            others.asked += 1;
            others.gone += usize::from(gone);
        }
        others
    }

    async fn ask_canary(&self, rung: Rung, place: &str, limit: Instant) -> Canary {
        let Ok(mut name) = ConsulName::service("consul") else {
            return Canary::Silent;
        };
        if !place.is_empty() {
            let Ok(there) = name.with_datacenter(place) else {
                return Canary::Silent;
            };
            name = there;
        }
        let canary = match self.ask_again(rung, &name, limit).await {
            Heard::Whole(_) | Heard::Partial(_) => Canary::There,
            Heard::Nothing(_) | Heard::Denied => Canary::Gone,
            Heard::Failed | Heard::TimedOut => Canary::Silent,
        };
        self.evidence().canary(rung, place, canary, clock::now());
        canary
    }

    /// One question for evidence.
    async fn ask_again(
        &self,
        rung: Rung,
        name: &ConsulName,
        limit: Instant,
    ) -> Heard<Box<Finding>> {
        let fqdn = name.fqdn(&self.config.domain);
        let question = Question { name, fqdn: &fqdn };
        // In a box, as that is seldom: no look-up is to carry its room.
        let asking = Box::pin(self.sources.ask(rung, question, Mode::Beside, limit));
        let (heard, _) = asking.await;
        heard
    }
}
