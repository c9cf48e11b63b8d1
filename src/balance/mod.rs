//! **Pure.** Which endpoint of a set is next. Dice, turns and loads come in as arguments.
//!
//! | strategy | gives |
//! | --- | --- |
//! | weighted | RFC 2782: the lowest priority alone, by weight ([`alias`]) |
//! | random | any, all alike |
//! | round robin | one after the other, in order of address |
//! | first | the first in order of address, for all who ask |
//! | least loaded | of two drawn at random, the one with less in the air for its weight |
//! | latency | of two drawn at random, the one that is likely to answer first |
//! | hash | the one that a key belongs to ([`table`]) |
//!
//! An endpoint without a port is never given: nobody can connect to it.

mod alias;
mod table;

use std::{fmt, str::FromStr};

use rand::{RngExt as _, rngs::SmallRng};

pub(crate) use self::table::hash;
use self::{alias::Alias, table::Table};
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
    /// Of two drawn at random, the one with less in the air for its weight, as far as the
    /// calling thread has put it there. An answer is in the air until its body has ended or is
    /// dropped, of [`HttpClient`](crate::HttpClient) and of gRPC channels; of calls that are
    /// made otherwise, as long as the [`Lease`](crate::Lease) is held.
    LeastLoaded,
    /// Of two drawn at random, the one that is likely to answer first: by the latencies
    /// that were reported (a moving average that rises at once and falls slowly, Peak
    /// EWMA), times what is in the air there. A failure doubles it.
    Latency,
    /// The one that a key belongs to, the same for all who know the same set; without a
    /// key any.
    Hash,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Weighted,
        Self::Random,
        Self::RoundRobin,
        Self::First,
        Self::LeastLoaded,
        Self::Latency,
        Self::Hash,
    ];

    /// `weighted`, `random`, `round-robin`, `first`, `least-loaded`, `latency`, `hash`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Weighted => "weighted",
            Self::Random => "random",
            Self::RoundRobin => "round-robin",
            Self::First => "first",
            Self::LeastLoaded => "least-loaded",
            Self::Latency => "latency",
            Self::Hash => "hash",
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

/// The endpoints that can be connected to, by priority, address and port: the same order
/// whoever asks. Two of the same address and port are one.
pub(crate) fn usable<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Vec<Endpoint> {
    let mut usable: Vec<_> = endpoints.filter(|one| one.port != 0).cloned().collect();
    usable.sort_by_key(|one| (one.priority, one.address, one.port));
    let mut known = std::collections::HashSet::new();
    usable.retain(|one| known.insert((one.address, one.port)));
    usable
}

/// What is worked out of a set once, so that a draw costs the same however many there are.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    count: u32,
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    Weighted(Alias),
    Random,
    RoundRobin,
    First,
    /// With weights, of which none is 0.
    LeastLoaded(Box<[u32]>),
    Latency,
    Hash(Table),
}

/// What a draw may ask for.
pub(crate) trait Draw {
    /// 64 random bits.
    fn bits(&mut self) -> u64;
    /// How often this was asked before.
    fn turn(&mut self) -> usize;
    /// Calls in the air at an endpoint.
    fn load(&mut self, at: u32) -> u32;
    /// What a call to it is likely to cost.
    fn cost(&mut self, at: u32) -> f64;
}

impl Plan {
    /// Of endpoints in the order of [`usable`].
    pub(crate) fn new(endpoints: &[Endpoint], strategy: Strategy) -> Self {
        let way = match strategy {
            Strategy::Weighted => {
                let lowest = endpoints.first().map(|first| first.priority);
                let group = endpoints.partition_point(|one| Some(one.priority) == lowest);
                Way::Weighted(Alias::new(endpoints[..group].iter().map(|one| one.weight)))
            }
            Strategy::Random => Way::Random,
            Strategy::RoundRobin => Way::RoundRobin,
            Strategy::First => Way::First,
            Strategy::LeastLoaded => {
                let weights = endpoints.iter().map(|one| u32::from(one.weight.max(1)));
                Way::LeastLoaded(weights.collect())
            }
            Strategy::Latency => Way::Latency,
            Strategy::Hash => Way::Hash(Table::new(endpoints.iter())),
        };
        // More than DNS and Consul can carry together.
        let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
        Self { count, way }
    }

    /// The next one. `key`: the [`hash`] of what is asked for, if anything is. `None`:
    /// there is none.
    pub(crate) fn draw(&self, key: Option<u64>, draw: &mut impl Draw) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        Some(match (&self.way, key) {
            (Way::Weighted(alias), _) => alias.draw(draw.bits()),
            (Way::Random, _) | (Way::Hash(_), None) => below(draw.bits(), self.count),
            // Half as wide is divided twice as fast.
            (Way::RoundRobin, _) => draw.turn() as u32 % self.count,
            (Way::First, _) => 0,
            (Way::Hash(table), Some(key)) => table.of(key),
            (Way::LeastLoaded(weights), _) => {
                let (one, other) = two(draw.bits(), self.count);
                let cost = |draw: &mut _, at: u32, weights: &[u32]| {
                    let weight = weights.get(at as usize).copied().unwrap_or(1);
                    (u64::from(Draw::load(draw, at)) + 1, u64::from(weight))
                };
                let (load, weight) = cost(draw, one, weights);
                let (other_load, other_weight) = cost(draw, other, weights);
                if load * other_weight <= other_load * weight {
                    one
                } else {
                    other
                }
            }
            (Way::Latency, _) => {
                let (one, other) = two(draw.bits(), self.count);
                if draw.cost(one) <= draw.cost(other) {
                    one
                } else {
                    other
                }
            }
        })
    }
}

/// A number below `count`, by the upper half of random bits.
fn below(bits: u64, count: u32) -> u32 {
    (((bits >> 32) * u64::from(count)) >> 32) as u32
}

/// Two different ones, where there are two.
fn two(bits: u64, count: u32) -> (u32, u32) {
    let one = below(bits, count);
    let other = below(bits << 32, count.saturating_sub(1));
    let other = if other >= one { other + 1 } else { other };
    (one, if count < 2 { one } else { other })
}

/// A set, ready to be picked from; see [`Resolver::picker`](crate::Resolver::picker). It
/// knows of no loads and latencies: a [`Service`](crate::Service) does.
#[derive(Clone, Debug)]
pub struct Picker {
    endpoints: Box<[Endpoint]>,
    plan: Plan,
    alone: Alone,
}

#[derive(Clone, Debug)]
struct Alone {
    next: usize,
    dice: SmallRng,
}

impl Draw for Alone {
    fn bits(&mut self) -> u64 {
        self.dice.random()
    }

    fn turn(&mut self) -> usize {
        let turn = self.next;
        self.next = turn.wrapping_add(1);
        turn
    }

    fn load(&mut self, _: u32) -> u32 {
        0
    }

    fn cost(&mut self, _: u32) -> f64 {
        0.0
    }
}

impl Picker {
    /// Takes the endpoints that can be connected to.
    pub(crate) fn new(endpoints: &[Endpoint], strategy: Strategy, dice: SmallRng) -> Self {
        let endpoints: Box<[Endpoint]> = usable(endpoints.iter()).into();
        Self {
            plan: Plan::new(&endpoints, strategy),
            endpoints,
            alone: Alone { next: 0, dice },
        }
    }

    /// The next endpoint; `None` when there is none that can be connected to.
    pub fn pick(&mut self) -> Option<&Endpoint> {
        let at = self.plan.draw(None, &mut self.alone)?;
        self.endpoints.get(at as usize)
    }
}

#[cfg(test)]
mod tests;
