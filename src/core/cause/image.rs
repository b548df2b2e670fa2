//! Why an image cannot be pulled: because of the image, or because of its registry.
//!
//! The kubelet's reasons are those of `pkg/kubelet/images/types.go`; the errors behind them are texts of containerd,
//! CRI-O and registries. They are told apart by words that none of them is likely to change, after the names of
//! images, hosts and URLs are taken out: an image may well be called `timeout`.
//!
//! While the kubelet backs off it shows `Back-off pulling image "x": ErrImagePull: <error>` since Kubernetes 1.31, and
//! the same without the error before that.

/// What stands for the host of an image that names none: which one it is, the node's container runtime knows.
pub const DEFAULT_HOST: &str = "default registry";

/// Returns the registry's host (and port) of an image: `localhost:5000` of `localhost:5000/a/b:v1`.
///
/// The first part of the name is a host if it holds a dot or a colon, is `localhost`, or holds a capital
/// letter: `splitDockerDomain` of distribution/reference.
pub fn host_of(image: &str) -> String {
    match image.split_once('/') {
        Some((first, _))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            first.to_ascii_lowercase()
        }
        _ => DEFAULT_HOST.to_owned(),
    }
}

/// What keeps an image from being pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pull {
    /// The image itself: the registry has answered, or nobody needed to ask it.
    Image(&'static str),
    /// The registry does not let this image be pulled: it may not exist, or the credentials are wrong.
    Unauthorised,
    /// The registry or the way to it.
    Registry(&'static str),
    /// The node that pulls.
    Node(&'static str),
    /// The text does not say.
    Undecided,
}

/// Whether a reason of `state.waiting` says that an image is not there.
pub(super) fn is_pull(reason: &str) -> bool {
    matches!(
        reason,
        "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed"
    )
}

/// Returns what a container that waits for its image says of it.
pub(super) fn pull(reason: &str, message: &str, image: &str) -> Pull {
    match reason {
        "InvalidImageName" => Pull::Image("its name is not valid"),
        "ErrImageNeverPull" => Pull::Image("it is not on the node, and the pull policy is Never"),
        "SignatureValidationFailed" => Pull::Image("its signature is not valid"),
        "RegistryUnavailable" => Pull::Registry("the registry is unavailable"),
        "ImageInspectError" => match error(message, image) {
            known @ Pull::Image(_) => known,
            _ => Pull::Node("the node cannot inspect its images"),
        },
        _ => error(message, image),
    }
}

const NODE: &[(&str, &str)] = &[
    ("no space left on device", "the node has no space left"),
    ("pull qps exceeded", "the node pulls too many images at once"),
    ("desc = connection error", "the node's container runtime does not answer"),
    ("dial unix", "the node's container runtime does not answer"),
    ("transport is closing", "the node's container runtime does not answer"),
];

const REGISTRY: &[(&str, &str)] = &[
    ("toomanyrequests", "the registry limits the rate of pulls"),
    ("too many requests", "the registry limits the rate of pulls"),
    ("rate limit", "the registry limits the rate of pulls"),
    ("connection refused", "the registry refuses connections"),
    ("connection reset", "the registry breaks connections off"),
    ("broken pipe", "the registry breaks connections off"),
    ("unexpected eof", "the registry breaks connections off"),
    (": eof", "the registry breaks connections off"),
    ("no such host", "the registry's name is not resolved"),
    ("server misbehaving", "the registry's name is not resolved"),
    ("name resolution", "the registry's name is not resolved"),
    ("no route to host", "the registry cannot be reached"),
    ("network is unreachable", "the registry cannot be reached"),
    ("proxyconnect", "the registry cannot be reached"),
    ("tls handshake timeout", "the registry does not answer in time"),
    ("x509:", "TLS with the registry fails"),
    ("tls:", "TLS with the registry fails"),
    ("http response to https client", "TLS with the registry fails"),
    ("timeout", "the registry does not answer in time"),
    ("timed out", "the registry does not answer in time"),
    ("deadline exceeded", "the registry does not answer in time"),
    ("request canceled", "the registry does not answer in time"),
    ("context canceled", "the registry does not answer in time"),
    ("internal server error", "the registry answers with a server error"),
    ("bad gateway", "the registry answers with a server error"),
    ("service unavailable", "the registry answers with a server error"),
    ("registry is unavailable", "the registry is unavailable"),
    ("registryunavailable", "the registry is unavailable"),
];

const IMAGE: &[(&str, &str)] = &[
    ("no match for platform", "it has nothing for the node's platform"),
    ("no matching manifest", "it has nothing for the node's platform"),
    ("no image found in", "it has nothing for the node's platform"),
    ("manifest unknown", "not found"),
    ("name unknown", "not found"),
    ("manifest_unknown", "not found"),
    ("name_unknown", "not found"),
    ("not found", "not found"),
    ("signature validation failed", "its signature is not valid"),
    ("invalid reference format", "its name is not valid"),
    ("parse image name", "its name is not valid"),
    ("unsupported media type", "it is not of a kind that the node knows"),
];

const UNAUTHORISED: &[&str] = &[
    "unauthorized",
    "forbidden",
    "denied",
    "authorization failed",
    "authentication required",
    "no basic auth credentials",
    "insufficient_scope",
    "invalid username",
];

/// Returns what the error of a pull says. Trouble on the way comes first: what was not reached did not answer.
pub(super) fn error(message: &str, image: &str) -> Pull {
    let text = without_names(message, image);
    let of = |table: &'static [(&str, &str)]| {
        table.iter().find(|(pattern, _)| text.contains(pattern)).map(|(_, words)| *words)
    };
    if let Some(words) = of(NODE) {
        return Pull::Node(words);
    }
    if let Some(words) = of(REGISTRY).or_else(|| status_5xx(&text)) {
        return Pull::Registry(words);
    }
    if let Some(words) = of(IMAGE) {
        return Pull::Image(words);
    }
    if UNAUTHORISED.iter().any(|pattern| text.contains(pattern)) {
        return Pull::Unauthorised;
    }
    Pull::Undecided
}

/// `unexpected status code ...: 520`: a status that has no words of its own.
fn status_5xx(text: &str) -> Option<&'static str> {
    let (_, after) = text.split_once("unexpected status")?;
    let is_5xx = |word: &str| word.len() == 3 && word.starts_with('5') && word.parse::<u16>().is_ok();
    after
        .split_whitespace()
        .any(|word| is_5xx(word.trim_end_matches([':', ','])))
        .then_some("the registry answers with a server error")
}

