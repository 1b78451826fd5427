//! Every numbered line of the semantics has a test that cites its number.
//!
//! A case cites in its `claim`; a test function cites in its name (`ep_9_...`) or in the comment
//! above it (`/// NP-26: ...`), which is where lines about time or packets are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The groups of lines, and how many there are of each.
const LINES: [(&str, u32); 5] = [("EP", 14), ("NP", 32), ("CNP", 23), ("CL", 9), ("CH", 8)];

/// Where tests are looked for, from the root of the repository.
const ROOMS: [&str; 5] = ["agent", "dns-proxy", "egress-bpf", "integration", "policy"];

type Line = (&'static str, u32);

#[test]
fn every_numbered_line_has_a_test_that_cites_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut cited = cited_by_cases(&root.join("policy/tests/semantics/cases"));
    for room in ROOMS {
        for file in files(&root.join(room), "rs") {
            cited.extend(cited_by_tests(&fs::read_to_string(file).unwrap()));
        }
    }
    let all = LINES.iter().flat_map(|(group, count)| (1..=*count).map(move |n| (*group, n)));
    let missing: Vec<String> = all
        .filter(|line| !cited.contains(line))
        .map(|(group, number)| format!("{group}-{number}"))
        .collect();
    assert!(missing.is_empty(), "no test cites {}", missing.join(", "));
}

#[test]
fn citations_are_read_where_tests_cite() {
    let source = "/// EP-1 in a doc of something else\nfn other() {}\n\
        /// NP-26 CH-5: cut.\n/// XNP-3 and NP-260 are no lines.\n#[test]\nfn a() { // EP-2\n}\n\
        #[tokio::test]\nasync fn cnp_7_cnp_8_b() {}\n    #[test]\n    fn ep_10_c() {}\n";
    let expected = [("NP", 26), ("CH", 5), ("CNP", 7), ("CNP", 8), ("EP", 10)];
    assert_eq!(cited_by_tests(source), expected.into_iter().collect());
}

fn cited_by_cases(directory: &Path) -> BTreeSet<Line> {
    let mut cited = BTreeSet::new();
    for file in files(directory, "yaml") {
        let entries: Vec<Value> =
            serde_saphyr::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        for claim in entries.iter().filter_map(|entry| entry.get("claim")?.as_str()) {
            cited.extend(lines_in(claim));
        }
    }
    cited
}

/// What the test functions of a source file cite.
fn cited_by_tests(source: &str) -> BTreeSet<Line> {
    let mut cited = BTreeSet::new();
    let mut comment = String::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            comment.push_str(text);
            comment.push(' ');
        } else if line.starts_with("#[") {
            is_test |= line.contains("test]") || line.contains("::test(");
        } else {
            let signature = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            if let Some(name) = signature.filter(|_| is_test) {
                cited.extend(lines_of_name(name.split('(').next().unwrap_or_default()));
                cited.extend(lines_in(&comment));
            }
            comment.clear();
            is_test = false;
        }
    }
    cited
}

/// The lines that a text names: a group, a dash, and a number of the group.
fn lines_in(text: &str) -> Vec<Line> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let read = |word: &str| {
        let (group, number) = word.split_once('-')?;
        let (group, count) = LINES.into_iter().find(|(known, _)| *known == group)?;
        let number = number.parse().ok().filter(|number| (1..=count).contains(number))?;
        Some((group, number))
    };
    words.filter_map(read).collect()
}

/// The lines that a function's name begins with, as in `np_18_np_19_a_protocol_opens_no_other`.
fn lines_of_name(name: &str) -> Vec<Line> {
    let parts: Vec<String> = name.split('_').map(str::to_uppercase).collect();
    let pairs = parts.chunks(2).map_while(|pair| match pair {
        [group, number] => lines_in(&format!("{group}-{number}")).pop(),
        _ => None,
    });
    pairs.collect()
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}
