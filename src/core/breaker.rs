//! When the watcher may not roll back at all, and how many rollbacks it may start: pure.
