//! Facts about ReplicaSets and pods -> why a generation is stuck.
