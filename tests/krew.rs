//! The krew plugin: its manifest, the archive it is unpacked from, and the program under the name that kubectl finds.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

/// The name of krew for a file that kubectl runs as `kubectl rollout-guard`.
const PROGRAM: &str = "kubectl-rollout_guard";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn manifest() -> Value {
    let text = std::fs::read_to_string(root().join("krew/rollout-guard.yaml")).expect("readable");
    serde_yaml_ng::from_str(&text).expect("YAML")
}

fn platforms(manifest: &Value) -> Vec<(String, Value)> {
    let all = manifest["spec"]["platforms"].as_array().expect("platforms");
    let name = |platform: &Value| {
        let labels = &platform["selector"]["matchLabels"];
        format!("{}-{}", labels["os"].as_str().expect("os"), labels["arch"].as_str().expect("arch"))
    };
    all.iter().map(|platform| (name(platform), platform.clone())).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stderr), text(&output.stdout));
    text(&output.stdout)
}

fn script(name: &str) -> Command {
    Command::new(root().join("krew").join(name))
}

/// An archive with the program of this build, without what a debugger wants, which is most of it.
fn archive(dir: &Path) -> PathBuf {
    let (program, slim) = (env!("CARGO_BIN_EXE_rollout-guard"), dir.join("slim"));
    let stripped = Command::new("strip").arg("-o").arg(&slim).arg(program).status();
    let program = if stripped.is_ok_and(|status| status.success()) { slim } else { program.into() };
    let made = succeeds(script("archive.sh").arg(dir).arg(program).arg("linux-amd64"));
    PathBuf::from(made.trim())
}

#[test]
fn the_manifest_is_one_that_krew_takes_and_of_this_version() {
    let manifest = manifest();
    assert_eq!(manifest["apiVersion"], "krew.googlecontainertools.github.com/v1alpha2");
    assert_eq!(
        (&manifest["kind"], &manifest["metadata"]["name"]),
        (&"Plugin".into(), &"rollout-guard".into())
    );
    let spec = &manifest["spec"];
    let version = format!("v{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(spec["version"], version);
    let short = spec["shortDescription"].as_str().expect("a text");
    assert!(short.len() <= 50 && !short.ends_with('.') && !short.contains("kubectl"), "{short}");
    assert!(spec["description"].as_str().is_some_and(|text| text.lines().all(|line| line.len() <= 90)));

    let all = platforms(&manifest);
    let names: BTreeSet<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    let wanted =
        ["linux", "darwin", "windows"].map(|os| ["amd64", "arm64"].map(|arch| format!("{os}-{arch}")));
    assert_eq!(names, wanted.iter().flatten().map(String::as_str).collect::<BTreeSet<&str>>());
    assert_eq!(names.len(), all.len(), "each once");
    for (name, platform) in &all {
        let windows = name.starts_with("windows");
        let bin = if windows { format!("{PROGRAM}.exe") } else { PROGRAM.to_owned() };
        assert_eq!(platform["bin"], bin, "{name}");
        let from: Vec<&str> =
            platform["files"].as_array().expect("files").iter().filter_map(|f| f["from"].as_str()).collect();
        assert_eq!(from, [bin.as_str(), "LICENSE"], "{name}");
        assert!(platform["files"].as_array().expect("files").iter().all(|file| file["to"] == "."), "{name}");
        let suffix = if windows { "zip" } else { "tar.gz" };
        let uri = platform["uri"].as_str().expect("a uri");
        assert!(
            uri.starts_with("https://")
                && uri.ends_with(&format!("/{version}/rollout-guard-{name}.{suffix}")),
            "{uri}"
        );
        assert_eq!(platform["sha256"].as_str().map(str::len), Some(64), "{name}");
    }
}

#[test]
fn a_release_is_rendered_from_its_archives_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let none = script("render.sh").arg("v1.2.3").arg(dir.path()).output().expect("runs");
    assert_eq!(none.status.code(), Some(1), "{}", text(&none.stderr));
    for name in ["linux-amd64.tar.gz", "windows-arm64.zip"] {
        std::fs::write(dir.path().join(format!("rollout-guard-{name}")), "abc").expect("written");
    }
    let render = |args: &[&str]| -> Output { script("render.sh").args(args).output().expect("runs") };
    let directory = dir.path().to_str().expect("UTF-8");
    let done = render(&["1.2.3", directory, "https://example.com/d"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(text(&done.stderr).contains("rollout-guard-darwin-arm64.tar.gz"), "what is left out is said");
    let rendered: Value = serde_yaml_ng::from_str(&text(&done.stdout)).expect("YAML");
    assert_eq!(rendered["spec"]["version"], "v1.2.3");
    assert_eq!(rendered["metadata"], manifest()["metadata"]);
    let all = platforms(&rendered);
    assert_eq!(
        all.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["linux-amd64", "windows-arm64"]
    );
    for (_, platform) in &all {
        assert_eq!(platform["sha256"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
    assert_eq!(all[1].1["uri"], "https://example.com/d/v1.2.3/rollout-guard-windows-arm64.zip");
    for wrong in [
        ["latest", directory, "https://a/b"],
        ["1.2.3", "/nonexistent", "https://a/b"],
        ["1.2.3", directory, "ftp://a"],
    ] {
        assert_eq!(render(&wrong).status.code(), Some(2), "{wrong:?}");
    }
}

/// As krew does it: the archive's sum is that of the manifest, its files are unpacked, and the program is in PATH.
#[test]
fn what_krew_would_install_runs_as_a_plugin_of_kubectl() {
    let dir = tempfile::tempdir().expect("a directory");
    let archive = archive(dir.path());
    let rendered = succeeds(script("render.sh").arg(env!("CARGO_PKG_VERSION")).arg(dir.path()));
    let rendered: Value = serde_yaml_ng::from_str(&rendered).expect("YAML");
    let (_, platform) = platforms(&rendered).remove(0);
    let sum = succeeds(Command::new("sha256sum").arg(&archive));
    assert_eq!(sum.split_whitespace().next(), platform["sha256"].as_str());

    let store = dir.path().join("store");
    std::fs::create_dir(&store).expect("a directory");
    succeeds(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&store));
    for file in platform["files"].as_array().expect("files") {
        assert!(store.join(file["from"].as_str().expect("from")).is_file(), "{file}");
    }
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).expect("a directory");
    let program = bin.join(PROGRAM);
    std::os::unix::fs::symlink(store.join(platform["bin"].as_str().expect("bin")), &program).expect("a link");

    let usage = "Usage: kubectl rollout-guard ";
    let help = succeeds(Command::new(&program).arg("--help"));
    assert!(help.contains(usage), "{help}");
    let below = succeeds(Command::new(&program).args(["policy", "test", "--help"]));
    assert!(below.contains("Usage: kubectl rollout-guard policy test "), "{below}");
    let wrong = Command::new(&program).args(["status", "--nonsense"]).output().expect("runs");
    assert!(text(&wrong.stderr).contains(usage), "{}", text(&wrong.stderr));
    let own = succeeds(Command::new(env!("CARGO_BIN_EXE_rollout-guard")).arg("--help"));
    assert!(own.contains("Usage: rollout-guard "), "{own}");

    let mut path = vec![bin];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let path = env::join_paths(path).expect("a PATH");
    let found = Command::new("kubectl").env("PATH", path).args(["rollout-guard", "--help"]).output();
    match found {
        Ok(output) => {
            assert!(output.status.success(), "{}", text(&output.stderr));
            assert_eq!(text(&output.stdout), help, "kubectl runs it");
        }
        Err(error) => println!("not run by kubectl, which is not here: {error}"),
    }
}
