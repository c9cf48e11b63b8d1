//! **Door.** Names that are followed: their changes come by blocking queries, and
//! what is cached of them is fresh by event, whatever its TTL. When a query is asked
//! again is [`blocking`]'s to say.
//!
//! | followed | until |
//! | --- | --- |
//! | a name that a [`Service`](crate::Service) handle is held of | the last handle is dropped |
//! | a name that is asked [`HOT`] times or more between two answers | it is asked less often in [`WHILE`] or more |
//!
//! An agent that does not answer any more, which a query that waits does not see, is found
//! out by its [`pulse`](super::pulse) within two seconds.
//!
//! While the HTTP API is not there, or for a name that it cannot follow, the other
//! rungs are asked once a TTL and at least once a second: a handle goes on being
//! told. A name that was followed until then holds for up to a second yet: not all of them are
//! asked for at once. At an address that fails one of them at a time asks whether it is
//! back ([`turnstile`](super::turnstile)). The connections are bounded by
//! [`ResolverBuilder::watches`]; above that names are polled in the same way.
//!
//! [`ResolverBuilder::watches`]: crate::ResolverBuilder::watches

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    task::AbortHandle,
    time::sleep,
};
use tracing::debug;

use super::{
    Inner,
    climb::Landed,
    news::{Known, News},
    pulse::{Missed, Pulses},
    turnstile::{Turnstiles, failure, is_of_address},
    weigh::{Patience, Said},
};
use crate::{
    balance,
    cache::{Look, stale::Wish},
    clock,
    consul::blocking::{self, Blocking, Failure},
    endpoint::{Outcome, Source},
    error::Error,
    flight::Runs,
    found::Held,
    ladder::{Heard, Rung},
    name::ConsulName,
    pool::Pool,
    records,
    source::{Finding, Question, Sources},
    task,
};

/// Asked so often between two answers, a name is worth a connection of its own.
const HOT: u32 = 20;

/// Time that a name which was asked often has to be asked often again. An answer that comes
/// at once, as the first one does, says nothing of that.
const WHILE: Duration = Duration::from_secs(5);

/// Least time between two polls of a name that cannot be followed.
pub(super) const POLL: Duration = Duration::from_secs(1);

/// What is held is asked about again after so long.
const RECHECK: Duration = Duration::from_secs(1);

/// The names that are followed. Dropped, it ends their queries.
#[derive(Debug)]
pub(super) struct Followers {
    /// By the name's key. A std mutex: held for one look, never across an await.
    all: Mutex<HashMap<Box<str>, Follower>>,
    /// One for each blocking query.
    connections: Arc<Semaphore>,
    pulses: Arc<Pulses>,
    stiles: Arc<Turnstiles>,
    most: usize,
}

#[derive(Debug)]
struct Follower {
    news: Arc<News>,
    task: AbortHandle,
}

impl Followers {
    pub(super) fn new(most: usize) -> Self {
        Self {
            all: Mutex::default(),
            connections: Arc::new(Semaphore::new(most)),
            pulses: Arc::default(),
            stiles: Arc::default(),
            most,
        }
    }

    /// Names that are followed by a query of their own.
    pub(super) fn watches(&self) -> usize {
        self.most - self.connections.available_permits()
    }

    /// Names without an endpoint.
    pub(super) fn empty(&self) -> usize {
        let is_empty = |follower: &&Follower| match &*follower.news.known.borrow() {
            Known::Unheard => false,
            Known::Set(held, _) => held.endpoints.is_empty(),
            Known::Gone | Known::Lost => true,
        };
        self.all().values().filter(is_empty).count()
    }

    /// What is told of a name that is followed.
    fn news(&self, key: &str) -> Option<Arc<News>> {
        self.all().get(key).map(|known| Arc::clone(&known.news))
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Box<str>, Follower>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        for follower in self.all().values() {
            follower.task.abort();
        }
    }
}

impl Inner {
    /// A name was found that had been asked so often since it was found before.
    pub(super) fn follow_if_hot(self: &Arc<Self>, name: &ConsulName, asked: u32) {
        let room = self.followers.connections.available_permits() > 0;
        if asked >= HOT && room && self.sources.can_follow(name) {
            drop(self.follow(name, None));
        }
    }

