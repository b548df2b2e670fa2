//! The facts of one Deployment, as small as they go.

use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc};

use jiff::Timestamp;

use crate::core::{
    policy::Labels,
    rollout::{Condition, Phase, Snapshot, classify},
    template::TemplateHash,
};

/// What is kept of one Deployment.
pub(super) struct Entry {
    pub(super) uid: Uid,
    pub(super) facts: Facts,
    pub(super) template: TemplateHash,
    /// Of the bytes of the template, so that it is not hashed again as long as they are the same.
    pub(super) template_bytes: u64,
    /// As [`LabelKeys::pack`] writes them.
    pub(super) labels: Box<[u8]>,
    /// The list in which it was last there.
    pub(super) round: u32,
}

/// The status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    pub(super) fn of(text: &str) -> Self {
        match text {
            "True" => Self::True,
            "False" => Self::False,
            _ => Self::Unknown,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// The reason of the condition `Progressing`, as `pkg/controller/deployment/util` in Kubernetes names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the words are those of Kubernetes")]
pub enum Reason {
    NewReplicaSetCreated,
    FoundNewReplicaSet,
    ReplicaSetUpdated,
    NewReplicaSetAvailable,
    DeploymentPaused,
    DeploymentResumed,
    ProgressDeadlineExceeded,
    ReplicaSetCreateError,
    /// One that Kubernetes does not have today.
    Other,
}

impl Reason {
    const NAMED: [(&str, Self); 8] = [
        ("NewReplicaSetCreated", Self::NewReplicaSetCreated),
        ("FoundNewReplicaSet", Self::FoundNewReplicaSet),
        ("ReplicaSetUpdated", Self::ReplicaSetUpdated),
        ("NewReplicaSetAvailable", Self::NewReplicaSetAvailable),
        ("DeploymentPaused", Self::DeploymentPaused),
        ("DeploymentResumed", Self::DeploymentResumed),
        ("ProgressDeadlineExceeded", Self::ProgressDeadlineExceeded),
        ("ReplicaSetCreateError", Self::ReplicaSetCreateError),
    ];

    pub(super) fn of(text: &str) -> Self {
        Self::NAMED.iter().find(|(name, _)| *name == text).map_or(Self::Other, |(_, reason)| *reason)
    }

    /// Returns the word that Kubernetes writes; empty for [`Reason::Other`].
    pub fn text(self) -> &'static str {
        Self::NAMED.iter().find(|(_, reason)| *reason == self).map_or("", |(name, _)| *name)
    }
}

/// Seconds since 1970, or none, in eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Second(i64);

impl Second {
    /// What stands for none is earlier than any time can be.
    pub(super) fn of(second: Option<i64>) -> Self {
        Self(second.unwrap_or(i64::MIN))
    }

    pub(super) fn time(self) -> Option<Timestamp> {
        Timestamp::from_second(self.0).ok()
    }
}

/// What a Deployment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) generation: i64,
    pub(super) observed_generation: i64,
    pub(super) desired: i32,
    pub(super) replicas: i32,
    pub(super) updated: i32,
    pub(super) available: i32,
    pub(super) progressing: Option<(Truth, Reason)>,
    pub(super) progressing_at: Second,
    pub(super) written_at: Second,
    pub(super) paused: bool,
    pub(super) deleting: bool,
    pub(super) replica_failure: bool,
    pub(super) announced: bool,
    pub(super) hand_back_due: bool,
}

impl Facts {
    /// By the very function that the whole object is judged by.
    pub(super) fn phase(&self) -> Phase {
        let condition = |truth: Truth, reason: &'static str, updated_at| Condition {
            status: Cow::Borrowed(truth.text()),
            reason: Cow::Borrowed(reason),
            message: Cow::Borrowed(""),
            updated_at,
        };
        let progressing = self
            .progressing
            .map(|(truth, reason)| condition(truth, reason.text(), self.progressing_at.time()));
        classify(&Snapshot {
            generation: self.generation,
            observed_generation: self.observed_generation,
            deleting: self.deleting,
            paused: self.paused,
            desired: self.desired,
            replicas: self.replicas,
            updated: self.updated,
            available: self.available,
            progressing,
            replica_failure: self.replica_failure.then(|| condition(Truth::True, "", None)),
            written_at: self.written_at.time(),
        })
    }
}

