//! **Pure.** The draw of RFC 2782, section "The format of the SRV RR".
//!
//! Of the endpoints with the lowest priority one is drawn with a chance that is
//! proportional to its weight. Where some have weight 0, a number is drawn from 0
//! to the sum of weights, both included, and 0 means one of those: they keep a
//! very small chance while others have any.

use rand::{Rng, RngExt as _};

use crate::endpoint::Endpoint;

/// The index of the endpoint drawn. `endpoints` are sorted by priority and not
/// empty.
pub(super) fn draw(endpoints: &[Endpoint], dice: &mut impl Rng) -> usize {
    let lowest = endpoints.first().map(|endpoint| endpoint.priority);
    let group = endpoints.partition_point(|endpoint| Some(endpoint.priority) == lowest);
    let weights = || {
        endpoints[..group]
            .iter()
            .map(|endpoint| u64::from(endpoint.weight))
    };
    let sum: u64 = weights().sum();
    let zeros = weights().filter(|weight| *weight == 0).count();
    let mut drawn = dice.random_range(u64::from(zeros == 0)..=sum);
    if drawn == 0 {
        let nth = dice.random_range(0..zeros.max(1));
        let zero = weights()
            .enumerate()
            .filter(|(_, weight)| *weight == 0)
            .nth(nth);
        return zero.map_or(0, |(at, _)| at);
    }
    for (at, weight) in weights().enumerate() {
        if drawn <= weight {
            return at;
        }
        drawn -= weight;
    }
    0
}
