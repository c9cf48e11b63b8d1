//! **Shell.** Whether an agent that names are followed at still answers. A blocking query is
//! silent for as long as nothing changes, and so is an agent that hangs, which TCP does not
//! see. So one is asked for something small, once a second for all names that are followed
//! there; without an answer none of them is known any more.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{sync::watch, time::sleep};
use tracing::debug;

use crate::{consul::http::Agent, task::Owned};

/// Time between two questions.
const EACH: Duration = Duration::from_secs(1);

/// An answer that takes longer is none: with [`EACH`] it is less than two seconds until
/// somebody knows.
const LIMIT: Duration = Duration::from_millis(700);

/// Whoever is asked needs a server for it, and no token: an agent that lost all of them is
/// none to follow names at.
const PATH: &str = "/v1/status/leader";

/// The pulses of an agent's addresses, by their place in the list.
#[derive(Debug, Default)]
pub(super) struct Pulses(Mutex<HashMap<usize, Weak<Pulse>>>);

/// The pulse of one address. It is felt for as long as somebody holds this.
#[derive(Debug)]
pub(super) struct Pulse {
    misses: watch::Receiver<u64>,
    /// Of the runtime that it was begun in.
    task: Owned,
}

impl Pulses {
    /// That of this address, which is begun where nobody holds it.
    pub(super) fn of(&self, agent: &Arc<Agent>, address: usize) -> Arc<Pulse> {
        let address = address % agent.addresses().len().max(1);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(&address).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| !known.task.0.is_finished()) {
            return known;
        }
        let (miss, misses) = watch::channel(0);
        let task = tokio::spawn(feel(Arc::clone(agent), address, miss));
        let pulse = Arc::new(Pulse {
            misses,
            task: Owned(task.abort_handle()),
        });
        all.insert(address, Arc::downgrade(&pulse));
        pulse
    }
}

impl Pulse {
    /// Completes when the address is asked in vain from now on.
    ///
    /// Cancel-safe.
    pub(super) async fn missed(&self) {
        let mut misses = self.misses.clone();
        misses.mark_unchanged();
        // An error is the end of the runtime, and of whoever waits in it.
        _ = misses.changed().await;
    }
}

async fn feel(agent: Arc<Agent>, address: usize, miss: watch::Sender<u64>) {
    loop {
        sleep(EACH).await;
        let Some(address) = agent.addresses().nth(address) else {
            return;
        };
        if let Err(trouble) = agent.get(address, PATH, LIMIT).await {
            debug!(%address, %trouble, "no pulse");
            miss.send_modify(|misses| *misses += 1);
        }
    }
}
