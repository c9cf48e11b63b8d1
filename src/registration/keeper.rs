//! **Shell.** Carries out what the [`agenda`](super::agenda) says for one service, at one
//! address of an agent: a service that is registered at two agents is there twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, de::IgnoredAny};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tracing::{debug, warn};

use super::{
    RegistrationState, State,
    agenda::{Agenda, Failed, Seen, Step, Wishes},
    definition::ServiceDefinition,
    leaving::{Leaving, Move},
};
use crate::{
    clock,
    consul::{
        api::Api,
        health::ask::escaped,
        http::{Agent, Reply, Trouble, Verb},
    },
    error::Error,
    metrics::Counters,
    task::Owned,
};

/// For one request.
const LIMIT: Duration = Duration::from_secs(2);

/// How long the catalog is waited for to change while it is not known to be well.
const GLANCE: Duration = Duration::from_secs(5);

/// One service, and the agent that it is registered at.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) agent: Arc<Agent>,
    pub(super) definition: Arc<ServiceDefinition>,
    /// Namespace and partition, as they stand in a query, each with `&` before.
    pub(super) place: Arc<str>,
    /// A registration was sent, and had no answer: it may still be carried out.
    pub(super) may_arrive: Arc<AtomicBool>,
}

/// What is read of an instance at its agent.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct There {
    #[serde(default)]
    address: String,
    #[serde(default)]
    port: u64,
    #[serde(default)]
    service: String,
}

impl Line {
    async fn send(&self, verb: Verb, path: &str) -> Result<Reply, Trouble> {
        let path = format!("{path}{}", self.place);
        match self.agent.addresses().next() {
            Some(address) => self.agent.send(address, verb, &path, LIMIT).await,
            None => Err(Trouble::Config("the HTTP API is turned off".into())),
        }
    }

    async fn put(&self, path: &str, body: String) -> Result<(), Trouble> {
        let reply = self.send(Verb::Put(body.into()), path).await?;
        match reply.head.status {
            404 => Err(Trouble::Status {
                code: 404,
                text: "not known there".into(),
                after: None,
            }),
            _ => Ok(()),
        }
    }

    /// What its id stands for at the agent; where that is another one, its address.
    async fn look(&self) -> Result<(Seen, Option<Box<str>>), Trouble> {
        let path = format!("/v1/agent/service/{}?", escaped(&self.definition.id()));
        let reply = self.send(Verb::Get, &path).await?;
        if reply.head.status == 404 {
            return Ok((Seen::Nothing, None));
        }
        let there: There = serde_json::from_slice(&reply.body).map_err(|error| {
            Trouble::Transport(format!("the reply is not read: {error}").into())
        })?;
        let ours = self.definition.is_at(&there.address, there.port)
            && there.service == self.definition.name();
        if ours {
            return Ok((Seen::Ours, None));
        }
        let whose = format!("{} at {}:{}", there.service, there.address, there.port);
        Ok((Seen::Another, Some(whose.escape_debug().to_string().into())))
    }

    async fn register(&self) -> Result<(), Trouble> {
        let path = "/v1/agent/service/register?replace-existing-checks=true";
        // Whoever drops this meanwhile has no answer either.
        self.may_arrive.store(true, Ordering::Relaxed);
        let done = self.put(path, self.definition.body().to_string()).await;
        let is_unheard = matches!(&done, Err(trouble) if failed(trouble) == Failed::Unheard);
        self.may_arrive.store(is_unheard, Ordering::Relaxed);
        done
    }

    async fn maintain(&self, reason: Option<&str>) -> Result<(), Trouble> {
        let id = escaped(&self.definition.id());
        let path = match reason {
            Some(reason) => format!(
                "/v1/agent/service/maintenance/{id}?enable=true&reason={}",
                escaped(reason)
            ),
            None => format!("/v1/agent/service/maintenance/{id}?enable=false"),
        };
        self.put(&path, String::new()).await
    }

    async fn beat(&self, wishes: &Wishes) -> Result<(), Trouble> {
        let (health, text) = &wishes.health;
        let body = serde_json::json!({ "Status": health.as_str(), "Output": text }).to_string();
        for (check, _) in self.definition.heartbeats() {
            let path = format!("/v1/agent/check/update/{}?", escaped(&check));
            self.put(&path, body.clone()).await?;
        }
        Ok(())
    }

    /// Follows what the catalog has of it, and says when it is missed there. An agent tells
    /// servers that lost their data only after a minute (Consul docs: Anti-Entropy). A token
    /// that does not see it in the catalog never saw it, and misses nothing.
    async fn looks_out(self, missed: Arc<Notify>) {
        let (id, name) = (self.definition.id(), self.definition.name());
        let filter = escaped(&format!("ServiceID == {id:?}"));
        let path = format!("/v1/catalog/service/{}?filter={filter}", escaped(name));
        let api = Api::new(Arc::clone(&self.agent), LIMIT, (*self.place).into());
        let mut was_there = false;
        let heard = |reply: Result<Reply, Trouble>| {
            let found = reply.map(|reply| serde_json::from_slice::<Vec<IgnoredAny>>(&reply.body));
            let Ok(Ok(found)) = found else {
                return false;
            };
            let is_there = !found.is_empty();
            if was_there && !is_there {
                missed.notify_one();
            }
            std::mem::replace(&mut was_there, is_there) != is_there
        };
        api.follow(&path, Some(GLANCE), heard).await;
    }

