//! **Door.** How a name is followed: its changes come by blocking queries, and what is
//! cached of it is fresh by event, whatever its TTL. When a query is asked again is
//! [`blocking`]'s to say, and which names are followed [`followers`](super::followers)'s.
//!
//! An agent that does not answer any more, which a query that waits does not see, is found
//! out by its [`pulse`](super::pulse) within two seconds.
//!
//! While the HTTP API is not there, or for a name that it cannot follow, the other
//! rungs are asked once a TTL and at least once a second: a handle goes on being
//! told. A name that was followed until then holds for up to a second yet: not all of them are
//! asked for at once. At an address that fails one of them at a time asks whether it is
//! back ([`turnstile`](super::turnstile)).

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, time::sleep};
use tracing::debug;

use super::{
    Inner,
    climb::Landed,
    news::{Known, News},
    pulse::{Missed, Pulses},
    turnstile::{Pass, Turnstiles, failure, is_of_address},
    weigh::{Patience, Said},
};
use crate::{
    balance,
    cache::{Look, stale::Wish},
    clock,
    consul::blocking::{self, Blocking, Failure},
    endpoint::{Outcome, Source},
    flight::Runs,
    found::Held,
    ladder::{Heard, Rung},
    name::ConsulName,
    records,
    source::{Finding, Question, Sources, catalog::Blocked, circuits::Asking},
};

/// Time that a name which was asked often has to be asked often again. An answer that comes
/// at once, as the first one does, says nothing of that.
pub(super) const WHILE: Duration = Duration::from_secs(5);

/// Least time between two polls of a name that cannot be followed.
pub(super) const POLL: Duration = Duration::from_secs(1);

/// What is held is asked about again after so long.
const RECHECK: Duration = Duration::from_secs(1);

/// One name that is followed. It holds the resolver only while it has something to
/// tell, so that a query in the air does not keep it alive.
pub(super) struct Following {
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

impl Following {
    pub(super) fn new(inner: &Arc<Inner>, name: &ConsulName, news: &Arc<News>) -> Self {
        let followers = &inner.followers;
        Self {
            inner: Arc::downgrade(inner),
            sources: Arc::clone(&inner.sources),
            connections: Arc::clone(&followers.connections),
            pulses: Arc::clone(&followers.pulses),
            stiles: Arc::clone(&followers.stiles),
            fqdn: name.fqdn(&inner.config.domain),
            name: name.clone(),
            news: Arc::clone(news),
            pace: inner.config.cache.floor.max(POLL),
            limit: inner.config.timeout,
        }
    }

    /// Completes when nobody wants it any more.
    pub(super) async fn run(&self) {
        let can_follow = self.sources.can_follow(&self.name);
        loop {
            // Others may have gone since it was last looked.
            if can_follow && let Ok(_permit) = self.connections.try_acquire() {
                let mut blocks = Blocks::of(self);
                while blocks.ask().await.is_some() {}
                return;
            }
            let next = clock::now() + self.pace;
            if self.poll().await.is_none() || self.is_left() {
                return;
            }
            clock::sleep_until(next).await;
        }
    }

    /// It ended with the runtime that it ran in, if it `began` there.
    pub(super) fn is_lost(&self, began: bool) {
        if let Some(inner) = self.inner.upgrade() {
            // Nobody confirms it any more.
            inner.cache().expire(self.name.key(), clock::now());
        }
        // A runtime that takes no task is no reason to try again in it.
        self.news.end(began);
    }

