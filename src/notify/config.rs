//! The file that says who is told of what: read, checked, and free of secrets in everything that is printed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Deserializer, de::Error as _};
use wildmatch::WildMatch;

use crate::{
    api::{duration, policy::CauseType},
    core::{
        message::plain,
        notification::{Kind, Notification, Severity},
    },
    post,
};

/// A Secret holds 1 MiB at the most.
const MAX_FILE: u64 = 1 << 20;

/// The most receivers: each has a queue of its own.
const MAX_RECEIVERS: usize = 32;

/// The most headers of a receiver.
const MAX_HEADERS: usize = 32;

/// How long one attempt may take, where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The longest that one attempt may take.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Why the file cannot be used. Says nothing of what it holds but names.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is longer than a Secret can be.
    #[error("{0}: longer than 1 MiB")]
    TooLong(String),
    /// It is not the YAML that is expected.
    #[error("{path}: {why}")]
    Yaml {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A receiver cannot be used.
    #[error("{path}: receiver {receiver}: {why}")]
    Receiver {
        /// The file.
        path: String,
        /// The receiver's name, or its place.
        receiver: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns the text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // By hand: the usual error would quote what stands there.
        match serde_yaml_ng::Value::deserialize(deserializer) {
            Ok(serde_yaml_ng::Value::String(text)) => Ok(Self(text)),
            _ => Err(D::Error::custom("expected text (a number is to stand in quotes)")),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    cluster_name: Option<String>,
    #[serde(default)]
    external_url: Option<String>,
    receivers: Vec<RawReceiver>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawReceiver {
    name: String,
    #[serde(rename = "type")]
    sort: Sort,
    #[serde(default)]
    url: Option<Secret>,
    #[serde(default)]
    url_file: Option<PathBuf>,
    #[serde(default)]
    secret: Option<Secret>,
    #[serde(default)]
    secret_file: Option<PathBuf>,
    #[serde(default)]
    headers: BTreeMap<String, Secret>,
    #[serde(default)]
    events: Option<Vec<Kind>>,
    #[serde(default)]
    namespaces: Option<Names>,
    #[serde(default)]
    causes: Option<Vec<CauseType>>,
    #[serde(default)]
    min_severity: Option<Severity>,
    #[serde(default)]
    timeout: Option<duration::Duration>,
    #[serde(default)]
    ca_file: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Several(Vec<String>),
}

/// What a receiver understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// JSON of our own.
    Webhook,
    /// An incoming webhook of Slack, or of what speaks like it.
    Slack,
    /// Alertmanager, by its API v2.
    Alertmanager,
}

impl Sort {
    /// Returns the word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Slack => "slack",
            Self::Alertmanager => "alertmanager",
        }
    }
}

/// Who is told of what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// The receivers, with names that differ.
    pub receivers: Vec<Receiver>,
}

/// One who is told.
#[derive(Clone, PartialEq)]
pub struct Receiver {
    /// Its name: a label of metrics.
    pub name: String,
    /// What it understands.
    pub sort: Sort,
    /// Where to send.
    pub uri: Uri,
    /// The key of the signature.
    pub secret: Option<Secret>,
    /// What is sent with each call.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What it is told of.
    pub filter: Filter,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// The CAs that are trusted, as PEM; none: those of Mozilla.
    pub roots: Option<Vec<u8>>,
    /// What this cluster is called.
    pub cluster: Option<String>,
    /// Where people find more.
    pub external_url: Option<String>,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("name", &self.name)
            .field("sort", &self.sort)
            .field("host", &self.uri.host())
            .finish_non_exhaustive()
    }
}

/// What a receiver is told of. What a notification does not have, such as a namespace, fits no list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    events: Option<BTreeSet<Kind>>,
    namespaces: Option<Vec<WildMatch>>,
    causes: Option<BTreeSet<CauseType>>,
    min_severity: Option<Severity>,
}

