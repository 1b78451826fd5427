use std::os::unix::fs::MetadataExt;

use super::journal::Journal;
use super::*;
use crate::source;
use crate::state::Event;
use crate::testing::{Scratch, mk_objects, mk_state};

/// When everything is learned.
const SINCE: Timestamp = Timestamp::from_nanos(7_000_000_000);

/// Long after any test.
const DEADLINE: Timestamp = Timestamp::from_nanos(1 << 62);

/// A state with these pods in namespace `shop`, whose identities are numbered as they are named.
fn mk_shop(pods: &[&str]) -> State {
    let mut state = mk_state();
    for pod in pods {
        add_pod(&mut state, pod, pod);
    }
    state
}

fn add_pod(state: &mut State, pod: &str, app: &str) {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: shop, labels: {{app: {app}}}}}\n"
    );
    let changes = source::Changes { upserts: mk_objects(&text), ..Default::default() };
    state.handle(Event::Objects(changes), Timestamp::default());
}

fn mk_pod(name: &str) -> PodRef {
    PodRef { namespace: "shop".into(), name: name.into() }
}

fn identity(state: &State, pod: &str) -> Identity {
    state.identity_of_pod(&mk_pod(pod)).unwrap()
}

fn pods(state: &State, names: &[&str]) -> Pods {
    names.iter().map(|name| (mk_pod(name), identity(state, name))).collect()
}

fn teach(state: &mut State, pod: &str, name: &str, address: [u8; 4]) {
    let identity = identity(state, pod);
    let name = DnsName::parse(name).unwrap();
    let term = Term { since: Some(SINCE), deadline: DEADLINE };
    assert!(state.restore(identity, &name, address.into(), term));
}

/// What a pod's identity learned, as text.
fn learned(state: &State, pod: &str) -> Vec<String> {
    let (identity, learned) = (identity(state, pod), state.learned().read());
    let leases = learned.addresses(identity).flat_map(|address| {
        let names = learned.leases((identity, address));
        names.map(|(name, _)| format!("{name} {address}")).collect::<Vec<_>>()
    });
    leases.collect()
}

fn restored(path: &Path, pods: &[&str]) -> State {
    let mut state = mk_shop(pods);
    restore(path, &mut state).unwrap();
    state
}

#[test]
fn what_was_learned_comes_back_to_the_pods_that_learned_it() {
    let scratch = Scratch::new("journal-back");
    let (path, mut state) = (path(&scratch.0), mk_shop(&["checkout", "web"]));
    let mut journal = Journal::new(path.clone(), state.learned().clone());
    teach(&mut state, "checkout", "a.example", [192, 0, 2, 1]);
    journal.keep(pods(&state, &["checkout", "web"])).unwrap();
    teach(&mut state, "web", "odd\\.label.example", [192, 0, 2, 2]);
    journal.keep(pods(&state, &["checkout", "web"])).unwrap();

    let mut next = mk_shop(&["web", "other", "checkout"]);
    let restored = restore(&path, &mut next).unwrap();
    assert_eq!(restored, Restored { leases: 2, unreadable: 0 });
    assert_ne!(identity(&next, "checkout"), identity(&state, "checkout"), "numbers differ");
    assert_eq!(learned(&next, "checkout"), ["a.example 192.0.2.1"]);
    let place = (identity(&next, "checkout"), [192, 0, 2, 1].into());
    let since = next.learned().read().learned_at(place, &DnsName::parse("a.example").unwrap());
    assert_eq!(since, Some(SINCE));
    assert_eq!(learned(&next, "web"), ["odd\\046label.example 192.0.2.2"]);
    assert_eq!(learned(&next, "other"), [""; 0]);
}

