//! Whether a stuck generation is rolled back, and to which revision.