impl Filter {
    /// Says whether the receiver is told.
    pub fn lets_through(&self, notification: &Notification) -> bool {
        let namespace = notification.deployment.as_ref().map(|deployment| deployment.namespace.as_str());
        let cause = notification.cause.as_ref().map(|cause| cause.kind);
        notification.kind == Kind::Test
            || self.events.as_ref().is_none_or(|events| events.contains(&notification.kind))
                && self.min_severity.is_none_or(|least| notification.severity >= least)
                && self
                    .causes
                    .as_ref()
                    .is_none_or(|causes| cause.is_some_and(|cause| causes.contains(&cause)))
                && self.namespaces.as_ref().is_none_or(|patterns| {
                    namespace.is_some_and(|name| patterns.iter().any(|pattern| pattern.matches(name)))
                })
    }
}

/// Reads the file and those that it names; a relative one is beside it.
///
/// # Errors
/// When one of them cannot be read or used.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = read(path)?;
    let shown = path.display().to_string();
    let raw: RawConfig = serde_yaml_ng::from_slice(&text)
        .map_err(|error| ConfigError::Yaml { path: shown.clone(), why: plain(&error.to_string(), 400) })?;
    if raw.receivers.len() > MAX_RECEIVERS {
        let why = format!("more than {MAX_RECEIVERS} receivers");
        return Err(ConfigError::Yaml { path: shown, why });
    }
    let global = Global {
        dir: path.parent().unwrap_or(Path::new("")),
        cluster: label(raw.cluster_name, "clusterName", &shown)?,
        external_url: link(raw.external_url, &shown)?,
    };
    let mut receivers: Vec<Receiver> = Vec::with_capacity(raw.receivers.len());
    for raw in raw.receivers {
        let name = plain(&raw.name, 64);
        let fail = |why| ConfigError::Receiver { path: shown.clone(), receiver: name.clone(), why };
        let receiver = global.receiver(raw).map_err(fail)?;
        if receivers.iter().any(|other| other.name == receiver.name) {
            return Err(fail("there is another of this name".to_owned()));
        }
        receivers.push(receiver);
    }
    Ok(Config { receivers })
}

/// What holds for all receivers.
struct Global<'a> {
    dir: &'a Path,
    cluster: Option<String>,
    external_url: Option<String>,
}

