//! What a list tells between its beginning and its end: whatever it does not is gone.

use std::{collections::HashSet, hash::Hash};

/// What has been told since a list began; nothing is noted between lists.
pub(super) struct Listing<K>(Option<HashSet<K>>);

impl<K> Default for Listing<K> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: Eq + Hash> Listing<K> {
    /// A list begins.
    pub(super) fn restart(&mut self) {
        self.0 = Some(HashSet::new());
    }

    /// Notes what the list tells; `key` is asked only while there is one.
    pub(super) fn seen(&mut self, key: impl FnOnce() -> K) {
        if let Some(seen) = &mut self.0 {
            seen.insert(key());
        }
    }

    /// The list is complete: returns all that it told.
    pub(super) fn finish(&mut self) -> HashSet<K> {
        self.0.take().unwrap_or_default()
    }
}
