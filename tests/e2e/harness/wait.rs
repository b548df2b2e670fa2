//! Waiting for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(150);

pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Asks `probe` until it gives a value, and returns that; panics with what it said last when `limit` is over.
#[track_caller]
pub fn wait_until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        let state = match probe() {
            Ok(value) => return value,
            Err(state) => state,
        };
        assert!(started.elapsed() < limit, "{what}: not within {} s; last: {state}", limit.as_secs());
        thread::sleep(POLL);
    }
}

/// Says `Ok` where `holds`, else the state.
pub fn holds(holds: bool, state: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(state.into()) }
}
