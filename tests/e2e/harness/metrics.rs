//! What the replica that leads counts.

use super::installation;

/// The metrics of the replica that leads, as they were.
pub struct Counted(String);

/// Asks the replica that leads.
pub fn of_the_leader() -> Result<Counted, String> {
    for pod in installation::ready_pods()? {
        let counted = Counted(installation::metrics_of(&pod)?);
        if counted.value("rollout_guard_leader") == 1.0 {
            return Ok(counted);
        }
    }
    Err("no replica says that it leads".to_owned())
}

impl Counted {
    /// Returns the value of a series, with its labels as they are written; 0 where there is none yet.
    pub fn value(&self, series: &str) -> f64 {
        let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok();
        self.0.lines().find_map(value).unwrap_or_default()
    }
}