#[test]
fn journal_of_a_build_that_told_no_ages_is_read() {
    let scratch = Scratch::new("journal-ageless");
    let path = path(&scratch.0);
    let boot = boot_id().unwrap();
    let text = format!(
        "{{\"boot\":\"{boot}\"}}\n{{\"pod\":[256,\"shop\",\"web\"]}}\n{{\"lease\":[256,\"a.example\",\"192.0.2.1\",{}]}}\n",
        DEADLINE.as_nanos()
    );
    fs::write(&path, text).unwrap();
    let mut next = mk_shop(&["web"]);
    assert_eq!(restore(&path, &mut next).unwrap(), Restored { leases: 1, unreadable: 0 });
    assert_eq!(learned(&next, "web"), ["a.example 192.0.2.1"]);
}

#[test]
fn a_write_that_was_cut_short_costs_its_last_line_alone() {
    let scratch = Scratch::new("journal-cut");
    let (path, mut state) = (path(&scratch.0), mk_shop(&["web"]));
    let mut journal = Journal::new(path.clone(), state.learned().clone());
    teach(&mut state, "web", "a.example", [192, 0, 2, 1]);
    journal.keep(pods(&state, &["web"])).unwrap();
    let before = fs::metadata(&path).unwrap().len();
    teach(&mut state, "web", "b.example", [192, 0, 2, 2]);
    journal.keep(pods(&state, &["web"])).unwrap();
    let whole = fs::read(&path).unwrap();
    for length in usize::try_from(before).unwrap()..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(learned(&restored(&path, &["web"]), "web"), ["a.example 192.0.2.1"], "{length}");
    }
    fs::write(&path, [&whole[..], b"\xff{}\n"].concat()).unwrap();
    let mut next = mk_shop(&["web"]);
    assert_eq!(restore(&path, &mut next).unwrap(), Restored { leases: 2, unreadable: 1 });
}

#[test]
fn changes_are_appended_and_the_file_is_bounded() {
    let scratch = Scratch::new("journal-bound");
    let (path, mut state) = (path(&scratch.0), mk_shop(&["web"]));
    let mut journal = Journal::new(path.clone(), state.learned().clone());
    for number in 0..1_000u16 {
        let [high, low] = number.to_be_bytes();
        teach(&mut state, "web", &format!("n{number}.example"), [192, 0, high, low]);
    }
    let pods = pods(&state, &["web"]);
    journal.keep(pods.clone()).unwrap();
    let begun = fs::metadata(&path).unwrap();
    let (mut largest, mut files) = (0, 1);
    let mut inode = begun.ino();
    for round in 1..60u64 {
        for number in 0..1_000u16 {
            let [high, low] = number.to_be_bytes();
            let deadline = Timestamp::from_nanos(DEADLINE.as_nanos() + round);
            let name = DnsName::parse(&format!("n{number}.example")).unwrap();
            let address = IpAddr::from([192, 0, high, low]);
            assert!(state.restore(identity(&state, "web"), &name, address, deadline));
        }
        journal.keep(pods.clone()).unwrap();
        let file = fs::metadata(&path).unwrap();
        largest = largest.max(file.len());
        files += u32::from(file.ino() != inode);
        inode = file.ino();
    }
    assert!(files < 6, "{files} files: most rounds append");
    assert!(files > 1, "what is appended is written together");
    assert!(largest < 2 * begun.len() + (1 << 20), "{largest} octets, {} at first", begun.len());
    assert_eq!(learned(&restored(&path, &["web"]), "web").len(), 1_000);
}

#[test]
fn more_changes_than_are_told_one_by_one_are_all_there() {
    let scratch = Scratch::new("journal-many");
    let (path, mut state) = (path(&scratch.0), mk_shop(&["web"]));
    let mut journal = Journal::new(path.clone(), state.learned().clone());
    teach(&mut state, "web", "first.example", [10, 0, 0, 0]);
    journal.keep(pods(&state, &["web"])).unwrap();
    for number in 1..=33_000u32 {
        let [_, a, b, c] = number.to_be_bytes();
        teach(&mut state, "web", &format!("n{number}.example"), [192, a, b, c]);
    }
    journal.keep(pods(&state, &["web"])).unwrap();
    let mut next = mk_shop(&["web"]);
    assert_eq!(restore(&path, &mut next).unwrap(), Restored { leases: 33_001, unreadable: 0 });
}

