//! **Shell.** Whether an agent that names are followed at still answers. A blocking query is
//! silent for as long as nothing changes, and so is an agent that hangs, which TCP does not
//! see, or whose servers have lost their leader. So one is asked for something small, once a
//! second for all names that are followed there; without an answer none of them is known any
//! more, and without a leader none that a server told of that had one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::debug;

use super::Inner;
use crate::{clock, consul::http::Agent, task::Owned};

/// Time between two questions.
const EACH: Duration = Duration::from_secs(1);

/// An answer that takes longer is none: with [`EACH`] it is less than two seconds until
/// somebody knows.
const LIMIT: Duration = Duration::from_millis(700);

/// Who was not asked for so long is asked by nobody any more: the runtime stands still.
const STILL: Duration = Duration::from_secs(4);

/// Whoever is asked needs a server for it, and no token: an agent that lost all of them is
/// none to follow names at. A server without a leader answers with an empty text.
const PATH: &str = "/v1/status/leader";

/// The pulses of an agent's addresses, by their place in the list.
#[derive(Debug, Default)]
pub(super) struct Pulses(Mutex<HashMap<usize, Weak<Pulse>>>);

/// The pulse of one address. It is felt for as long as somebody holds this.
#[derive(Debug)]
pub(super) struct Pulse {
    misses: watch::Receiver<Misses>,
    /// Of the runtime that it was begun in.
    task: Owned,
}

/// What an address that was asked did not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missed {
    /// Anything.
    All,
    /// Who leads. Without a leader nothing changes either.
    Leader,
    /// Nobody listened: we stood still, or the machine was suspended. The connections that
    /// questions wait on may be none any more, and nothing tells of it.
    Still,
}

/// How often an address was asked in vain.
#[derive(Clone, Copy, Debug)]
struct Misses {
    silent: u64,
    leaderless: u64,
    still: u64,
    /// When it was last asked, or was to be.
    felt: Instant,
}

impl Misses {
    /// Nobody drives the runtime that it is felt in.
    fn is_still(&self) -> bool {
        clock::now().saturating_duration_since(self.felt) > STILL
    }
}

impl Pulses {
    /// That of this address, which is begun where nobody holds it.
    pub(super) fn of(&self, inner: &Weak<Inner>, agent: &Arc<Agent>, address: usize) -> Arc<Pulse> {
        let address = address % agent.addresses().len().max(1);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(&address).and_then(Weak::upgrade);
        let beats =
            |known: &Arc<Pulse>| !known.task.0.is_finished() && !known.misses.borrow().is_still();
        if let Some(known) = known.filter(beats) {
            return known;
        }
        let (miss, misses) = watch::channel(Misses {
            silent: 0,
            leaderless: 0,
            still: 0,
            felt: clock::now(),
        });
        let task = tokio::spawn(feel(Weak::clone(inner), Arc::clone(agent), address, miss));
        let pulse = Arc::new(Pulse {
            misses,
            task: Owned(task.abort_handle()),
        });
        all.insert(address, Arc::downgrade(&pulse));
        pulse
    }
}

impl Pulse {
    /// Completes when the address is asked in vain from now on, or nobody listens to it. `led`:
    /// also when it answers that there is no leader.
    ///
    /// Cancel-safe.
    pub(super) async fn missed(&self, led: bool) -> Missed {
        let mut misses = self.misses.clone();
        let before = *misses.borrow_and_update();
        let missed = |now: &Misses| {
            let leaderless = led && now.leaderless != before.leaderless;
            leaderless || now.silent != before.silent || now.still != before.still
        };
        loop {
            // An error is the end of the runtime, and of whoever waits in it.
            let waited = timeout(STILL, misses.wait_for(missed)).await;
            match waited.map(|told| told.map(|now| *now)) {
                Ok(Err(_)) => return Missed::All,
                Ok(Ok(now)) if now.silent != before.silent => return Missed::All,
                Ok(Ok(now)) if now.still != before.still => return Missed::Still,
                Ok(Ok(_)) => return Missed::Leader,
                Err(_) if misses.borrow().is_still() => return Missed::Still,
                Err(_) => {}
            }
        }
    }
}

async fn feel(inner: Weak<Inner>, agent: Arc<Agent>, address: usize, miss: watch::Sender<Misses>) {
    loop {
        let felt = clock::now();
        // Nobody is to be woken for that.
        miss.send_if_modified(|misses| {
            misses.felt = felt;
            false
        });
        let is_still = || clock::now().saturating_duration_since(felt) > STILL;
        sleep(EACH).await;
        let Some(address) = agent.addresses().nth(address) else {
            return;
        };
        let told = agent.get(address, PATH, LIMIT).await;
        if is_still() {
            debug!("stood still, or was suspended: what is followed is asked for anew");
            miss.send_modify(|misses| misses.still += 1);
            continue;
        }
        // Who stood still has heard by then what else was said meanwhile.
        if told.is_ok() {
            let Some(inner) = inner.upgrade() else {
                return;
            };
            inner.cache().followers_live(clock::now());
        }
        match told {
            Ok(reply) if is_empty(&reply.body) => {
                debug!(%address, "knows no leader");
                miss.send_modify(|misses| misses.leaderless += 1);
            }
            Ok(_) => {}
            Err(trouble) => {
                debug!(%address, %trouble, "no pulse");
                miss.send_modify(|misses| misses.silent += 1);
            }
        }
    }
}

/// A JSON text with nothing in it.
fn is_empty(body: &[u8]) -> bool {
    matches!(body.trim_ascii(), b"\"\"")
}
