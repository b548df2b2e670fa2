//! The ledger: folds what is seen of a Deployment into its RolloutRecord.