    /// Follows a name; whoever holds what is given of what is known keeps it followed. `pool`: it is told
    /// too, by that number of the name.
    ///
    /// Panics outside a tokio runtime.
    pub(super) fn follow(
        self: &Arc<Self>,
        name: &ConsulName,
        pool: Option<(&Arc<Pool>, usize)>,
    ) -> Heeds {
        let mut all = self.followers.all();
        let known = all.get(name.key());
        let news = known.map_or_else(Arc::default, |known| Arc::clone(&known.news));
        let heard = Heeds {
            known: news.known.subscribe(),
            problem: news.problem.subscribe(),
        };
        if let Some((pool, feed)) = pool {
            news.add(pool, feed);
        }
        // Its runtime may have ended: whoever listens still does.
        let is_lone = news.lone.swap(false, Ordering::SeqCst);
        if known.is_some_and(|known| !is_lone && !known.task.is_finished()) {
            return heard;
        }
        let following = Following {
            inner: Arc::downgrade(self),
            sources: Arc::clone(&self.sources),
            connections: Arc::clone(&self.followers.connections),
            pulses: Arc::clone(&self.followers.pulses),
            stiles: Arc::clone(&self.followers.stiles),
            fqdn: name.fqdn(&self.config.domain),
            name: name.clone(),
            news: Arc::clone(&news),
            pace: self.config.cache.floor.max(POLL),
            limit: self.config.timeout,
        };
        // Its owner is the map: it is aborted when the resolver goes.
        let mut running = Running {
            following,
            began: false,
            ended: false,
        };
        let task = tokio::spawn(async move {
            // All of it, or nobody would know where it is dropped before.
            let running = &mut running;
            running.began = true;
            let (following, what) = (&running.following, "whoever follows a name");
            task::anew_after_panics(what, POLL, || following.run()).await;
            running.ended = true;
        });
        let task = task.abort_handle();
        all.insert(name.key().into(), Follower { news, task });
        heard
    }

    /// Whoever followed a name ended with its runtime: it is followed again in this one, if this
    /// is one. What is too old to be given is given no longer, in any case.
    pub(super) fn follow_again(self: &Arc<Self>, name: &ConsulName) {
        if let Some(news) = self.followers.news(name.key())
            && news.is_outdated(clock::now(), self.config.cache.keep)
        {
            news.tell(Known::Lost);
        }
        if Handle::try_current().is_ok() {
            drop(self.follow(name, None));
        }
    }

    /// What a look-up of a name came to, for those who follow it.
    pub(super) fn tell_followers(&self, name: &ConsulName, landed: &Landed) {
        if let Some(news) = self.followers.news(name.key()) {
            news.landed(landed);
        }
    }

    /// A name that was told to be gone is held after all: whoever follows it looks.
    pub(super) fn is_taken_back(&self, key: &str) {
        if let Some(news) = self.followers.news(key) {
            news.again.notify_one();
        }
    }

    /// Ends following a name that nobody listens to and that is asked seldom. False:
    /// it goes on.
    fn leave(&self, name: &ConsulName) -> bool {
        let mut all = self.followers.all();
        let listeners = all
            .get(name.key())
            .map_or(0, |one| one.news.known.receiver_count());
        if listeners > 0 || self.cache().take_asked(name.key()) >= HOT {
            return false;
        }
        all.remove(name.key());
        self.cache().expire(name.key(), clock::now());
        true
    }
}

/// What whoever follows a name tells.
pub(super) struct Heeds {
    pub(super) known: watch::Receiver<Known>,
    pub(super) problem: watch::Receiver<Option<Error>>,
}

/// One name that is followed. It holds the resolver only while it has something to
/// tell, so that a query in the air does not keep it alive.
struct Following {
    inner: Weak<Inner>,
    sources: Arc<Sources>,
    connections: Arc<Semaphore>,
    pulses: Arc<Pulses>,
    stiles: Arc<Turnstiles>,
    name: ConsulName,
    fqdn: String,
    news: Arc<News>,
    pace: Duration,
    /// Of a query that does not wait.
    limit: Duration,
}

/// One that runs. Dropped before it has ended, as by a runtime that is shut down, it says so.
struct Running {
    following: Following,
    began: bool,
    ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let following = &self.following;
        if let Some(inner) = following.inner.upgrade() {
            // Nobody confirms it any more.
            (inner.cache()).expire(following.name.key(), clock::now());
        }
        // A runtime that takes no task is no reason to try again in it.
        following.news.end(self.began);
    }
}

impl Following {
    async fn run(&self) {
        let can_follow = self.sources.can_follow(&self.name);
        loop {
            // Others may have gone since it was last looked.
            if can_follow && let Ok(_permit) = self.connections.try_acquire() {
                return self.block().await;
            }
            let next = clock::now() + self.pace;
            if self.poll().await.is_none() || self.is_left() {
                return;
            }
            clock::sleep_until(next).await;
        }
    }

