//! `proconsul register NAME --port P [-- COMMAND...]`: for programs in any language.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    io::{self, IsTerminal as _},
    os::unix::process::ExitStatusExt as _,
    pin::Pin,
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proconsul::{
    Check, Error, ErrorKind, Health, Registration, RegistrationState, ServiceDefinition,
};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Sleep, sleep},
};

use crate::{
    args::{Output, Register, Stale},
    output,
};

/// A program that is wrapped sends a heartbeat as long as it runs, unless it has another
/// check.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// So long, and for the drain, a signal is held back at most, whatever the agent does: whoever
/// sent it kills after a while.
const HELD: Duration = Duration::from_secs(2);

/// A command that still runs so long after we were interrupted on a terminal may not have been
/// interrupted by it: time for most to end, and less than a sender waits before it kills.
const MOMENT: Duration = Duration::from_secs(5);

/// What the shell says of a command that cannot be run, and that there is not.
const NOT_RUN: u8 = 126;
const NO_COMMAND: u8 = 127;

/// Signals that are passed on; the first three are the end.
const SIGNALS: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

pub(crate) async fn run(command: Register, form: &Output) -> ExitCode {
    let mut signals = match received() {
        Ok(signals) => signals,
        Err(error) => {
            return output::refused(&format!("signals cannot be received: {error}"), form);
        }
    };
    let (resolver, service) = match (prepared(&command).await, definition(&command)) {
        (Ok(resolver), Ok(service)) => (resolver, service),
        (Err(error), _) | (_, Err(error)) => return output::failure(&error, form),
    };
    for problem in service.lint() {
        output::remark(form, &format!("warning: {problem}"));
    }
    if let Err(error) = service.validate() {
        return output::failure(&error, form);
    }
    // What cannot be run is not registered.
    let mut wrapped = match spawned(&command.command, form) {
        Ok(child) => child.map(Wrapped::new),
        Err(failed) => return failed,
    };
    let registration = match resolver.register(service) {
        Ok(registration) => registration,
        Err(error) => {
            if let Some(mut wrapped) = wrapped {
                // It may have ended by itself.
                _ = wrapped.child.kill().await;
            }
            return output::failure(&error, form);
        }
    };
    let end = Ending {
        wrapped: &mut wrapped,
        signals: &mut signals,
        form,
    };
    let (ended, signal) = end.registered(registration, command.drain).await;
    let Some(wrapped) = &mut wrapped else {
        return match ended {
            Ended::Left => ExitCode::SUCCESS,
            Ended::Failed(error) => output::failure(&error, form),
            Ended::Never(kind) => {
                let why = "nothing was registered, and nothing is deregistered";
                output::wrong(kind, why, &[], form)
            }
        };
    };
    if let Ended::Failed(error) = ended {
        output::remark(form, &format!("proconsul: {error}"));
    }
    if let Some(signal) = signal {
        wrapped.pass(signal);
    }
    loop {
        tokio::select! {
            ended = wrapped.ended() => return status(ended),
            Some(signal) = signals.recv() => wrapped.pass(signal),
        }
    }
}

async fn prepared(command: &Register) -> Result<proconsul::Resolver, Error> {
    let resolver = command.sources.resolver(None, Stale::Yes)?;
    resolver.check().await?;
    Ok(resolver)
}

