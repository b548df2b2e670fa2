//! Deployments, what belongs to them, and what the watcher writes.
