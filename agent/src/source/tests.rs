use std::time::Duration;

use tokio::sync::mpsc;

use super::*;
use crate::testing::Scratch;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\n";
const BROKEN: &str = "a: [1,\n";

fn policy(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: namegate.dev/v1alpha1\nkind: EgressPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec:\n  podSelector: {{}}\n{rest}"
    )
}

fn look(directory: &mut Directory) -> (Vec<String>, Vec<String>, Vec<String>) {
    let changes = directory.look();
    (
        changes.upserts.iter().map(|object| object.reference().to_string()).collect(),
        changes.removals.iter().map(ToString::to_string).collect(),
        changes.problems.iter().map(ToString::to_string).collect(),
    )
}

fn none() -> Vec<String> {
    Vec::new()
}

#[test]
fn only_differences_are_told() {
    let scratch = Scratch::new("differences");
    scratch.write("a.yaml", POD);
    scratch.write("b.yml", &policy("p", ""));
    scratch.write("notes.txt", BROKEN);
    scratch.write(".hidden.yaml", BROKEN);
    let mut directory = Directory::new([scratch.0.clone()]);
    let both = vec!["Pod shop/a".to_owned(), "EgressPolicy shop/p".to_owned()];
    assert_eq!(look(&mut directory), (both, none(), none()));
    assert_eq!(look(&mut directory), (none(), none(), none()), "nothing changed");

    scratch.write("a.yaml", &format!("# a comment\n{POD}"));
    assert_eq!(look(&mut directory), (none(), none(), none()), "no object changed");

    scratch.write("b.yml", &policy("p", "  mode: Audit\n"));
    assert_eq!(look(&mut directory), (vec!["EgressPolicy shop/p".to_owned()], none(), none()));

    std::fs::remove_file(scratch.0.join("a.yaml")).unwrap();
    assert_eq!(look(&mut directory), (none(), vec!["Pod shop/a".to_owned()], none()));
}

#[test]
fn a_bad_object_is_told_once_with_file_line_object_field_and_fix() {
    let scratch = Scratch::new("bad");
    scratch.write("all.yaml", &format!("{POD}---\n{}", policy("p", "  egres: []\n")));
    let mut directory = Directory::new([scratch.0.clone()]);
    let (upserts, _, problems) = look(&mut directory);
    let expected = ["Pod shop/a", "EgressPolicy shop/p"];
    assert_eq!(upserts, expected, "the rest of the file counts, and the pods are closed");
    assert_eq!(directory.object_count(), 1, "what stands in is not counted");
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    for part in ["all.yaml:10", "EgressPolicy shop/p", "spec.egres", "unknown", "`egress`"] {
        assert!(problem.contains(part), "{part} is missing in: {problem}");
    }
    assert!(problem.contains("its pods are closed"), "{problem}");
    assert_eq!(look(&mut directory).2, none(), "not a second time");
    scratch.write("all.yaml", &format!("{POD}---\n{}", policy("p", "  egress: []\n")));
    let (upserts, removals, _) = look(&mut directory);
    assert_eq!((upserts, removals), (vec!["EgressPolicy shop/p".to_owned()], none()), "mended");
    assert_eq!(directory.object_count(), 2);
}

#[test]
fn ep_13_what_turns_bad_keeps_its_last_good_version() {
    let scratch = Scratch::new("last-good");
    scratch.write("a.yaml", &format!("{POD}---\n{}", policy("p", "")));
    scratch.write("b.yaml", &policy("q", ""));
    let mut directory = Directory::new([scratch.0.clone()]);
    look(&mut directory);

    scratch.write("a.yaml", &format!("{POD}---\n{}", policy("p", "  mode: Maybe\n")));
    let (upserts, removals, problems) = look(&mut directory);
    assert_eq!((upserts, removals), (none(), none()), "a bad field");
    assert!(problems[0].contains("last good version"), "{problems:?}");

    scratch.write("a.yaml", BROKEN);
    let (upserts, removals, problems) = look(&mut directory);
    assert_eq!((upserts, removals), (none(), none()), "no YAML at all");
    assert!(problems[0].contains("last good version"), "{problems:?}");
    assert_eq!(directory.object_count(), 3);

    scratch.write("a.yaml", POD);
    let (upserts, removals, problems) = look(&mut directory);
    assert_eq!(upserts, none());
    assert_eq!(removals, ["EgressPolicy shop/p"], "the file is good again, and without it");
    assert_eq!(problems, none());
}

#[test]
fn an_object_in_two_files_belongs_to_the_first() {
    let scratch = Scratch::new("twice");
    scratch.write("a.yaml", &policy("p", ""));
    scratch.write("b.yaml", &policy("p", "  mode: Audit\n"));
    let mut directory = Directory::new([scratch.0.clone()]);
    let (upserts, _, problems) = look(&mut directory);
    assert_eq!(upserts, ["EgressPolicy shop/p"]);
    assert!(problems[0].contains("already defined in"), "{problems:?}");
    std::fs::remove_file(scratch.0.join("a.yaml")).unwrap();
    assert_eq!(look(&mut directory).0, ["EgressPolicy shop/p"], "the other takes its place");
}

#[test]
fn lists_are_read_and_foreign_kinds_passed_over() {
    let scratch = Scratch::new("lists");
    let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}}]}"#;
    scratch.write("list.json", list);
    let mut directory = Directory::new([scratch.0.clone()]);
    assert_eq!(look(&mut directory).0, ["Namespace shop"]);
    let problems: Vec<&Problem> = directory.problems().collect();
    assert!(problems.iter().all(|problem| problem.is_foreign()), "{problems:?}");
}

#[test]
fn a_policy_of_an_unknown_dialect_is_no_foreign_object() {
    let scratch = Scratch::new("dialect");
    scratch
        .write("x.yaml", "apiVersion: example.com/v1\nkind: FirewallPolicy\nmetadata: {name: x}\n");
    let mut directory = Directory::new([scratch.0.clone()]);
    look(&mut directory);
    assert!(directory.problems().all(|problem| !problem.is_foreign()));
    assert_eq!(directory.problems().count(), 1);
}

#[tokio::test]
async fn changes_of_all_kinds_arrive_within_a_second() {
    let scratch = Scratch::new("follow");
    scratch.write("a.yaml", POD);
    let mut directory = Directory::new([scratch.0.clone()]);
    directory.look();
    let (send, mut changes) = mpsc::channel(4);
    let task = tokio::spawn(follow(directory, send));
    let mut next = async || {
        let arrived = tokio::time::timeout(Duration::from_secs(1), changes.recv());
        let changes: Changes = arrived.await.expect("within a second").expect("still followed");
        (changes.upserts.len(), changes.removals.len())
    };
    scratch.write("b.yaml", &policy("p", ""));
    assert_eq!(next().await, (1, 0), "a file appears by rename");
    std::fs::write(scratch.0.join("b.yaml"), policy("p", "  mode: Audit\n")).unwrap();
    assert_eq!(next().await, (1, 0), "a file is written in place");
    std::fs::create_dir(scratch.0.join("sub")).unwrap();
    std::fs::write(scratch.0.join("sub/c.yaml"), policy("q", "")).unwrap();
    assert_eq!(next().await, (1, 0), "a file in a directory that appears");
    std::fs::remove_file(scratch.0.join("b.yaml")).unwrap();
    assert_eq!(next().await, (0, 1), "a file vanishes");
    task.abort();
}
