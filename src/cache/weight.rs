//! **Pure.** What an entry of the cache is reckoned at: what it points to, not only what it is.

use crate::{
    endpoint::Endpoint,
    found::{Facts, Found, Held, Instance},
};

/// Bytes that the map itself, its links and the texts of a name cost an entry,
/// rounded up.
pub(super) const OVERHEAD: usize = 256;

/// Bytes that a set costs.
pub(super) fn weigh(held: &Held) -> usize {
    let instances = match &held.found {
        Found::Instances(instances) => instances.iter().map(weigh_instance).sum(),
        Found::Host(host) => {
            64 + host.text.iter().map(|text| text.len() + 16).sum::<usize>()
                + host.addresses.len() * 17
        }
        Found::Pointers(names) => names.iter().map(|name| name.len() + 16).sum(),
        Found::Servers(servers) => servers.iter().map(|(name, _)| name.len() + 96).sum(),
    };
    let warnings: usize = held.warnings.iter().map(|warning| warning.len() + 16).sum();
    OVERHEAD
        + size_of::<Held>()
        + held.name.len()
        + held.endpoints.len() * size_of::<Endpoint>()
        + instances
        + warnings
}

fn weigh_facts(facts: &Facts) -> usize {
    let meta = (facts.meta.iter()).map(|(key, value)| key.len() + value.len() + 64);
    let tags = facts.tags.iter().map(|tag| tag.len() + 16);
    let others = facts.others.iter().map(weigh_facts);
    size_of::<Facts>() + meta.sum::<usize>() + tags.sum::<usize>() + others.sum::<usize>()
}

fn weigh_instance(instance: &Instance) -> usize {
    // The endpoint has a copy of them.
    let facts = (instance.facts.as_ref()).map_or(0, |facts| 2 * weigh_facts(facts));
    // The text of a node is shared by its instances; each pays for it all the same.
    let text = instance.text.as_ref().map_or(0, |text| {
        text.owner.len()
            + 64
            + text
                .strings
                .iter()
                .map(|string| string.len() + 16)
                .sum::<usize>()
    });
    size_of::<Instance>() + instance.target.len() + instance.addresses.len() * 17 + facts + text
}