    /// Takes it away where it is ours.
    pub(super) async fn leave(&self, mut leaving: Leaving) -> Result<(), Error> {
        let mut failed = None;
        loop {
            match leaving.next() {
                Move::Rest(pause) => sleep(pause).await,
                Move::Look => {
                    let seen = self.look().await.map(|(seen, _)| seen);
                    leaving.looked(seen.map_err(|trouble| told(trouble, &mut failed)));
                }
                Move::TakeAway => {
                    let id = escaped(&self.definition.id());
                    let path = format!("/v1/agent/service/deregister/{id}?");
                    let done = self.put(&path, String::new()).await;
                    leaving.took_away(done.map_err(|trouble| told(trouble, &mut failed)));
                }
                Move::Gone => return Ok(()),
                Move::GiveUp => break,
            }
        }
        let trouble = failed.unwrap_or(Trouble::TimedOut);
        let id = self.definition.id();
        let message = format!(
            "{id} could not be deregistered: {trouble}; the agent does so when its \
             checks have failed for long enough, or: consul services deregister -id {id}"
        );
        Err(Error::new(trouble.kind(), message))
    }
}

/// What a failure is to who decides what is next; and it is remembered.
fn told(trouble: Trouble, last: &mut Option<Trouble>) -> Failed {
    let how = failed(&trouble);
    *last = Some(trouble);
    how
}

fn failed(trouble: &Trouble) -> Failed {
    match trouble {
        Trouble::Denied(_) => Failed::Denied,
        Trouble::TimedOut | Trouble::Transport(_) => Failed::Unheard,
        Trouble::Status { code: 404, .. } => Failed::Forgotten,
        // Consul 1.8 says so of a check and of a service that it does not know.
        Trouble::Status { text, .. }
            if text.contains("does not have associated TTL")
                || text.contains("Unknown service") =>
        {
            Failed::Forgotten
        }
        _ => Failed::Other,
    }
}

/// Keeps it registered until that is no longer wished; then takes it away.
pub(super) async fn keep(
    line: Line,
    mut wishes: watch::Receiver<Wishes>,
    state: State,
    counters: Arc<Counters>,
) -> Result<(), Error> {
    let id = line.definition.id();
    let shortest = line.definition.heartbeats().map(|(_, ttl)| ttl).min();
    let mut agenda = Agenda::new(shortest, clock::now());
    // What is said beside the registration itself is not taken.
    let mut ailing = false;
    let missed = Arc::new(Notify::new());
    let looking = tokio::spawn(line.clone().looks_out(Arc::clone(&missed)));
    let _owned = Owned(looking.abort_handle());
    loop {
        let wish = wishes.borrow_and_update().clone();
        if wish.stop {
            break;
        }
        let step = agenda.next(&wish, clock::now());
        let says_more = matches!(step, Step::Maintain(_) | Step::Beat);
        let done = match step {
            Step::Rest(until) => {
                tokio::select! {
                    () = clock::sleep_until(until) => {}
                    () = missed.notified() => {
                        warn!(%id, "the catalog has it no more: the agent is told again");
                        agenda.is_missed();
                    }
                    // Without a guard there is nothing to be kept.
                    changed = wishes.changed() => if changed.is_err() { break },
                }
                continue;
            }
            Step::Look => line.look().await.map(|(seen, whose)| {
                agenda.saw(seen, clock::now());
                match whose {
                    Some(whose) => state.tell(&id, RegistrationState::Taken(whose)),
                    // The agent was away for a while, and has forgotten nothing.
                    None if agenda.is_present() && !ailing => {
                        state.tell(&id, RegistrationState::Registered);
                    }
                    None => {}
                }
            }),
            Step::Register => line.register().await.map(|()| {
                let again = agenda.has_registered(clock::now());
                counters.registered(again);
                if again {
                    warn!(%id, "the agent had forgotten it: registered again");
                }
                state.tell(&id, RegistrationState::Registered);
            }),
            Step::Maintain(reason) => line
                .maintain(reason.as_deref())
                .await
                .map(|()| agenda.has_maintained(reason)),
            Step::Beat => line
                .beat(&wish)
                .await
                .map(|()| agenda.has_beaten(wish.health.clone(), clock::now())),
        };
        if done.is_ok() && says_more && std::mem::take(&mut ailing) {
            state.tell(&id, RegistrationState::Registered);
        }
        if let Err(trouble) = done {
            let how = match failed(&trouble) {
                // There was nothing that it could have forgotten.
                Failed::Forgotten if !says_more => Failed::Other,
                how => how,
            };
            debug!(%id, %trouble, "the agent did not take it");
            agenda.failed(how, clock::now());
            ailing |= says_more;
            let is_failing = how != Failed::Forgotten || agenda.is_in_vain();
            // Somebody else's stays told as such, and so stays left alone.
            if is_failing && !agenda.is_taken() {
                let kind = trouble.kind();
                let whom = line.agent.addresses().next();
                let whom = whom.map_or_else(String::new, ToString::to_string);
                let mend = match how {
                    Failed::Denied => "; give a token with service:write: CONSUL_HTTP_TOKEN_FILE",
                    _ => "; it is tried again until that works",
                };
                let message = format!("{id} is not registered at {whom}: {trouble}{mend}");
                state.tell(&id, RegistrationState::Failing(Error::new(kind, message)));
            }
        }
    }
    let Some(leaving) = agenda.leaving() else {
        return Ok(());
    };
    let done = line.leave(leaving).await;
    if done.is_ok() {
        state.tell(&id, RegistrationState::Gone);
    }
    done
}
