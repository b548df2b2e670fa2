//! The Lease by which replicas agree on a leader.
