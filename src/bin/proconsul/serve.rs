//! `proconsul serve`.

use std::process::ExitCode;

use proconsul::{
    Error, Resolver,
    stub::{Stub, Upstreams},
};

use crate::{
    args::{Output, Serve, Stale},
    output, signals,
};

pub(crate) async fn run(command: Serve, form: &Output) -> ExitCode {
    // Before the line that says that we answer: whoever reads it may send one.
    let stop = match signals::stop() {
        Ok(stop) => stop,
        Err(failed) => return failed,
    };
    let (stub, resolver) = match bind(&command).await {
        Ok(bound) => bound,
        Err(error) => return output::failure(&error, form),
    };
    let addresses: Vec<_> = stub.addresses().iter().map(ToString::to_string).collect();
    let (domain, addresses) = (resolver.domain(), addresses.join(", "));
    output::remark(
        form,
        &format!("serving {domain}. on {addresses} (udp, tcp)"),
    );
    stub.run(stop).await;
    output::saved(&resolver, form).await;
    ExitCode::SUCCESS
}

async fn bind(command: &Serve) -> Result<(Stub, Resolver), Error> {
    let upstreams = Upstreams::parse(&command.upstream)?;
    let resolver = command.sources.resolver(None, Stale::Yes)?;
    resolver.check().await?;
    let stub = Stub::bind(resolver.clone(), &command.listen).await?;
    Ok((stub.forwarding(upstreams), resolver))
}
