//! `rollout-guard certs`: makes certificates for development and shows any.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{ClusterArgs, Output};
use crate::webhook::certificates::{
    issue::{Authority, Certificate, Leaf, Lifetimes, is_signed_by},
    plan::keys,
};

/// Makes certificates for development, or shows the ones there are.
#[derive(Args, Debug)]
pub struct CertsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    Generate(GenerateArgs),
    Show(Box<ShowArgs>),
}

/// Writes a CA and a certificate of it, with their keys: ca.crt, ca.key, tls.crt, tls.key.
///
/// Exit status: 0 written, 2 bad input or a file that is there already.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rollout-guard certs generate --dns rollout-guard.rollout-guard.svc
  rollout-guard certs generate --out-dir /tmp/certs --dns localhost --dns guard.test --days 7
  rollout-guard certs generate --dns localhost --force")]
struct GenerateArgs {
    /// The directory to write to; it is made where it does not exist.
    #[arg(long, value_name = "DIR", default_value = "certs")]
    out_dir: PathBuf,

    /// A DNS name that the certificate is for; may be given several times.
    #[arg(long, value_name = "NAME", required = true, value_delimiter = ',')]
    dns: Vec<String>,

    /// How many days CA and certificate are valid.
    #[arg(long, value_name = "N", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,

    /// Overwrite files that are there already.
    #[arg(long)]
    force: bool,

    /// How to print what was written.
    #[arg(long, short = 'o', value_enum, default_value_t)]
    output: Output,
}

/// Shows certificates: subject, issuer, names, validity, fingerprint, and who signed whom.
///
/// Shows FILE, or the certificate and bundle of a Secret. Private keys in it are not shown.
///
/// Exit status: 0 shown, 1 one of them has expired or has not begun, 2 bad input or an error of the API server.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rollout-guard certs show certs/tls.crt
  rollout-guard certs show -n rollout-guard
  rollout-guard certs show --secret rollout-guard-tls -n rollout-guard -o json
  openssl s_client -showcerts -connect localhost:8443 </dev/null | rollout-guard certs show -")]
struct ShowArgs {
    /// A PEM file; - reads standard input. Without it: the Secret.
    #[arg(value_name = "FILE", conflicts_with = "secret")]
    file: Option<PathBuf>,

    /// The Secret to show.
    #[arg(long, value_name = "NAME", default_value = "rollout-guard-certificates")]
    secret: String,

    #[command(flatten)]
    cluster: ClusterArgs,

    /// How to print them.
    #[arg(long, short = 'o', value_enum, default_value_t)]
    output: Output,
}

impl CertsArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// When input is bad, files cannot be read or written, or the API server cannot be asked.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self.action {
            Action::Generate(args) => args.run(Timestamp::now()),
            Action::Show(args) => args.run(Timestamp::now()).await,
        }
    }
}

