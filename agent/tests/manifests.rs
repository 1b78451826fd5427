//! `namegate check` and `namegate convert` as people run them, above all on input that is wrong: one
//! clear message each, bounded memory, and everything else counts.

#![expect(clippy::unwrap_used, reason = "a test ends where an assumption fails")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const GOOD: &str = "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\n\
                    metadata: {name: good, namespace: shop}\nspec: {podSelector: {}}\n";

/// A policy whose rest begins on line 8, below `spec`.
fn policy(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\nmetadata:\n  name: {name}\n  \
         namespace: shop\nspec:\n  podSelector: {{}}\n{rest}"
    )
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("namegate-cli-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn namegate(arguments: &[&str], folder: &Folder) -> Output {
    Command::new(env!("CARGO_BIN_EXE_namegate"))
        .args(arguments)
        .current_dir(&folder.0)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn check(folder: &Folder) -> Value {
    let output = namegate(&["check", "-o", "json", "."], folder);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn bomb() -> String {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = format!("*a{}, ", level - 1).repeat(10);
        text.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    text
}

/// A file's name and octets; the line, object, field and words that its problem is told with.
type Case<'a> = (&'a str, Vec<u8>, Option<u64>, Option<&'a str>, Option<&'a str>, &'a str);

#[test]
fn bad_input_is_told_with_file_line_object_and_field_and_takes_nothing_else_with_it() {
    let long = format!("  egress:\n  - name: {}\n", "x".repeat(10 << 20));
    let value = format!("  egress:\n  - to:\n    - cidr: {}\n", "x".repeat(1 << 20));
    let crlf = policy("crlf", "  egres: []\n").replace('\n', "\r\n");
    let bom = format!("\u{feff}{}", policy("bom", "  egres: []\n"));
    let several = format!("{GOOD}---\n{}---\n{GOOD}", policy("two", "  egress: [{\n"))
        .replacen("good", "one", 1);
    let mut latin = policy("latin", "  egress:\n  - name: m").into_bytes();
    latin.extend(b"\xfcnchen\n");
    let cases: Vec<Case<'_>> = vec![
        (
            "bomb",
            policy("bomb", &bomb()).into(),
            Some(13),
            Some("bomb"),
            Some("a5[0]"),
            "more than 200000 values",
        ),
        (
            "big",
            policy("big", &long).into(),
            Some(9),
            Some("big"),
            Some("spec.egress[0].name"),
            "at most 4194304",
        ),
        (
            "long",
            policy("long", &value).into(),
            Some(10),
            Some("long"),
            Some("spec.egress[0].to[0].cidr"),
            "is not a CIDR",
        ),
        (
            "deep",
            policy("deep", &format!("  egress: {}", "[".repeat(100_000))).into(),
            Some(8),
            Some("deep"),
            Some("spec.egress"),
            "more than 64 levels",
        ),
        ("crlf", crlf.into(), Some(8), Some("crlf"), Some("spec.egres"), "unknown"),
        ("bom", bom.into(), Some(8), Some("bom"), Some("spec.egres"), "unknown"),
        (
            "tabs",
            policy("tabs", "  egress:\n\t- to: []\n").into(),
            Some(9),
            Some("tabs"),
            Some("spec.egress"),
            "tabs",
        ),
        (
            "twice",
            policy("twice", "  mode: Audit\n  mode: Enforce\n").into(),
            Some(9),
            Some("twice"),
            Some("spec.mode"),
            "duplicate mapping key: mode",
        ),
        ("several", several.into(), Some(13), Some("two"), Some("spec.egress"), "unclosed"),
        ("latin", latin, Some(9), Some("latin"), Some("spec.egress[0].name"), "not UTF-8"),
        (
            "nul",
            policy("nul", "  egress:\n  - name: a\0b\n").into(),
            Some(9),
            Some("nul"),
            Some("spec.egress[0].name"),
            "unexpected character",
        ),
        ("utf16", b"\xff\xfea\0".to_vec(), Some(1), None, None, "UTF-16"),
        (
            "kind",
            GOOD.replace("EgressPolicy", "EgressPolcy").into(),
            Some(1),
            Some("good"),
            None,
            "not a kind",
        ),
        ("text", b"hello\n".to_vec(), Some(1), None, None, "not an object"),
    ];
    let folder = Folder::new("bad");
    for (name, text, ..) in &cases {
        folder.write(&format!("{name}.yaml"), text);
    }
    folder.write("zz.yaml", GOOD.replace("good", "last"));
    let report = check(&folder);
    assert_eq!(report["objects"], 3, "one, good and last: {report:#}");
    assert_eq!(report["errors"], cases.len(), "{report:#}");
    for (name, _, line, object, field, message) in cases {
        let file = format!("./{name}.yaml");
        let problems = report["problems"].as_array().unwrap();
        let problem = problems.iter().find(|one| one["file"] == file.as_str()).unwrap();
        assert_eq!(problem["line"].as_u64(), line, "{problem:#}");
        let found = problem["object"].as_str();
        assert!(
            object.is_none_or(|name| found.unwrap().ends_with(&format!(" shop/{name}"))),
            "{problem:#}"
        );
        assert_eq!(problem["field"].as_str(), field, "{problem:#}");
        assert!(problem["message"].as_str().unwrap().contains(message), "{problem:#}");
        assert!(problem.to_string().len() < 2_000, "{name} is told in few words");
    }
}

#[test]
fn odd_files_are_told_and_never_waited_for() {
    let folder = Folder::new("odd");
    let made = Command::new("mkfifo").arg(folder.0.join("pipe.yaml")).status().unwrap();
    assert!(made.success());
    symlink("loop.yaml", folder.0.join("loop.yaml")).unwrap();
    symlink("/dev/zero", folder.0.join("zero.yaml")).unwrap();
    symlink("/no/such/file", folder.0.join("gone.yaml")).unwrap();
    fs::create_dir_all(folder.0.join("sub/dir.yaml")).unwrap();
    symlink("..", folder.0.join("sub/up")).unwrap();
    folder.write("sub/dir.yaml/good.yaml", GOOD);
    let report = check(&folder);
    assert_eq!((&report["objects"], &report["errors"]), (&1.into(), &4.into()), "{report:#}");
    for problem in report["problems"].as_array().unwrap() {
        assert_eq!(problem["code"], "unreadable", "{problem:#}");
    }
}

#[test]
fn what_a_terminal_acts_upon_never_reaches_it() {
    let folder = Folder::new("escape");
    folder
        .write("a\x1b[2J.yaml", policy("\"x\\e[2Jred\\u202e\"", "  egres: []\n  \"\\e[2Jx\": 1\n"));
    for output in ["text", "json", "github"] {
        let found = namegate(&["check", "-o", output, "."], &folder);
        assert_eq!(found.status.code(), Some(1));
        let text = String::from_utf8(found.stdout).unwrap();
        assert!(text.contains("red"), "{output}: {text:?}");
        let is_bad = |one: char| (one.is_control() && one != '\n') || one == '\u{202e}';
        assert!(!text.chars().any(is_bad), "{output}: {text:?}");
    }
}

#[test]
fn many_objects_are_read_in_bounded_memory() {
    let folder = Folder::new("many");
    let many: String =
        (0..2_000).map(|index| GOOD.replace("good", &format!("p{index}")) + "---\n").collect();
    folder.write("many.yaml", many + &policy("bomb", &bomb()));
    folder.write("big.yaml", policy("big", &format!("  x: {}\n", "x".repeat(10 << 20))));
    // The address space of a process that holds 10 MB a few times over, and no bomb.
    let limited = Command::new("sh")
        .args([
            "-c",
            "ulimit -v 400000; exec \"$0\" check -o json .",
            env!("CARGO_BIN_EXE_namegate"),
        ])
        .current_dir(&folder.0)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&limited.stdout).unwrap();
    assert_eq!((&report["objects"], &report["errors"]), (&2_000.into(), &2.into()), "{limited:?}");
}

