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
    let signals = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    let (mut terminate, mut interrupt) = signals.map_err(|error| unheard(&error))?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
