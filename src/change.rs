//! **Pure.** What is different between two sets of one name.

use std::collections::HashMap;

use crate::endpoint::Endpoint;

/// A change of a name's endpoints, as [`Changes`](crate::Changes) gives them.
///
/// An endpoint is the same as one before when address and port are; what else is
/// told of it may have changed.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Change {
    /// Endpoints that were not there.
    pub added: Vec<Endpoint>,
    /// Endpoints that are there no more, as they were.
    pub removed: Vec<Endpoint>,
    /// Endpoints with another weight, health, tag, …, as they are now.
    pub updated: Vec<Endpoint>,
    /// All there are now.
    pub all: Vec<Endpoint>,
}

impl Change {
    /// From one set to the next; the order within a set is none of its own.
    pub(crate) fn between(before: &[Endpoint], after: &[Endpoint]) -> Self {
        let place = |endpoint: &Endpoint| (endpoint.address, endpoint.port);
        let old: HashMap<_, _> = before.iter().map(|one| (place(one), one)).collect();
        let new: HashMap<_, _> = after.iter().map(|one| (place(one), one)).collect();
        let added = after.iter().filter(|one| !old.contains_key(&place(one)));
        let removed = before.iter().filter(|one| !new.contains_key(&place(one)));
        let updated = after.iter().filter(|one| match old.get(&place(one)) {
            Some(was) => differs(was, one),
            None => false,
        });
        Self {
            added: added.cloned().collect(),
            removed: removed.cloned().collect(),
            updated: updated.cloned().collect(),
            all: after.to_vec(),
        }
    }

    /// Nothing is different.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.updated.is_empty()
    }
}

/// What both sources tell is compared; what one of them cannot know is no change.
fn differs(was: &Endpoint, is: &Endpoint) -> bool {
    fn other<T: PartialEq>(was: &Option<T>, is: &Option<T>) -> bool {
        matches!((was, is), (Some(was), Some(is)) if was != is)
    }
    (was.priority, was.weight) != (is.priority, is.weight)
        || other(&was.id, &is.id)
        || other(&was.tags, &is.tags)
        || other(&was.meta, &is.meta)
        || other(&was.health, &is.health)
        || (was.tags.is_some() && is.tags.is_some() && was.others != is.others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(port: u16, weight: u16) -> Endpoint {
        Endpoint {
            address: [10, 0, 0, 1].into(),
            port,
            priority: 1,
            weight,
            target: "t.".into(),
            node: None,
            id: None,
            tags: None,
            meta: None,
            health: None,
            others: Vec::new(),
        }
    }

    #[test]
    fn what_came_what_went_and_what_changed_is_told_apart() {
        let before = [endpoint(1, 1), endpoint(2, 1), endpoint(3, 1)];
        let after = [endpoint(3, 9), endpoint(2, 1), endpoint(4, 1)];
        let change = Change::between(&before, &after);
        assert_eq!(change.added, [endpoint(4, 1)]);
        assert_eq!(change.removed, [endpoint(1, 1)]);
        assert_eq!(change.updated, [endpoint(3, 9)]);
        assert_eq!(change.all, after);
    }

    #[test]
    fn what_only_one_source_knows_is_no_change() {
        let mut known = endpoint(1, 1);
        known.id = Some("web-1".into());
        assert!(Change::between(&[endpoint(1, 1)], &[known.clone()]).is_empty());
        let mut other = known.clone();
        other.id = Some("web-2".into());
        assert_eq!(Change::between(&[known], &[other.clone()]).updated, [other]);
    }

    proptest! {
        /// Applied to the set of before, a change gives the set of after.
        #[test]
        fn nothing_is_lost_and_nothing_told_twice(
            before in prop::collection::btree_map(0u16..20, 1u16..3, 0..10),
            after in prop::collection::btree_map(0u16..20, 1u16..3, 0..10),
        ) {
            let set = |map: &std::collections::BTreeMap<u16, u16>| -> Vec<Endpoint> {
                map.iter().map(|(port, weight)| endpoint(*port, *weight)).collect()
            };
            let change = Change::between(&set(&before), &set(&after));
            let mut now = before;
            for gone in &change.removed {
                prop_assert!(now.remove(&gone.port).is_some());
            }
            for new in &change.added {
                prop_assert!(now.insert(new.port, new.weight).is_none());
            }
            for other in &change.updated {
                prop_assert_ne!(now.insert(other.port, other.weight), Some(other.weight));
            }
            prop_assert_eq!(now, after);
        }
    }
}
