//! Facts about ReplicaSets and pods -> why a generation is stuck.

mod facts;
mod image;
mod words;

use jiff::Timestamp;

use super::rollout::{Phase, Snapshot};
use crate::api::policy::CauseType;

pub use facts::{ContainerFacts, PodEvent, PodFacts, ReplicaSetFacts, Said, Scheduled, Terminated};
pub use image::{DEFAULT_HOST, host_of};
pub use words::{LOG_BYTES, LOG_LINES, log_evidence};

/// The most characters of a cause's message.
pub const MESSAGE: usize = 300;

/// The most lines of evidence.
pub const EVIDENCE: usize = 8;

/// Whether something that works in the background gives signs of life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Liveness {
    /// It renews its lease.
    Alive,
    /// It has not renewed its lease for longer than it should.
    Silent,
    /// It cannot be told, such as where its lease is out of reach.
    #[default]
    Unknown,
}

/// All that a cause is found by.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// What the Deployment says of itself.
    pub snapshot: &'a Snapshot<'a>,
    /// Where its generation stands.
    pub phase: Phase,
    /// The newest ReplicaSet, where it is known.
    pub replica_set: Option<&'a ReplicaSetFacts>,
    /// Pods of the newest ReplicaSet, in any order.
    pub pods: &'a [PodFacts],
    /// Events about these pods, in any order.
    pub events: &'a [PodEvent],
    /// Whether a node is known to be not ready.
    pub node_not_ready: &'a dyn Fn(&str) -> bool,
    /// How many other Deployments fail right now to pull from a registry's host.
    pub others_failing: &'a dyn Fn(&str) -> usize,
    /// Whether kube-controller-manager is at work.
    pub controller_manager: Liveness,
}

/// Why a generation is stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The kind.
    pub kind: CauseType,
    /// In words, on one line.
    pub message: String,
    /// Facts that anybody can check, a line each.
    pub evidence: Vec<String>,
    /// Whether it is so hard a fact that the progress deadline need not be waited for.
    pub early: bool,
    /// The container whose log would tell more.
    pub container: Option<LogSource>,
    /// The image that cannot be pulled.
    pub image: Option<String>,
    key: String,
}

/// A container whose log would tell more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSource {
    /// The pod's name.
    pub pod: String,
    /// The container's name.
    pub container: String,
    /// Whether it is the log of the run before.
    pub previous: bool,
}

impl Cause {
    /// Returns the cause of a generation that is stuck while nothing says why.
    pub fn unknown(phase: Phase) -> Self {
        let message = match phase {
            Phase::Unobserved => "the generation is not observed, and nothing says why",
            Phase::Failed => "the progress deadline has passed, and no pod says why",
            _ => "the rollout does not get on, and no pod says why",
        };
        Self {
            kind: CauseType::Unknown,
            message: message.to_owned(),
            evidence: Vec::new(),
            early: false,
            container: None,
            image: None,
            key: CauseType::Unknown.word().to_owned(),
        }
    }

    /// Returns what stays the same while the same trouble goes on: kind, container and image. The message may
    /// change meanwhile.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether it is the same trouble as another.
    pub fn same(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

/// Returns why the generation is stuck or about to be; none where nothing explains it.
pub fn find(_input: &Input<'_>, _now: Timestamp) -> Option<Cause> {
    None
}

/// Returns the hosts that these pods fail to pull from right now, sorted.
pub fn failing_hosts(_pods: &[PodFacts]) -> Vec<String> {
    Vec::new()
}
