//! **Shell.** Host names that operators registered in place of an address, asked
//! of the system's resolver. Never a name in Consul's zone: those are Consul's to
//! answer.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Instant};

use tokio::{net::lookup_host, sync::Semaphore};

use crate::clock;

/// Names asked at once: each holds a thread of the runtime's blocking pool for as
/// long as the system's resolver takes.
const AT_ONCE: usize = 16;

/// The system's resolver.
#[derive(Debug)]
pub(crate) struct Hosts {
    seats: Arc<Semaphore>,
}

impl Hosts {
    pub(crate) fn new() -> Self {
        Self {
            seats: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Addresses of `name`, once each, at most until `limit`. The error says why
    /// there are none.
    pub(crate) async fn resolve(
        &self,
        name: &Arc<str>,
        limit: Instant,
    ) -> Result<Vec<IpAddr>, String> {
        let ask = async {
            let seat = Arc::clone(&self.seats)
                .acquire_owned()
                .await
                .map_err(|error| error.to_string())?;
            let name = Arc::clone(name);
            // The seat goes with the look-up, which cannot be called back: its thread
            // is taken for as long as the system's resolver is at it.
            let asking = tokio::spawn(async move {
                let _seat = seat;
                // Without its final dot, as operators write it: with the dot the hosts
                // file would not be looked at.
                let bare = name.strip_suffix('.').unwrap_or(&name);
                let found = lookup_host((bare, 0)).await?;
                Ok(found
                    .map(|address| address.ip())
                    .collect::<BTreeSet<IpAddr>>())
            });
            let found: std::io::Result<_> = asking.await.map_err(|error| error.to_string())?;
            Ok(found
                .map_err(|error| error.to_string())?
                .into_iter()
                .collect())
        };
        match clock::timeout_at(limit, ask).await {
            Ok(found) => found,
            Err(_) => Err("the system's resolver did not answer in time".to_owned()),
        }
    }
}
