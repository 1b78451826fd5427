//! Pods, names, addresses and ports as commands are given them: refused where they mean nothing, before
//! anybody is asked.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroUsize};

use ipnet::IpNet;
use namegate_policy::name::DnsName;

/// Reads `NAMESPACE/POD`.
pub(super) fn pod(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, pod)) if !namespace.is_empty() && is_name(pod) => Ok(text.to_owned()),
        Some(_) | None => Err(format!("write NAMESPACE/POD, such as {}", example(text))),
    }
}

/// Reads `NAMESPACE/POD`, or `NAMESPACE/` for every pod of a namespace.
pub(super) fn pod_or_namespace(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, pod)) if !namespace.is_empty() && (pod.is_empty() || is_name(pod)) => {
            Ok(text.to_owned())
        }
        Some(_) | None => Err(format!(
            "write NAMESPACE/POD, such as {}, or NAMESPACE/ for all of a namespace",
            example(text)
        )),
    }
}

/// Reads a port.
pub(super) fn port(text: &str) -> Result<u16, String> {
    text.parse::<NonZeroU16>()
        .map(NonZeroU16::get)
        .map_err(|_| "write the number of a port, from 1 to 65535".to_owned())
}

/// Reads whom a flow goes to: an address, or a name as pods ask for it.
pub(super) fn target(text: &str) -> Result<String, String> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let is_plain = |octet: u8| octet.is_ascii_alphanumeric() || b"-_.".contains(&octet);
    if text.bytes().all(is_plain) && DnsName::parse(text).is_ok_and(|name| !name.is_root()) {
        return Ok(text.to_owned());
    }
    Err(if text.contains("://") || text.contains(':') {
        "write the name or the address alone, without scheme, port or path: the port comes after it"
    } else if text.contains('/') {
        "write a name or an address; that of a pod is in `namegate endpoints` and in `kubectl get pod -o wide`"
    } else {
        "write a name such as api.example.com, or an address such as 203.0.113.10"
    }
    .to_owned())
}

/// Reads an address.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "write an IPv4 or IPv6 address, such as 10.96.0.10".to_owned())
}

/// Reads a prefix.
pub(super) fn cidr(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(address) => {
            format!("write its length behind it, {} for this address alone", IpNet::from(address))
        }
        Err(_) => "write an address and the length of its prefix, such as 10.244.0.0/16".to_owned(),
    })
}

/// Reads how many of something are wanted.
pub(super) fn count(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "write how many, from 1 on".to_owned())
}

/// Whether a pod, as `NAMESPACE/NAME`, is in a namespace; where none is asked for, every one is.
pub(super) fn is_in(namespace: Option<&str>, pod: &str) -> bool {
    namespace.is_none_or(|asked| pod.split_once('/').is_some_and(|(found, _)| found == asked))
}

fn is_name(pod: &str) -> bool {
    !pod.is_empty() && !pod.contains('/')
}

fn example(text: &str) -> String {
    let name = text.strip_prefix('/').unwrap_or(text);
    let is_plain = |octet: u8| octet.is_ascii_alphanumeric() || b"-.".contains(&octet);
    if !name.is_empty() && name.bytes().all(is_plain) {
        format!("default/{name}")
    } else {
        "shop/checkout-7d9f".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_meant_is_said_whole() {
        assert_eq!(pod("shop/web").as_deref(), Ok("shop/web"));
        assert_eq!(pod_or_namespace("shop/").as_deref(), Ok("shop/"));
        let said = Err("write NAMESPACE/POD, such as default/web".to_owned());
        assert_eq!(pod("web"), said);
        assert_eq!(pod("/web"), said);
        for text in ["", "/", "shop/", "a/b/c", "\u{1b}[2J"] {
            assert!(pod(text).unwrap_err().ends_with("such as shop/checkout-7d9f"), "{text:?}");
        }
        for text in ["", "/", "/web", "web", "a/b/c"] {
            assert!(pod_or_namespace(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn whom_a_flow_goes_to_is_a_name_or_an_address() {
        for text in ["api.example.com", "db", "_srv.a-b.example.", "203.0.113.10", "2001:db8::1"] {
            assert_eq!(target(text).as_deref(), Ok(text));
        }
        for (text, hint) in [
            ("http://x", "without scheme"),
            ("api.example.com:443", "without scheme"),
            ("data/db", "namegate endpoints"),
            ("a b", "such as api.example.com"),
            ("", "such as api.example.com"),
            (".", "such as api.example.com"),
            ("*.example.com", "such as api.example.com"),
        ] {
            assert!(target(text).unwrap_err().contains(hint), "{text:?}");
        }
    }

    #[test]
    fn addresses_and_prefixes_are_told_apart() {
        assert_eq!(
            cidr("10.0.0.1").unwrap_err(),
            "write its length behind it, 10.0.0.1/32 for this address alone"
        );
        assert!(cidr("10.0.0.0/33").unwrap_err().contains("such as 10.244.0.0/16"));
        assert!(address("kube-dns").unwrap_err().contains("such as 10.96.0.10"));
    }

    #[test]
    fn ports_are_numbers_that_flows_go_to() {
        assert_eq!(port("443"), Ok(443));
        for text in ["0", "65536", "-1", "https", ""] {
            assert!(port(text).is_err(), "{text:?}");
        }
    }
}
