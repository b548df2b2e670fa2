//! `rollout-guard completion`: completions for a shell, also of what is in the cluster.
//!
//! The script that is printed asks this program for the candidates each time. A shell waits for the answer while somebody
//! types, so it comes within two seconds or is empty, and no error is ever printed.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::Write as _,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Arg, Args, Command};
use clap_complete::{
    CompleteEnv, Shell,
    engine::{ArgValueCompleter, CompletionCandidate, complete},
    env::Shells,
};

use super::{ClusterArgs, output::Out};
use crate::{
    cluster::{Cluster, ClusterError, reading},
    core::message::plain,
};

/// The variable by which the shell's script asks for candidates.
const VARIABLE: &str = "_ROLLOUT_GUARD_COMPLETE";

/// The first argument by which `kubectl_complete-rollout_guard` asks for candidates.
const BY_KUBECTL: &str = "__complete";

/// The longest that somebody who types is kept waiting.
const LIMIT: Duration = Duration::from_secs(2);

/// The most characters of a candidate's description.
const LONGEST_HELP: usize = 100;

/// Prints completions for a shell: of commands and flags, and of the Deployments, namespaces and contexts that your
/// kubeconfig leads to.
///
/// For `kubectl rollout-guard` put an executable file named kubectl_complete-rollout_guard into your PATH, with these two
/// lines:
///
///   #!/bin/sh
///   exec rollout-guard __complete "$@"
#[derive(Args, Debug)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  source <(rollout-guard completion bash)
  rollout-guard completion zsh > \"${fpath[1]}/_rollout-guard\"
  rollout-guard completion fish > ~/.config/fish/completions/rollout-guard.fish"
)]
pub struct CompletionArgs {
    /// The shell.
    shell: Shell,
}

impl CompletionArgs {
    /// Prints the script.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let shells = Shells::builtins();
        let shell = shells.completer(&self.shell.to_string()).context("no completions for this shell")?;
        let (name, mut script) = ("rollout-guard", Vec::new());
        shell.write_registration(VARIABLE, name, name, name, &mut script)?;
        Out.write(&String::from_utf8(script)?)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Answers a shell, or kubectl, that asks for candidates; none where this is no such call. `command` is the whole command
/// line.
pub fn answer(command: impl Fn() -> Command) -> Option<ExitCode> {
    let words: Vec<OsString> = env::args_os().collect();
    if words.get(1).is_some_and(|word| word == BY_KUBECTL) {
        by_kubectl(command(), words);
        return Some(ExitCode::SUCCESS);
    }
    let asked = env::var_os(VARIABLE).is_some_and(|shell| !shell.is_empty() && shell != "0");
    if !asked {
        return None;
    }
    let given = Given::of(words.iter().skip_while(|word| *word != "--").skip(1));
    let with_candidates = || with_candidates(command(), &given);
    let here = env::current_dir().ok();
    let answered =
        CompleteEnv::with_factory(with_candidates).var(VARIABLE).try_complete(&words, here.as_deref());
    // An answer that could not be given is an empty one.
    (!matches!(answered, Ok(false))).then_some(ExitCode::SUCCESS)
}

/// Prints candidates as kubectl's own commands do: a line each with its description, then what else is to be offered:
/// 4 is no file names (`ShellCompDirectiveNoFileComp` of Cobra).
fn by_kubectl(command: Command, mut words: Vec<OsString>) {
    words.remove(1);
    if words.len() == 1 {
        words.push(OsString::new());
    }
    let given = Given::of(words.iter());
    let last = words.len() - 1;
    let mut command = with_candidates(command, &given);
    let found = complete(&mut command, words, last, None).unwrap_or_default();
    let mut text = String::new();
    for candidate in found {
        text += &plain(&candidate.get_value().to_string_lossy(), 300);
        if let Some(help) = candidate.get_help() {
            let help = help.to_string();
            text += "\t";
            text += &plain(help.lines().next().unwrap_or_default(), LONGEST_HELP);
        }
        text += "\n";
    }
    text += ":4\n";
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// What was typed so far that says which cluster and namespace are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Given {
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
    namespace: Option<String>,
}

impl Given {
    fn of<'a>(words: impl Iterator<Item = &'a OsString>) -> Self {
        let mut given = Self::default();
        let words: Vec<&str> = words.filter_map(|word| word.to_str()).collect();
        // The last word is the one that is being typed.
        let done = words.len().saturating_sub(1);
        for (place, word) in words.iter().take(done).enumerate() {
            let next = || words.get(place + 1).filter(|_| place + 1 < done).map(|next| (*next).to_owned());
            let (flag, value) = match word.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (*word, next()),
            };
            match flag {
                "--kubeconfig" => given.kubeconfig = value.map(PathBuf::from),
                "--context" => given.context = value,
                "-n" | "--namespace" => given.namespace = value,
                _ => {}
            }
        }
        given
    }

    fn cluster(self) -> ClusterArgs {
        ClusterArgs { kubeconfig: self.kubeconfig, context: self.context, namespace: self.namespace }
    }
}

