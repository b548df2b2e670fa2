//! The page on the plain port: who may see it, what it is sent with, and that it is there only for those who look.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::{net::SocketAddr, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use prometheus_client::registry::Registry;
use rollout_guard::{
    admin::{
        self, Admin, Readiness,
        page::{Page, Ui},
    },
    shutdown::{Shutdown, Trigger},
};
use support::server::{Client, SOON, soon, until};
use tokio::{io::AsyncReadExt, net::TcpStream, task::JoinHandle};
use tower::ServiceExt;

const WAY: &str = "kubectl -n rollout-guard port-forward deployment/rollout-guard 8080:8080";

fn page(ui: Ui) -> (Page, Trigger) {
    let (trigger, shutdown) = Shutdown::new();
    (Page::new(ui, WAY, shutdown), trigger)
}

fn routes(page: &Page) -> Router {
    Admin::new(Readiness::default(), Registry::default(), None).with_page(page.clone()).router()
}

/// Who asks, and how.
#[derive(Clone, Copy)]
struct Ask<'a> {
    method: &'a str,
    path: &'a str,
    peer: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

const LOCAL: Ask<'_> =
    Ask { method: "GET", path: "/ui/", peer: "127.0.0.1:9", headers: &[("host", "localhost:8080")] };

async fn ask(page: &Page, ask: Ask<'_>) -> (StatusCode, HeaderMap, String) {
    let mut request = Request::builder().method(ask.method).uri(ask.path);
    for (name, value) in ask.headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::empty()).expect("a request");
    if !ask.peer.is_empty() {
        request.extensions_mut().insert(ConnectInfo(ask.peer.parse::<SocketAddr>().expect("an address")));
    }
    let response = routes(page).oneshot(request).await.expect("answered");
    let (head, body) = response.into_parts();
    let bytes = soon("the body", body.collect()).await.expect("whole").to_bytes();
    (head.status, head.headers, String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn only_who_comes_from_the_pods_own_loopback_sees_the_page() {
    let (page, _trigger) = page(Ui::Loopback);
    page.show("{}".to_owned(), true);
    for path in ["/ui/", "/ui/page.js", "/ui/state.json"] {
        for (peer, let_in) in [
            ("127.0.0.1:9", true),
            ("[::1]:9", true),
            ("[::ffff:127.0.0.1]:9", true),
            ("10.0.0.7:9", false),
            ("[::ffff:10.0.0.7]:9", false),
            // As a sidecar hands on what comes from outside.
            ("127.0.0.6:9", false),
            ("0.0.0.0:9", false),
            ("", false),
        ] {
            let (status, _, body) = ask(&page, Ask { path, peer, ..LOCAL }).await;
            assert_eq!(status == StatusCode::OK, let_in, "{path} from {peer}: {status}");
            assert_eq!(body.contains(WAY), !let_in, "{body}");
            assert!(let_in || status == StatusCode::FORBIDDEN, "{status}");
        }
    }
}

#[tokio::test]
async fn a_name_that_is_not_the_loopbacks_or_a_proxy_is_refused() {
    let (page, _trigger) = page(Ui::Loopback);
    for (headers, let_in) in [
        (&[("host", "localhost")][..], true),
        (&[("host", "LOCALHOST:1")], true),
        (&[("host", "127.0.0.1:8080")], true),
        (&[("host", "[::1]:8080")], true),
        (&[("host", "evil.example:8080")], false),
        (&[("host", "localhost.evil.example")], false),
        (&[("host", "127.0.0.1.evil.example")], false),
        (&[("host", "localhost@evil.example")], false),
        (&[("host", "[::2]:8080")], false),
        (&[("host", "")], false),
        (&[], false),
        (&[("host", "localhost"), ("host", "evil.example")], false),
        (&[("host", "localhost"), ("x-forwarded-for", "10.0.0.7")], false),
        (&[("host", "localhost"), ("forwarded", "for=10.0.0.7")], false),
        (&[("host", "localhost"), ("via", "1.1 x")], false),
        // Other sites' pages, also those on another port of this machine; a link is followed.
        (&[("host", "localhost"), ("sec-fetch-site", "same-origin")], true),
        (&[("host", "localhost"), ("sec-fetch-site", "none")], true),
        (&[("host", "localhost"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "cors")], false),
        (&[("host", "localhost"), ("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")], false),
        (&[("host", "localhost"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], true),
    ] {
        let (status, ..) = ask(&page, Ask { headers, ..LOCAL }).await;
        assert_eq!(status == StatusCode::OK, let_in, "{headers:?}: {status}");
    }
    // In the request line.
    let (status, ..) = ask(&page, Ask { path: "http://evil.example/ui/", ..LOCAL }).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn anyone_sees_it_where_that_is_so_set_and_nobody_where_it_is_off() {
    let (open, _trigger) = page(Ui::Anyone);
    let outside = Ask { peer: "10.0.0.7:9", headers: &[("host", "guard.example")], ..LOCAL };
    assert_eq!(ask(&open, outside).await.0, StatusCode::OK);
    let (off, _trigger) = page(Ui::Off);
    for path in ["/ui", "/ui/", "/ui/state.json", "/ui/events"] {
        assert_eq!(ask(&off, Ask { path, ..LOCAL }).await.0, StatusCode::NOT_FOUND);
    }
    assert_eq!(ask(&off, Ask { path: "/livez", ..outside }).await.0, StatusCode::OK);
}

#[tokio::test]
async fn every_answer_lets_the_browser_do_nothing_else() {
    let (page, _trigger) = page(Ui::Loopback);
    page.show("{}".to_owned(), true);
    let asked = [
        Ask { path: "/ui", ..LOCAL },
        LOCAL,
        Ask { path: "/ui/page.css", ..LOCAL },
        Ask { path: "/ui/page.js", ..LOCAL },
        Ask { path: "/ui/favicon.svg", ..LOCAL },
        Ask { path: "/ui/state.json", ..LOCAL },
        Ask { method: "POST", ..LOCAL },
        Ask { peer: "10.0.0.7:9", ..LOCAL },
    ];
    for asked in asked {
        let (status, headers, _) = ask(&page, asked).await;
        let header = |name: &str| headers[name].to_str().expect("text").to_owned();
        let policy = header("content-security-policy");
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.split("; ").any(|is| is == part), "{} {status}: {policy}", asked.path);
        }
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "no-referrer");
        assert_eq!(header("cross-origin-resource-policy"), "same-origin");
        assert_eq!(header("cross-origin-opener-policy"), "same-origin");
        assert_eq!(header("cache-control"), "no-store");
        assert!(!headers.contains_key("access-control-allow-origin"));
    }
    let (status, headers, _) = ask(&page, Ask { path: "/ui", ..LOCAL }).await;
    assert_eq!(
        (status, &headers["location"]),
        (StatusCode::PERMANENT_REDIRECT, &"ui/".parse().expect("a value"))
    );
}

