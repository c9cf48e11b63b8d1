//! **Word.** [`Lease`]: an endpoint that was picked, for one call; and [`Standing`]: what
//! is known of one that is used.

use std::{fmt, net::SocketAddr, ops::Deref, time::Duration};

use super::{BreakerState, Feedback, set::Hold};
use crate::{clock, endpoint::Endpoint};

/// An endpoint that was picked, for one call. While it is held the call counts as in the
/// air there; what came of it is [reported](Self::report).
#[derive(Debug)]
#[must_use = "a lease that is dropped was a call"]
pub struct Lease {
    hold: Hold,
    /// It tries an endpoint that rested.
    trial: bool,
    /// In nanoseconds since a moment of the process, where the strategy asks for it; else 0.
    since: u64,
}

impl Lease {
    pub(super) fn new(hold: Hold, trial: bool, since: u64) -> Self {
        Self { hold, trial, since }
    }

    /// The endpoint to call.
    pub fn endpoint(&self) -> &Endpoint {
        &self.hold.member().endpoint
    }

    /// Its address and port.
    pub fn socket_addr(&self) -> SocketAddr {
        self.hold.address()
    }

    /// How the call ended, and how long it took. A lease that is dropped without a word
    /// says nothing of its endpoint.
    pub fn report(mut self, feedback: Feedback, latency: Duration) {
        self.tell(feedback, Some(latency));
    }

    /// The call succeeded. Its latency is what went by since the pick, where the strategy
    /// asks for it.
    pub fn succeeded(mut self) {
        self.tell(Feedback::Success, None);
    }

    /// The endpoint failed: it could not be reached, did not answer in time, or broke.
    pub fn failed(mut self) {
        self.tell(Feedback::Failure, None);
    }

    /// Whether calls in the air are counted, and this is one until it is dropped.
    pub(crate) fn is_counted(&self) -> bool {
        self.hold.is_counted()
    }

    /// As [`report`](Self::report), and it is held on.
    pub(crate) fn tell(&mut self, feedback: Feedback, latency: Option<Duration>) {
        // The way of nearly all: nothing that other threads read is written, and nothing
        // is read that is this endpoint's alone.
        let is_no_news = feedback == Feedback::Success && !self.trial && self.hold.is_all_well();
        if is_no_news && self.since == 0 {
            return;
        }
        let member = self.hold.member();
        if self.since != 0 {
            let now = clock::nanoseconds();
            let took = || Duration::from_nanos(now.saturating_sub(self.since));
            let took = latency.unwrap_or_else(took);
            match feedback {
                Feedback::Success => member.place.took(took, now),
                Feedback::Failure => member.place.took_in_vain(took, now),
            }
        }
        if is_no_news {
            return;
        }
        let Some(pool) = member.pool.upgrade() else {
            return;
        };
        let trial = std::mem::take(&mut self.trial);
        let member = self.hold.member();
        let breaker = &pool.policy.breaker;
        let turn = member.place.report(feedback, trial, breaker, clock::now);
        pool.turned(member, turn);
    }
}

impl Deref for Lease {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        self.endpoint()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.trial {
            self.hold.member().place.untried();
        }
    }
}

/// What is known of one endpoint that is used: by Consul, and by the calls made to it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Standing {
    /// The endpoint, with Consul's word on its health.
    pub endpoint: Endpoint,
    /// Whether it is left alone.
    pub breaker: BreakerState,
    /// Calls in the air, where the strategy asks for them.
    pub in_flight: Option<usize>,
    /// Failures in a row.
    pub failures: u32,
    /// False: its server says that it does not serve (gRPC health checking).
    pub serves: bool,
    /// The average latency, where the strategy asks for it.
    pub latency: Option<Duration>,
}

impl fmt::Display for Standing {
    /// One line: `10.0.0.1:8080  passing  open  2 in the air  5 failures in a row`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let health = self
            .endpoint
            .health
            .map_or("unknown", |health| health.as_str());
        write!(f, "{}  {health}  {}", self.endpoint, self.breaker)?;
        if !self.serves {
            f.write_str("  not serving")?;
        }
        if let Some(calls) = self.in_flight {
            write!(f, "  {calls} in the air")?;
        }
        write!(f, "  {} failures in a row", self.failures)?;
        match self.latency {
            Some(latency) => write!(f, "  {latency:.1?}"),
            None => Ok(()),
        }
    }
}
