//! Certificates from end to end, without a cluster: real replicas against an API server of our own that
//! keeps three objects, and real TLS connections over a swap.

#![allow(clippy::expect_used, reason = "a test that cannot go on fails")]

mod certificates {
    pub mod api;
}

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use certificates::api::{Api, MUTATING, NAMESPACE, SECRET, VALIDATING};
use jiff::{SignedDuration, Timestamp};
use rollout_guard::{
    admin::Readiness,
    shutdown::{Shutdown, Trigger},
    telemetry::Metrics,
    tls::{self, ServedCertificate},
    webhook::certificates::{
        Requirements, Settings,
        issue::{Authority, Certificate, Leaf, Lifetimes, bundle_pem, verify},
        keep_mounted, keep_own,
    },
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

fn settings() -> Settings {
    let mut settings = Settings::new(NAMESPACE, "guard", SECRET, "guard", "guard");
    settings.terms.settle = SignedDuration::from_millis(700);
    // Long: what is repaired sooner is repaired by the watch.
    settings.recheck = Duration::from_secs(60);
    settings
}

/// One replica of the guard, as far as certificates go.
struct Replica {
    served: ServedCertificate,
    readiness: Readiness,
    metrics: Metrics,
    _trigger: Trigger,
    task: JoinHandle<()>,
}

impl Replica {
    fn start(api: &Api) -> Self {
        Self::start_with(api, settings())
    }

    fn start_with(api: &Api, settings: Settings) -> Self {
        let (served, readiness, metrics) =
            (ServedCertificate::default(), Readiness::default(), Metrics::default());
        let requirements = Requirements {
            certificates: readiness.require("certificates"),
            ca_bundle: readiness.require("ca-bundle"),
        };
        let (trigger, shutdown) = Shutdown::new();
        let task = tokio::spawn(keep_own(
            settings,
            api.connect(),
            served.clone(),
            requirements,
            metrics.clone(),
            shutdown,
        ));
        Self { served, readiness, metrics, _trigger: trigger, task }
    }

    fn is_ready(&self) -> bool {
        self.readiness.missing().is_empty()
    }

    /// The fingerprint of what it serves.
    fn serves(&self) -> Option<Certificate> {
        let pem = self.served.pem()?;
        Some(Certificate::parse_all(&pem).expect("parses").remove(0))
    }

    /// What an API server would say that calls it now.
    fn call(&self, api: &Api) -> Result<(), String> {
        let chain = Certificate::parse_all(&self.served.pem().expect("serves")).expect("parses");
        for collection in [VALIDATING, MUTATING] {
            let anchors = Certificate::parse_all(&api.bundle(collection)).unwrap_or_default();
            verify(&chain, &anchors, &settings().server_name(), Timestamp::now())
                .map_err(|why| format!("{collection}: {why}"))?;
        }
        Ok(())
    }
}

/// Waits until `holds`, and tells how long that took.
async fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_18_three_replicas_that_bootstrap_at_once_share_one_ca() {
    for _ in 0..5 {
        let api = Api::start().await;
        let replicas = [(); 3].map(|()| Replica::start(&api));
        until("all ready", SOON, || replicas.iter().all(Replica::is_ready)).await;
        assert_eq!(Certificate::parse_all(&api.bundle(VALIDATING)).expect("parses").len(), 1, "one CA");
        assert_eq!(api.bundle(VALIDATING), api.bundle(MUTATING));
        assert_eq!(api.successes("POST"), 1, "one of them created the Secret");
        let leaf = replicas[0].serves();
        for replica in &replicas {
            assert_eq!(replica.serves(), leaf);
            replica.call(&api).expect("trusted");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_22_a_wiped_ca_bundle_is_back_within_two_seconds_and_nobody_becomes_unready() {
    let api = Api::start().await;
    let replicas = [(); 2].map(|()| Replica::start(&api));
    until("all ready", SOON, || replicas.iter().all(Replica::is_ready)).await;
    // The watches have to be up: nothing else tells of the wipe before the minute is over.
    until("watches", SOON, || api.watches() == 6).await;
    let bundle = api.bundle(VALIDATING);
    for collection in [VALIDATING, MUTATING] {
        api.wipe(collection);
        let took = until("repaired", SOON, || {
            assert!(replicas.iter().all(Replica::is_ready), "readiness went down");
            api.bundle(collection) == bundle
        })
        .await;
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    let writes: u64 = replicas.iter().map(|replica| replica.metrics.ca_bundle_writes.get()).sum();
    assert!(writes <= 8, "{writes} writes for two wipes and the start");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_20_killed_between_the_secret_and_the_ca_bundle_is_made_up_for() {
    let api = Api::start().await;
    let running = Replica::start(&api);
    until("ready", SOON, || running.is_ready()).await;
    until("watches", SOON, || api.watches() == 3).await;
    let before = running.serves().expect("serves");

    // The key of the CA is lost: whoever comes first stages a new CA, and is killed before it publishes it.
    api.hold_patches(true);
    running.task.abort();
    api.edit_secret(|data| {
        data.remove("ca.key");
    });
    let killed = Replica::start(&api);
    until("staged", SOON, || api.secret_text("next-ca.key").is_some()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    killed.task.abort();
    assert_eq!(Certificate::parse_all(&api.bundle(VALIDATING)).expect("parses").len(), 1, "not published");
    api.hold_patches(false);

    let next = Replica::start(&api);
    until("served by the old CA first", SOON, || next.serves().is_some()).await;
    assert_eq!(next.serves().expect("serves").fingerprint, before.fingerprint);
    until("published", SOON, || {
        Certificate::parse_all(&api.bundle(MUTATING)).is_ok_and(|bundle| bundle.len() == 2)
    })
    .await;
    until("served by the new CA", SOON, || {
        next.call(&api).expect("never a leaf the bundle lacks");
        next.serves().expect("serves").fingerprint != before.fingerprint
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_21_a_deleted_or_broken_secret_is_regenerated_and_no_call_is_lost() {
    let api = Api::start().await;
    let replicas = [(); 3].map(|()| Replica::start(&api));
    until("all ready", SOON, || replicas.iter().all(Replica::is_ready)).await;
    until("watches", SOON, || api.watches() == 9).await;
    let all_trusted = || {
        for replica in &replicas {
            replica.call(&api).expect("trusted at every moment");
            assert!(replica.is_ready());
        }
    };
    let before = replicas[0].serves().expect("serves");

    api.edit_secret(|data| {
        data.insert("tls.crt".to_owned(), b"-----BEGIN CERTIFICATE-----\nMIIB".to_vec());
    });
    until("put back", SOON, || {
        all_trusted();
        api.secret_text("tls.crt").is_some_and(|text| Certificate::parse_all(&text).is_ok())
    })
    .await;
    assert_eq!(replicas[0].serves(), Some(before.clone()), "as it was");
    assert!(replicas.iter().any(|replica| replica.metrics.certificate_errors.get() > 0));

    api.delete_secret();
    let took = until("made anew", SOON, || {
        all_trusted();
        api.secret_text("tls.crt").is_some()
    })
    .await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    until("all have gone over", SOON, || {
        all_trusted();
        let leaf =
            api.secret_text("tls.crt").map(|text| Certificate::parse_all(&text).expect("parses").remove(0));
        leaf.as_ref() != Some(&before) && replicas.iter().all(|replica| replica.serves() == leaf)
    })
    .await;
    assert_eq!(api.successes("POST"), 2);
    assert!(replicas.iter().all(|replica| replica.metrics.certificate_reloads.get() >= 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_29_somebody_who_keeps_wiping_the_ca_bundle_is_not_fought_with() {
    let api = Api::start().await;
    let replica = Replica::start(&api);
    until("ready", SOON, || replica.is_ready()).await;
    until("watches", SOON, || api.watches() == 3).await;
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        if !api.bundle(VALIDATING).is_empty() {
            api.wipe(VALIDATING);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let writes = replica.metrics.ca_bundle_writes.get();
    assert!((3..=7).contains(&writes), "{writes} writes in six seconds");
    assert!(replica.is_ready());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_configuration_is_named_and_waited_for_and_never_created() {
    let api = Api::start().await;
    let saved = api.remove(MUTATING);
    let replica = Replica::start(&api);
    let why = "ca-bundle: MutatingWebhookConfiguration guard does not exist";
    until("named", SOON, || replica.readiness.missing() == [why]).await;
    until("watches", SOON, || api.watches() == 3).await;
    assert!(!api.exists(MUTATING));
    api.put(MUTATING, saved);
    let took = until("ready", SOON, || replica.is_ready()).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaf_of_a_few_seconds_is_renewed_again_and_again_without_a_lost_call() {
    let api = Api::start().await;
    let mut short = settings();
    short.recheck = Duration::from_millis(300);
    short.write_every = SignedDuration::from_secs(1);
    short.terms.settle = SignedDuration::from_millis(300);
    short.terms.lifetimes = Lifetimes {
        authority: SignedDuration::from_secs(24),
        leaf: SignedDuration::from_secs(6),
        backdated: SignedDuration::from_secs(1),
    };
    let replicas = [(); 2].map(|()| Replica::start_with(&api, short.clone()));
    until("all ready", SOON, || replicas.iter().all(Replica::is_ready)).await;
    let first = Certificate::parse_all(&api.bundle(VALIDATING)).expect("parses").remove(0);
    let mut leaves = std::collections::BTreeSet::new();
    // The CA is due after two thirds of 25 s, and gone when the last leaf of it has ended.
    until("another CA alone", Duration::from_secs(40), || {
        for replica in &replicas {
            replica.call(&api).expect("trusted at every moment");
        }
        leaves.insert(replicas[0].serves().expect("serves").fingerprint);
        let bundle = Certificate::parse_all(&api.bundle(VALIDATING)).expect("parses");
        !bundle.contains(&first)
    })
    .await;
    assert!(leaves.len() >= 4, "{} leaves", leaves.len());
}

/// A Secret volume: files in a directory of their own, `..data` pointing to it, names pointing through it.
fn mount(dir: &Path, version: &str, certificate: &str, key: &str) {
    use std::os::unix::fs::symlink;
    let real = dir.join(version);
    std::fs::create_dir(&real).expect("made");
    std::fs::write(real.join("tls.crt"), certificate).expect("written");
    std::fs::write(real.join("tls.key"), key).expect("written");
    symlink(version, dir.join("..data_tmp")).expect("linked");
    std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).expect("swapped");
    for name in ["tls.crt", "tls.key"] {
        if !dir.join(name).exists() {
            symlink(Path::new("..data").join(name), dir.join(name)).expect("linked");
        }
    }
}

async fn connect(
    address: std::net::SocketAddr,
    ca: &Certificate,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).expect("parses")).expect("usable");
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(settings().server_name()).expect("a name");
    let stream = TcpStream::connect(address).await.expect("connects");
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("handshake")
}

fn peer(stream: &tokio_rustls::client::TlsStream<TcpStream>) -> Certificate {
    let chain = stream.get_ref().1.peer_certificates().expect("a chain");
    Certificate::parse(chain[0].clone().into_owned()).expect("parses")
}

async fn echo(stream: &mut tokio_rustls::client::TlsStream<TcpStream>, text: &[u8]) {
    stream.write_all(text).await.expect("written");
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await.expect("read");
    assert_eq!(back, text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounted_files_are_followed_over_the_symlink_swap_and_open_connections_stay() {
    tls::install_provider();
    let now = Timestamp::now();
    let lifetimes = Lifetimes::default();
    let ca = Authority::issue(&lifetimes, now).expect("issued");
    let leaf = |authority: &Authority| -> Leaf {
        authority.sign(&settings().names(), &lifetimes, now).expect("signed")
    };
    let (first, second) = (leaf(&ca), leaf(&ca));
    let dir = tempfile::tempdir().expect("a directory");
    mount(dir.path(), "..1", first.pair().certificate_pem(), first.key_pem());

    let api = Api::start().await;
    let (served, readiness, metrics) =
        (ServedCertificate::default(), Readiness::default(), Metrics::default());
    let requirements = Requirements {
        certificates: readiness.require("certificates"),
        ca_bundle: readiness.require("ca-bundle"),
    };
    let (_trigger, shutdown) = Shutdown::new();
    let mut settings = settings();
    settings.poll = Duration::from_millis(50);
    tokio::spawn(keep_mounted(
        dir.path().to_owned(),
        settings,
        api.connect(),
        served.clone(),
        requirements,
        metrics.clone(),
        shutdown,
    ));
    until("loaded", SOON, || served.current().is_some()).await;
    until("says why", SOON, || {
        readiness.missing().iter().any(|why| why.contains("there is no CA to verify it by"))
    })
    .await;
    for collection in [VALIDATING, MUTATING] {
        api.set_bundle(collection, &bundle_pem(std::slice::from_ref(ca.certificate())));
    }
    until("ready", SOON, || readiness.missing().is_empty()).await;
    assert_eq!(metrics.ca_bundle_writes.get(), 0, "the caBundle is somebody else's");

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let config = Arc::new(tls::server_config(served.clone(), None).expect("configured"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&config));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut buffer = [0; 64];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    stream.write_all(&buffer[..read]).await.expect("written");
                }
            });
        }
    });
    let mut old = connect(address, ca.certificate()).await;
    assert_eq!(&peer(&old), first.certificate());
    echo(&mut old, b"before").await;

    // A key that does not belong to the certificate never replaces what is served.
    mount(dir.path(), "..2", second.pair().certificate_pem(), first.key_pem());
    until("noticed", SOON, || metrics.certificate_errors.get() == 1).await;
    assert_eq!(&peer(&connect(address, ca.certificate()).await), first.certificate());
    // Nor does rubbish, a truncated file or an empty directory.
    mount(dir.path(), "..3", &second.pair().certificate_pem()[..300], second.key_pem());
    until("noticed", SOON, || metrics.certificate_errors.get() == 2).await;
    assert_eq!(&peer(&connect(address, ca.certificate()).await), first.certificate());

    mount(dir.path(), "..4", second.pair().certificate_pem(), second.key_pem());
    until("swapped", SOON, || metrics.certificate_reloads.get() == 1).await;
    let mut new = connect(address, ca.certificate()).await;
    assert_eq!(&peer(&new), second.certificate());
    echo(&mut old, b"the old connection stays usable").await;
    echo(&mut new, b"as is the new one").await;
    assert!(readiness.missing().is_empty());
}
