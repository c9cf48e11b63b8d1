//! `proconsul serve`.

use std::process::ExitCode;

use proconsul::{
    Error, Resolver,
    stub::{Stub, Upstreams},
};
use tokio::net::TcpListener;

use crate::{
    admin::{self, Admin},
    args::{Output, Serve, ServeSettings, Stale},
    output, signals,
};

pub(crate) async fn run(command: Serve, form: &Output) -> ExitCode {
    // Before the line that says that we answer: whoever reads it may send one.
    let stop = match signals::stop() {
        Ok(stop) => stop,
        Err(failed) => return failed,
    };
    let settings = match command.settings() {
        Ok(settings) => settings,
        Err(error) => return output::failure(&error, form),
    };
    let (stub, resolver) = match bind(&command, &settings).await {
        Ok(bound) => bound,
        Err(error) => return output::failure(&error, form),
    };
    let addresses: Vec<_> = stub.addresses().iter().map(ToString::to_string).collect();
    let mut line = format!(
        "serving {}. on {} (udp, tcp)",
        resolver.domain(),
        addresses.join(", ")
    );
    if let Some(address) = settings.admin {
        let bound = TcpListener::bind(address).await;
        let listener = match bound.and_then(|bound| Ok((bound.local_addr()?, bound))) {
            Ok(listener) => listener,
            Err(error) => {
                let next = "choose another with --admin, or none";
                return output::trouble(&format!("{address} cannot be bound: {error}; {next}"));
            }
        };
        let (address, listener) = listener;
        line.push_str(&format!(", admin {address}"));
        let admin = Admin {
            resolver: resolver.clone(),
            traffic: stub.traffic(),
            listen: stub.addresses(),
        };
        // Ends with the program.
        tokio::spawn(admin::serve(listener, admin));
    }
    output::remark(form, &line);
    stub.run(stop).await;
    output::saved(&resolver, form).await;
    ExitCode::SUCCESS
}

async fn bind(command: &Serve, settings: &ServeSettings) -> Result<(Stub, Resolver), Error> {
    let upstreams = Upstreams::parse(&settings.upstream)?;
    let resolver = command.sources.resolver(None, Stale::Yes)?;
    resolver.check().await?;
    let stub = Stub::bind(resolver.clone(), &settings.listen).await?;
    Ok((stub.forwarding(upstreams), resolver))
}
