//! RolloutRecords: watched.