#[test]
fn names_of_pods_that_were_alike_go_where_most_of_them_went() {
    let scratch = Scratch::new("journal-votes");
    let (path, mut state) = (path(&scratch.0), mk_shop(&["web"]));
    let mut journal = Journal::new(path.clone(), state.learned().clone());
    teach(&mut state, "web", "a.example", [192, 0, 2, 1]);
    let number = identity(&state, "web");
    let alike = ["one", "two", "zoe"].map(|pod| (mk_pod(pod), number));
    journal.keep(Pods::from(alike)).unwrap();

    let mut next = mk_state();
    for (pod, app) in [("one", "web"), ("two", "web"), ("zoe", "relabelled")] {
        add_pod(&mut next, pod, app);
    }
    restore(&path, &mut next).unwrap();
    assert_eq!(learned(&next, "two"), ["a.example 192.0.2.1"]);
    assert_eq!(learned(&next, "zoe"), [""; 0]);
}

#[test]
fn identity_that_went_leaves_nothing_to_who_has_its_number_next() {
    let scratch = Scratch::new("journal-number");
    let (path, mut state) = (path(&scratch.0), mk_shop(&["old", "new"]));
    let mut journal = Journal::new(path.clone(), state.learned().clone());
    let number = identity(&state, "old");
    teach(&mut state, "old", "a.example", [192, 0, 2, 1]);
    journal.keep(Pods::from([(mk_pod("old"), number)])).unwrap();
    journal.keep(Pods::new()).unwrap();
    journal.keep(Pods::from([(mk_pod("new"), number)])).unwrap();
    assert_eq!(learned(&restored(&path, &["old", "new"]), "new"), [""; 0]);
}

#[test]
fn file_of_another_boot_counts_for_nothing() {
    let scratch = Scratch::new("journal-boot");
    let (path, mut state) = (path(&scratch.0), mk_shop(&["web"]));
    teach(&mut state, "web", "a.example", [192, 0, 2, 1]);
    Journal::new(path.clone(), state.learned().clone()).keep(pods(&state, &["web"])).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&boot_id().unwrap(), "another")).unwrap();
    assert_eq!(learned(&restored(&path, &["web"]), "web"), [""; 0]);
}

#[test]
fn what_could_not_be_written_is_written_later() {
    let scratch = Scratch::new("journal-later");
    let folder = scratch.0.join("run");
    let (path, mut state) = (path(&folder), mk_shop(&["web"]));
    let mut journal = Journal::new(path.clone(), state.learned().clone());
    teach(&mut state, "web", "a.example", [192, 0, 2, 1]);
    assert!(journal.keep(pods(&state, &["web"])).is_err());
    fs::create_dir(&folder).unwrap();
    journal.keep(pods(&state, &["web"])).unwrap();
    assert_eq!(learned(&restored(&path, &["web"]), "web"), ["a.example 192.0.2.1"]);
}

#[test]
fn keeper_that_ends_has_written_everything() {
    let scratch = Scratch::new("journal-end");
    let (path, mut state) = (path(&scratch.0), mk_shop(&["web"]));
    let keeper = Keeper::start(path.clone(), state.learned().clone()).unwrap();
    keeper.keep(pods(&state, &["web"]));
    for number in 0..5_000u16 {
        let [high, low] = number.to_be_bytes();
        teach(&mut state, "web", &format!("n{number}.example"), [192, 0, high, low]);
    }
    keeper.end(Some(pods(&state, &["web"])));
    assert_eq!(learned(&restored(&path, &["web"]), "web").len(), 5_000);
}
