//! Holds the one dependency rule of `src/lib.rs`, the purity of `core`, and what no tracked file may contain.
//!
//! The sources are read as text: comments, strings and test modules are blanked out, then every path
//! (`crate::a::b`, groups of `use` taken apart) is looked at. The scanner is tested on snippets that break the
//! rules, so that a rule that finds nothing is known to have looked.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A source file of the crate.
struct Source {
    /// Relative to `src`.
    file: String,
    /// `["webhook", "certificates", "plan"]`.
    module: Vec<String>,
    /// Without comments, strings and test modules.
    code: String,
}

impl Source {
    fn new(file: &str, text: &str) -> Self {
        let path = file.trim_end_matches(".rs");
        let mut module: Vec<String> = path.split('/').map(str::to_owned).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) && file != "main.rs" {
            module.pop();
        }
        Self { file: file.to_owned(), module, code: without_tests(&blanked(text)) }
    }

    /// The module at the top: `webhook`; empty for `lib.rs`.
    fn top(&self) -> &str {
        self.module.first().map_or("", String::as_str)
    }

    /// The modules at the top that it names, other than its own.
    fn uses(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for path in paths(&self.code) {
            let supers = path.iter().take_while(|segment| *segment == "super").count();
            let target = match path.first().map(String::as_str) {
                Some("crate" | "rollout_guard") => path.get(1),
                // `super` of a module right under the root is the root.
                Some("super") if supers >= self.module.len() => path.get(supers),
                _ => None,
            };
            // A type at the root would be a module that is not: none is there.
            found.extend(target.filter(|target| *target != self.top() && *target != "self").cloned());
        }
        found
    }
}

/// All sources of the crate but the test modules in files of their own.
fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut files = Vec::new();
    collect(&src, &mut files);
    let all: Vec<Source> = files
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter(|path| path.file_name().is_some_and(|name| name != "tests.rs"))
        .map(|path| {
            let file = path.strip_prefix(&src).expect("below").to_str().expect("UTF-8").to_owned();
            Source::new(&file, &std::fs::read_to_string(path).expect("readable"))
        })
        .collect();
    assert!(all.len() > 20, "the sources are found");
    all
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("readable") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}

/// Returns `text` with comments and the contents of strings and characters made blank; line breaks stay.
fn blanked(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let from = i;
        let word = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
        if at(i) == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if at(i) == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                if at(i) == '/' && at(i + 1) == '*' {
                    depth += 1;
                    i += 2;
                } else if at(i) == '*' && at(i + 1) == '/' {
                    depth -= 1;
                    i += 2;
                } else {
                    i += 1;
                }
                if depth == 0 || i >= chars.len() {
                    break;
                }
            }
        } else if let Some(hashes) = raw_string(&chars, i).filter(|_| !word) {
            i += chars[i..].iter().take_while(|c| **c != '"').count() + 1;
            let end: String = format!("\"{}", "#".repeat(hashes));
            while i < chars.len() && !chars[i..].iter().take(hashes + 1).copied().eq(end.chars()) {
                i += 1;
            }
            i += hashes + 1;
        } else if at(i) == '"' {
            i += 1;
            while i < chars.len() && at(i) != '"' {
                i += if at(i) == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if at(i) == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            // A character, not a lifetime.
            i += if at(i + 1) == '\\' { 3 } else { 2 };
            while i < chars.len() && at(i) != '\'' {
                i += 1;
            }
            i += 1;
        } else {
            out.push(at(i));
            i += 1;
            continue;
        }
        out.extend(chars[from..i.min(chars.len())].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
    }
    out
}

/// How many `#` the raw string that begins at `i` has.
fn raw_string(chars: &[char], i: usize) -> Option<usize> {
    let rest = &chars[i..];
    let rest = rest.strip_prefix(&['b']).unwrap_or(rest).strip_prefix(&['r'])?;
    let hashes = rest.iter().take_while(|c| **c == '#').count();
    (rest.get(hashes) == Some(&'"')).then_some(hashes)
}

/// Returns `code` (blanked) without what stands under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        let item = &rest[at..];
        let (brace, semicolon) = (item.find('{'), item.find(';'));
        let end = match (brace, semicolon) {
            (Some(brace), semicolon) if semicolon.is_none_or(|semicolon| brace < semicolon) => {
                let mut depth = 0;
                let close = item[brace..].char_indices().find(|(_, c)| {
                    depth += match c {
                        '{' => 1,
                        '}' => -1,
                        _ => 0,
                    };
                    depth == 0
                });
                close.map_or(item.len(), |(close, _)| brace + close + 1)
            }
            (_, Some(semicolon)) => semicolon + 1,
            _ => item.len(),
        };
        rest = &item[end..];
    }
    out + rest
}