/// Takes out what is quoted and the words that are a URL, a path or the image, and puts the rest in lower case.
fn without_names(message: &str, image: &str) -> String {
    let pieces: Vec<&str> = message.split('"').collect();
    // An odd quote at the end quotes nothing.
    let quoted = |i: usize| i % 2 == 1 && i + 1 < pieces.len();
    let unquoted: Vec<&str> =
        pieces.iter().enumerate().filter(|(i, _)| !quoted(*i)).map(|(_, piece)| *piece).collect();
    let text = unquoted.join(" _ ");
    let name = |word: &&str| word.contains('/') || word.trim_end_matches([':', ',', '.', ';']) == image;
    let words: Vec<&str> = text.split_whitespace().filter(|word| !name(word)).collect();
    words.join(" ").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_an_image_is_found_as_the_runtime_finds_it() {
        let cases = [
            ("web", DEFAULT_HOST),
            ("web:1.4.2", DEFAULT_HOST),
            ("library/web", DEFAULT_HOST),
            ("localhost/web:1", "localhost"),
            ("localhost:5000/a/b:v1", "localhost:5000"),
            ("Registry.Example.com/a@sha256:0123", "registry.example.com"),
            ("[::1]:5000/a", "[::1]:5000"),
            ("", DEFAULT_HOST),
            ("/", DEFAULT_HOST),
        ];
        for (image, host) in cases {
            assert_eq!(host_of(image), host, "{image}");
        }
    }

    const SLOW: Pull = Pull::Registry("the registry does not answer in time");
    const TLS: Pull = Pull::Registry("TLS with the registry fails");
    const SERVER: Pull = Pull::Registry("the registry answers with a server error");

    #[test]
    fn errors_of_pulls_are_told_apart() {
        let cases = [
            (
                r#"failed to pull and unpack image "localhost:5000/missing/app:v1": failed to resolve reference "localhost:5000/missing/app:v1": localhost:5000/missing/app:v1: not found"#,
                Pull::Image("not found"),
            ),
            (
                r#"Back-off pulling image "web:9": ErrImagePull: failed to pull and unpack image "registry.example/library/web:9": failed to resolve reference "registry.example/library/web:9": registry.example/library/web:9: not found"#,
                Pull::Image("not found"),
            ),
            (
                "rpc error: code = Unknown desc = reading manifest v9 in localhost:5000/app: manifest unknown: manifest unknown",
                Pull::Image("not found"),
            ),
            (
                r#"failed to pull and unpack image "localhost:5000/a:v1": no match for platform in manifest: not found"#,
                Pull::Image("it has nothing for the node's platform"),
            ),
            (
                r#"failed to pull and unpack image "localhost:5000/private/app:v1": failed to resolve reference "localhost:5000/private/app:v1": unexpected status from HEAD request to http://localhost:5000/v2/private/app/manifests/v1: 401 Unauthorized"#,
                Pull::Unauthorised,
            ),
            (
                r#"failed to resolve reference "localhost:5000/private/app:v1": failed to authorize: failed to fetch anonymous token: unexpected status from GET request to https://localhost:5001/token?scope=repository%3Aprivate: 403 Forbidden"#,
                Pull::Unauthorised,
            ),
            (
                r#"failed to resolve reference "registry.example/shop/web:1": pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed"#,
                Pull::Unauthorised,
            ),
            (
                r#"failed to resolve reference "localhost:5000/a:v1": pull access denied: authorization failed: no basic auth credentials"#,
                Pull::Unauthorised,
            ),
            (
                r#"failed to resolve reference "localhost:5000/app:v1": failed to do request: Head "http://localhost:5000/v2/app/manifests/v1": dial tcp 127.0.0.1:5000: connect: connection refused"#,
                Pull::Registry("the registry refuses connections"),
            ),
            (
                r#"failed to do request: Head "https://registry.example/v2/app/manifests/v1": dial tcp: lookup registry.example on 10.96.0.10:53: no such host"#,
                Pull::Registry("the registry's name is not resolved"),
            ),
            (
                r#"failed to do request: Head "https://registry.example/v2/": net/http: TLS handshake timeout"#,
                SLOW,
            ),
            (
                r#"failed to do request: Head "https://registry.example/v2/": dial tcp 192.0.2.1:443: i/o timeout"#,
                SLOW,
            ),
            (
                r#"failed to do request: Head "https://registry.example/v2/": tls: failed to verify certificate: x509: certificate signed by unknown authority"#,
                TLS,
            ),
            (
                r#"failed to do request: Head "https://localhost:5000/v2/": http: server gave HTTP response to HTTPS client"#,
                TLS,
            ),
            (
                "unexpected status from HEAD request to http://localhost:5000/v2/app/manifests/v1: 503 Service Unavailable",
                SERVER,
            ),
            ("unexpected status code http://localhost:5000/v2/app/manifests/v1: 520", SERVER),
            (
                "failed to copy: httpReadSeeker: failed open: unexpected status code https://registry.example/v2/a/manifests/sha256:1: 429 Too Many Requests - Server message: toomanyrequests: You have reached your pull rate limit",
                Pull::Registry("the registry limits the rate of pulls"),
            ),
            (
                "failed to extract layer sha256:1: write /var/lib/x: no space left on device",
                Pull::Node("the node has no space left"),
            ),
            (r#"Back-off pulling image "localhost:5000/missing/app:v1""#, Pull::Undecided),
            ("", Pull::Undecided),
        ];
        for (message, expected) in cases {
            assert_eq!(error(message, "localhost:5000/missing/app:v1"), expected, "{message}");
        }
    }

    #[test]
    fn the_name_of_an_image_says_nothing_about_the_error() {
        for image in ["localhost:5000/timeout/not-found:denied", "timeout:503", "forbidden"] {
            let back_off = format!("Back-off pulling image \"{image}\"");
            assert_eq!(error(&back_off, image), Pull::Undecided, "{image}");
            assert_eq!(error(&format!("{back_off}: {image}: not found"), image), Pull::Image("not found"));
        }
    }

    #[test]
    fn some_reasons_say_all_themselves() {
        assert_eq!(pull("InvalidImageName", "connection refused", "A"), Pull::Image("its name is not valid"));
        assert!(matches!(pull("ErrImageNeverPull", "", "a"), Pull::Image(_)));
        assert!(matches!(pull("RegistryUnavailable", "", "a"), Pull::Registry(_)));
        assert!(matches!(pull("ImageInspectError", "rpc error", "a"), Pull::Node(_)));
        let invalid = "couldn't parse image name: invalid reference format";
        assert!(matches!(pull("ImageInspectError", invalid, "a"), Pull::Image(_)));
    }
}