impl GenerateArgs {
    fn run(self, now: Timestamp) -> anyhow::Result<ExitCode> {
        let (leaf, written) = self.generate(now)?;
        print(&match self.output {
            Output::Json => {
                let shown = describe(leaf.chain(), now);
                format!("{:#}\n", json!({"written": written, "certificate": shown}))
            }
            Output::Text => format!(
                "wrote {}\nfor {}, until {}\nthe keys are secret: never commit them\n",
                written.join(", "),
                self.dns.join(", "),
                leaf.certificate().not_after
            ),
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// Returns the certificate and the files that were written.
    fn generate(&self, now: Timestamp) -> anyhow::Result<(Leaf, Vec<String>)> {
        for name in &self.dns {
            ensure!(is_dns_name(name), "{name:?} is not a DNS name");
        }
        let life = SignedDuration::from_hours(i64::from(self.days) * 24);
        let lifetimes = Lifetimes { authority: life, leaf: life, ..Lifetimes::default() };
        let authority = Authority::issue(&lifetimes, now)?;
        let leaf = authority.sign(&self.dns, &lifetimes, now)?;
        let ca = authority.certificate().pem();
        let files = [
            (keys::BUNDLE, ca.as_str(), 0o644),
            (keys::AUTHORITY_KEY, authority.key_pem(), 0o600),
            (keys::CERTIFICATE, leaf.pair().certificate_pem(), 0o644),
            (keys::KEY, leaf.key_pem(), 0o600),
        ];
        fs::create_dir_all(&self.out_dir)
            .with_context(|| format!("cannot make {}", self.out_dir.display()))?;
        let path = |name: &str| self.out_dir.join(name);
        // All or nothing: half a set of another CA would be worse than none.
        if !self.force
            && let Some((name, ..)) = files.iter().find(|(name, ..)| path(name).symlink_metadata().is_ok())
        {
            bail!("{} is there already; --force overwrites it", path(name).display());
        }
        for (name, text, mode) in files {
            write(&path(name), text, mode)
                .with_context(|| format!("cannot write {}", path(name).display()))?;
        }
        let written = files.iter().map(|(name, ..)| path(name).display().to_string()).collect();
        Ok((leaf, written))
    }
}

fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.strip_prefix("*.").unwrap_or(name).split('.').all(label)
}

/// Writes to a new file and moves it into place, so that its mode holds from the first byte and nobody ever
/// reads half of it.
fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(name);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Longer than any bundle.
const MAX_FILE: u64 = 1 << 20;

impl ShowArgs {
    async fn run(self, now: Timestamp) -> anyhow::Result<ExitCode> {
        let mut certificates = Vec::new();
        if let Some(file) = &self.file {
            let shown =
                if file == Path::new("-") { "standard input".into() } else { file.display().to_string() };
            let mut text = Vec::new();
            let read = if file == Path::new("-") {
                std::io::stdin().lock().take(MAX_FILE).read_to_end(&mut text)
            } else {
                fs::File::open(file).and_then(|file| file.take(MAX_FILE).read_to_end(&mut text))
            };
            read.with_context(|| format!("cannot read {shown}"))?;
            certificates.push((shown.clone(), parse(&String::from_utf8_lossy(&text)).context(shown)?));
        } else {
            let cluster = self.cluster.connect().await?;
            let namespace =
                self.cluster.namespace.as_deref().unwrap_or(cluster.default_namespace()).to_owned();
            for key in [keys::CERTIFICATE, keys::BUNDLE] {
                let place = format!("Secret {namespace}/{}, {key}", self.secret);
                let text = cluster.secret_text(&namespace, &self.secret, key).await;
                match text {
                    Ok(Some(text)) => certificates.push((place.clone(), parse(&text).context(place)?)),
                    Ok(None) => bail!(
                        "there is no Secret {} in the namespace {namespace} (-n and --secret name another)",
                        self.secret
                    ),
                    // cert-manager's Secret has no bundle where its issuer has no CA.
                    Err(error) if key == keys::BUNDLE && error.code().is_none() => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        match self.output {
            Output::Json => {
                let all: Vec<_> = certificates
                    .iter()
                    .map(|(place, found)| json!({"from": place, "certificates": describe(found, now)}))
                    .collect();
                print(&format!("{:#}\n", Value::from(all)))?;
            }
            Output::Text => print(&text(&certificates, now))?,
        }
        let valid = certificates.iter().flat_map(|(_, found)| found).all(|found| found.is_valid(now));
        Ok(if valid { ExitCode::SUCCESS } else { ExitCode::from(1) })
    }
}

/// Prints `text`. A reader that has seen enough, such as `head`, is no error.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

fn parse(text: &str) -> anyhow::Result<Vec<Certificate>> {
    Ok(Certificate::parse_all(text)?)
}

fn days_left(certificate: &Certificate, now: Timestamp) -> i64 {
    certificate.not_after.duration_since(now).as_hours().div_euclid(24)
}

/// Who among `all` signed `certificate`, by name and key.
fn signer<'a>(certificate: &Certificate, all: &'a [Certificate]) -> Option<&'a Certificate> {
    all.iter().find(|other| is_signed_by(certificate, other))
}

fn describe(certificates: &[Certificate], now: Timestamp) -> Vec<Value> {
    let one = |certificate: &Certificate| {
        json!({
            "subject": certificate.subject,
            "issuer": certificate.issuer,
            "serial": certificate.serial,
            "names": certificate.names,
            "authority": certificate.authority,
            "notBefore": certificate.not_before.to_string(),
            "notAfter": certificate.not_after.to_string(),
            "daysLeft": days_left(certificate, now),
            "valid": certificate.is_valid(now),
            "sha256": certificate.fingerprint.to_string(),
            "signedBy": signer(certificate, certificates).map(|signer| signer.fingerprint.to_string()),
        })
    };
    certificates.iter().map(one).collect()
}

fn text(certificates: &[(String, Vec<Certificate>)], now: Timestamp) -> String {
    let all: Vec<_> = certificates.iter().flat_map(|(_, found)| found.iter().cloned()).collect();
    let mut out = String::new();
    for (place, found) in certificates {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{place}");
        for certificate in found {
            let state = if now < certificate.not_before {
                "not yet valid".to_owned()
            } else if !certificate.is_valid(now) {
                format!("expired {} days ago", -1 - days_left(certificate, now))
            } else {
                format!("{} days left", days_left(certificate, now))
            };
            let signer = match signer(certificate, &all) {
                Some(signer) if signer == certificate => "itself".to_owned(),
                Some(signer) => format!("{} (shown here)", signer.subject),
                None => format!("{} (not shown here)", certificate.issuer),
            };
            let names =
                if certificate.names.is_empty() { "-".to_owned() } else { certificate.names.join(", ") };
            let rows = [
                ("subject", certificate.subject.clone()),
                ("signed by", signer),
                ("names", names),
                ("authority", if certificate.authority { "yes" } else { "no" }.to_owned()),
                ("valid", format!("{} to {} ({state})", certificate.not_before, certificate.not_after)),
                ("serial", certificate.serial.clone()),
                ("sha256", certificate.fingerprint.to_string()),
            ];
            for (index, (name, value)) in rows.into_iter().enumerate() {
                // A certificate is anybody's to write: no control characters on a terminal.
                let value: String = value.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
                let _ = writeln!(out, "{} {name:<10} {value}", if index == 0 { "-" } else { " " });
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::tls::KeyPair;

    fn generate(dir: &Path, force: bool) -> anyhow::Result<(Leaf, Vec<String>)> {
        let args = GenerateArgs {
            out_dir: dir.join("certs"),
            dns: vec!["localhost".to_owned(), "guard.ns.svc".to_owned()],
            days: 7,
            force,
            output: Output::Text,
        };
        args.generate(Timestamp::now())
    }

    #[test]
    fn what_is_generated_can_be_served_and_its_keys_are_for_the_owner_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        generate(dir.path(), false).expect("generated");
        let read = |name: &str| fs::read_to_string(dir.path().join("certs").join(name)).expect("read");
        KeyPair::from_pem(&read("tls.crt"), &read("tls.key")).expect("a pair");
        let leaf = parse(&read("tls.crt")).expect("parses").remove(0);
        let ca = parse(&read("ca.crt")).expect("parses");
        assert_eq!(signer(&leaf, &ca), Some(&ca[0]));
        assert_eq!(days_left(&leaf, Timestamp::now()), 6);
        for name in ["tls.key", "ca.key"] {
            let mode = fs::metadata(dir.path().join("certs").join(name)).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(fs::read_dir(dir.path().join("certs")).expect("listed").count(), 4, "nothing left over");
    }

    #[test]
    fn nothing_is_overwritten_without_force() {
        let dir = tempfile::tempdir().expect("a directory");
        generate(dir.path(), false).expect("generated");
        let file = dir.path().join("certs/tls.crt");
        let before = fs::read_to_string(&file).expect("read");
        let error = generate(dir.path(), false).expect_err("there already");
        assert!(error.to_string().contains("--force"), "{error}");
        assert_eq!(fs::read_to_string(&file).expect("read"), before);
        generate(dir.path(), true).expect("generated");
        assert_ne!(fs::read_to_string(&file).expect("read"), before);
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["", "a..b", "-a", "a b", "a/b", &"a".repeat(64), "ä.example"] {
            assert!(!is_dns_name(name), "{name:?}");
        }
        for name in ["localhost", "guard.ns.svc", "*.example.test"] {
            assert!(is_dns_name(name), "{name:?}");
        }
    }

    #[test]
    fn an_expired_certificate_says_so() {
        let now = Timestamp::now();
        let old = now - SignedDuration::from_hours(24 * 10);
        let lifetimes = Lifetimes { authority: SignedDuration::from_hours(24), ..Lifetimes::default() };
        let ca = Authority::issue(&lifetimes, old).expect("issued").certificate().clone();
        let shown = text(&[("x".to_owned(), vec![ca])], now);
        assert!(shown.contains("expired 9 days ago") || shown.contains("expired 8 days ago"), "{shown}");
        assert!(shown.contains("signed by  itself"), "{shown}");
    }
}
