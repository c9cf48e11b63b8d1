//! **Shell.** Which service has an address: the catalog has no question for it, so
//! that each service is asked whether it has an instance there.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::{
    clock,
    consul::{
        address::HttpAddress,
        health::reverse::{self, Pointer},
        http::Agent,
    },
    endpoint::{Attempt, Outcome, Source, Transport},
};

/// Services that are asked at once.
pub(crate) const AT_ONCE: usize = 8;

/// Catalogs with more services are not searched: that would load the agent with a
/// request for each.
const MOST_SERVICES: usize = 512;

/// Looks through all services for an instance with this address. `None`: it cannot
/// be told, and the attempt says why.
///
/// Cancel-safe: nothing but the requests is lost.
pub(crate) async fn service_at(
    agent: &Arc<Agent>,
    address: &HttpAddress,
    ip: IpAddr,
    deadline: Instant,
) -> (Option<Option<Pointer>>, Attempt) {
    let start = clock::now();
    let searched = search(agent, address, ip, deadline).await;
    let (found, outcome, detail) = match searched {
        Ok(Some(pointer)) => (Some(Some(pointer)), Outcome::Answered, String::new()),
        Ok(None) => (Some(None), Outcome::NotFound, "no service has it".into()),
        Err((outcome, why)) => (None, outcome, why),
    };
    let attempt = Attempt {
        source: Source::Http,
        address: format!("{address}{}", reverse::SERVICES).into(),
        transport: Transport::Http,
        outcome,
        elapsed: clock::took(start),
        received: 0,
        count: usize::from(matches!(found, Some(Some(_)))),
        detail: detail.into(),
    };
    (found, attempt)
}

async fn search(
    agent: &Arc<Agent>,
    address: &HttpAddress,
    ip: IpAddr,
    deadline: Instant,
) -> Result<Option<Pointer>, (Outcome, String)> {
    let left = || deadline.saturating_duration_since(clock::now());
    let failed = |why: String| (Outcome::Failed, why);
    let body = body(agent, address, reverse::SERVICES, left()).await?;
    let names = reverse::names(&body).map_err(failed)?;
    if names.len() > MOST_SERVICES {
        let many = names.len();
        return Err(failed(format!(
            "{many} services, of which each would have to be asked; at most {MOST_SERVICES} are"
        )));
    }
    let mut found: Option<(usize, Pointer)> = None;
    let mut names = names.into_iter().enumerate();
    let mut asked = JoinSet::new();
    loop {
        while asked.len() < AT_ONCE
            && found.is_none()
            && let Some((at, name)) = names.next()
        {
            let (agent, address, limit) = (Arc::clone(agent), address.clone(), left());
            asked.spawn(async move {
                let path = reverse::path_of_service(&name, ip);
                let body = self::body(&agent, &address, &path, limit).await?;
                let pointer = reverse::service(&body, ip).map_err(failed)?;
                Ok((at, pointer))
            });
        }
        let Some(told) = asked.join_next().await else {
            return Ok(found.map(|(_, pointer)| pointer));
        };
        let told = told.map_err(|_| failed("the search was ended from outside".to_owned()))?;
        // The first by name, whoever answered first.
        if let (at, Some(pointer)) = told?
            && found.as_ref().is_none_or(|(before, _)| at < *before)
        {
            found = Some((at, pointer));
        }
    }
}

async fn body(
    agent: &Agent,
    address: &HttpAddress,
    path: &str,
    limit: Duration,
) -> Result<Vec<u8>, (Outcome, String)> {
    let reply = agent.get(address, path, limit).await;
    reply.map(|reply| reply.body).map_err(|trouble| {
        let heard = super::failed(trouble);
        (heard.outcome, heard.detail.into())
    })
}