    /// Follows by blocking queries until nobody wants it any more.
    async fn block(&self) {
        let known = self.inner.upgrade();
        let known = known.map(|inner| inner.evidence().progress(self.name.key()));
        let mut blocking = Blocking::after(known.unwrap_or_default(), clock::now());
        // What was last told, and what the cache made of it.
        let mut before: Option<(Box<Finding>, Arc<Held>)> = None;
        let mut address = 0;
        let mut looked = clock::now();
        // Whoever told it had heard of the leader; that of another place is asked by nobody.
        let mut led = true;
        // What was told last is older than what is known, which others cannot tell: DNS has no
        // index.
        let mut is_behind = false;
        // It was not to be seen when it was last asked for.
        let mut denied = false;
        // The others are asked then, where they have to be.
        let mut poll = clock::now();
        let home = self.sources.is_home(self.name.locality());
        loop {
            let now = clock::now();
            if now.saturating_duration_since(looked) >= WHILE {
                looked = now;
                if self.is_left() {
                    return;
                }
            }
            let turn = blocking.turn(self.limit);
            let alone = std::mem::take(&mut is_behind);
            if alone {
                clock::sleep_until(turn.due).await;
            } else if self.poll_until(turn.due, &mut poll).await.is_none() {
                return;
            }
            let start = clock::now();
            let (mut asking, mut pass) = (None, None);
            if turn.index.is_none() {
                let free = |place| self.stiles.is_free(place, start);
                let well = self.sources.followed_at(&self.name, address, free);
                let well = well.and_then(|(well, asks)| {
                    let pass = self.stiles.pass(well, start)?;
                    Some((well, asks, pass))
                });
                let Some((well, asks, passes)) = well else {
                    // Not all of them come back in one instant.
                    let later = start + (POLL + self.share(POLL)) / 2;
                    let due = self.stiles.due(start).unwrap_or(later);
                    if self.poll_until(due.min(later), &mut poll).await.is_none() {
                        return;
                    }
                    continue;
                };
                (address, asking, pass) = (well, Some(asks), Some(passes));
            }
            let question = self.question();
            let pulse = self.pulses.of(&self.inner, self.sources.agent(), address);
            let told = tokio::select! {
                told = self.sources.block(question, address, asking, &turn) => told,
                // Who waits for a change hears nothing either where nobody is left to tell it.
                missed = pulse.missed(led && home), if turn.index.is_some() => {
                    let Some(inner) = self.inner.upgrade() else {
                        return;
                    };
                    let now = clock::now();
                    before = None;
                    self.news.lost();
                    // All who are followed there end here at once: nobody waits for all of them
                    // to be asked for. They were silent for long enough already.
                    poll = now + self.share(self.pace / 4);
                    let (failure, mut dice) = ((Failure::Other, None), clock::dice());
                    match missed {
                        // It answers, and nothing changes without a leader: each name holds for a
                        // part of the time that what is found holds for.
                        Missed::Leader => inner.cache().expire(self.name.key(), poll),
                        Missed::All | Missed::Still => {
                            let mut cache = inner.cache();
                            cache.expire(self.name.key(), now);
                            cache.rest(self.name.key(), poll);
                        }
                    }
                    inner.evidence().lost(self.name.key());
                    if missed == Missed::Still {
                        blocking.again(poll);
                        continue;
                    }
                    if missed == Missed::All {
                        // It was waited for already.
                        *inner.slow() = Some(now);
                        self.stiles.failed(address, None, failure, now, &mut dice);
                    }
                    blocking.failed(failure.0, None, now, &mut dice);
                    address += 1;
                    continue;
                }
                // Who asks for the state knows nothing, and others may.
                () = self.poll_beside(address), if turn.index.is_none() && !alone => return,
                () = self.deserted() => return,
                () = self.news.again.notified() => {
                    let Some(inner) = self.inner.upgrade() else {
                        return;
                    };
                    let now = clock::now();
                    before = None;
                    self.hold(&inner, now);
                    blocking.again(now + RECHECK);
                    continue;
                }
            };
            let Some((mut heard, mut blocked)) = told else {
                return;
            };
            let Some(inner) = self.inner.upgrade() else {
                return;
            };
            let now = clock::now();
            let took = now.saturating_duration_since(start);
            let patience = Patience {
                // Who waited for a change says nothing of what an answer takes.
                took: turn.index.map_or(took, |_| Duration::ZERO),
                until: now + self.limit,
            };
            if let Some(Heard::Nothing(nothing)) = &heard
                && !inner.knows(&self.name)
                && inner.may_see_nothing(Rung::Http, &self.name, nothing)
                && Box::pin(inner.is_blind(Rung::Http, patience.until)).await
            {
                // Others may have the right to see it.
                (heard, blocked.outcome) = (Some(Heard::Denied), Outcome::Denied);
            }
            let answered = heard.as_ref().is_some_and(Heard::is_an_answer);
            let was_denied = std::mem::replace(&mut denied, blocked.outcome == Outcome::Denied);
            if answered || denied {
                self.stiles.answered(address);
            }
            if answered {
                inner.heard_of(&self.name, true);
            }
            if answered {
                let mut evidence = inner.evidence();
                evidence.followed(self.name.key(), blocked.index, blocked.led, now);
            }
            let is_believed = !answered || blocking.believes(blocked.index, blocked.led, now);
            if answered && home && !(is_believed && blocked.led) {
                self.sources.is_behind(now);
            }
            if !is_believed {
                debug!(name = %self.fqdn, index = blocked.index, blocked.led, "older than what is known");
                before = None;
                self.keep_as_stale(&inner, now);
                // Who was told nothing yet is told what others know, and so is who was told what
                // is too old to be given.
                is_behind = self.news.is_told(now, inner.config.cache.keep);
                address += 1;
                continue;
            }
            let mut dice = clock::dice();
            let mut heard_of = |news| blocking.answered(blocked.index, news, took, now, &mut dice);
            let follows = match heard {
                Some(Heard::Whole(finding) | Heard::Partial(finding)) => {
                    let same = before.take().filter(|(told, _)| told.says_as(&finding));
                    let follows = heard_of(same.is_none());
                    // Consul does not tell when a host name in a set moves.
                    let settled = records::unresolved(&finding.found).next().is_none();
                    led = blocked.led;
                    let brief = !settled || !led;
                    // In a pause the others are asked, and nobody is told of a change.
                    let pauses = blocking.turn(self.limit).due > now + self.pace;
                    let until = now
                        + if pauses {
                            self.pace
                        } else if follows && !brief {
                            blocking::longest()
                        } else {
                            // The next word comes after a pace, and what an agent adds to it.
                            2 * self.pace
                        };
                    // Who may be behind makes nothing younger.
                    let known = || inner.cache().known_since(self.name.key(), &finding.found);
                    let since = if led { None } else { known() }.unwrap_or(now);
                    // Another source may have put something else there meanwhile.
                    let confirmed = same.filter(|(told, held)| {
                        let alike = settled
                            && held.carried.is_none()
                            && told.unconfirmed == finding.unconfirmed;
                        let known = (since, until);
                        alike && inner.cache().confirm(self.name.key(), held, known, now)
                    });
                    blocking.wait(brief.then_some(self.pace));
                    self.news.follows();
                    before = match confirmed {
                        Some(known) => {
                            inner.will_save(false);
                            self.news.tell(Known::Set(Arc::clone(&known.1), since));
                            Some(known)
                        }
                        None => {
                            let kept = inner.keep_followed(
                                question,
                                Finding::clone(&finding),
                                (since, until),
                            );
                            let held = kept.await;
                            self.news.tell(Known::Set(Arc::clone(&held), since));
                            Some((finding, held))
                        }
                    };
                    follows
                }
                Some(Heard::Nothing(nothing)) => {
                    let follows = heard_of(before.is_some());
                    before = None;
                    let said = Said {
                        rung: Rung::Http,
                        nothing,
                        denied: false,
                        known: inner.knows(&self.name),
                        asked: None,
                        patience,
                    };
                    match inner.weigh(question, &said, Vec::new()).await {
                        Landed::Nothing(_) => {
                            self.news.follows();
                            self.news.tell(Known::Gone);
                            // The right to see it may have come after that was said, and no
                            // query waits for that.
                            if was_denied {
                                blocking.again(clock::now() + RECHECK);
                            }
                        }
                        // The leader knows better than the server that is followed.
                        Landed::Found(answer) => {
                            let now = clock::now();
                            self.news.follows();
                            self.news.tell(Known::Set(answer.held, now));
                            blocking.again(now + RECHECK);
                        }
                        // What is held is asked about until it is settled.
                        Landed::Kept(error) => {
                            let now = clock::now();
                            self.news.holds(&error);
                            self.hold(&inner, now);
                            blocking.again(now + RECHECK);
                        }
                    }
                    follows
                }
                Some(_) | None => {
                    self.news.lost();
                    // It was true until now, as far as a query tells that waited. Each name
                    // holds for a part of the time that what is found holds for.
                    if before.take().is_some() {
                        poll = now + self.share(self.pace);
                        inner.cache().expire(self.name.key(), poll);
                    }
                    // Nobody else may ask there for as long as DNS is well.
                    inner.counters.attempted(Source::Http, blocked.outcome);
                    let (failure, asked) = failure(&blocked);
                    debug!(name = %self.fqdn, outcome = %blocked.outcome, "not followed for now");
                    inner.evidence().lost(self.name.key());
                    if is_of_address(blocked.outcome, home) {
                        let failure = (failure, asked);
                        self.stiles.failed(address, pass, failure, now, &mut dice);
                    }
                    // The pause that was asked for is the address's.
                    blocking.failed(failure, None, now, &mut dice);
                    address += 1;
                    true
                }
            };
            if !follows {
                blocking.again(clock::now() + self.pace);
            }
        }
    }