/// A uid: 16 bytes where it is a UUID as Kubernetes prints them, which it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Uid {
    Uuid([u8; 16]),
    Other(Box<str>),
}

/// Where the dashes of a UUID are.
const DASHES: [usize; 4] = [8, 13, 18, 23];

impl Uid {
    pub(super) fn of(text: &str) -> Self {
        Self::uuid(text).map_or_else(|| Self::Other(text.into()), Self::Uuid)
    }

    fn uuid(text: &str) -> Option<[u8; 16]> {
        if text.len() != 36 {
            return None;
        }
        let mut bytes = [0; 16];
        let mut digits = 0;
        for (at, character) in text.bytes().enumerate() {
            let digit = match character {
                b'-' if DASHES.contains(&at) => continue,
                _ if DASHES.contains(&at) => return None,
                b'0'..=b'9' => character - b'0',
                // Not those in upper case: what is printed must be what was read.
                b'a'..=b'f' => character - b'a' + 10,
                _ => return None,
            };
            let byte: &mut u8 = bytes.get_mut(digits / 2)?;
            *byte = *byte << 4 | digit;
            digits += 1;
        }
        Some(bytes)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(bytes) => bytes.iter().enumerate().try_for_each(|(at, byte)| {
                let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
                write!(f, "{dash}{byte:02x}")
            }),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// The keys of labels: few, and the same on many Deployments.
#[derive(Default)]
pub(super) struct LabelKeys {
    numbers: HashMap<Arc<str>, u16>,
    keys: Vec<Arc<str>>,
}

/// As many keys have a number. The rest is written out, so that nobody can fill the memory with keys.
const NUMBERED: u16 = 10_000;

/// Stands for a key that is written out.
const WRITTEN_OUT: u16 = u16::MAX;

impl LabelKeys {
    /// Returns the number of a key; none where they have run out.
    fn number(&mut self, key: &str) -> Option<u16> {
        if let Some(number) = self.numbers.get(key) {
            return Some(*number);
        }
        let number = u16::try_from(self.keys.len()).ok().filter(|number| *number < NUMBERED)?;
        let key: Arc<str> = key.into();
        self.keys.push(Arc::clone(&key));
        self.numbers.insert(key, number);
        Some(number)
    }

    /// Writes labels into a few bytes: for each the number of its key, and its value with the length before it. None
    /// where one is over 64 KiB: the API server lets through 63 characters.
    pub(super) fn pack<'a>(&mut self, labels: impl Iterator<Item = (&'a str, &'a str)>) -> Option<Box<[u8]>> {
        fn write(bytes: &mut Vec<u8>, text: &str) -> Option<()> {
            bytes.extend(u16::try_from(text.len()).ok()?.to_le_bytes());
            bytes.extend(text.as_bytes());
            Some(())
        }
        let mut bytes = Vec::new();
        for (key, value) in labels {
            match self.number(key) {
                Some(number) => bytes.extend(number.to_le_bytes()),
                None => {
                    bytes.extend(WRITTEN_OUT.to_le_bytes());
                    write(&mut bytes, key)?;
                }
            }
            write(&mut bytes, value)?;
        }
        Some(bytes.into_boxed_slice())
    }

    /// Reads what [`LabelKeys::pack`] has written.
    pub(super) fn unpack(&self, mut bytes: &[u8]) -> Labels {
        fn number(bytes: &mut &[u8]) -> Option<u16> {
            let (number, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Some(u16::from_le_bytes(*number))
        }
        fn text(bytes: &mut &[u8]) -> Option<String> {
            let length = number(bytes)?;
            let (text, rest) = bytes.split_at_checked(usize::from(length))?;
            *bytes = rest;
            Some(String::from_utf8_lossy(text).into_owned())
        }
        std::iter::from_fn(|| {
            let key = match number(&mut bytes)? {
                WRITTEN_OUT => text(&mut bytes)?,
                number => self.keys.get(usize::from(number))?.to_string(),
            };
            Some((key, text(&mut bytes)?))
        })
        .collect()
    }
}
