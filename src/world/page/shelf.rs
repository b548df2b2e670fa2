//! The newest of many, whole, and of the others only which they are.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
};

use jiff::Timestamp;

/// Where something stands: the newest first, of equals by key.
type Rank<K> = (Reverse<Timestamp>, K);

/// Holds at most so many rows: the newest. What is left out is counted, and comes back with the next list.
#[derive(Debug)]
pub(super) struct Shelf<K, R> {
    most: usize,
    rows: BTreeMap<Rank<K>, R>,
    left_out: BTreeSet<Rank<K>>,
    ranks: HashMap<K, Timestamp>,
}

impl<K: Clone + Eq + Hash + Ord, R: PartialEq> Shelf<K, R> {
    /// Returns an empty one of at most `most` rows.
    pub(super) fn new(most: usize) -> Self {
        Self { most, rows: BTreeMap::new(), left_out: BTreeSet::new(), ranks: HashMap::new() }
    }

    /// Puts the row of `key` at its time, in place of an earlier one. None: there is none any more. Returns whether
    /// that changes what is to be seen.
    pub(super) fn put(&mut self, key: &K, row: Option<(Timestamp, R)>) -> bool {
        let Some((at, row)) = row else { return self.take(key) };
        let rank = (Reverse(at), key.clone());
        if self.ranks.get(key) == Some(&at) && self.rows.get(&rank).is_some_and(|before| *before == row) {
            return false;
        }
        self.take(key);
        self.ranks.insert(key.clone(), at);
        // A hole is not filled by one that others come before of which only the key is known.
        if self.left_out.first().is_some_and(|first| *first < rank) {
            self.left_out.insert(rank);
            return true;
        }
        self.rows.insert(rank, row);
        if self.rows.len() > self.most
            && let Some((last, _)) = self.rows.pop_last()
        {
            self.left_out.insert(last);
        }
        true
    }

    /// Takes the row of `key` away. Returns whether there was one.
    fn take(&mut self, key: &K) -> bool {
        let Some(at) = self.ranks.remove(key) else { return false };
        let rank = (Reverse(at), key.clone());
        self.rows.remove(&rank).is_some() | self.left_out.remove(&rank)
    }

    /// Returns the rows, the newest first.
    pub(super) fn rows(&self) -> impl Iterator<Item = &R> {
        self.rows.values()
    }

    /// Returns how many there are, those that are left out included.
    pub(super) fn count(&self) -> usize {
        self.ranks.len()
    }

    /// Says whether there is room for some that are left out: they come with the next list.
    pub(super) fn has_room(&self) -> bool {
        self.rows.len() < self.most && !self.left_out.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn seen(shelf: &Shelf<u8, i64>) -> Vec<i64> {
        shelf.rows().copied().collect()
    }

    #[test]
    fn the_newest_are_held_and_all_are_counted() {
        let mut shelf = Shelf::new(2);
        for time in [3, 9, 1, 7] {
            assert!(shelf.put(&u8::try_from(time).expect("small"), Some((at(time), time))));
        }
        assert_eq!((seen(&shelf), shelf.count(), shelf.has_room()), (vec![9, 7], 4, false));
        assert!(!shelf.put(&9, Some((at(9), 9))), "it is as before");
        assert!(shelf.put(&9, None));
        assert!(!shelf.put(&9, None));
        assert_eq!((seen(&shelf), shelf.count(), shelf.has_room()), (vec![7], 3, true));
        // 3 is the next one and not known any more, so 2 does not take its place.
        assert!(shelf.put(&2, Some((at(2), 2))));
        assert_eq!((seen(&shelf), shelf.count()), (vec![7], 4));
        assert!(shelf.put(&8, Some((at(8), 8))));
        assert_eq!((seen(&shelf), shelf.count(), shelf.has_room()), (vec![8, 7], 5, false));
    }

    proptest! {
        #[test]
        fn what_is_held_is_always_a_beginning_of_what_there_is_in_order(
            steps in prop::collection::vec((0..12_u8, prop::option::weighted(0.7, 0..20_i64)), 0..80),
            most in 1..6_usize,
        ) {
            let mut shelf = Shelf::new(most);
            let mut all = HashMap::new();
            for (key, time) in steps {
                shelf.put(&key, time.map(|time| (at(time), time)));
                match time {
                    Some(time) => { all.insert(key, time); }
                    None => { all.remove(&key); }
                }
                let mut wanted: Vec<i64> = all.values().copied().collect();
                wanted.sort_unstable_by_key(|time| Reverse(*time));
                let held = seen(&shelf);
                prop_assert_eq!(shelf.count(), all.len());
                prop_assert!(held.len() <= most);
                prop_assert_eq!(&held[..], &wanted[..held.len()]);
                prop_assert!(held.len() == most.min(all.len()) || shelf.has_room());
            }
        }
    }
}