/// Returns every path in `code`, with groups taken apart: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(code: &str) -> Vec<Vec<String>> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if is_word(&tokens[i]) {
            i = path(&tokens, i, &[], &mut found);
        } else {
            i += 1;
        }
    }
    found
}

/// Reads the path that begins at `i` and returns where it ends.
fn path(tokens: &[String], mut i: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut segments = prefix.to_vec();
    while let Some(token) = tokens.get(i) {
        if is_word(token) {
            segments.push(token.clone());
            i += 1;
        } else if token == "{" {
            i += 1;
            while let Some(token) = tokens.get(i) {
                match token.as_str() {
                    "}" => return i + 1,
                    "," => i += 1,
                    _ => i = path(tokens, i, &segments, found).max(i + 1),
                }
            }
            return i;
        } else {
            break;
        }
        if tokens.get(i).map(String::as_str) != Some("::") {
            break;
        }
        i += 1;
    }
    found.push(segments);
    i
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn tokens(code: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut chars = code.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_alphanumeric() || c == '_' {
            let mut word = c.to_string();
            while let Some(next) = chars.next_if(|c| c.is_alphanumeric() || *c == '_') {
                word.push(next);
            }
            out.push(word);
        } else if c == ':' && chars.next_if_eq(&':').is_some() {
            out.push("::".to_owned());
        } else if !c.is_whitespace() {
            out.push(c.to_string());
        }
    }
    out
}

/// Says whether `wanted` stands somewhere in `path`: `["kube", "Client"]` in `kube::Client::try_from`.
fn names(path: &[String], wanted: &[&str]) -> bool {
    path.windows(wanted.len()).any(|window| window == wanted)
}

// ---- the rules ------------------------------------------------------------------------------------------------

/// The layers of the picture in `src/lib.rs`, from left to right.
const LAYERS: [&[&str]; 7] = [
    &["main"],
    &["cli"],
    &["commands"],
    &["webhook", "watcher"],
    &["world"],
    &["cluster", "admin", "notify", "telemetry", "post", "tls", "shutdown"],
    &["api", "core"],
];

