//! **Door.** [`Registration`]: services that are registered at the agent of this machine as
//! long as it lives. What is said of a service is [`definition`]'s, of its checks [`check`]'s,
//! what is done to keep it there [`agenda`]'s.

pub(crate) mod agenda;
mod check;
mod definition;
mod keeper;
pub(crate) mod leaving;

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, atomic::Ordering, mpsc},
    thread,
    time::Duration,
};

use tokio::{sync::watch, task::JoinHandle, time::sleep};
use tracing::{info, warn};

use self::{
    agenda::{Seen, Wishes},
    keeper::Line,
    leaving::Leaving,
};
pub use self::{check::Check, definition::ServiceDefinition};
use crate::{
    consul::{
        api::place,
        http::{Agent, AgentSettings},
    },
    endpoint::Health,
    error::{Error, ErrorKind},
    name::Locality,
    resolver::Resolver,
    task::runtime,
};

/// A guard that was dropped waits so long for the agent.
const DROPPED: Duration = Duration::from_secs(2);

/// Services of this process, registered while it lives.
///
/// Made by [`Resolver::register`]. An agent that is not there yet is waited for; one that
/// forgets, or comes back without what it knew, is told again within 2 s, and so is one whose
/// servers lost what they had: each service is followed in the catalog by a blocking query.
/// [`shutdown`](Self::shutdown) deregisters. A guard that is dropped does too, and stops its
/// thread for that, 2 s at most; what is killed leaves that to its checks
/// ([`Check::deregister_after`]).
///
/// Consul has a service at each agent that it was registered at: of several addresses of
/// the HTTP API the first is this machine's agent, and only that is told.
#[must_use = "what is not held is deregistered at once"]
pub struct Registration {
    kept: Vec<Kept>,
    /// In the same order.
    states: watch::Receiver<States>,
    drain: Duration,
    /// For a guard that is dropped, whose runtime may be gone.
    settings: AgentSettings,
}

struct Kept {
    line: Line,
    wishes: watch::Sender<Wishes>,
    task: Option<JoinHandle<Result<(), Error>>>,
}

type States = Box<[RegistrationState]>;

/// How far a registration is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RegistrationState {
    /// The agent has not answered yet.
    Pending,
    /// The agent knows it.
    Registered,
    /// The agent does not take it, and why. It is tried again.
    Failing(Error),
    /// Its id belongs to an instance at another address or port, which is left alone: each
    /// instance needs an id of its own.
    Taken(Box<str>),
    /// It is deregistered.
    Gone,
}

/// The state of one of them, to be told.
struct State {
    all: watch::Sender<States>,
    at: usize,
}

impl State {
    /// Only what is new is worth a line.
    fn tell(&self, id: &str, now: RegistrationState) {
        self.all.send_if_modified(|all| {
            let Some(before) = all.get_mut(self.at) else {
                return false;
            };
            if before.is_like(&now) {
                return false;
            }
            match &now {
                RegistrationState::Registered => info!(%id, "registered"),
                RegistrationState::Failing(error) => warn!("{error}"),
                RegistrationState::Taken(whose) => {
                    warn!(%id, %whose, "the id belongs to another instance, which is left alone");
                }
                RegistrationState::Gone => info!(%id, "deregistered"),
                RegistrationState::Pending => {}
            }
            *before = now;
            true
        });
    }
}

impl RegistrationState {
    /// The same but for a text.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Failing(one), Self::Failing(other)) => one.to_string() == other.to_string(),
            (Self::Taken(one), Self::Taken(other)) => one == other,
            (Self::Registered, Self::Registered)
            | (Self::Gone, Self::Gone)
            | (Self::Pending, Self::Pending) => true,
            _ => false,
        }
    }

    /// Whose it was when that was seen last.
    fn last_seen(&self) -> Seen {
        match self {
            Self::Registered => Seen::Ours,
            Self::Taken(_) => Seen::Another,
            Self::Pending | Self::Failing(_) | Self::Gone => Seen::Nothing,
        }
    }
}

impl fmt::Display for RegistrationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("not registered yet"),
            Self::Registered => f.write_str("registered"),
            Self::Failing(error) => error.fmt(f),
            Self::Taken(whose) => write!(
                f,
                "its id belongs to {whose}: give each instance an id of its own"
            ),
            Self::Gone => f.write_str("deregistered"),
        }
    }
}