#[test]
fn exit_codes_say_how_it_went() {
    let folder = Folder::new("codes");
    folder.write("good.yaml", GOOD);
    folder.write("warn.yaml", policy("warn", "  egress: [{to: [{fqdn: \"*\"}]}]\n"));
    folder.write("bad.yaml", policy("bad", "  egres: []\n"));
    folder.write("empty/readme.txt", "no manifest\n");
    folder
        .write("foreign/app.yaml", "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}}");
    for (arguments, expected) in [
        (&["check", "good.yaml"][..], 0),
        (&["check", "warn.yaml"], 0),
        (&["check", "--strict", "warn.yaml"], 1),
        (&["check", "bad.yaml"], 1),
        (&["check", "gone.yaml"], 2),
        (&["check"], 2),
        (&["check", "empty"], 1),
        (&["check", "-"], 1),
        (&["check", "foreign"], 0),
        (&["check", "--strict", "foreign"], 1),
        (&["check", "foreign", "good.yaml"], 0),
        (&["check", "--pod-cidr", "x", "."], 2),
        (&["convert", "good.yaml"], 0),
        (&["convert", "bad.yaml"], 1),
        (&["convert", "gone.yaml"], 2),
        (&["convert", "--directory", "gone", "good.yaml"], 2),
    ] {
        assert_eq!(namegate(arguments, &folder).status.code(), Some(expected), "{arguments:?}");
    }
}

#[test]
fn standard_input_is_read_and_warnings_are_placed() {
    let folder = Folder::new("stdin");
    let text =
        policy("warn", "  egress:\n  - to:\n    - fqdn: api.example.com\n    - fqdn: \"*\"\n");
    let mut child = Command::new(env!("CARGO_BIN_EXE_namegate"))
        .args(["check", "-"])
        .current_dir(&folder.0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(text.starts_with("<stdin>:11: warning[pattern-any]\n"), "{text}");
    assert!(text.contains("EgressPolicy shop/warn: spec.egress[0].to[1].fqdn"), "{text}");
    assert!(text.ends_with("1 valid object in 1 file: 0 errors, 1 warning, 0 hints\n"), "{text}");
}

#[test]
fn what_is_converted_passes_the_check() {
    let folder = Folder::new("convert");
    folder.write(
        "cilium.yaml",
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: apis, namespace: shop}\n\
         spec:\n  endpointSelector: {matchLabels: {app: web}}\n  egress:\n  - toFQDNs:\n    \
         - matchName: api.example.com\n    - matchPattern: \"*.example.org\"\n    toPorts:\n    \
         - ports: [{port: \"443\", protocol: TCP}]\n",
    );
    fs::create_dir(folder.0.join("out")).unwrap();
    let output = namegate(&["convert", "--directory", "out", "cilium.yaml"], &folder);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("cilium.yaml:9: ") && told.contains("wider"), "{told}");
    let text = fs::read_to_string(folder.0.join("out/shop-apis.yaml")).unwrap();
    assert!(text.contains("# wider: spec.egress[0].toFQDNs[1].matchPattern"), "{text}");
    let checked = namegate(&["check", "--strict", "out"], &folder);
    assert_eq!(checked.status.code(), Some(0), "{text}\n{checked:?}");
    let again = namegate(&["convert", "--directory", "out", "cilium.yaml"], &folder);
    assert_eq!(again.status.code(), Some(1), "a file that is there is not written over");
}
