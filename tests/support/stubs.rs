//! Stubs within the test's own process.

use std::net::SocketAddr;

use proconsul::{
    Resolver,
    stub::{Stub, Traffic, Upstreams},
};

use super::Agent;

/// One that asks nobody: it knows `addr` names, and that others are not Consul's.
pub(crate) async fn lonely_stub() -> (SocketAddr, Traffic) {
    let resolver = Resolver::builder().dns("none").http("none").build();
    stub_of(resolver.expect("no settings"), &[]).await
}

/// One that asks this agent alone.
pub(crate) async fn agents_stub(agent: &Agent) -> (SocketAddr, Traffic) {
    let dns = agent.dns().to_string();
    let resolver = Resolver::builder().dns(&dns).http(&agent.http()).build();
    stub_of(resolver.expect("addresses"), &[]).await
}

/// One that sends other names to these; to nobody if there are none. It ends with its
/// test's runtime.
pub(crate) async fn stub_of(resolver: Resolver, upstreams: &[SocketAddr]) -> (SocketAddr, Traffic) {
    let any = "127.0.0.1:0".parse().expect("an address");
    let mut stub = Stub::bind(resolver, &[any]).await.expect("a free port");
    if !upstreams.is_empty() {
        let texts: Vec<String> = upstreams.iter().map(ToString::to_string).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        stub = stub.forwarding(Upstreams::parse(&texts).expect("addresses"));
    }
    let (address, traffic) = (stub.addresses()[0], stub.traffic());
    tokio::spawn(stub.run(std::future::pending()));
    (address, traffic)
}