/// What stands in one layer and may be used from it.
const WITHIN: [(&str, &str); 8] = [
    ("admin", "shutdown"),
    ("admin", "telemetry"),
    ("admin", "tls"),
    ("core", "api"),
    ("notify", "post"),
    ("notify", "shutdown"),
    ("notify", "telemetry"),
    ("telemetry", "post"),
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn may_use(user: &str, used: &str) -> bool {
    match (layer(user), layer(used)) {
        (Some(from), Some(to)) => from < to || WITHIN.contains(&(user, used)),
        _ => false,
    }
}

/// What breaks the rule in `source`.
fn against_the_direction(source: &Source) -> Vec<String> {
    let user = source.top();
    if user.is_empty() {
        return Vec::new();
    }
    let wrong = source.uses().into_iter().filter(|used| !may_use(user, used));
    wrong.map(|used| format!("{}: {user} uses {used}", source.file)).collect()
}

/// What is not pure in `source`, one of `core`.
fn impure(source: &Source) -> Vec<String> {
    const CRATES: [&str; 12] = [
        "tokio",
        "tracing",
        "futures",
        "axum",
        "hyper",
        "http",
        "rustls",
        "rand",
        "reqwest",
        "prometheus_client",
        "ring",
        "rcgen",
    ];
    const WORDS: [&str; 8] =
        ["async", "await", "SystemTime", "Instant", "println", "eprintln", "dbg", "unsafe"];
    const PATHS: [&[&str]; 14] = [
        &["kube", "Client"],
        &["kube", "client"],
        &["kube", "Api"],
        &["kube", "api"],
        &["kube", "runtime"],
        &["Timestamp", "now"],
        &["Zoned", "now"],
        &["Utc", "now"],
        &["Local", "now"],
        &["std", "fs"],
        &["std", "net"],
        &["std", "env"],
        &["std", "thread"],
        &["std", "process"],
    ];
    let mut found = Vec::new();
    for path in paths(&source.code) {
        let joined = path.join("::");
        // A digest is a function of its bytes, unlike all else that ring has.
        let digest = path.starts_with(&["ring".to_owned(), "digest".to_owned()]);
        let by_crate = path.first().is_some_and(|first| CRATES.contains(&first.as_str()) && path.len() > 1);
        let by_crate = by_crate && !digest;
        let by_word = path.iter().any(|word| WORDS.contains(&word.as_str()));
        if by_crate || by_word || PATHS.iter().any(|wanted| names(&path, wanted)) {
            found.push(format!("{}: {joined}", source.file));
        }
    }
    found
}

/// Says whether `source` names axum.
fn names_axum(source: &Source) -> bool {
    paths(&source.code).iter().any(|path| path.first().is_some_and(|first| first == "axum"))
}

/// Says whether `source` names the client of kube or an API by it.
fn names_the_client(source: &Source) -> bool {
    let tokens = tokens(&source.code);
    let api = tokens.windows(2).enumerate().any(|(i, pair)| {
        let inner = i > 0 && tokens[i - 1] == "::";
        pair[0] == "Api" && !inner && (pair[1] == "<" || pair[1] == "::")
    });
    let by_path = paths(&source.code).iter().any(|path| {
        names(path, &["kube", "Client"]) || names(path, &["kube", "Api"]) || names(path, &["kube", "client"])
    });
    api || by_path
}

#[test]
fn dependencies_point_in_one_direction() {
    let wrong: Vec<String> = sources().iter().flat_map(against_the_direction).collect();
    assert!(wrong.is_empty(), "against src/lib.rs:\n{}", wrong.join("\n"));
}

#[test]
fn webhook_and_watcher_never_see_each_other() {
    assert!(!may_use("webhook", "watcher") && !may_use("watcher", "webhook"));
    let all = sources();
    for (user, other) in [("webhook", "watcher"), ("watcher", "webhook")] {
        let of_user: Vec<&Source> = all.iter().filter(|source| source.top() == user).collect();
        assert!(!of_user.is_empty(), "{user} is found");
        for source in of_user {
            assert!(!source.uses().contains(other), "{} uses {other}", source.file);
        }
    }
}

#[test]
fn every_module_at_the_top_has_its_place_in_the_picture() {
    let all = sources();
    let tops: BTreeSet<&str> = all.iter().map(Source::top).filter(|top| !top.is_empty()).collect();
    let placed: BTreeSet<&str> = LAYERS.iter().copied().flatten().copied().collect();
    assert_eq!(tops, placed);
}

#[test]
fn the_core_is_pure() {
    let all = sources();
    let core: Vec<&Source> = all.iter().filter(|source| source.top() == "core").collect();
    assert!(core.len() >= 6, "the core is found");
    let wrong: Vec<String> = core.into_iter().flat_map(impure).collect();
    assert!(wrong.is_empty(), "not pure:\n{}", wrong.join("\n"));
}

#[test]
fn axum_is_named_in_webhook_and_admin_only() {
    let all = sources();
    let named: BTreeSet<&str> = all.iter().filter(|source| names_axum(source)).map(Source::top).collect();
    assert_eq!(named, BTreeSet::from(["admin", "webhook"]));
}

#[test]
fn the_client_of_kube_is_named_in_cluster_only() {
    let all = sources();
    let named: BTreeSet<&str> =
        all.iter().filter(|source| names_the_client(source)).map(Source::top).collect();
    assert_eq!(named, BTreeSet::from(["cluster"]));
}

#[test]
fn main_is_thirty_lines_at_most() {
    let main = std::fs::read_to_string(root().join("src/main.rs")).expect("readable");
    assert!(main.lines().count() <= 30, "{} lines", main.lines().count());
}

#[test]
fn unsafe_code_is_forbidden_and_the_toolchain_is_pinned() {
    let read = |file: &str| std::fs::read_to_string(root().join(file)).expect(file);
    let manifest = read("Cargo.toml");
    let lints = manifest.split("[lints.rust]").nth(1).expect("lints").split("\n[").next().expect("a table");
    assert!(lints.lines().any(|line| line.trim() == r#"unsafe_code = "forbid""#), "{lints}");
    assert!(manifest.contains("edition = \"2024\""));

    let toolchain = read("rust-toolchain.toml");
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = \"")).expect("a channel");
    let numbers: Vec<&str> = channel.trim_end_matches('"').split('.').collect();
    assert!(
        numbers.len() == 3 && numbers.iter().all(|n| n.parse::<u32>().is_ok()),
        "{channel}: not one version"
    );
    let minor = format!("rust-version = \"{}.{}\"", numbers[0], numbers[1]);
    assert!(manifest.contains(&minor), "Cargo.toml agrees: {minor}");
}

// ---- what no file may contain ---------------------------------------------------------------------------------

/// Text files that are tracked, or would be by `git add --all`.
fn files() -> Vec<(String, String)> {
    let out = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root())
        .output()
        .expect("git is there");
    let list = String::from_utf8(out.stdout).expect("UTF-8");
    if !out.status.success() || list.is_empty() {
        // An archive without .git: what is there is what is looked at.
        let mut all = Vec::new();
        for dir in ["src", "tests", "charts", "manifests", "docs", "benches", "certs"] {
            if root().join(dir).is_dir() {
                collect(&root().join(dir), &mut all);
            }
        }
        return all.iter().filter_map(|path| Some((path.display().to_string(), text(path)?))).collect();
    }
    list.split('\0')
        .filter(|name| !name.is_empty())
        .filter_map(|name| Some((name.to_owned(), text(&root().join(name))?)))
        .collect()
}

