//! Who leads, by a Lease: pure.