    /// Asks all rungs once a pace until `due`, from `poll` on. `None`: there is no resolver any
    /// more.
    async fn poll_until(&self, due: Instant, poll: &mut Instant) -> Option<()> {
        loop {
            let now = clock::now();
            if now >= due {
                return Some(());
            }
            if now >= *poll {
                *poll = now + self.pace;
                self.poll().await?;
            }
            clock::sleep_until(due.min(*poll)).await;
        }
    }

    /// The part of a time that is this name's: names that were lost together are asked for one
    /// after the other.
    fn share(&self, time: Duration) -> Duration {
        let part = balance::hash(self.name.key().as_bytes()) % 1_000;
        time * u32::try_from(part).unwrap_or(0) / 1_000
    }

    /// Asks all rungs once a pace while an address is slow. Completes when there is no resolver
    /// any more.
    async fn poll_beside(&self, address: usize) {
        sleep(self.sources.hedge_of(address)).await;
        while self.poll().await.is_some() {
            sleep(self.pace).await;
        }
    }

    /// Asks all rungs once. `None`: there is no resolver any more.
    async fn poll(&self) -> Option<()> {
        let inner = self.inner.upgrade()?;
        let told = inner.wait(&self.name, Wish::default(), Runs::Apart, None);
        let told = told.await;
        let now = clock::now();
        let since = |age| now.checked_sub(age).unwrap_or(now);
        match told {
            Ok(answer) if answer.is_fresh() => {
                let since = since(answer.age);
                // A probe may have asked, which tells nobody.
                self.news.answered();
                self.news.tell(Known::Set(answer.held, since));
            }
            Err(error) if error.is_not_found() => {
                self.news.answered();
                self.news.tell(Known::Gone);
            }
            // What is stale was told before.
            Ok(answer) => {
                let since = since(answer.age);
                self.tell_first(Known::Set(answer.held, since));
            }
            Err(_) if self.news.is_outdated(now, inner.config.cache.keep) => {
                self.news.tell(Known::Lost)
            }
            // The cache may have had no room for it.
            Err(_) => {}
        }
        Some(())
    }

