//! How long it takes to be registered, and to be gone: from a program's start until the agent
//! and then the catalog have it, and from SIGTERM until they have it no more; and after the
//! agent forgot it, until it is there again. Beside it the floor: one plain request by an HTTP
//! client that is connected already.
//!
//! `scripts/bench --register` runs it.

#![allow(clippy::print_stdout, reason = "the table is the point")]
#![allow(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock itself"
)]
#![allow(dead_code, reason = "the agent is shared with other benchmarks")]

#[path = "../lookup/agent.rs"]
mod agent;

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use agent::Agent;
use serde_json::Value;
use tokio::time::sleep;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ROUNDS: usize = 20;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);

#[tokio::main]
async fn main() -> Outcome<()> {
    if !std::env::args().any(|argument| argument == "--register") {
        return Ok(());
    }
    let agent = Agent::start()?;
    let base = format!("http://{}", agent.http());
    // Only plain HTTP is spoken; the client wants one all the same.
    _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::new();
    let at_agent = async |wanted: bool| -> Outcome<()> {
        let url = format!("{base}/v1/agent/service/job-7");
        while client.get(&url).send().await?.status().is_success() != wanted {
            sleep(LOOK).await;
        }
        Ok(())
    };
    let in_catalog = async |wanted: bool| -> Outcome<()> {
        let url = format!("{base}/v1/catalog/service/job");
        loop {
            let all: Value = client.get(&url).send().await?.json().await?;
            if all.as_array().is_some_and(|all| all.is_empty() != wanted) {
                return Ok(());
            }
            sleep(LOOK).await;
        }
    };
    let mut times: [Vec<f64>; 6] = Default::default();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_proconsul"))
            .args(["register", "job", "--port", "7", "-q", "--http", &base])
            .stdin(Stdio::null())
            .spawn()?;
        at_agent(true).await?;
        times[0].push(millis(start));
        in_catalog(true).await?;
        times[1].push(millis(start));

        let start = Instant::now();
        client
            .put(format!("{base}/v1/agent/service/deregister/job-7"))
            .send()
            .await?;
        at_agent(true).await?;
        times[2].push(millis(start));
        in_catalog(true).await?;

        let start = Instant::now();
        let id = child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status()?;
        at_agent(false).await?;
        times[3].push(millis(start));
        in_catalog(false).await?;
        times[4].push(millis(start));
        child.wait()?;

        let start = Instant::now();
        let body = r#"{"Name":"plain","Port":7}"#;
        client
            .put(format!("{base}/v1/agent/service/register"))
            .body(body)
            .send()
            .await?;
        times[5].push(millis(start));
    }
    println!("{ROUNDS} rounds, in milliseconds        median   worst");
    for (what, times) in [
        "start to the agent",
        "start to the catalog",
        "forgotten to the agent again",
        "SIGTERM to gone from the agent",
        "SIGTERM to gone from the catalog",
        "one plain request (floor)",
    ]
    .into_iter()
    .zip(&mut times)
    {
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let worst = times.last().copied().unwrap_or_default();
        println!("{what:<36} {median:>8.1} {worst:>8.1}");
    }
    Ok(())
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
