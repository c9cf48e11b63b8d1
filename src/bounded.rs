//! **Pure.** Values by the bytes of their names, bounded in bytes: what was used only once goes
//! first, so that a flood of names pushes out nothing but itself; then what was not used for
//! longest.

use lru::LruCache;

/// What a value costs.
pub(crate) trait Weigh {
    /// Bytes, its place and its key among them.
    fn weigh(&self, key: &[u8]) -> usize;
}

#[derive(Debug)]
pub(crate) struct Bounded<V> {
    values: LruCache<Box<[u8]>, V>,
    bytes: usize,
    most: usize,
}

impl<V: Weigh> Bounded<V> {
    /// At most `most` bytes, reckoned.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            values: LruCache::unbounded(),
            bytes: 0,
            most,
        }
    }

    /// A value, which is used by it.
    pub(crate) fn get(&mut self, key: &[u8]) -> Option<&mut V> {
        self.values.get_mut(key)
    }

    /// A value that stays as long unused as it was.
    pub(crate) fn peek(&self, key: &[u8]) -> Option<&V> {
        self.values.peek(key)
    }

    /// Keeps a value in place of what is known by that key. One value may not push out
    /// all others: what costs more than a quarter of the room is not kept.
    pub(crate) fn keep(&mut self, key: Box<[u8]>, value: V) {
        let new = (!self.values.contains(&key)).then(|| key.clone());
        self.keep_newest(key, value);
        if let Some(key) = new {
            // The first to go, until it is used.
            self.values.demote(&key);
        }
    }

    /// The same, as if it had been used: what nobody needs for longest goes first then.
    pub(crate) fn keep_newest(&mut self, key: Box<[u8]>, value: V) {
        let bytes = value.weigh(&key);
        if bytes > self.most / 4 {
            return;
        }
        self.bytes += bytes;
        if let Some((key, before)) = self.values.push(key, value) {
            self.bytes -= before.weigh(&key);
        }
        while self.bytes > self.most
            && let Some((key, oldest)) = self.values.pop_lru()
        {
            self.bytes -= oldest.weigh(&key);
        }
    }

    pub(crate) fn forget(&mut self, key: &[u8]) {
        if let Some((key, value)) = self.values.pop_entry(key) {
            self.bytes -= value.weigh(&key);
        }
    }

    /// Values kept, and the bytes they are reckoned at.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.values.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weigh for usize {
        fn weigh(&self, key: &[u8]) -> usize {
            key.len() + self
        }
    }

    #[test]
    fn what_was_never_used_makes_room_and_then_what_was_not_for_longest() {
        let mut kept = Bounded::new(40);
        for (key, weight) in [(b"a", 9), (b"b", 9), (b"c", 9), (b"d", 9)] {
            kept.keep(key.to_vec().into(), weight);
        }
        assert_eq!(kept.size(), (4, 40));
        assert!(kept.get(b"a").is_some());
        assert!(kept.peek(b"b").is_some());
        // Of those that nobody used it is the last.
        kept.keep(b"e".to_vec().into(), 1);
        assert_eq!((kept.peek(b"d"), kept.size()), (None, (4, 32)));
        let sum: usize = kept
            .values
            .iter()
            .map(|(key, value)| value.weigh(key))
            .sum();
        assert_eq!(kept.size().1, sum);
        for key in [b"c", b"b", b"e", b"a"] {
            assert!(kept.get(key).is_some());
        }
        kept.keep(b"f".to_vec().into(), 9);
        assert_eq!((kept.peek(b"c"), kept.peek(b"f")), (None, Some(&9)));
    }

    #[test]
    fn a_flood_pushes_out_nothing_but_itself() {
        let mut kept = Bounded::new(1_000);
        kept.keep(b"known".to_vec().into(), 5);
        assert!(kept.get(b"known").is_some());
        for number in 0..10_000_u32 {
            kept.keep(number.to_be_bytes().into(), 96);
        }
        assert!(kept.peek(b"known").is_some());
        // What is known anew does not begin from below.
        kept.keep(b"known".to_vec().into(), 6);
        kept.keep(b"large".to_vec().into(), 240);
        assert_eq!(kept.peek(b"known"), Some(&6));
    }

    #[test]
    fn of_those_that_are_kept_as_newest_the_oldest_goes_first() {
        let mut kept = Bounded::new(40);
        for key in [b"a", b"b", b"c", b"d", b"e"] {
            kept.keep_newest(key.to_vec().into(), 9);
        }
        assert_eq!((kept.peek(b"a"), kept.peek(b"d")), (None, Some(&9)));
    }

    #[test]
    fn what_is_forgotten_costs_nothing() {
        let mut kept = Bounded::new(40);
        kept.keep(b"a".to_vec().into(), 5);
        kept.forget(b"b");
        assert_eq!(kept.size(), (1, 6));
        kept.forget(b"a");
        assert_eq!((kept.peek(b"a"), kept.size()), (None, (0, 0)));
    }

    #[test]
    fn what_is_replaced_costs_nothing_and_what_is_too_large_is_not_kept() {
        let mut kept = Bounded::new(40);
        kept.keep(b"a".to_vec().into(), 5);
        kept.keep(b"a".to_vec().into(), 7);
        assert_eq!(kept.size(), (1, 8));
        kept.keep(b"b".to_vec().into(), 10);
        assert_eq!((kept.peek(b"b"), kept.size()), (None, (1, 8)));
    }
}