fn text(path: &Path) -> Option<String> {
    String::from_utf8(std::fs::read(path).ok()?).ok()
}

/// The lines of `text` that hold the beginning of a private key, in any of its forms.
fn private_keys(text: &str) -> Vec<usize> {
    let begins = |line: &str| {
        line.split("-----BEGIN ").skip(1).any(|rest| {
            let label = rest.split("-----").next().unwrap_or_default();
            label.ends_with("PRIVATE KEY") || label.ends_with("PRIVATE KEY BLOCK")
        })
    };
    text.lines().enumerate().filter(|(_, line)| begins(line)).map(|(n, _)| n + 1).collect()
}

/// The lines of `text` that name a registry of container images.
fn registries(text: &str) -> Vec<usize> {
    // In pieces, as this file is looked at as well.
    let hosts: Vec<String> = [
        &["docker", "io"][..],
        &["registry", "k8s", "io"],
        &["k8s", "gcr", "io"],
        &["gcr", "io"],
        &["ghcr", "io"],
        &["quay", "io"],
        &["pkg", "dev"],
        &["mcr", "microsoft", "com"],
        &["public", "ecr", "aws"],
        &["amazonaws", "com"],
        &["azurecr", "io"],
        &["registry", "gitlab", "com"],
        &["hub", "docker", "com"],
    ]
    .iter()
    .map(|pieces| pieces.join("."))
    .collect();
    let lower = text.to_lowercase();
    lower
        .lines()
        .enumerate()
        .filter(|(_, line)| hosts.iter().any(|host| line.contains(host.as_str())))
        .map(|(n, _)| n + 1)
        .collect()
}