impl Global<'_> {
    fn receiver(&self, raw: RawReceiver) -> Result<Receiver, String> {
        // Without `..`, so that a new field is not forgotten.
        let RawReceiver {
            name,
            sort,
            url,
            url_file,
            secret,
            secret_file,
            headers,
            events,
            namespaces,
            causes,
            min_severity,
            timeout,
            ca_file,
        } = raw;
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 63 || !name.chars().all(fits) {
            return Err("a name has 1 to 63 of a-z, 0-9 and -".to_owned());
        }
        let url = self.either("url", url, "urlFile", url_file)?.ok_or("url or urlFile is missing")?;
        let secret = self.either("secret", secret, "secretFile", secret_file)?;
        if secret.is_some() && sort != Sort::Webhook {
            return Err(format!("a secret is for the type webhook; {} has no signature", sort.word()));
        }
        let roots = ca_file.map(|file| self.read(&file)).transpose()?;
        post::Client::new(roots.as_deref()).map_err(|error| format!("caFile: {error}"))?;
        let timeout = timeout.map_or(TIMEOUT, duration::Duration::get);
        if timeout.is_zero() || timeout > LONGEST_TIMEOUT {
            return Err("timeout must be more than 0 and 60s at the most".to_owned());
        }
        let namespaces = namespaces.map(|names| match names {
            Names::One(name) => vec![name],
            Names::Several(names) => names,
        });
        Ok(Receiver {
            uri: address(&url, sort)?,
            name,
            sort,
            secret,
            headers: header_list(headers)?,
            filter: Filter {
                events: set(events, "events")?,
                namespaces: list(namespaces, "namespaces")?
                    .map(|names| names.iter().map(|name| WildMatch::new(name)).collect()),
                causes: set(causes, "causes")?,
                min_severity,
            },
            timeout,
            roots,
            cluster: self.cluster.clone(),
            external_url: self.external_url.clone(),
        })
    }

    /// The text itself, or that of a file; not both.
    fn either(
        &self,
        name: &str,
        text: Option<Secret>,
        file_name: &str,
        file: Option<PathBuf>,
    ) -> Result<Option<Secret>, String> {
        let found = match (text, file) {
            (Some(_), Some(_)) => return Err(format!("{name} and {file_name} are both there")),
            (None, None) => return Ok(None),
            (Some(text), None) => text,
            (None, Some(file)) => {
                let bytes = self.read(&file)?;
                let text = String::from_utf8(bytes).map_err(|_| format!("{file_name} is not UTF-8"))?;
                // An editor ends a file by a line break.
                Secret(text.trim().to_owned())
            }
        };
        if found.0.is_empty() { Err(format!("{name} is empty")) } else { Ok(Some(found)) }
    }

    fn read(&self, file: &Path) -> Result<Vec<u8>, String> {
        read(&self.dir.join(file)).map_err(|error| error.to_string())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let shown = || path.display().to_string();
    let fail = |source| ConfigError::Read { path: shown(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(fail)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE { Err(ConfigError::TooLong(shown())) } else { Ok(bytes) }
}

/// Where to send: of Alertmanager its base address is enough.
fn address(url: &Secret, sort: Sort) -> Result<Uri, String> {
    const ALERTS: &str = "/api/v2/alerts";
    let uri = post::address(url.reveal()).map_err(|error| error.to_string())?;
    if sort != Sort::Alertmanager || uri.path().ends_with(ALERTS) {
        return Ok(uri);
    }
    if uri.query().is_some() {
        return Err("the url of an Alertmanager has no query".to_owned());
    }
    let whole = format!("{}{ALERTS}", url.reveal().trim_end_matches('/'));
    post::address(&whole).map_err(|error| error.to_string())
}

fn header_list(headers: BTreeMap<String, Secret>) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    // What the guard or HTTP itself says.
    const OURS: [&str; 5] = ["host", "content-length", "content-type", "transfer-encoding", "connection"];
    if headers.len() > MAX_HEADERS {
        return Err(format!("more than {MAX_HEADERS} headers"));
    }
    let mut list = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let shown = plain(&name, 64);
        let parsed = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("header {shown}: not the name of a header"))?;
        if OURS.contains(&parsed.as_str()) || parsed.as_str().starts_with("x-rollout-guard-") {
            return Err(format!("header {shown}: is set by the guard"));
        }
        let mut value = HeaderValue::from_str(value.reveal())
            .map_err(|_| format!("header {shown}: the value holds what a header cannot"))?;
        value.set_sensitive(true);
        list.push((parsed, value));
    }
    Ok(list)
}

fn list<T>(list: Option<Vec<T>>, what: &str) -> Result<Option<Vec<T>>, String> {
    match list {
        Some(list) if list.is_empty() => Err(format!("{what} is empty; leave it out for all")),
        Some(list) if list.len() > 256 => Err(format!("{what} has more than 256 entries")),
        list => Ok(list),
    }
}

fn set<T: Ord>(entries: Option<Vec<T>>, what: &str) -> Result<Option<BTreeSet<T>>, String> {
    Ok(list(entries, what)?.map(|entries| entries.into_iter().collect()))
}

/// A name that goes into labels.
fn label(text: Option<String>, what: &str, path: &str) -> Result<Option<String>, ConfigError> {
    match text {
        Some(text) if text.is_empty() || text.len() > 253 || text.chars().any(char::is_control) => {
            let why = format!("{what} must have 1 to 253 characters, on one line");
            Err(ConfigError::Yaml { path: path.to_owned(), why })
        }
        text => Ok(text),
    }
}

fn link(text: Option<String>, path: &str) -> Result<Option<String>, ConfigError> {
    if let Some(text) = &text {
        post::address(text).map_err(|error| ConfigError::Yaml {
            path: path.to_owned(),
            why: format!("externalUrl: {error}"),
        })?;
    }
    Ok(text)
}
