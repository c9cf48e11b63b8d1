//! **Shell.** Whether the sources are well: who was left alone is asked whether it is back, and
//! where nobody asks for anything somebody looks all the same.

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Inner, Resolver};
use crate::{
    circuit::Mode,
    clock,
    ladder::{Heard, Rung},
    name::ConsulName,
    source::{Finding, Question},
    task,
};

/// Whether the sources answer is looked at where nobody has heard of them for so long.
const LOOK: Duration = Duration::from_secs(10);

impl Resolver {
    /// Whether it is to be [looked around](Self::look_around).
    pub(crate) fn is_unheard(&self) -> bool {
        self.0.is_unheard()
    }

    /// Looks whether the sources answer, where nobody has heard of them for long.
    pub(crate) fn look_around(&self) -> impl Future<Output = ()> + Send + use<> {
        let inner = Arc::clone(&self.0);
        async move { inner.look_around().await }
    }
}

impl Inner {
    /// Whether the sources answered a question; what is elsewhere says nothing of them.
    pub(super) fn heard_of(&self, name: &ConsulName, answered: bool) {
        if self.sources.is_near(name) {
            self.heard_now(answered);
        }
    }

    /// A question was not answered, which may be its name's fault: whether the sources answer is
    /// not known any more.
    pub(super) fn in_vain(&self, name: &ConsulName) {
        let mut heard = self.heard();
        if self.sources.is_near(name) && matches!(*heard, Some((true, _))) {
            *heard = None;
        }
    }

    /// Whether the last question that tells was not answered.
    pub(super) fn has_failed(&self) -> bool {
        matches!(*self.heard(), Some((false, _)))
    }

    fn heard_now(&self, answered: bool) {
        *self.heard() = Some((answered, clock::lately()));
    }

    fn is_unheard(&self) -> bool {
        let heard = *self.heard();
        heard.is_none_or(|(_, when)| clock::lately().saturating_duration_since(when) >= LOOK)
    }

    fn heard(&self) -> MutexGuard<'_, Option<(bool, Instant)>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether the sources answer: who is asked by nobody is not found well, or gone, by
    /// anybody.
    async fn look_around(self: &Arc<Self>) {
        // What is written down can be given as well.
        self.warm().await;
        for &rung in self.sources.rungs() {
            if self.sources.is_probe_due(rung, clock::now()) {
                self.is_back(rung).await;
            }
        }
        if !self.is_unheard() {
            return;
        }
        let mut answered = false;
        for &rung in self.sources.rungs() {
            if rung != Rung::Static && !answered {
                answered = self.ask_own(rung, Mode::Ask).await.is_an_answer();
            }
        }
        self.heard_now(answered);
    }

    /// Probes a rung if that is due, which nobody waits for: with a copy of this question, whose
    /// answer is kept, or where that would tell little with one for Consul's own service.
    pub(super) fn probe_beside(self: &Arc<Self>, name: &ConsulName, rung: Rung, now: Instant) {
        if !self.sources.is_probe_due(rung, now) {
            return;
        }
        let (inner, name) = (Arc::clone(self), name.clone());
        // Ends within the time limit of a look-up.
        tokio::spawn(task::outcome(async move {
            if !inner.sources.is_probed_apart(rung, &name) {
                return inner.probe(&name, rung).await;
            }
            if inner.is_back(rung).await {
                // Who asked for the name may have it then.
                inner.cache().wake(name.key());
            }
        }));
    }

    /// Asks a rung that is left alone whether it is back. What it knows is kept.
    async fn probe(self: &Arc<Self>, name: &ConsulName, rung: Rung) {
        let asked = clock::now();
        let deadline = asked + self.config.timeout;
        let fqdn = name.fqdn(&self.config.domain);
        let question = Question { name, fqdn: &fqdn };
        let asking = self.sources.ask(rung, question, Mode::Probe, deadline);
        if let (Heard::Whole(finding), _) = asking.await {
            self.waits().heard();
            self.heard_of(name, true);
            let addresses = self.addresses(&finding.found, deadline, 0).await;
            self.keep(question, *finding, addresses, asked, Vec::new());
        }
    }

    /// The same by a question for what every agent has at hand, which is not kept.
    async fn is_back(&self, rung: Rung) -> bool {
        let heard = self.ask_own(rung, Mode::Probe).await;
        let is_back = matches!(heard, Heard::Whole(_));
        if is_back {
            self.waits().heard();
            self.heard_now(true);
        }
        is_back
    }

    /// Asks a rung for Consul's own service.
    async fn ask_own(&self, rung: Rung, mode: Mode) -> Heard<Box<Finding>> {
        let Ok(own) = ConsulName::service("consul") else {
            return Heard::Failed;
        };
        let deadline = clock::now() + self.config.timeout;
        let fqdn = own.fqdn(&self.config.domain);
        let question = Question {
            name: &own,
            fqdn: &fqdn,
        };
        self.sources.ask(rung, question, mode, deadline).await.0
    }
}