    /// An address that may be asked for the state, from that place on.
    fn way_in(&self, from: usize, now: Instant) -> Option<(usize, Asking<'_>, Pass<'_>)> {
        let free = |place| self.stiles.is_free(place, now);
        let (well, asks) = self.sources.followed_at(&self.name, from, free)?;
        Some((well, asks, self.stiles.pass(well, now)?))
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
        let told = inner.wait(&self.name, clock::now(), Wish::default(), Runs::Apart, None);
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
        cache.rest(self.name.key(), now, now + RECHECK + self.limit);
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

/// A name that is followed by blocking queries, one after the other.
struct Blocks<'a> {
    of: &'a Following,
    blocking: Blocking,
    /// What was last told, and what the cache made of it.
    before: Option<(Box<Finding>, Arc<Held>)>,
    /// By its place in the list.
    address: usize,
    /// When it was last looked whether somebody wants it.
    looked: Instant,
    /// Whoever told it had heard of the leader; that of another place is asked by nobody.
    led: bool,
    home: bool,
    /// What was told last is older than what is known, which others cannot tell: DNS has no
    /// index.
    is_behind: bool,
    /// It was not to be seen when it was last asked for.
    denied: bool,
    /// The others are asked then, where they have to be.
    poll: Instant,
}

/// What came back of a query.
struct Reply<'a> {
    inner: &'a Arc<Inner>,
    blocked: &'a Blocked,
    took: Duration,
    now: Instant,
}

impl<'a> Blocks<'a> {
    fn of(of: &'a Following) -> Self {
        let known = of.inner.upgrade();
        let known = known.map(|inner| inner.evidence().progress(of.name.key()));
        let now = clock::now();
        Self {
            of,
            blocking: Blocking::after(known.unwrap_or_default(), now),
            before: None,
            address: 0,
            looked: now,
            led: true,
            home: of.sources.is_home(of.name.locality()),
            is_behind: false,
            denied: false,
            poll: now,
        }
    }

    /// Asks once, when that is due. `None`: nobody wants it any more.
    async fn ask(&mut self) -> Option<()> {
        let of = self.of;
        let now = clock::now();
        if now.saturating_duration_since(self.looked) >= WHILE {
            self.looked = now;
            if of.is_left() {
                return None;
            }
        }
        let turn = self.blocking.turn(of.limit);
        let alone = std::mem::take(&mut self.is_behind);
        if alone {
            clock::sleep_until(turn.due).await;
        } else {
            of.poll_until(turn.due, &mut self.poll).await?;
        }
        let start = clock::now();
        let waits = turn.index.is_some();
        let (mut asking, mut pass) = (None, None);
        if !waits {
            let Some((well, asks, passes)) = of.way_in(self.address, start) else {
                // Not all of them come back in one instant.
                let later = start + (POLL + of.share(POLL)) / 2;
                let due = of.stiles.due(start).unwrap_or(later);
                return of.poll_until(due.min(later), &mut self.poll).await;
            };
            self.address = well;
            (asking, pass) = (Some(asks), Some(passes));
        }
        let pulse = of.pulses.of(&of.inner, of.sources.agent(), self.address);
        let (heard, blocked) = tokio::select! {
            told = of.sources.block(of.question(), self.address, asking, &turn) => told?,
            // Who waits for a change hears nothing either where nobody is left to tell it.
            missed = pulse.missed(self.led && self.home), if waits => return self.missed(missed),
            // Who asks for the state knows nothing, and others may.
            () = of.poll_beside(self.address), if !waits && !alone => return None,
            () = of.deserted() => return None,
            () = of.news.again.notified() => {
                let inner = of.inner.upgrade()?;
                let now = clock::now();
                self.before = None;
                of.hold(&inner, now);
                self.blocking.again(now + RECHECK);
                return Some(());
            }
        };
        let (inner, now) = (of.inner.upgrade()?, clock::now());
        let reply = Reply {
            inner: &inner,
            blocked: &blocked,
            took: now.saturating_duration_since(start),
            now,
        };
        self.replied(heard, &reply, waits, pass).await;
        Some(())
    }

