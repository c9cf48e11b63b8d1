//! **Word.** What a resolver tells of itself: which sources it asks, and what it holds.

use std::time::Duration;

use crate::{
    endpoint::{Freshness, Source},
    protection::Reason,
};

/// A resolver at one moment, as [`Resolver::status`](crate::Resolver::status) tells it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The sources that are configured and asked over the network, in the order in
    /// which they are asked.
    pub sources: Vec<SourceStatus>,
    /// Names in the cache, those that there is nothing at among them.
    pub names: usize,
    /// Bytes that they use, reckoned.
    pub bytes: usize,
    /// Fresh answers that were given from the cache, so far.
    pub hits: u64,
    /// Stale answers that were given, so far.
    pub stale: u64,
    /// Names followed by blocking queries.
    pub watches: usize,
    /// Names that are given though a source says that they are gone.
    pub protected: usize,
    pub(crate) answers: bool,
    pub(crate) ready: bool,
}

impl Status {
    /// Whether a source is asked, and the last question of our own datacenter that all of them
    /// were asked was answered: an agent that has lost its servers is there, and answers nothing.
    pub fn has_source(&self) -> bool {
        self.answers
    }

    /// Whether a question can be answered now: a [source answers](Self::has_source), something is
    /// written down on this machine, or a set is known that may still be given.
    pub fn is_ready(&self) -> bool {
        self.ready
    }
}

/// One source of a resolver.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SourceStatus {
    /// Which one.
    pub source: Source,
    /// Whether at least one of its addresses is asked.
    pub up: bool,
    /// Its addresses, and for how long each has been left alone since it failed;
    /// `None`: it is asked.
    pub addresses: Vec<(Box<str>, Option<Duration>)>,
}

/// One set in the cache, as [`Resolver::cached`](crate::Resolver::cached) lists it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Cached {
    /// The full name.
    pub name: Box<str>,
    /// Who gave it.
    pub source: Source,
    /// Whether it would be given without asking again.
    pub freshness: Freshness,
    /// Time since a source gave it.
    pub age: Duration,
    /// Addresses and ports in it.
    pub endpoints: usize,
    /// Whether it is known to be the whole set.
    pub complete: bool,
    /// Why it is still given though a source says that it is gone.
    pub protected: Option<Reason>,
}
