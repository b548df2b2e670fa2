//! Why an image cannot be pulled: because of the image, or because of its registry.

/// The host of an image that names none.
pub const DEFAULT_HOST: &str = "docker.io";

/// Returns the registry's host (and port) of an image: `localhost:5000` of `localhost:5000/a/b:v1`.
///
/// The first part of the name is a host if it holds a dot or a colon, is `localhost`, or holds a capital
/// letter: `splitDockerDomain` of distribution/reference.
pub fn host_of(image: &str) -> String {
    let host = match image.split_once('/') {
        Some((first, _))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            first.to_ascii_lowercase()
        }
        _ => DEFAULT_HOST.to_owned(),
    };
    if host == "index.docker.io" { DEFAULT_HOST.to_owned() } else { host }
}