    /// Nobody is there any more who would tell of a change.
    fn missed(&mut self, missed: Missed) -> Option<()> {
        let of = self.of;
        let inner = of.inner.upgrade()?;
        let now = clock::now();
        self.before = None;
        of.news.lost();
        // All who are followed there end here at once: nobody waits for all of them
        // to be asked for. They were silent for long enough already.
        self.poll = now + of.share(of.pace / 4);
        match missed {
            // It answers, and nothing changes without a leader: each name holds for a
            // part of the time that what is found holds for.
            Missed::Leader => inner.cache().expire(of.name.key(), self.poll),
            Missed::All | Missed::Still => {
                let mut cache = inner.cache();
                cache.expire(of.name.key(), now);
                cache.rest(of.name.key(), now, self.poll);
            }
        }
        inner.evidence().lost(of.name.key());
        if missed == Missed::Still {
            self.blocking.again(self.poll);
            return Some(());
        }
        let mut dice = clock::dice();
        if missed == Missed::All {
            // It was waited for already.
            inner.waits().waited(now);
            let failure = (Failure::Other, None);
            of.stiles
                .failed(self.address, None, failure, now, &mut dice);
        }
        self.blocking.failed(Failure::Other, None, now, &mut dice);
        self.address += 1;
        Some(())
    }

    /// A query came back. `waited`: it was one that waits for a change; `pass`: what another one
    /// was let through with.
    async fn replied(
        &mut self,
        mut heard: Option<Heard<Box<Finding>>>,
        reply: &Reply<'_>,
        waited: bool,
        pass: Option<Pass<'_>>,
    ) {
        let (of, now) = (self.of, reply.now);
        let Reply { inner, blocked, .. } = *reply;
        let patience = Patience {
            // Who waited for a change says nothing of what an answer takes.
            took: if waited { Duration::ZERO } else { reply.took },
            until: now + of.limit,
        };
        let mut outcome = blocked.outcome;
        if let Some(Heard::Nothing(nothing)) = &heard
            && !inner.knows(&of.name)
            && inner.may_see_nothing(Rung::Http, &of.name, nothing)
            && Box::pin(inner.is_blind(Rung::Http, patience.until)).await
        {
            // Others may have the right to see it.
            (heard, outcome) = (Some(Heard::Denied), Outcome::Denied);
        }
        let answered = heard.as_ref().is_some_and(Heard::is_an_answer);
        let denied = outcome == Outcome::Denied;
        let was_denied = std::mem::replace(&mut self.denied, denied);
        if answered || denied {
            of.stiles.answered(self.address);
        }
        if answered {
            inner.heard_of(&of.name, true);
            let mut evidence = inner.evidence();
            evidence.followed(of.name.key(), blocked.index, blocked.led, now);
        }
        let is_believed = !answered || self.blocking.believes(blocked.index, blocked.led, now);
        if answered && self.home && !(is_believed && blocked.led) {
            of.sources.is_behind(now);
        }
        if !is_believed {
            debug!(name = %of.fqdn, index = blocked.index, blocked.led, "older than what is known");
            self.before = None;
            of.keep_as_stale(inner, now);
            // Who was told nothing yet is told what others know, and so is who was told what
            // is too old to be given.
            self.is_behind = of.news.is_told(now, inner.config.cache.keep);
            self.address += 1;
            return;
        }
        let follows = match heard {
            Some(Heard::Whole(finding) | Heard::Partial(finding)) => {
                self.found(finding, reply).await
            }
            Some(Heard::Nothing(nothing)) => {
                let said = Said {
                    rung: Rung::Http,
                    nothing,
                    denied: false,
                    known: inner.knows(&of.name),
                    asked: None,
                    patience,
                };
                self.nothing(&said, reply, was_denied).await
            }
            Some(_) | None => {
                self.failed(outcome, reply, pass);
                true
            }
        };
        if !follows {
            self.blocking.again(clock::now() + of.pace);
        }
    }

