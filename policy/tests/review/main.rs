//! What a reviewer would say, as data: each case is a set of documents and everything that is said
//! about them, so that a finding too many fails as one too few does.

#![expect(clippy::unwrap_used, reason = "a test ends where an assumption fails")]

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use namegate_policy::name::DnsName;
use namegate_policy::object::{self, Object};
use namegate_policy::review::{Code, Finding, Review, written};
use namegate_policy::rule::PolicyRef;
use serde::Deserialize;
use serde_json::Value;

const FILES: &[(&str, &str)] = &[
    ("dns", include_str!("dns.yaml")),
    ("names", include_str!("names.yaml")),
    ("ranges", include_str!("ranges.yaml")),
    ("selection", include_str!("selection.yaml")),
    ("reach", include_str!("reach.yaml")),
    ("isolation", include_str!("isolation.yaml")),
    ("notes", include_str!("notes.yaml")),
    ("written", include_str!("written.yaml")),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    claim: String,
    #[serde(default)]
    pod_ranges: Vec<IpNet>,
    objects: Vec<Value>,
    /// `CODE OBJECT FIELD`, a hint with `?` before it, in any order.
    #[serde(default)]
    says: BTreeSet<String>,
    /// Codes that another case is about.
    #[serde(default)]
    besides: BTreeSet<String>,
    /// Words that some message or advice has.
    #[serde(default)]
    words: Vec<String>,
}

fn cases() -> impl Iterator<Item = Case> {
    FILES.iter().flat_map(|(file, text)| {
        let cases: Vec<Case> =
            serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{file}: {error}"));
        cases.into_iter().map(move |case| Case { claim: format!("{file}: {}", case.claim), ..case })
    })
}

fn review(case: &Case) -> Vec<(Finding, String)> {
    let claim = &case.claim;
    let mut documents: BTreeMap<PolicyRef, &Value> = BTreeMap::new();
    let mut objects = Vec::new();
    let mut findings = Vec::new();
    for document in &case.objects {
        let object =
            object::parse(document.clone()).unwrap_or_else(|error| panic!("{claim}: {error}"));
        if let Object::Policy(policy) = &object {
            documents.insert(policy.reference.clone(), document);
            findings.extend(written(policy, document));
        }
        objects.push(object);
    }
    let domain = DnsName::parse("cluster.local").unwrap();
    findings.extend(Review::new(&objects, &case.pod_ranges, domain).findings());
    let located = findings.into_iter().map(|finding| {
        let path = finding.place.path_in(documents[&finding.policy]);
        (finding, path)
    });
    located.collect()
}

#[test]
fn reviews_say_what_the_cases_say_and_no_more() {
    for case in cases() {
        let found = review(&case);
        let said: BTreeSet<String> = found
            .iter()
            .filter(|(finding, _)| !case.besides.contains(finding.code.name()))
            .map(|(finding, path)| {
                let mark = if finding.severity.to_string() == "hint" { "?" } else { "" };
                format!("{mark}{} {} {path}", finding.code, finding.policy)
            })
            .collect();
        assert_eq!(said, case.says, "{}", case.claim);
        for word in &case.words {
            let has = |(finding, _): &(Finding, String)| {
                finding.message.contains(word) || finding.advice.contains(word)
            };
            assert!(found.iter().any(has), "{}: nobody says {word:?}: {found:#?}", case.claim);
        }
    }
}

#[test]
fn every_code_is_seen_to_be_said() {
    let said: BTreeSet<Code> =
        cases().flat_map(|case| review(&case)).map(|(finding, _)| finding.code).collect();
    let unsaid: Vec<&Code> = Code::ALL.iter().filter(|code| !said.contains(code)).collect();
    assert_eq!(unsaid, [] as [&Code; 0]);
}

#[test]
fn the_documentation_lists_the_codes_as_they_are() {
    let text = include_str!("../../../docs/check.md");
    let listed: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.starts_with("| `foreign-kind`"))
        .skip(1)
        .take_while(|line| line.starts_with("| `"))
        .collect();
    let row = |code: &Code| format!("| `{code}` | {} | {} |", code.severity(), code.about());
    let expected: Vec<String> = Code::ALL.iter().map(row).collect();
    assert_eq!(listed, expected);
}
