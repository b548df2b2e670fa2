//! What the scenarios are written in.

pub mod browser;
pub mod cluster;
pub mod denial;
pub mod installation;
pub mod kwok;
pub mod metrics;
pub mod policy;
pub mod process;
pub mod prometheus;
pub mod reading;
pub mod record;
pub mod scenario;
pub mod stream;
pub mod wait;
pub mod workload;

pub use self::{
    process::{Done, Run},
    scenario::{Scenario, restore},
    stream::Stream,
    wait::{seconds, wait_until},
    workload::{Change, deployment},
};

/// Prints one line at once, so that lines of scenarios that run side by side do not mix.
pub fn say(scenario: &str, text: &str) {
    for line in text.lines() {
        println!("{scenario}: {line}");
    }
}
