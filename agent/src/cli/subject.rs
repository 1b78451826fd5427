//! Pods and ports as commands are given them: refused where they mean nothing, before anybody is asked.

use std::num::NonZeroU16;

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
    fn ports_are_numbers_that_flows_go_to() {
        assert_eq!(port("443"), Ok(443));
        for text in ["0", "65536", "-1", "https", ""] {
            assert!(port(text).is_err(), "{text:?}");
        }
    }
}
