//! Real Consul agents for tests, on free loopback ports, and a few peers that a
//! real agent cannot play.
//!
//! ```ignore
//! let agent = Agent::start().await;
//! let registered = agent.register_instances("web", 100).await;
//! let answer = ask_tcp(agent.dns(), "web.service.consul.", RecordType::SRV).await;
//! ```
//!
//! An agent is ended when its [`Agent`] is dropped, when the test panics, and
//! when the test's process dies in any other way.
#![allow(dead_code, reason = "each test binary uses its part")]

mod agent;
mod cluster;
mod folder;
pub(crate) mod http;
mod peers;
mod ports;
mod process;
mod proxy;
mod register;
mod serving;
mod stubs;
mod wire;

#[allow(unused_imports, reason = "each test binary uses its part")]
pub(crate) use {
    agent::{Agent, Builder},
    cluster::{cluster, leader},
    folder::Folder,
    peers::{SilentDns, black_hole, closed_port},
    process::{descriptors, example, memory, signal},
    proxy::{Proxy, Weather},
    serving::{Serving, serve, serve_at},
    stubs::{agents_stub, lonely_stub, stub_of},
    wire::{
        Over, ask, ask_tcp, ask_udp, exchange, framed, http_client, http_client_with, next_message,
    },
};

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long anything that a test waits for may take. Generous, since machines
/// are small and busy: only a failing test spends it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until there is something to see, and gives it back.
///
/// # Panics
/// After [`PATIENCE`], naming what was waited for.
pub(crate) async fn wait_for<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain for {what}"
        );
        sleep(Duration::from_millis(20)).await;
    }
}
