//! **Door.** [`Cluster`]: the servers behind an agent: who leads, who votes, who is well
//! (Consul docs: Status and Operator HTTP API).

use std::time::Duration;

use serde::Deserialize;

use crate::{
    clock,
    consul::api::{Api, json},
    error::Error,
    resolver::Resolver,
};

/// The servers as an agent sees them; made by [`Resolver::cluster`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Cluster {
    /// The leader's address; `None`: there is none, and nothing can be changed.
    pub leader: Option<Box<str>>,
    /// The addresses of all servers that vote.
    pub peers: Box<[Box<str>]>,
    /// How they are, as the leader says; it needs `operator:read`.
    pub servers: Result<ClusterHealth, Error>,
    /// Seconds that the agent's clock is ahead of ours; negative, behind.
    pub clock_skew: Option<i64>,
}

/// What an agent makes of our token.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenState {
    /// ACLs are not in force: none is needed.
    AclsOff,
    /// ACLs are in force, and none is given.
    Anonymous,
    /// It is known.
    Known {
        /// What it is called by, which is no secret.
        accessor: Box<str>,
        /// Names of its policies and roles.
        policies: Box<[Box<str>]>,
    },
    /// It was deleted, has expired, or is of another cluster.
    Unknown,
}

/// How the servers are (Consul docs: Autopilot).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterHealth {
    /// All are well.
    pub healthy: bool,
    /// Servers that may be lost before nothing can be changed any more.
    pub failure_tolerance: u64,
    /// Each of them; empty where not all are well and the agent does not say more.
    pub servers: Box<[Server]>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Server {
    /// Its node's name.
    pub name: Box<str>,
    /// Where the other servers reach it.
    pub address: Box<str>,
    /// It leads.
    pub leader: bool,
    /// It votes.
    pub voter: bool,
    /// It is well.
    pub healthy: bool,
    /// Its version of Consul.
    pub version: Box<str>,
}

impl Resolver {
    /// The servers behind the agent.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) and [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) where no agent answers,
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) where the HTTP API is turned off. An agent that has lost its
    /// servers answers, and knows no leader.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn cluster(&self) -> Result<Cluster, Error> {
        let api = self.api();
        let (leader, clock_skew) = self.leader_and_skew(&api).await?;
        let peers = match api.get("/v1/status/peers?", "the servers").await {
            Ok(reply) => json::<Option<Box<[Box<str>]>>>("the servers", &reply)?,
            Err(error) if has_no_leader(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Cluster {
            leader,
            peers: peers.unwrap_or_default(),
            servers: servers(&api).await,
            clock_skew,
        })
    }

    /// Whether the servers have a leader.
    pub(crate) async fn has_leader(&self) -> Result<bool, Error> {
        let (leader, _) = self.leader_and_skew(&self.api()).await?;
        Ok(leader.is_some())
    }

    async fn leader_and_skew(&self, api: &Api) -> Result<(Option<Box<str>>, Option<i64>), Error> {
        let (leader, skew) = match api.get("/v1/status/leader?", "the leader").await {
            Ok(reply) => {
                let leader = json::<Option<Box<str>>>("the leader", &reply)?;
                (leader, reply.head.date.map(skew))
            }
            Err(error) if has_no_leader(&error) => (None, None),
            Err(error) => return Err(error),
        };
        let leader = leader.filter(|leader| !leader.is_empty());
        self.counters().saw_leader(Some(leader.is_some()));
        Ok((leader, skew))
    }

    /// What the agent makes of our token.
    ///
    /// # Errors
    ///
    /// As [`cluster`](Self::cluster).
    ///
    /// # Cancel safety
    ///
    /// Safe: it only reads.
    pub async fn token_state(&self) -> Result<TokenState, Error> {
        let what = "the token";
        match self.api().get("/v1/acl/token/self?", what).await {
            Ok(reply) => {
                let own: ToldToken = json(what, &reply)?;
                // The anonymous token's accessor is the same everywhere.
                if own.accessor.ends_with("-000000000002") {
                    return Ok(TokenState::Anonymous);
                }
                let (policies, roles) = (own.policies, own.roles);
                let all = policies.into_iter().chain(roles).flatten();
                Ok(TokenState::Known {
                    accessor: own.accessor,
                    policies: all.map(|one| one.name).collect(),
                })
            }
            Err(error) if error.to_string().contains("ACL support disabled") => {
                Ok(TokenState::AclsOff)
            }
            Err(error) if error.is_denied() => {
                let http = &self.config().http;
                let has_token = http.token.is_some() || http.token_file.is_some();
                Ok(match has_token {
                    true => TokenState::Unknown,
                    false => TokenState::Anonymous,
                })
            }
            Err(error) => Err(error),
        }
    }
}

/// Seconds that a moment is ahead of ours.
fn skew(theirs: Duration) -> i64 {
    let whole = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    whole(theirs).saturating_sub(whole(clock::since_1970()))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ToldToken {
    #[serde(rename = "AccessorID", default)]
    accessor: Box<str>,
    #[serde(default)]
    policies: Option<Vec<Named>>,
    #[serde(default)]
    roles: Option<Vec<Named>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    #[serde(default)]
    name: Box<str>,
}

/// What an agent says that is there and has lost its servers.
fn has_no_leader(error: &Error) -> bool {
    let told = error.to_string();
    ["No cluster leader", "No known Consul servers", "rpc error"]
        .iter()
        .any(|words| told.contains(words))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    #[serde(default)]
    healthy: bool,
    #[serde(default)]
    failure_tolerance: u64,
    #[serde(default)]
    servers: Option<Vec<ToldServer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ToldServer {
    #[serde(default)]
    name: Box<str>,
    #[serde(default)]
    address: Box<str>,
    #[serde(default)]
    leader: bool,
    #[serde(default)]
    voter: bool,
    #[serde(default)]
    healthy: bool,
    #[serde(default)]
    version: Box<str>,
}

async fn servers(api: &Api) -> Result<ClusterHealth, Error> {
    let what = "the health of the servers";
    let told: Told = match api.get("/v1/operator/autopilot/health?", what).await {
        Ok(reply) => json(what, &reply)?,
        // That is how it says that not all are well.
        Err(error) if error.to_string().contains("status 429") => Told {
            healthy: false,
            failure_tolerance: 0,
            servers: None,
        },
        Err(error) => return Err(error),
    };
    let server = |told: ToldServer| Server {
        name: told.name,
        address: told.address,
        leader: told.leader,
        voter: told.voter,
        healthy: told.healthy,
        version: told.version,
    };
    Ok(ClusterHealth {
        healthy: told.healthy,
        failure_tolerance: told.failure_tolerance,
        servers: told
            .servers
            .unwrap_or_default()
            .into_iter()
            .map(server)
            .collect(),
    })
}
