//! **Shell.** How Consul's own DNS interface would answer, learned from the agent
//! and kept: [`dns_settings`](crate::consul::dns_settings) reads it.
//!
//! The agent is asked beside a question to its catalog, and never waited for longer
//! than that question takes. A token needs `agent:read` for it; without, an SOA that
//! came over DNS is believed, and the TTL that a name had there.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::debug;

use crate::consul::{
    address::HttpAddress,
    dns_settings::{DnsSettings, Soa},
    http::{Agent, Trouble},
};

/// Settings change when an operator reloads the agent.
const HOLDS: Duration = Duration::from_secs(60);

/// Between two questions to an agent that did not answer.
const RETRY: Duration = Duration::from_secs(5);

/// Between two questions to one that says that we may not know.
const FORBIDDEN: Duration = Duration::from_secs(300);

/// What was learned.
#[derive(Debug, Default)]
pub(crate) struct Manners {
    /// A std mutex: held for one look, never across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    settings: Arc<DnsSettings>,
    /// The agent itself told.
    told: bool,
    /// When it is asked again; `None`: now.
    due: Option<Instant>,
}

impl Manners {
    /// What is known by now.
    pub(crate) fn known(&self) -> Arc<DnsSettings> {
        Arc::clone(&self.state().settings)
    }

    /// Whether the agent told, so that a TTL of 0 is its own word.
    pub(crate) fn are_told(&self) -> bool {
        self.state().told
    }

    /// The zone's SOA came over DNS.
    pub(crate) fn heard(&self, soa: Soa) {
        let mut state = self.state();
        if state.settings.soa != soa {
            Arc::make_mut(&mut state.settings).soa = soa;
        }
    }

    /// Asks the agent, if that is due.
    ///
    /// Cancel-safe: it is asked again some seconds later.
    pub(crate) async fn refresh(
        &self,
        agent: &Agent,
        address: &HttpAddress,
        now: Instant,
        limit: Duration,
    ) {
        {
            let mut state = self.state();
            if state.due.is_some_and(|due| now < due) {
                return;
            }
            // One asks; and who is not heard is not asked by everybody.
            state.due = Some(now + RETRY);
        }
        let told = agent.get(address, "/v1/agent/self", limit).await;
        let mut state = self.state();
        match told.map(|reply| DnsSettings::read(&reply.body)) {
            Ok(Some(settings)) => {
                if *state.settings != settings {
                    debug!(%address, ?settings, "the agent's DNS settings");
                    state.settings = Arc::new(settings);
                }
                state.told = true;
                state.due = Some(now + HOLDS);
            }
            Err(Trouble::Denied(_)) | Ok(None) => state.due = Some(now + FORBIDDEN),
            Err(_) => {}
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
