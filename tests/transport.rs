//! The real TLS port: what holds a place without using it is closed, what waits is not, and nothing is lost in a drain.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::{
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use rollout_guard::webhook::server::Limits;
use rustls::{HandshakeKind, ProtocolVersion};
use serde_json::json;
use support::{
    Answers, Door, fixture,
    server::{Ca, Client, Guard, LIMITS, SOON, der, request, soon, until},
};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::Semaphore};

const TIMEOUT: Duration = LIMITS.header_timeout;
const HEALTHY: &str = "update-healthy.validate";
/// What holds a call as long as the test wants.
const HELD: &str = "override-failed.validate";

fn door() -> Door {
    Door::new(json!({}), Answers::No)
}

/// How many connections ended for a cause.
fn rejected(guard: &Guard, cause: &str) -> u64 {
    let line = format!("rollout_guard_admission_rejected_total{{cause=\"{cause}\"}}");
    guard.door.metric(&line).unwrap_or_default()
}

/// Asserts that something took the limit, and not several of it.
fn took_the_limit(what: &str, started: Instant) {
    let ratio = started.elapsed().as_secs_f64() / TIMEOUT.as_secs_f64();
    assert!((0.9..6.0).contains(&ratio), "{what}: closed after {ratio:.1} of the limit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_13_a_handshake_that_does_not_come_is_closed_at_the_limit() {
    let guard = Guard::start(door(), LIMITS).await;
    let begun: &[u8] = &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01];
    for (what, bytes) in [("nothing", &b""[..]), ("a handshake only begun", begun)] {
        let started = Instant::now();
        let mut client = Client::new(TcpStream::connect(guard.address).await.expect("connected"));
        client.write(bytes).await.expect("written");
        client.closed().await;
        took_the_limit(what, started);
    }
    assert_eq!(rejected(&guard, "timeout"), 2);
    // What is no TLS at all is not waited for.
    let started = Instant::now();
    let mut client = Client::new(TcpStream::connect(guard.address).await.expect("connected"));
    client.write(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
    // An alert, then the end.
    let mut rest = Vec::new();
    let _ = soon("the end", client.stream.read_to_end(&mut rest)).await;
    assert!(started.elapsed() < TIMEOUT, "{:?}", started.elapsed());
    assert_eq!(rejected(&guard, "handshake"), 1);
}

/// Sends one byte of a header every so often until the server has had enough.
async fn trickle(client: &mut Client<tokio_rustls::client::TlsStream<TcpStream>>) {
    let header =
        b"POST /validate HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".iter().chain(std::iter::repeat(&b'a'));
    let mut answer = [0; 1];
    let trickling = async {
        for byte in header {
            let step = tokio::time::timeout(Duration::from_millis(20), client.stream.read(&mut answer)).await;
            match step {
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(_)) => panic!("an answer to half a header"),
                Err(_) => {}
            }
            if client.write(&[*byte]).await.is_err() {
                return;
            }
        }
    };
    soon("closed", trickling).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_13_a_slow_header_is_closed_at_the_limit_first_or_later() {
    let guard = Guard::start(door(), LIMITS).await;
    let mut first = guard.connect().await;
    let started = Instant::now();
    trickle(&mut first).await;
    took_the_limit("the first header", started);

    let mut second = guard.connect().await;
    assert_eq!(second.post("/validate", HEALTHY).await.expect("answered").status, 200);
    let started = Instant::now();
    trickle(&mut second).await;
    took_the_limit("the header after a call", started);

    let mut third = guard.connect().await;
    third.write(&request("/nowhere", b"")).await.expect("written");
    assert_eq!(third.reply().await.expect("answered").status, 404);
    let started = Instant::now();
    trickle(&mut third).await;
    took_the_limit("the header after a refused call", started);
    assert_eq!(guard.connect().await.post("/validate", HEALTHY).await.expect("answered").status, 200);
    until("counted", || async { guard.door.metric("rollout_guard_connections") == Some(0) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_13_an_idle_connection_outlives_the_limit_and_serves_on() {
    let guard = Guard::start(door(), LIMITS).await;
    let mut used = guard.connect().await;
    let mut fresh = guard.connect().await;
    for _ in 0..3 {
        assert_eq!(used.post("/validate", HEALTHY).await.expect("answered").status, 200);
        // That nothing happens can only be waited out.
        tokio::time::sleep(TIMEOUT * 2).await;
    }
    assert_eq!(used.post("/mutate", HEALTHY).await.expect("still there").status, 200);
    assert_eq!(fresh.post("/validate", HEALTHY).await.expect("still there").status, 200);
    assert_eq!(rejected(&guard, "timeout"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_13_a_slow_body_and_a_slow_answer_are_not_taken_for_a_slow_header() {
    let hold = Arc::new(Semaphore::new(0));
    let guard = Guard::start(Door::new(json!({}), Answers::Held(Arc::clone(&hold))), LIMITS).await;
    let body = async {
        let mut client = guard.connect().await;
        let bytes = request("/validate", &fixture(HEALTHY));
        for piece in bytes.chunks(bytes.len() / 5 + 1) {
            client.write(piece).await.expect("written");
            tokio::time::sleep(TIMEOUT / 2).await;
        }
        assert_eq!(client.reply().await.expect("answered").status, 200);
    };
    let answer = async {
        let mut client = guard.connect().await;
        client.write(&request("/validate", &fixture(HELD))).await.expect("written");
        tokio::time::sleep(TIMEOUT * 2).await;
        hold.add_permits(1);
        assert_eq!(client.reply().await.expect("answered").status, 200);
        assert_eq!(client.post("/validate", HEALTHY).await.expect("answered").status, 200);
    };
    tokio::join!(body, answer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_refused_before_its_body_is_read_leaves_the_connection_closed_or_usable() {
    let guard = Guard::start(door(), LIMITS).await;
    // Of many sizes, as it depends on how much of the body has come when the answer is begun.
    let calls = [0, 100, 5_000, 9_000, 12_000, 20_000, 40_000, 300_000].map(|length| {
        let guard = &guard;
        async move {
            let mut client = guard.connect().await;
            let body = vec![b' '; length];
            let sent = client.write(&request("/nowhere", &body)).await;
            let reply = client.reply().await;
            let Ok(reply) = reply else {
                // Reset while the body was still on its way: the client knows at once.
                assert!(sent.is_err() || length > 100_000, "{length}");
                return;
            };
            assert_eq!(reply.status, 404, "{length}");
            let mut byte = [0; 1];
            let end = tokio::time::timeout(TIMEOUT / 2, client.stream.read(&mut byte)).await;
            if end.is_ok() {
                return;
            }
            tokio::time::sleep(TIMEOUT * 2).await;
            let again = client.post("/validate", HEALTHY).await;
            assert_eq!(again.map(|reply| reply.status).ok(), Some(200), "{length} bytes: closed while idle");
        }
    });
    join_all(calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_14_connections_beyond_the_cap_are_closed_at_once_and_probes_are_answered() {
    const CAP: usize = 50;
    let guard = Guard::start(door(), Limits { connections: CAP, ..LIMITS }).await;
    let mut held = Vec::new();
    for _ in 0..CAP {
        let mut client = guard.connect().await;
        assert_eq!(client.post("/validate", HEALTHY).await.expect("answered").status, 200);
        held.push(client);
    }
    until("counted", || async { guard.door.metric("rollout_guard_connections") == Some(CAP as u64) }).await;

    // In bursts that the kernel's queue of a listener holds.
    let mut beyond = Vec::new();
    for _ in 0..10 {
        let burst = (0..CAP).map(|_| async {
            let mut client = Client::new(TcpStream::connect(guard.address).await.expect("connected"));
            client.closed().await;
            client
        });
        beyond.extend(join_all(burst).await);
    }
    assert_eq!(rejected(&guard, "connections"), beyond.len() as u64);
    for path in ["/livez", "/readyz", "/metrics"] {
        let started = Instant::now();
        assert_eq!(guard.probe(path).await.status, 200, "{path}");
        assert!(started.elapsed() < Duration::from_secs(1), "{path}: {:?}", started.elapsed());
    }
    for client in &mut held {
        assert_eq!(client.post("/validate", HEALTHY).await.expect("answered").status, 200);
    }
    // A place that is given back is taken again.
    drop(held.pop());
    until("a free place", || async {
        match Client::tls(guard.address, guard.ca.client()).await {
            Ok(mut client) => client.post("/validate", HEALTHY).await.is_ok_and(|reply| reply.status == 200),
            Err(_) => false,
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_14_connections_that_never_ask_anything_make_room_for_those_that_do() {
    let guard = Guard::start(door(), Limits { connections: 3, ..LIMITS }).await;
    let mut used = guard.connect().await;
    assert_eq!(used.post("/validate", HEALTHY).await.expect("answered").status, 200);
    let mut silent = [guard.connect().await, guard.connect().await];
    until("counted", || async { guard.door.metric("rollout_guard_connections") == Some(3) }).await;

    // One more closes the oldest of the silent ones; the one in use and the younger silent one stay.
    let mut newcomer = guard.connect().await;
    assert_eq!(newcomer.post("/validate", HEALTHY).await.expect("answered").status, 200);
    silent[0].closed().await;
    for client in [&mut used, &mut silent[1], &mut newcomer] {
        assert_eq!(client.post("/validate", HEALTHY).await.expect("answered").status, 200);
    }
    assert_eq!(rejected(&guard, "connections"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_15_http_1_1_is_negotiated_where_the_client_offers_http_2() {
    let guard = Guard::start(door(), LIMITS).await;
    for (offered, negotiated) in [
        (vec![&b"h2"[..], b"http/1.1"], Some(&b"http/1.1"[..])),
        (vec![b"http/1.1"], Some(b"http/1.1")),
        (vec![], None),
    ] {
        let mut config = guard.ca.client();
        config.alpn_protocols = offered.into_iter().map(<[u8]>::to_vec).collect();
        let mut client = Client::tls(guard.address, config).await.expect("connected");
        assert_eq!(client.stream.get_ref().1.alpn_protocol(), negotiated);
        let reply = client.post("/validate", HEALTHY).await.expect("answered");
        assert!(reply.status == 200 && reply.head.starts_with("HTTP/1.1 "), "{}", reply.head);
    }
    let mut config = guard.ca.client();
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert!(Client::tls(guard.address, config).await.is_err(), "HTTP/2 alone is not spoken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_16_without_the_right_client_certificate_no_body_is_read() {
    let (clients, others) = (Ca::new(), Ca::new());
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(clients.pem().as_bytes()).expect("written");
    let guard = Guard::start_with(door(), LIMITS, Some(file.path())).await;

    let tls12 = guard.ca.client_of(&rustls::version::TLS12);
    let wrong = guard.ca.client_with_certificate_of(&others);
    let own = guard.ca.client_with_certificate_of(&guard.ca);
    for (n, config) in [guard.ca.client(), tls12, wrong, own].into_iter().enumerate() {
        // By TLS 1.3 the client learns of it only when it reads.
        let outcome = match Client::tls(guard.address, config).await {
            Ok(mut client) => client.post("/validate", HEALTHY).await,
            Err(error) => Err(error),
        };
        assert!(outcome.is_err(), "client {n}: {outcome:?}");
        until("counted", || async { rejected(&guard, "handshake") == n as u64 + 1 }).await;
    }
    assert_eq!(
        guard.door.metric(r#"rollout_guard_admission_duration_seconds_count{endpoint="Validate"}"#),
        None
    );

    let right = guard.ca.client_with_certificate_of(&clients);
    let mut client = Client::tls(guard.address, right).await.expect("connected");
    assert_eq!(client.post("/validate", HEALTHY).await.expect("answered").status, 200);
    assert_eq!(
        guard.door.metric(r#"rollout_guard_admission_duration_seconds_count{endpoint="Validate"}"#),
        Some(1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_tls_versions_are_spoken_and_no_session_is_resumed() {
    let guard = Guard::start(door(), LIMITS).await;
    for (version, negotiated) in [
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let config = guard.ca.client_of(version);
        for _ in 0..2 {
            let mut client = Client::tls(guard.address, config.clone()).await.expect("connected");
            assert_eq!(client.post("/validate", HEALTHY).await.expect("answered").status, 200);
            let connection = client.stream.get_ref().1;
            assert_eq!(connection.protocol_version(), Some(negotiated));
            assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swapped_certificate_is_for_new_connections_and_old_ones_go_on() {
    let guard = Guard::start(door(), LIMITS).await;
    let first = guard.served.current().expect("served");
    let mut old = guard.connect().await;
    assert_eq!(old.peer(), der(first.certificate_pem()));
    assert_eq!(old.post("/validate", HEALTHY).await.expect("answered").status, 200);

    let second = guard.ca.server_pair();
    let pem = second.certificate_pem().to_owned();
    assert!(guard.served.swap(second));
    assert_eq!(old.post("/validate", HEALTHY).await.expect("still open").status, 200);
    let mut new = guard.connect().await;
    assert_eq!(new.peer(), der(&pem));
    assert_eq!(new.post("/validate", HEALTHY).await.expect("answered").status, 200);
    assert_eq!(guard.probe("/certificate").await.body, pem);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_there_is_a_certificate_a_handshake_fails_and_nothing_else() {
    let guard = Guard::start(door(), LIMITS).await;
    let empty = rollout_guard::tls::ServedCertificate::default();
    let config = rollout_guard::tls::server_config(empty.clone(), None).expect("configured");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let readiness = rollout_guard::admin::Readiness::default();
    let (_trigger, shutdown) = rollout_guard::shutdown::Shutdown::new();
    let serving = readiness.require("serving");
    let (router, metrics) = (guard.door.router.clone(), guard.door.metrics.clone());
    tokio::spawn(rollout_guard::webhook::server::serve(
        listener, config, router, LIMITS, serving, metrics, shutdown,
    ));
    assert!(Client::tls(address, guard.ca.client()).await.is_err());
    empty.swap(guard.ca.server_pair());
    let mut client = Client::tls(address, guard.ca.client()).await.expect("connected");
    assert_eq!(client.post("/validate", HEALTHY).await.expect("answered").status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_serves_on_while_not_ready_then_stops_and_loses_no_call() {
    let hold = Arc::new(Semaphore::new(0));
    let limits = Limits { drain_delay: Duration::from_millis(1500), ..LIMITS };
    let guard = Guard::start(Door::new(json!({}), Answers::Held(Arc::clone(&hold))), limits).await;
    let (mut polite, mut idle, mut busy) =
        (guard.connect().await, guard.connect().await, guard.connect().await);
    for client in [&mut polite, &mut idle] {
        let reply = client.post("/validate", HEALTHY).await.expect("answered");
        assert!(reply.status == 200 && !reply.closes(), "{}", reply.head);
    }
    busy.write(&request("/validate", &fixture(HELD))).await.expect("written");
    until("in flight", || async { guard.door.access.count() == 1 }).await;
    assert_eq!(guard.probe("/readyz").await.status, 200);

    guard.trigger.start();
    let started = Instant::now();
    until("not ready", || async { guard.probe("/readyz").await.status == 503 }).await;
    assert!(guard.probe("/readyz").await.body.contains("serving: draining"));
    assert_eq!(guard.probe("/livez").await.status, 200, "alive to the end");
    // Proxies do not know yet: old and new connections are served, and told to go elsewhere.
    let mut late = guard.connect().await;
    for client in [&mut polite, &mut late] {
        let reply = client.post("/validate", HEALTHY).await.expect("answered");
        assert!(reply.status == 200 && reply.closes(), "{}", reply.head);
        client.closed().await;
    }
    assert!(started.elapsed() < limits.drain_delay, "the machine is too slow for this test");

    idle.closed().await;
    assert!(started.elapsed() >= limits.drain_delay, "an idle connection stays until the end of the delay");
    until("no listener", || async { TcpStream::connect(guard.address).await.is_err() }).await;
    assert!(!guard.task.is_finished(), "a call is still open");
    hold.add_permits(1);
    let reply = busy.reply().await.expect("answered");
    assert!(reply.status == 200 && reply.closes(), "{}", reply.head);
    soon("drained", guard.task).await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_although_a_call_does_not() {
    let hold = Arc::new(Semaphore::new(0));
    let limits = Limits { drain_timeout: Duration::from_millis(300), ..LIMITS };
    let guard = Guard::start(Door::new(json!({}), Answers::Held(hold)), limits).await;
    let mut busy = guard.connect().await;
    busy.write(&request("/validate", &fixture(HELD))).await.expect("written");
    until("in flight", || async { guard.door.access.count() == 1 }).await;
    guard.trigger.start();
    let started = Instant::now();
    soon("drained", guard.task).await.expect("no panic");
    assert!(started.elapsed() >= limits.drain_timeout && started.elapsed() < SOON);
    busy.closed().await;
}
