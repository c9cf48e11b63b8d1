//! The servers behind the agent, our rights there, and its clock.

use proconsul::{Cluster, Resolver, TokenState};

use super::Findings;

/// Clocks that differ by more make certificates and tokens begin or end at the wrong time.
const SKEW: u64 = 5;

pub(super) async fn look(resolver: &Resolver, findings: &mut Findings) {
    match resolver.cluster().await {
        Ok(cluster) => {
            leader(&cluster, findings);
            servers(&cluster, findings);
            clock(&cluster, findings);
        }
        // That the door is shut was told already.
        Err(_) => return,
    }
    token(resolver, findings).await;
}

fn leader(cluster: &Cluster, findings: &mut Findings) {
    match &cluster.leader {
        Some(leader) => findings.ok("leader", format!("{leader}")),
        None => findings.fail(
            "leader",
            "the servers have none: what is known is served, nothing can be changed",
            "start servers until more than half of them run, and see that they reach each other",
        ),
    }
}

fn servers(cluster: &Cluster, findings: &mut Findings) {
    let peers = cluster.peers.len();
    let counted = crate::output::counted(peers, "server");
    match &cluster.servers {
        Ok(health) if health.healthy => {
            let spare = health.failure_tolerance;
            findings.ok(
                "servers",
                format!("{counted}, all well; {spare} may be lost"),
            );
        }
        Ok(health) => {
            let bad = health.servers.iter().filter(|server| !server.healthy);
            let bad: Vec<_> = bad
                .map(|server| format!("{} ({})", server.name, server.address))
                .collect();
            let what = match bad.as_slice() {
                [] => format!("of {counted} not all are well"),
                bad => format!("of {counted} {} not well", bad.join(", ")),
            };
            let mend = "look at their logs: consul operator raft list-peers";
            findings.warn("servers", what, mend);
        }
        Err(error) if error.is_denied() => {
            findings.ok(
                "servers",
                format!("{counted}; how they are is not told without operator:read"),
            );
        }
        Err(error) => findings.warn("servers", error.to_string(), "look at the agent's log"),
    }
}

fn clock(cluster: &Cluster, findings: &mut Findings) {
    match cluster.clock_skew {
        Some(skew) if skew.unsigned_abs() > SKEW => {
            let side = if skew > 0 { "ahead of" } else { "behind" };
            let what = format!("the agent's is {} s {side} ours", skew.unsigned_abs());
            findings.warn(
                "clock",
                what,
                "let both machines follow the same time servers (NTP)",
            );
        }
        Some(_) => findings.ok("clock", "the agent's and ours agree"),
        None => {}
    }
}

async fn token(resolver: &Resolver, findings: &mut Findings) {
    match resolver.token_state().await {
        Ok(TokenState::AclsOff) => findings.ok("token", "none is needed: ACLs are off"),
        Ok(TokenState::Anonymous) => findings.warn(
            "token",
            "ACLs are in force, and no token is given",
            "give one: CONSUL_HTTP_TOKEN_FILE or --token-file; packaging/acl has the policies",
        ),
        Ok(TokenState::Known { policies, .. }) => {
            findings.ok(
                "token",
                format!("known, with the policies {}", policies.join(", ")),
            );
        }
        Ok(TokenState::Unknown) => findings.fail(
            "token",
            "the agent does not know it",
            "it was deleted, has expired, or is of another cluster: give a new one",
        ),
        Ok(_) => {}
        Err(error) => findings.warn("token", error.to_string(), "look at the agent's log"),
    }
}
