//! What is wrong with a command line is said before anything is done, and says how to write it.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::process::{Command, Output, Stdio};

fn namegate(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_namegate"))
        .args(words)
        .stdin(Stdio::null())
        .env_remove("NAMEGATE_SOCKET")
        .output()
        .unwrap()
}

#[test]
fn a_wrong_word_is_a_usage_error_that_says_the_right_one() {
    for (words, hint) in [
        (&["why", "checkout", "api.example.com"][..], "NAMESPACE/POD, such as default/checkout"),
        (&["why", "shop/", "api.example.com"], "NAMESPACE/POD"),
        (&["why", "shop/checkout", "api.example.com", "0"], "from 1 to 65535"),
        (&["why", "shop/checkout", "api.example.com", "https"], "from 1 to 65535"),
        (&["why", "shop/checkout", "api.example.com", "65536"], "from 1 to 65535"),
        (&["observe", "--pod", "checkout"], "NAMESPACE/ for all of a namespace"),
        (&["observe", "--verdict", "blocked"], "denied"),
        (&["drops", "--top", "0"], "from 1 on"),
        (&["why", "shop/checkout", "a b", "443"], "such as api.example.com"),
        (&["why", "shop/checkout", "http://api.example.com"], "without scheme, port or path"),
        (&["why", "shop/checkout", "data/db", "443"], "namegate endpoints"),
        (&["observe", "--reason", "no-rules"], "a similar value exists: 'no-rule'"),
        (&["observe", "--reason", "foo"], "conntrack-quota"),
        (&["names", "-n", "shop", "--pod", "shop/web"], "cannot be used with"),
        (&["suggest"], "<--from <FILE|->|--live>"),
        (&["man", "--directory", "/nope"], "make it first"),
        (
            &["agent", "--resolver", "kube-dns"],
            "'--resolver <ADDRESS>': write an IPv4 or IPv6 address",
        ),
        (&["agent", "--pod-cidr", "10.0.0.1"], "10.0.0.1/32 for this address alone"),
        (
            &["check", "--pod-cidr", "x", "."],
            "'--pod-cidr <CIDR>': write an address and the length",
        ),
        (&["flows", "--pod", "checkout"], "default/checkout"),
        (&["names", "--pod", "checkout"], "default/checkout"),
        (&["explain", "--manifests", ".", "--from", "a/b", "--to", "c/d", "--port", "0"], "65535"),
    ] {
        let output = namegate(words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        assert!(said.contains(hint), "{words:?}: {said}");
    }
}

#[test]
fn nothing_to_convert_from_is_an_error() {
    let output = namegate(&["convert", "-"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("there is no object in it"), "{said}");
}

#[test]
fn an_answer_for_a_name_that_is_almost_the_one_asked_for_is_a_usage_error() {
    let explain = |to: &str| {
        let words = ["explain", "--manifests", "/dev/null", "--from", "192.0.2.1", "--to", to];
        let output = namegate(
            &[&words[..], &["--port", "1", "--dns", "api.strpe.com=203.0.113.1"]].concat(),
        );
        String::from_utf8(output.stderr).unwrap()
    };
    let said = explain("api.stripe.com");
    assert!(
        said.contains("--dns api.strpe.com: nothing asks for it, since --to is api.stripe.com"),
        "{said}"
    );
    for to in ["api.strpe.com", "evil.example", "192.0.2.1", "shop/api"] {
        let said = explain(to);
        assert!(!said.contains("nothing asks"), "{to}: {said}");
    }
}

#[test]
fn what_is_wrong_with_the_socket_is_told_apart() {
    for (socket, expected) in [("Cargo.toml", "is no socket"), ("no-such-file", "no agent answers")]
    {
        let output = namegate(&["status", "--socket", socket]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(expected), "{socket}: {said}");
    }
}
