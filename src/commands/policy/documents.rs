//! Policies and namespaces from files.

use std::{collections::BTreeMap, fmt, fs::File, io::Read, path::Path, sync::Arc};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_yaml_ng::Value;

use crate::{
    api::policy::RolloutPolicySpec,
    core::{
        message::plain,
        policy::{Labels, PolicySet, compile},
    },
};

/// The largest file that is read as a whole. A list of ten thousand namespaces has about ten megabytes.
const LARGEST: u64 = 64 << 20;

/// The most characters of what is said of one problem.
const LONGEST: usize = 500;

/// What is in the files.
#[derive(Debug, Default)]
pub(super) struct Documents {
    /// The policies that are valid.
    pub valid: PolicySet,
    /// What is wrong with the others.
    pub problems: Vec<Problem>,
    /// How many documents of another kind were passed over.
    pub passed_over: BTreeMap<String, usize>,
}

/// What is wrong with a document.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// The file.
    pub file: String,
    /// The policy; empty where it has no name, or the file is no YAML.
    pub policy: String,
    /// Why.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, policy, why } = self;
        match policy.as_str() {
            "" => write!(f, "{file}: {why}"),
            policy => write!(f, "{file}: RolloutPolicy {policy:?}: {why}"),
        }
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: RolloutPolicySpec,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
}

impl Documents {
    /// Reads all files.
    ///
    /// # Errors
    /// When one cannot be read, or none holds a RolloutPolicy.
    pub fn read(paths: &[impl AsRef<Path>]) -> anyhow::Result<Self> {
        let mut found = Self::default();
        let mut policies = Vec::new();
        for path in paths {
            let path = path.as_ref();
            let (file, text) = (plain(&shown(path), 200), read(path)?);
            for document in serde_yaml_ng::Deserializer::from_str(&text) {
                match Value::deserialize(document) {
                    Ok(document) => found.document(&file, document, &mut policies),
                    Err(error) => {
                        // What comes after cannot be told apart any more.
                        found.problem(&file, "", &error.to_string());
                        break;
                    }
                }
            }
        }
        if policies.is_empty() && found.problems.is_empty() {
            let files = paths.iter().map(|path| shown(path.as_ref())).collect::<Vec<_>>().join(", ");
            bail!("{files}: holds no RolloutPolicy");
        }
        found.valid = PolicySet::new(policies);
        Ok(found)
    }

    fn document(
        &mut self,
        file: &str,
        document: Value,
        policies: &mut Vec<Arc<crate::core::policy::Policy>>,
    ) {
        let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        if document.is_null() {
            // Empty, as between two `---`.
            return;
        }
        let list = matches!(kind.as_str(), "List" | "RolloutPolicyList");
        if let Some(items) = document.get("items").and_then(Value::as_sequence).filter(|_| list) {
            for item in items {
                self.document(file, item.clone(), policies);
            }
            return;
        }
        if kind != "RolloutPolicy" {
            let kind = if kind.is_empty() { "(none)".to_owned() } else { plain(&kind, 64) };
            *self.passed_over.entry(kind).or_default() += 1;
            return;
        }
        let name =
            document.get("metadata").and_then(|m| m.get("name")).and_then(Value::as_str).unwrap_or_default();
        let name = plain(name, 253);
        if name.is_empty() {
            return self.problem(file, "", "a RolloutPolicy without a name");
        }
        if policies.iter().any(|policy| policy.name == name) {
            return self.problem(file, &name, "there is one of this name already");
        }
        match compiled(document) {
            Ok(policy) => policies.push(Arc::new(policy)),
            Err(why) => self.problem(file, &name, &why),
        }
    }

    fn problem(&mut self, file: &str, policy: &str, why: &str) {
        self.problems.push(Problem {
            file: file.to_owned(),
            policy: policy.to_owned(),
            why: plain(why, LONGEST),
        });
    }
}

fn compiled(document: Value) -> Result<crate::core::policy::Policy, String> {
    // kubectl warns of a field that is none; here nobody else would. Of the metadata only the name is read.
    let mut unknown = Vec::new();
    let document: Document = serde_ignored::deserialize(document, |path| unknown.push(path.to_string()))
        .map_err(|error| error.to_string())?;
    if let Some(path) = unknown.iter().find(|path| path.starts_with("spec.")) {
        return Err(format!("there is no field {path}"));
    }
    compile(&document.metadata.name, 1, &document.spec).map_err(|error| error.to_string())
}

/// Reads what `kubectl get namespaces -o json` or `-o yaml` prints: each namespace with its labels.
///
/// # Errors
/// When the file cannot be read, or holds no namespaces.
pub(super) fn namespaces(path: &Path) -> anyhow::Result<Vec<(String, Labels)>> {
    #[derive(Deserialize)]
    struct List {
        items: Vec<Namespace>,
    }
    #[derive(Deserialize)]
    struct Namespace {
        kind: Option<String>,
        metadata: NamespaceMetadata,
    }
    #[derive(Deserialize)]
    struct NamespaceMetadata {
        name: String,
        #[serde(default)]
        labels: Option<Labels>,
    }
    let shown = shown(path);
    let list: List = serde_yaml_ng::from_str(&read(path)?)
        .with_context(|| format!("{shown}: want a list of namespaces (kubectl get namespaces -o json)"))?;
    if let Some(other) =
        list.items.iter().find(|item| item.kind.as_deref().is_some_and(|kind| kind != "Namespace"))
    {
        bail!("{shown}: want kind Namespace, got {:?}", other.kind.as_deref().unwrap_or_default());
    }
    let of = |item: Namespace| (item.metadata.name, item.metadata.labels.unwrap_or_default());
    Ok(list.items.into_iter().map(of).collect())
}

/// Says whether `path` stands for standard input.
pub(super) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Returns the name of a file, as it is shown.
pub(super) fn shown(path: &Path) -> String {
    if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() }
}

fn read(path: &Path) -> anyhow::Result<String> {
    let shown = shown(path);
    let input: Box<dyn Read> = if is_stdin(path) {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(File::open(path).with_context(|| format!("cannot read {shown}"))?)
    };
    let mut bytes = Vec::new();
    input.take(LARGEST + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
    if bytes.len() as u64 > LARGEST {
        bail!("{shown}: more than {} MiB", LARGEST >> 20);
    }
    String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("{shown}: not UTF-8"))
}
