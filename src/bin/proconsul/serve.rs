//! `proconsul serve`.

use std::process::ExitCode;

use proconsul::{Error, Resolver, stub::Stub};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    args::{Output, Serve, Stale},
    output,
};

pub(crate) async fn run(command: Serve, form: &Output) -> ExitCode {
    // Before the line that says that we answer: whoever reads it may send one.
    let signals = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    let (terminate, interrupt) = match signals {
        Ok(signals) => signals,
        Err(error) => return output::trouble(&format!("signals cannot be received: {error}")),
    };
    let (stub, resolver) = match bind(&command).await {
        Ok(bound) => bound,
        Err(error) => return output::failure(&error, form),
    };
    let addresses: Vec<_> = stub.addresses().iter().map(ToString::to_string).collect();
    let line = format!(
        "serving {}. on {} (udp, tcp)",
        resolver.domain(),
        addresses.join(", ")
    );
    output::remark(form, &line);
    stub.run(stop(terminate, interrupt)).await;
    output::saved(&resolver, form).await;
    ExitCode::SUCCESS
}

async fn bind(command: &Serve) -> Result<(Stub, Resolver), Error> {
    let resolver = command.sources.resolver(None, Stale::Yes)?;
    resolver.check().await?;
    let stub = Stub::bind(resolver.clone(), &command.listen).await?;
    Ok((stub, resolver))
}

async fn stop(mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