/// Flags, then the environment.
fn definition(command: &Register) -> Result<ServiceDefinition, Error> {
    let flag = |variable: &str| match variable {
        "SERVICE_NAME" => command.name.clone(),
        "SERVICE_PORT" => command.port.map(|port| port.to_string()),
        "SERVICE_ADDRESS" => command.address.clone(),
        // Each flag is one tag, commas and all.
        "SERVICE_TAGS" if !command.tag.is_empty() => Some(String::new()),
        _ => None,
    };
    let mut service = ServiceDefinition::from_variables(|variable| {
        flag(variable).or_else(|| env::var(variable).ok())
    })
    .map_err(|error| {
        let mend = "or give them: proconsul register NAME --port P";
        Error::invalid_setting(format!("{error}; {mend}"))
    })?;
    for tag in command.tag.iter().filter(|tag| !tag.is_empty()) {
        service = service.tag(tag.as_str());
    }
    if let Some(id) = &command.id {
        service = service.with_id(id.as_str());
    }
    for (key, value) in &command.meta {
        service = service.meta(key.as_str(), value.as_str());
    }
    if let Some(weight) = command.weight {
        service = service.weights(weight, 1);
    }
    let asked = [
        command.check_http.as_deref().map(Check::http),
        command.check_tcp.as_deref().map(Check::tcp),
        command.check_grpc.as_deref().map(Check::grpc),
        command.check_ttl.map(Check::ttl),
    ];
    let mut checks: Vec<_> = asked.into_iter().flatten().collect();
    if checks.is_empty() && !command.command.is_empty() {
        checks.push(Check::ttl(HEARTBEAT).starts(Health::Passing));
    }
    for mut check in checks {
        if let Some(interval) = command.check_interval {
            check = check.interval(interval);
        }
        if let Some(timeout) = command.check_timeout {
            check = check.timeout(timeout);
        }
        if let Some(after) = command.deregister_after {
            check = check.deregister_after(Some(after));
        }
        service = service.check(check);
    }
    Ok(service)
}

/// The signals, as they come.
fn received() -> io::Result<mpsc::Receiver<Signal>> {
    let (tell, told) = mpsc::channel(16);
    for one in SIGNALS {
        let mut signals = signal(SignalKind::from_raw(one as i32))?;
        let tell = tell.clone();
        // Ends with the program.
        tokio::spawn(async move {
            while signals.recv().await.is_some() && tell.send(one).await.is_ok() {}
        });
    }
    Ok(told)
}

fn spawned(command: &[OsString], form: &Output) -> Result<Option<Child>, ExitCode> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(None);
    };
    match Command::new(program).args(arguments).spawn() {
        Ok(child) => Ok(Some(child)),
        Err(error) => {
            let why = format!("{} cannot be run: {error}", program.to_string_lossy());
            output::failure(&Error::invalid_setting(why), form);
            Err(ExitCode::from(match error.kind() {
                io::ErrorKind::NotFound => NO_COMMAND,
                _ => NOT_RUN,
            }))
        }
    }
}

/// What came of a registration in the end.
enum Ended {
    /// It is deregistered.
    Left,
    /// It could not be.
    Failed(Error),
    /// It never was registered.
    Never(ErrorKind),
}

/// What was heard of it so far.
struct Known {
    registered: BTreeSet<String>,
    /// Why the rest is not.
    why: ErrorKind,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            registered: BTreeSet::new(),
            why: ErrorKind::Unavailable,
        }
    }
}

impl Known {
    fn hear(&mut self, states: Vec<(String, RegistrationState)>) {
        for (id, state) in states {
            match state {
                RegistrationState::Registered => _ = self.registered.insert(id),
                RegistrationState::Failing(error) => self.why = error.kind(),
                // Whoever chose it can choose another.
                RegistrationState::Taken(_) => self.why = ErrorKind::Invalid,
                _ => {}
            }
        }
    }
}

/// What may end a registration: the command, or a signal.
struct Ending<'a> {
    wrapped: &'a mut Option<Wrapped>,
    signals: &'a mut mpsc::Receiver<Signal>,
    form: &'a Output,
}

