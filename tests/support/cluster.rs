//! Three real servers that are one cluster.

use std::net::Ipv4Addr;

use reqwest::Method;
use serde_json::{Value, json};

use super::{Agent, wait_for};

/// Three servers with a leader, each at an address of its own, 127.0.0.11 and on. They keep
/// their data on disk, and find each other again by themselves. `more` is further
/// configuration of each, `token` what the harness shows them.
pub(crate) async fn cluster(more: Value, token: Option<&str>) -> Vec<Agent> {
    let mut servers: Vec<Agent> = Vec::new();
    for last in 11..=13 {
        let first = servers.first().map(Agent::lan_address);
        let mut config = json!({
            "performance": { "raft_multiplier": 1 },
            "retry_join": first.into_iter().collect::<Vec<_>>(),
            "retry_interval": "200ms",
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let mut server = Agent::builder().leaderless().elsewhere().config(config);
        if let Some(token) = token {
            server = server.token(token);
        }
        servers.push(server.at(Ipv4Addr::new(127, 0, 0, last)).start().await);
    }
    wait_for("all to vote and be well", async || {
        let request = servers[0].request(Method::GET, "/v1/operator/autopilot/health");
        let told: Value = request.send().await.ok()?.json().await.ok()?;
        let all = told["Servers"].as_array()?;
        let well = |one: &Value| one["Healthy"] == true && one["Voter"] == true;
        (all.len() == 3 && all.iter().all(well)).then_some(())
    })
    .await;
    servers
}

/// Which of the servers leads, as one of the others tells it.
pub(crate) async fn leader(servers: &[Agent]) -> usize {
    wait_for("a leader", async || {
        for server in servers {
            let request = server.request(Method::GET, "/v1/status/leader");
            let Ok(told) = request.send().await else {
                continue;
            };
            let Ok(told) = told.json::<String>().await else {
                continue;
            };
            let found = (servers.iter()).position(|server| server.server_address() == told);
            if found.is_some() {
                return found;
            }
        }
        None
    })
    .await
}
