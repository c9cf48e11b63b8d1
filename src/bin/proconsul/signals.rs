//! The signals that end the program.

use std::{future::Future, io, process::ExitCode};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::output;

/// SIGHUP: the configuration is to be read again.
pub(crate) fn reload() -> Result<Signal, ExitCode> {
    signal(SignalKind::hangup()).map_err(|error| unheard(&error))
}

fn unheard(error: &io::Error) -> ExitCode {
    output::trouble(&format!("signals cannot be received: {error}"))
}

/// Completes at SIGTERM or SIGINT; both are received from now on.
pub(crate) fn stop() -> Result<impl Future<Output = ()>, ExitCode> {
    let mut stop = Stop::new()?;
    Ok(async move { stop.told().await })
}

/// SIGTERM and SIGINT, each time that one comes.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Both are received from now on.
    pub(crate) fn new() -> Result<Self, ExitCode> {
        let signals = signal(SignalKind::terminate())
            .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
        let (terminate, interrupt) = signals.map_err(|error| unheard(&error))?;
        Ok(Self {
            terminate,
            interrupt,
        })
    }

    /// Completes at the next of them.
    ///
    /// Cancel-safe: one that nobody waited for is told to the next who does.
    pub(crate) async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