impl Ending<'_> {
    /// Keeps it registered until the command ends or a signal comes; then deregisters, and
    /// drains while the command still runs and no second signal comes. Gives the signal that
    /// is still to be passed on: where the agent hangs, none is.
    async fn registered(
        mut self,
        mut registration: Registration,
        drain: Duration,
    ) -> (Ended, Option<Signal>) {
        let mut known = Known::default();
        let first = loop {
            tokio::select! {
                states = registration.changed() => {
                    tell(&states, self.form);
                    known.hear(states);
                }
                signal = self.end() => break signal,
            }
        };
        known.hear(registration.states());
        let (mut held, mut hurries) = (first, first.is_none());
        let mut ending = std::pin::pin!(registration.shutdown());
        let mut latest = std::pin::pin!(sleep(HELD.saturating_add(drain)));
        let ended = loop {
            tokio::select! {
                ended = &mut ending => break ended,
                () = &mut latest, if held.is_some() => {
                    self.pass(held.take());
                }
                // What was sent is waited for, but not longer than that.
                signal = self.end(), if !hurries => {
                    hurries = true;
                    self.pass(signal);
                }
            }
        };
        let ended = match ended {
            Err(error) => Ended::Failed(error),
            Ok(()) if known.registered.is_empty() => Ended::Never(known.why),
            Ok(()) => {
                let ids: Vec<_> = known.registered.into_iter().collect();
                output::remark(self.form, &format!("{}: deregistered", ids.join(", ")));
                Ended::Left
            }
        };
        if held.is_some() && !hurries {
            tokio::select! {
                () = sleep(drain) => {}
                () = &mut latest => {}
                signal = self.end() => self.pass(signal),
            }
        }
        (ended, held)
    }

    /// Waits for a signal that ends the program, or for the command's end, which is `None`.
    /// Other signals are passed on.
    async fn end(&mut self) -> Option<Signal> {
        loop {
            tokio::select! {
                () = gone(self.wrapped) => return None,
                Some(signal) = self.signals.recv() => match signal {
                    Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT => return Some(signal),
                    signal => self.pass(Some(signal)),
                },
            }
        }
    }

    fn pass(&mut self, signal: Option<Signal>) {
        if let (Some(signal), Some(wrapped)) = (signal, &mut *self.wrapped) {
            wrapped.pass(signal);
        }
    }
}

async fn gone(wrapped: &mut Option<Wrapped>) {
    match wrapped {
        Some(wrapped) => _ = wrapped.ended().await,
        None => std::future::pending().await,
    }
}

/// The command that runs while it is registered.
struct Wrapped {
    child: Child,
    /// A signal that it may have from the terminal, and the wait after which it has it from us.
    owed: Option<(Signal, Pin<Box<Sleep>>)>,
}

impl Wrapped {
    fn new(child: Child) -> Self {
        Self { child, owed: None }
    }

    /// Gives it a signal. What the terminal sent, it sent to the command as well; but nothing
    /// tells whether the terminal sent it, or somebody else, and then to us alone.
    fn pass(&mut self, signal: Signal) {
        let by_keys = matches!(signal, Signal::SIGINT | Signal::SIGQUIT);
        if by_keys && io::stdin().is_terminal() {
            self.owed = Some((signal, Box::pin(sleep(MOMENT))));
        } else {
            self.kill(signal);
        }
    }

    fn kill(&self, signal: Signal) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(id) = id {
            // It may have ended by itself.
            _ = kill(Pid::from_raw(id), signal);
        }
    }

    /// Waits for its end. Cancel-safe: what is owed stays so.
    async fn ended(&mut self) -> io::Result<ExitStatus> {
        if let Some((signal, due)) = &mut self.owed {
            let signal = *signal;
            tokio::select! {
                ended = self.child.wait() => return ended,
                () = due => {}
            }
            self.owed = None;
            self.kill(signal);
        }
        self.child.wait().await
    }
}

fn tell(states: &[(String, RegistrationState)], form: &Output) {
    for (id, state) in states {
        let text = match state {
            RegistrationState::Failing(error) => format!("proconsul: {error}"),
            state => format!("{id}: {state}"),
        };
        output::remark(form, &text);
    }
}

/// The command's own, as a shell tells it.
fn status(ended: io::Result<ExitStatus>) -> ExitCode {
    let code = ended.ok().and_then(|status| {
        let signal = status.signal().map(|signal| 128 + signal);
        u8::try_from(status.code().or(signal)?).ok()
    });
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}