    /// What is known is given as stale until it is asked about again, and nobody else asks.
    fn keep_as_stale(&self, inner: &Inner, now: Instant) {
        let mut cache = inner.cache();
        cache.expire(self.name.key(), now);
        cache.rest(self.name.key(), now + RECHECK + self.limit);
    }

    /// The same of what is not believed gone, which was perhaps believed so before.
    fn hold(&self, inner: &Inner, now: Instant) {
        self.keep_as_stale(inner, now);
        let is_gone = matches!(*self.news.known.borrow(), Known::Gone);
        if is_gone && let Look::Stale(held, age, _) = inner.look(&self.name) {
            let since = now.checked_sub(age).unwrap_or(now);
            self.news.tell(Known::Set(held, since));
        }
    }

    /// Whether nobody wants it any more, or there is no resolver.
    fn is_left(&self) -> bool {
        let inner = self.inner.upgrade();
        inner.is_none_or(|inner| inner.leave(&self.name))
    }

    /// Completes when the last handle is dropped of a name that is asked seldom.
    async fn deserted(&self) {
        if self.news.known.receiver_count() > 0 {
            self.news.known.closed().await;
            if self.is_left() {
                return;
            }
        }
        // Who asks often without a handle is looked at after each query.
        std::future::pending().await
    }

    fn question(&self) -> Question<'_> {
        Question {
            name: &self.name,
            fqdn: &self.fqdn,
        }
    }

    fn tell_first(&self, known: Known) {
        let is_told = matches!(*self.news.known.borrow(), Known::Set(..));
        if !is_told {
            self.news.tell(known);
        }
    }
}
