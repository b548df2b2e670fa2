//! Keeps the lead, or follows: the adapter of `core::lease`.
