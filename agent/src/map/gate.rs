//! Who may ask: requests that name this machine, and what every answer forbids the browser.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Json;
use axum::extract::Request;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::admin::ErrorBody;

/// Nothing but the page's own files, no markup made from text, no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

/// The hosts that a request may name.
#[derive(Clone, Debug)]
pub struct Hosts {
    listen: IpAddr,
    named: Vec<String>,
}

/// The page would be open to the network by accident.
#[derive(Debug, thiserror::Error)]
#[error(
    "--map-listen {listen} lets whoever reaches this address see what pods ask for: say with \
     --map-host by which names it may be asked, or listen on 127.0.0.1"
)]
pub struct Exposed {
    /// The address.
    pub listen: SocketAddr,
}

impl Hosts {
    /// This machine, and where `named` says so others. To listen where others reach it has to be said.
    pub fn new(listen: SocketAddr, named: Vec<String>) -> Result<Self, Exposed> {
        if !listen.ip().is_loopback() && named.is_empty() {
            return Err(Exposed { listen });
        }
        Ok(Self { listen: listen.ip(), named })
    }

    /// Whether a request that names `host`, with or without a port, is meant for this agent.
    fn has(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        // User information has no place there.
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return address.is_loopback()
                || (address == self.listen && !address.is_unspecified())
                || self.named.iter().any(|named| named.parse() == Ok(address));
        }
        host.eq_ignore_ascii_case("localhost")
            || self.named.iter().any(|named| named.eq_ignore_ascii_case(host))
    }
}

/// Lets a request through that names one of `hosts`, and tells the browser what to forbid.
pub(super) async fn pass(hosts: Arc<Hosts>, request: Request, next: Next) -> Response {
    let mut named = request.headers().get_all(HOST).iter();
    let host = named.next().and_then(|host| host.to_str().ok());
    let is_meant = host.is_some_and(|host| hosts.has(host))
        && named.next().is_none()
        && request.uri().authority().is_none_or(|asked| hosts.has(asked.as_str()));
    let mut response = if is_meant { next.run(request).await } else { refusal() };
    let headers = response.headers_mut();
    let fixed = [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn refusal() -> Response {
    let error = "the map answers to localhost and to what --map-host names; ask for \
                 http://localhost:PORT"
        .to_owned();
    (StatusCode::MISDIRECTED_REQUEST, Json(ErrorBody { error })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_and_what_was_named_is_answered() {
        let hosts = Hosts::new("127.0.0.1:9966".parse().unwrap(), vec!["Map.example".into()]);
        let hosts = hosts.unwrap();
        let cases = [
            ("localhost", true),
            ("LOCALHOST:8080", true),
            ("127.0.0.1:9966", true),
            ("127.9.9.9", true),
            ("[::1]:80", true),
            ("map.example:443", true),
            ("evil.example", false),
            ("evil.example:9966", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("203.0.113.7", false),
            ("0.0.0.0", false),
            ("[::ffff:127.0.0.1]", false),
            ("localhost@evil.example", false),
            ("evil.example@localhost", false),
            ("", false),
        ];
        for (host, expected) in cases {
            assert_eq!(hosts.has(host), expected, "{host:?}");
        }
    }

    #[test]
    fn an_address_of_the_network_has_to_be_meant() {
        for listen in ["0.0.0.0:9966", "[::]:9966", "192.0.2.10:9966"] {
            let error = Hosts::new(listen.parse().unwrap(), Vec::new()).unwrap_err().to_string();
            assert!(error.contains("--map-host") && error.contains(listen), "{error}");
        }
        let hosts = Hosts::new("0.0.0.0:9966".parse().unwrap(), vec!["192.0.2.10".into()]).unwrap();
        assert!(hosts.has("192.0.2.10:9966") && !hosts.has("0.0.0.0"), "{hosts:?}");
    }
}