    /// There is a set. False: it cannot be followed.
    async fn found(&mut self, finding: Box<Finding>, reply: &Reply<'_>) -> bool {
        let (of, now) = (self.of, reply.now);
        let Reply { inner, blocked, .. } = *reply;
        let same = (self.before.take()).filter(|(told, _)| told.says_as(&finding));
        let follows = self.heard_of(same.is_none(), reply);
        // Consul does not tell when a host name in a set moves.
        let settled = records::unresolved(&finding.found).next().is_none();
        self.led = blocked.led;
        let brief = !settled || !self.led;
        // In a pause the others are asked, and nobody is told of a change.
        let pauses = self.blocking.turn(of.limit).due > now + of.pace;
        let until = now
            + if pauses {
                of.pace
            } else if follows && !brief {
                blocking::longest()
            } else {
                // The next word comes after a pace, and what an agent adds to it.
                2 * of.pace
            };
        // Who may be behind makes nothing younger.
        let known = || inner.cache().known_since(of.name.key(), &finding.found);
        let since = if self.led { None } else { known() }.unwrap_or(now);
        // Another source may have put something else there meanwhile.
        let confirmed = same.filter(|(told, held)| {
            let alike =
                settled && held.carried.is_none() && told.unconfirmed == finding.unconfirmed;
            alike && (inner.cache()).confirm(of.name.key(), held, (since, until), now)
        });
        self.blocking.wait(brief.then_some(of.pace));
        of.news.follows();
        let known = match confirmed {
            Some(known) => {
                inner.will_save(false);
                known
            }
            None => {
                let kept = Finding::clone(&finding);
                let kept = inner.keep_followed(of.question(), kept, (since, until));
                (finding, kept.await)
            }
        };
        of.news.tell(Known::Set(Arc::clone(&known.1), since));
        self.before = Some(known);
        follows
    }

    /// It is said to be gone. False: that cannot be followed.
    async fn nothing(&mut self, said: &Said, reply: &Reply<'_>, was_denied: bool) -> bool {
        let of = self.of;
        let news = self.before.take().is_some();
        let follows = self.heard_of(news, reply);
        let weighed = reply.inner.weigh(of.question(), said, Vec::new()).await;
        let now = clock::now();
        match weighed {
            Landed::Nothing(_) => {
                of.news.follows();
                of.news.tell(Known::Gone);
                // The right to see it may have come after that was said, and no
                // query waits for that.
                if was_denied {
                    self.blocking.again(now + RECHECK);
                }
            }
            // The leader knows better than the server that is followed.
            Landed::Found(answer) => {
                of.news.follows();
                of.news.tell(Known::Set(answer.held, now));
                self.blocking.again(now + RECHECK);
            }
            // What is held is asked about until it is settled.
            Landed::Kept(error) => {
                of.news.holds(&error);
                of.hold(reply.inner, now);
                self.blocking.again(now + RECHECK);
            }
        }
        follows
    }

    /// There was no answer.
    fn failed(&mut self, outcome: Outcome, reply: &Reply<'_>, pass: Option<Pass<'_>>) {
        let (of, now) = (self.of, reply.now);
        let inner = reply.inner;
        of.news.lost();
        // It was true until now, as far as a query tells that waited. Each name
        // holds for a part of the time that what is found holds for.
        if self.before.take().is_some() {
            self.poll = now + of.share(of.pace);
            inner.cache().expire(of.name.key(), self.poll);
        }
        // Nobody else may ask there for as long as DNS is well.
        inner.counters.attempted(Source::Http, outcome);
        let (failure, asked) = failure(outcome, reply.blocked.after);
        debug!(name = %of.fqdn, %outcome, "not followed for now");
        inner.evidence().lost(of.name.key());
        let mut dice = clock::dice();
        if is_of_address(outcome, self.home) {
            let failure = (failure, asked);
            of.stiles
                .failed(self.address, pass, failure, now, &mut dice);
        }
        // The pause that was asked for is the address's.
        self.blocking.failed(failure, None, now, &mut dice);
        self.address += 1;
    }

    /// A source answered. False: what it says cannot be followed.
    fn heard_of(&mut self, news: bool, reply: &Reply<'_>) -> bool {
        let (index, mut dice) = (reply.blocked.index, clock::dice());
        (self.blocking).answered(index, news, reply.took, reply.now, &mut dice)
    }
}