fn assert_none(what: &str, find: fn(&str) -> Vec<usize>) {
    let files = files();
    assert!(files.iter().any(|(name, _)| name.ends_with("src/lib.rs")), "the files are found");
    let found: Vec<String> = files
        .iter()
        .flat_map(|(name, text)| find(text).into_iter().map(move |line| format!("{name}:{line}")))
        .collect();
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn no_private_key_is_in_any_file() {
    assert_none("private keys", private_keys);
}

#[test]
fn no_registry_host_is_in_any_file() {
    assert_none("registry hosts", registries);
}

// ---- the rules can be broken ----------------------------------------------------------------------------------

#[test]
fn the_scanner_finds_a_dependency_that_points_back() {
    let wrong = |file: &str, text: &str| against_the_direction(&Source::new(file, text));
    for (file, text, expected) in [
        ("core/policy.rs", "use crate::cluster::Cluster;", "cluster"),
        (
            "core/policy.rs",
            "use crate::{\n  api::policy::Mode,\n  webhook::{judge::Judge, review},\n};",
            "webhook",
        ),
        ("core/policy.rs", "fn f() { crate::telemetry::start(); }", "telemetry"),
        ("core/policy.rs", "use super::super::tls;", "tls"),
        ("core/mod.rs", "pub use super::tls::KeyPair;", "tls"),
        ("api/mod.rs", "use crate::core::policy::Labels;", "core"),
        ("cluster/mod.rs", "use crate::webhook;", "webhook"),
        ("cluster/access.rs", "use crate::telemetry::Metrics;", "telemetry"),
        ("tls.rs", "use super::admin;", "admin"),
        ("admin/page.rs", "use crate::world::World;", "world"),
        ("webhook/certificates/keep.rs", "use super::super::super::commands::judge;", "commands"),
        ("commands/completion.rs", "use crate::cli::Cli;", "cli"),
        ("telemetry.rs", "use rollout_guard::newcomer::X;", "newcomer"),
        ("watcher/election.rs", "use crate::webhook::judge::Judge;", "webhook"),
        ("webhook/judge.rs", "use crate::{core::admission, watcher::election};", "watcher"),
        ("world/policies.rs", "use crate::webhook::review;", "webhook"),
        ("world/mod.rs", "use super::watcher;", "watcher"),
        ("cluster/records.rs", "use crate::world::World;", "world"),
    ] {
        let found = wrong(file, text);
        assert_eq!(found.len(), 1, "{file}: {text}: {found:?}");
        assert!(found[0].ends_with(&format!("uses {expected}")), "{found:?}");
    }
    for (file, text) in [
        (
            "core/policy.rs",
            "use crate::api::policy::Mode; use super::rollout::Phase; use crate::core::message;",
        ),
        ("core/policy.rs", "// use crate::cluster;\n/* crate::tls */ const A: &str = \"crate::webhook\";"),
        ("core/policy.rs", "#[cfg(test)]\nmod tests { use crate::webhook::judge; fn f() { {} } }\n"),
        (
            "webhook/judge.rs",
            "use super::review; use crate::{cluster::access::Access, core::admission, world::World};",
        ),
        ("webhook/certificates/keep.rs", "use super::super::router::Capacity; use super::plan;"),
        ("watcher/election.rs", "use crate::{cluster::Cluster, core::lease, world::World};"),
        ("world/policies.rs", "use super::World; use crate::{admin::Requirement, cluster::policies::Event};"),
        ("commands/judge.rs", "use crate::{watcher, webhook::judge, world::World};"),
        ("admin/mod.rs", "use crate::{shutdown::Shutdown, telemetry, tls::ServedCertificate};"),
        ("world/page.rs", "use crate::{admin::page::Page, cluster::Cluster};"),
        ("main.rs", "use rollout_guard::{cli::Cli, tls};"),
        ("lib.rs", "pub mod cluster; pub use crate::webhook;"),
    ] {
        assert_eq!(wrong(file, text), Vec::<String>::new(), "{file}: {text}");
    }
}

#[test]
fn the_scanner_finds_what_is_not_pure() {
    for text in [
        "async fn f() {}",
        "fn f() { g().await; }",
        "use tokio::time::sleep;",
        "fn f() { tracing::info!(\"x\"); }",
        "use kube::{Api, core::Selector};",
        "fn f(c: kube::Client) {}",
        "let now = Timestamp::now();",
        "use std::time::{Duration, Instant};",
        "use std::time::SystemTime;",
        "use ring::rand::SystemRandom;",
        "let t = jiff::Timestamp::now();",
        "let t = chrono::Utc::now();",
        "std::fs::read(\"x\")",
        "'\"'; let x = '\\''; async {}",
    ] {
        assert!(!impure(&Source::new("core/x.rs", text)).is_empty(), "{text}");
    }
    for text in [
        "/// No async, no `.await`, no tokio::spawn.\nfn f() {}",
        "const A: &str = r#\"async \" tokio::spawn\"#;",
        "const A: &str = \"\\\" Timestamp::now()\";",
        "use kube::core::{Expression, Selector}; use jiff::Timestamp;",
        "use ring::digest::{Context, SHA256};",
        "fn f<'a>(http: &'a str, c: char) -> bool { c == '\"' || c == '\\u{1b}' }",
        "#[cfg(test)]\nmod tests { fn f() { Timestamp::now(); } }",
    ] {
        assert_eq!(impure(&Source::new("core/x.rs", text)), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn the_scanner_finds_axum_and_the_client_where_they_are_named() {
    let source = |text: &str| Source::new("tls.rs", text);
    assert!(names_axum(&source("use axum::Router;")) && names_axum(&source("fn f(b: axum::body::Body) {}")));
    assert!(!names_axum(&source("// axum::Router\nuse tower::Service;")));
    for text in [
        "use kube::{Client, Config};",
        "fn f(client: kube::Client) {}",
        "let api = Api::<Secret>::all(client);",
        "struct A { api: Api<Secret> }",
        "use kube::{api::PostParams, Api};",
        "use kube::client::Body;",
    ] {
        assert!(names_the_client(&source(text)), "{text}");
    }
    for text in [
        "use kube::core::Selector;",
        "enum E { Api { what: String } }",
        "Self::Api { source }",
        "ClusterError::Api { .. }",
    ] {
        assert!(!names_the_client(&source(text)), "{text}");
    }
}

#[test]
fn the_scanner_finds_keys_and_registries() {
    for label in
        ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY"]
    {
        assert_eq!(private_keys(&format!("a\n  -----BEGIN {label}-----\nMII")), [2], "{label}");
    }
    assert_eq!(private_keys("-----BEGIN CERTIFICATE-----\n-----BEGIN PUBLIC KEY-----"), Vec::<usize>::new());
    let host = ["Docker", "io"].join(".");
    assert_eq!(registries(&format!("x\nimage: {host}/library/nginx:1")), [2]);
    assert_eq!(registries("image: localhost/sample:v1\nrollout-guard.io/override"), Vec::<usize>::new());
}
