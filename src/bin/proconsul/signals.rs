//! The signals that end the program.

use std::{future::Future, process::ExitCode};

use tokio::signal::unix::{SignalKind, signal};

use crate::output;

/// Completes at SIGTERM or SIGINT; both are received from now on.
pub(crate) fn stop() -> Result<impl Future<Output = ()>, ExitCode> {
    let signals = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    let (mut terminate, mut interrupt) = signals
        .map_err(|error| output::trouble(&format!("signals cannot be received: {error}")))?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