impl Resolver {
    /// Registers a service at the agent of this machine, for as long as the guard lives.
    /// It is done in the background, and again where it fails:
    /// [`Registration::registered`] waits for it.
    ///
    /// ```no_run
    /// use proconsul::{Check, Resolver, ServiceDefinition};
    ///
    /// # async fn example() -> Result<(), proconsul::Error> {
    /// let web = ServiceDefinition::new("web", 8080)
    ///     .address("10.0.0.7")
    ///     .check(Check::http("http://10.0.0.7:8080/health/ready"));
    /// let registration = Resolver::from_env()?.register(web)?;
    /// // ... until SIGTERM or SIGINT; then it is deregistered first of all.
    /// registration.shutdown_on_signal().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for what Consul would not take, where the HTTP API is turned
    /// off, and outside a tokio runtime.
    pub fn register(&self, service: ServiceDefinition) -> Result<Registration, Error> {
        self.register_all([service])
    }

    /// The same for several services of one process.
    ///
    /// # Errors
    ///
    /// As [`register`](Self::register); also where two have the same id.
    pub fn register_all(
        &self,
        services: impl IntoIterator<Item = ServiceDefinition>,
    ) -> Result<Registration, Error> {
        let invalid = |message: String| Error::new(ErrorKind::Invalid, message);
        let config = self.config();
        if config.http.addresses.is_empty() {
            let message = "nothing can be registered while the HTTP API is turned off";
            return Err(invalid(message.into()));
        }
        let runtime = runtime("a service can be registered")?;
        // An agent knows no other datacenter than its own.
        let place: Arc<str> = place(&Locality {
            datacenter: None,
            ..config.home()
        })
        .into();
        let mut ids = HashSet::new();
        let mut kept = Vec::new();
        let services: Vec<_> = services.into_iter().collect();
        for service in &services {
            service.validate()?;
            if !ids.insert(service.id()) {
                let message = format!("two services have the id {}", service.id());
                return Err(invalid(message));
            }
        }
        let pending = services.iter().map(|_| RegistrationState::Pending);
        let (tell, states) = watch::channel(pending.collect());
        for service in services {
            for problem in service.lint() {
                warn!(id = %service.id(), "{problem}");
            }
            let line = Line {
                agent: Arc::clone(self.agent()),
                definition: Arc::new(service),
                place: Arc::clone(&place),
                may_arrive: Arc::default(),
            };
            let (wishes, wished) = watch::channel(Wishes::default());
            let state = State {
                all: tell.clone(),
                at: kept.len(),
            };
            let counters = Arc::clone(self.counters());
            // Stopped by its guard.
            let task = runtime.spawn(keeper::keep(line.clone(), wished, state, counters));
            kept.push(Kept {
                line,
                wishes,
                task: Some(task),
            });
        }
        Ok(Registration {
            kept,
            states,
            drain: Duration::ZERO,
            settings: config.http.clone(),
        })
    }
}

impl Registration {
    /// After it is deregistered, [`shutdown`](Self::shutdown) waits so long: clients that
    /// have been told of it still come. Default: zero.
    pub fn drain(mut self, time: Duration) -> Self {
        self.drain = time;
        self
    }

    /// Waits until the agent knows all of them.
    ///
    /// # Cancel safety
    ///
    /// Safe: it waits for a state and takes nothing.
    pub async fn registered(&self) {
        let is_there = |state: &RegistrationState| matches!(state, RegistrationState::Registered);
        let all = |states: &States| states.iter().all(is_there);
        if self.states.clone().wait_for(all).await.is_err() {
            // Its runtime has ended: it never will be.
            std::future::pending::<()>().await;
        }
    }

    /// How far each of them is: its id and its state.
    pub fn states(&self) -> Vec<(String, RegistrationState)> {
        let ids = self.kept.iter().map(|kept| kept.line.definition.id());
        ids.zip(self.states.borrow().iter().cloned()).collect()
    }

    /// Waits until the state of one of them is another one, and gives all.
    ///
    /// # Cancel safety
    ///
    /// Safe: what changes meanwhile is told the next time.
    pub async fn changed(&mut self) -> Vec<(String, RegistrationState)> {
        if self.states.changed().await.is_err() {
            // Nothing will change any more.
            std::future::pending::<()>().await;
        }
        self.states()
    }