#[tokio::test]
async fn it_is_read_and_nothing_else() {
    let (page, _trigger) = page(Ui::Loopback);
    page.show("{}".to_owned(), true);
    let methods = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    for path in ["/ui", "/ui/", "/ui/page.js", "/ui/events", "/ui/state.json"] {
        for method in &methods {
            let (status, ..) = ask(&page, Ask { method: method.as_str(), path, ..LOCAL }).await;
            assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        }
        let (status, _, body) = ask(&page, Ask { method: "HEAD", path, ..LOCAL }).await;
        assert!(status.is_success() || status.is_redirection(), "{path}: {status}");
        assert_eq!(body, "", "HEAD {path}");
    }
}

#[tokio::test]
async fn the_page_is_whole_in_itself_and_has_no_code_or_style_in_line() {
    let (page, _trigger) = page(Ui::Loopback);
    let (_, headers, html) = ask(&page, LOCAL).await;
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert!(html.contains(r#"<html lang="en">"#) && html.contains("width=device-width"));
    assert!(!html.contains("<style") && !html.contains(" style=") && !html.contains("javascript:"), "{html}");
    let is_handler = |rest: &str| rest.trim_start_matches(|c: char| c.is_ascii_lowercase()).starts_with('=');
    assert!(!html.split(" on").skip(1).any(is_handler), "no handlers in line: {html}");
    assert_eq!(html.matches("<script").count(), 1);
    for text in [&html, &ask(&page, Ask { path: "/ui/page.css", ..LOCAL }).await.2] {
        assert!(
            !text.contains("//") && !text.contains("@import") && !text.contains("url("),
            "from elsewhere"
        );
    }
    let (_, headers, script) = ask(&page, Ask { path: "/ui/page.js", ..LOCAL }).await;
    assert_eq!(headers["content-type"], "text/javascript; charset=utf-8");
    for way in [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "http:",
        "https:",
        "import(",
    ] {
        assert!(!script.contains(way), "{way}");
    }
    // Each thing that the page asks for is there.
    for asset in ["page.css", "page.js", "favicon.svg"] {
        assert!(html.contains(&format!("\"{asset}\"")), "{asset}");
        let path = format!("/ui/{asset}");
        assert_eq!(ask(&page, Ask { path: &path, ..LOCAL }).await.0, StatusCode::OK);
    }
}

/// The plain port on the loopback.
struct Served {
    page: Page,
    address: SocketAddr,
    trigger: Trigger,
    task: JoinHandle<std::io::Result<()>>,
}

async fn serve() -> Served {
    let (page, trigger, shutdown) = {
        let (trigger, shutdown) = Shutdown::new();
        (Page::new(Ui::Loopback, WAY, shutdown.clone()), trigger, shutdown)
    };
    let listener = admin::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let admin = Admin::new(Readiness::default(), Registry::default(), None).with_page(page.clone());
    let task = tokio::spawn(admin::serve(listener, admin, shutdown));
    Served { page, address, trigger, task }
}

/// A browser that listens.
struct Listener {
    stream: TcpStream,
    heard: String,
}

impl Served {
    async fn listen(&self) -> Listener {
        let stream = TcpStream::connect(self.address).await.expect("connected");
        let mut client = Client::new(stream);
        client.write(b"GET /ui/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("written");
        Listener { stream: client.stream, heard: String::new() }
    }
}

impl Listener {
    /// Reads until `text` was heard, or the end.
    async fn hears(&mut self, text: &str) -> bool {
        soon(&format!("hears {text}"), async {
            let mut buffer = [0; 4096];
            while !self.heard.contains(text) {
                let count = self.stream.read(&mut buffer).await.expect("read");
                if count == 0 {
                    return false;
                }
                self.heard.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
            true
        })
        .await
    }
}

#[tokio::test]
async fn who_listens_hears_each_state_from_the_one_that_is_there() {
    let served = serve().await;
    served.page.show(r#"{"n":1}"#.to_owned(), true);
    let mut listener = served.listen().await;
    assert!(listener.hears("data: {\"n\":1}\n").await);
    let head = listener.heard.to_lowercase();
    assert!(head.starts_with("http/1.1 200") && head.contains("content-type: text/event-stream"), "{head}");
    assert!(head.contains("cache-control: no-store") && listener.heard.contains("id: 1\n"), "{head}");
    assert!(listener.heard.contains("retry: 2000\n"), "{}", listener.heard);
    let text = r#"{"message":"<script>alert(1)</script>\n"}"#;
    served.page.show(text.to_owned(), true);
    assert!(listener.hears(&format!("data: {text}\n")).await, "{}", listener.heard);
    assert!(listener.heard.contains("id: 2\n"));
}

#[tokio::test]
async fn it_is_gathered_only_while_somebody_looks() {
    let served = serve().await;
    let wanted =
        |page: Page| async move { tokio::time::timeout(Duration::ZERO, page.wanted()).await.is_ok() };
    assert!(!wanted(served.page.clone()).await, "nobody looks");
    let one = served.listen().await;
    let other = served.listen().await;
    soon("it is wanted", served.page.wanted()).await;
    let gone = tokio::spawn({
        let page = served.page.clone();
        async move { page.unwanted(Duration::ZERO).await }
    });
    drop(one);
    let mut other = other;
    served.page.show("{}".to_owned(), true);
    assert!(other.hears("data: {}").await);
    assert!(!gone.is_finished(), "one looks still");
    drop(other);
    soon("nobody looks any more", gone).await.expect("no panic");
    assert!(!wanted(served.page.clone()).await);
}

#[tokio::test]
async fn the_state_is_given_once_and_only_when_it_is_whole() {
    let served = serve().await;
    let ask = || async {
        let mut client = Client::new(TcpStream::connect(served.address).await.expect("connected"));
        let request = b"GET /ui/state.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        client.write(request).await.expect("written");
        client.reply().await.expect("answered")
    };
    let gather = async {
        served.page.wanted().await;
        served.page.show(r#"{"listing":true}"#.to_owned(), false);
        tokio::task::yield_now().await;
        served.page.show(r#"{"listing":false}"#.to_owned(), true);
    };
    let (reply, ()) = tokio::join!(ask(), gather);
    assert_eq!((reply.status, reply.body.as_str()), (200, r#"{"listing":false}"#));
    assert!(reply.head.to_lowercase().contains("content-type: application/json"), "{}", reply.head);
}

#[tokio::test]
async fn one_too_many_is_told_to_come_later_and_finds_room_when_another_has_gone() {
    let served = serve().await;
    served.page.show("{}".to_owned(), true);
    let mut listeners = Vec::new();
    for _ in 0..16 {
        let mut listener = served.listen().await;
        assert!(listener.hears("data: {}").await);
        listeners.push(listener);
    }
    let mut refused = served.listen().await;
    assert!(refused.hears("try again later").await);
    assert!(
        refused.heard.starts_with("HTTP/1.1 503") && refused.heard.to_lowercase().contains("retry-after")
    );
    drop(listeners.pop());
    until("there is room", || async {
        let mut listener = served.listen().await;
        listener.hears("\r\n\r\n").await && listener.heard.starts_with("HTTP/1.1 200")
    })
    .await;
}

#[tokio::test]
async fn the_shutdown_does_not_wait_for_those_who_look() {
    let served = serve().await;
    served.page.show("{}".to_owned(), true);
    let mut listeners = Vec::new();
    for _ in 0..3 {
        let mut listener = served.listen().await;
        assert!(listener.hears("data: {}").await);
        listeners.push(listener);
    }
    // And one who waits for a state that will not come.
    served.page.clear();
    let mut waiting = Client::new(TcpStream::connect(served.address).await.expect("connected"));
    waiting.write(b"GET /ui/state.json HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("written");
    let started = std::time::Instant::now();
    served.trigger.start();
    soon("the port is closed", served.task).await.expect("no panic").expect("served");
    assert!(started.elapsed() < SOON / 2, "{:?}", started.elapsed());
    for listener in &mut listeners {
        assert!(!listener.hears("nothing more comes").await, "the stream ends");
        assert!(listener.heard.ends_with("0\r\n\r\n"), "and it ends in order: {:?}", listener.heard);
    }
}
