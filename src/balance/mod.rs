//! **Pure.** Which endpoint of a set is next. Dice come in as an argument.
//!
//! | strategy | gives |
//! | --- | --- |
//! | weighted | RFC 2782: the lowest priority alone, by weight ([`weighted`]) |
//! | random | any, all alike |
//! | round robin | one after the other, in order of address |
//! | first | the first in order of address, for all who ask |
//!
//! An endpoint without a port is never given: nobody can connect to it.

mod weighted;

use std::{fmt, str::FromStr};

use rand::{RngExt as _, rngs::SmallRng};

use crate::endpoint::Endpoint;

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// The lowest priority alone, by weight (RFC 2782). Consul's weights follow
    /// health, so this sends less to instances that warn.
    #[default]
    Weighted,
    /// Any, all alike.
    Random,
    /// One after the other, in order of address.
    RoundRobin,
    /// The first in order of address: the same for all who ask.
    First,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Weighted, Self::Random, Self::RoundRobin, Self::First];

    /// `weighted`, `random`, `round-robin`, `first`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Weighted => "weighted",
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
            Self::First => "first",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no strategy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnknownStrategy;

impl fmt::Display for UnknownStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = Strategy::ALL.map(Strategy::as_str).join(", ");
        write!(f, "no such strategy; there are {all}")
    }
}

impl std::error::Error for UnknownStrategy {}

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(text: &str) -> Result<Self, UnknownStrategy> {
        let text = text.replace('_', "-");
        let known = |strategy: &Self| text.eq_ignore_ascii_case(strategy.as_str());
        Self::ALL.into_iter().find(known).ok_or(UnknownStrategy)
    }
}

/// A set, ready to be picked from; see [`Resolver::picker`](crate::Resolver::picker).
#[derive(Clone, Debug)]
pub struct Picker {
    /// By priority, then address and port: the same order whoever asks.
    endpoints: Box<[Endpoint]>,
    strategy: Strategy,
    next: usize,
    dice: SmallRng,
}

impl Picker {
    /// Takes the endpoints that can be connected to.
    pub(crate) fn new(endpoints: &[Endpoint], strategy: Strategy, dice: SmallRng) -> Self {
        let usable = endpoints.iter().filter(|endpoint| endpoint.port != 0);
        let mut endpoints: Box<[Endpoint]> = usable.cloned().collect();
        endpoints.sort_by_key(|endpoint| (endpoint.priority, endpoint.address, endpoint.port));
        Self {
            endpoints,
            strategy,
            next: 0,
            dice,
        }
    }

    /// The next endpoint; `None` when there is none that can be connected to.
    pub fn pick(&mut self) -> Option<&Endpoint> {
        if self.endpoints.is_empty() {
            return None;
        }
        let at = match self.strategy {
            Strategy::Weighted => weighted::draw(&self.endpoints, &mut self.dice),
            Strategy::Random => self.dice.random_range(0..self.endpoints.len()),
            Strategy::RoundRobin => {
                let at = self.next % self.endpoints.len();
                self.next = at + 1;
                at
            }
            Strategy::First => 0,
        };
        self.endpoints.get(at)
    }
}

#[cfg(test)]
mod tests;