    /// Into maintenance, with a reason: the services stay registered, and are given to
    /// nobody. `None`: out of it. The agent is told in the background, and again where it
    /// forgets.
    pub fn maintenance(&self, reason: Option<&str>) {
        for kept in &self.kept {
            (kept.wishes).send_modify(|wishes| wishes.maintenance = reason.map(Into::into));
        }
    }

    /// What heartbeats say from now on, and a text for people: passing without a text unless
    /// said otherwise. At once, and with each heartbeat.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] where no service has a [heartbeat](Check::ttl), since the others
    /// are asked by the agent, and for [`Health::Unknown`].
    pub fn set_health(&self, health: Health, text: &str) -> Result<(), Error> {
        if health == Health::Unknown {
            let message = "Consul knows no such health: passing, warning or critical";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let has_beat = |kept: &Kept| kept.line.definition.heartbeats().next().is_some();
        if !self.kept.iter().any(has_beat) {
            let message = "no service of this registration has a heartbeat (Check::ttl) to say \
                           its health with";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        for kept in &self.kept {
            (kept.wishes).send_modify(|wishes| wishes.health = (health, text.into()));
        }
        Ok(())
    }

    /// Deregisters all of them that are still ours, then waits for the
    /// [`drain`](Self::drain).
    ///
    /// # Errors
    ///
    /// The first of those that could not be deregistered: [`ErrorKind::Unavailable`],
    /// [`ErrorKind::Denied`]. Its checks will do it.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is done, the guard is dropped, with all that means.
    pub async fn shutdown(mut self) -> Result<(), Error> {
        for kept in &self.kept {
            kept.wishes.send_modify(|wishes| wishes.stop = true);
        }
        let mut failed = None;
        for (at, kept) in self.kept.iter_mut().enumerate() {
            let Some(task) = &mut kept.task else { continue };
            let ended = task.await;
            kept.task = None;
            let last = self.states.borrow()[at].last_seen();
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => _ = failed.get_or_insert(error),
                // Its runtime is shutting down.
                Err(_) => {
                    if let Err(error) = kept.line.leave(Leaving::new(last, true)).await {
                        failed.get_or_insert(error);
                    }
                }
            }
        }
        let drain = self.drain;
        drop(self);
        if let Some(error) = failed {
            return Err(error);
        }
        sleep(drain).await;
        Ok(())
    }

    /// Waits for SIGTERM or SIGINT, then [shuts down](Self::shutdown). From the first call on
    /// these signals no longer end the process by themselves.
    ///
    /// # Errors
    ///
    /// As `shutdown`; [`ErrorKind::Io`] where signals cannot be received.
    ///
    /// # Cancel safety
    ///
    /// As `shutdown`.
    #[cfg(unix)]
    pub async fn shutdown_on_signal(self) -> Result<(), Error> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |error: std::io::Error| {
            let message = format!("signals cannot be received: {error}");
            Error::caused(ErrorKind::Io, message, error)
        };
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        self.shutdown().await
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut lines = Vec::new();
        for (kept, state) in self.kept.iter().zip(self.states.borrow().iter()) {
            let Some(task) = &kept.task else { continue };
            // Else it would go on after us.
            task.abort();
            if !matches!(state, RegistrationState::Taken(_) | RegistrationState::Gone) {
                lines.push((kept.line.clone(), state.last_seen()));
            }
        }
        // The runtime may end before a task has done it: a thread of our own does it.
        if lines.is_empty() {
            return;
        }
        let settings = self.settings.clone();
        let (done, wait) = mpsc::channel::<()>();
        let thread = thread::Builder::new().name("proconsul-deregister".into());
        let spawned = thread.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let (Ok(runtime), Ok(agent)) = (runtime, Agent::new(settings)) else {
                return;
            };
            let agent = Arc::new(agent);
            runtime.block_on(async {
                for (line, last) in lines {
                    let line = Line {
                        agent: Arc::clone(&agent),
                        ..line
                    };
                    let leaving = Leaving::dropped(last, line.may_arrive.load(Ordering::Relaxed));
                    if let Err(error) = line.leave(leaving).await {
                        warn!("{error}");
                    }
                }
            });
            drop(done);
        });
        if spawned.is_ok() {
            // Closed when it is done.
            _ = wait.recv_timeout(DROPPED);
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("states", &self.states())
            .finish_non_exhaustive()
    }
}