/// Returns `command` with candidates at every argument that names a Deployment, a namespace or a context.
fn with_candidates(command: Command, given: &Given) -> Command {
    let below = given.clone();
    command
        .mut_args(|arg| with_candidate(arg, given))
        .mut_subcommands(move |command| with_candidates(command, &below))
}

fn with_candidate(arg: Arg, given: &Given) -> Arg {
    let given = given.clone();
    match arg.get_id().as_str() {
        "name" | "names" if arg.is_positional() => {
            arg.add(ArgValueCompleter::new(move |typed: &OsStr| deployments(typed, given.clone())))
        }
        "namespace" | "probe_namespace" => {
            arg.add(ArgValueCompleter::new(move |typed: &OsStr| namespaces(typed, given.clone())))
        }
        "context" => arg.add(ArgValueCompleter::new(move |typed: &OsStr| contexts(typed, &given))),
        _ => arg,
    }
}

fn deployments(typed: &OsStr, given: Given) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    // What stands before the name is kept: deploy/w.
    let kind = typed.rfind('/').map_or("", |at| &typed[..=at]);
    let args = given.cluster();
    let names = ask(&args, async |cluster| cluster.deployment_names(args.namespace(cluster)).await);
    beginning_with(&typed, names.into_iter().map(|name| format!("{kind}{name}")))
}

fn namespaces(typed: &OsStr, given: Given) -> Vec<CompletionCandidate> {
    let names = ask(&given.cluster(), async |cluster| cluster.namespace_names().await);
    beginning_with(&typed.to_string_lossy(), names)
}

fn contexts(typed: &OsStr, given: &Given) -> Vec<CompletionCandidate> {
    beginning_with(&typed.to_string_lossy(), reading::contexts(given.kubeconfig.as_deref()))
}

/// Asks the cluster, within the time limit; nothing where it does not answer.
fn ask(
    args: &ClusterArgs,
    question: impl AsyncFnOnce(&Cluster) -> Result<Vec<String>, ClusterError>,
) -> Vec<String> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let answer = runtime.block_on(async {
        let asked = async { question(&args.connect().await?).await.map_err(anyhow::Error::from) };
        tokio::time::timeout(LIMIT, asked).await
    });
    // What hangs, such as a program that gives credentials, is not waited for.
    runtime.shutdown_background();
    answer.ok().and_then(Result::ok).unwrap_or_default()
}

fn beginning_with(typed: &str, names: impl IntoIterator<Item = String>) -> Vec<CompletionCandidate> {
    names.into_iter().filter(|name| name.starts_with(typed)).map(CompletionCandidate::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(words: &[&str]) -> Given {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        Given::of(words.iter())
    }

    #[test]
    fn what_was_typed_so_far_says_which_cluster_and_namespace_are_meant() {
        let all = given(&["status", "-n", "shop", "--context=staging", "--kubeconfig", "/a/b", "w"]);
        assert_eq!(
            all,
            Given {
                kubeconfig: Some("/a/b".into()),
                context: Some("staging".to_owned()),
                namespace: Some("shop".to_owned()),
            }
        );
        assert_eq!(given(&["status", "-n", "sh"]).namespace, None, "not typed to its end");
        assert_eq!(given(&[]), Given::default());
    }
}
