//! **Pure.** What came of questions to upstreams, counted where it happens.
//!
//! | metric | counted |
//! | --- | --- |
//! | `proconsul_upstream_up{server}` | 1, and 0 from when it said nothing to a question until it says something again |
//! | `proconsul_upstream_loops{server}` | 1 while it is not asked since it sends questions back to us |
//! | `proconsul_upstream_errors_total{reason}` | each question that an upstream did not answer, or not in its share of the time |
//! | `proconsul_upstream_stale_served_total` | each answer that was given though it was over |
//! | `proconsul_upstream_filtered_total` | each answer that was held back since it leads into this network |
//!
//! Replies that answer no question of ours are in `proconsul_dns_ignored_replies_total`.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::metrics::{Counters, Text};

/// Why an upstream did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    TimedOut,
    /// Nothing listens there.
    Refused,
    Unreachable,
    Malformed,
    Servfail,
    Notimp,
    /// It may answer, and does not want to.
    Denied,
}

const REASONS: [&str; 7] = [
    "timed_out",
    "refused",
    "unreachable",
    "malformed",
    "servfail",
    "notimp",
    "denied",
];

impl Trouble {
    pub(super) fn of_error(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Self::Malformed,
            _ => Self::Unreachable,
        }
    }

    /// Of a reply that is no answer.
    pub(super) fn of_reply(reply: &[u8]) -> Option<Self> {
        match reply.get(3)? & 0x0F {
            2 => Some(Self::Servfail),
            4 => Some(Self::Notimp),
            5 => Some(Self::Denied),
            _ => None,
        }
    }
}

/// How an upstream does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::stub) struct Standing {
    pub(super) server: SocketAddr,
    pub(super) is_up: bool,
    pub(super) loops: bool,
}

/// The counts.
#[derive(Debug, Default)]
pub(in crate::stub) struct Tally {
    errors: [AtomicU64; REASONS.len()],
    stale: AtomicU64,
    filtered: AtomicU64,
    /// Replies that are ignored are counted with those of Consul's. A std mutex: held for one
    /// count.
    with: Mutex<Arc<Counters>>,
}

impl Tally {
    /// From now on these are the counts of Consul's replies.
    pub(in crate::stub) fn count_with(&self, counters: &Arc<Counters>) {
        *self.with.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(counters);
    }

    /// A reply that answers no question of ours.
    pub(super) fn ignored(&self) {
        let with = self.with.lock().unwrap_or_else(PoisonError::into_inner);
        with.ignored_replies.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, trouble: Trouble) {
        self.errors[trouble as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn gave_stale(&self) {
        self.stale.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn filtered(&self) {
        self.filtered.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds the counts, and how the upstreams do.
    pub(in crate::stub) fn write(&self, standings: &[Standing], text: &mut Text) {
        let of = |server: SocketAddr| format!("{{server=\"{server}\"}}");
        let help = "1, and 0 while an upstream says nothing.";
        text.head("upstream_up", "gauge", help);
        for standing in standings {
            let up = u8::from(standing.is_up);
            text.sample("upstream_up", &of(standing.server), up);
        }
        let help = "1 while an upstream is not asked since it sends questions back.";
        text.head("upstream_loops", "gauge", help);
        for standing in standings {
            let loops = u8::from(standing.loops);
            text.sample("upstream_loops", &of(standing.server), loops);
        }
        let help = "Questions that an upstream did not answer.";
        text.head("upstream_errors_total", "counter", help);
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (reason, count) in REASONS.iter().zip(&self.errors) {
            let labels = format!("{{reason=\"{reason}\"}}");
            text.sample("upstream_errors_total", &labels, load(count));
        }
        let help = "Answers of upstreams that were given though they were over.";
        text.head("upstream_stale_served_total", "counter", help);
        text.sample("upstream_stale_served_total", "", load(&self.stale));
        let help = "Answers of upstreams held back since they lead into this network.";
        text.head("upstream_filtered_total", "counter", help);
        text.sample("upstream_filtered_total", "", load(&self.filtered));
    }
}
