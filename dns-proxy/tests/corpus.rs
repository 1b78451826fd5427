//! The fuzz corpora, replayed, and random changes to them.

#![expect(clippy::expect_used, reason = "a helper that fails fails its test")]

#[path = "../fuzz/drive.rs"]
mod drive;
#[path = "../../policy/tests/corpus/replay.rs"]
mod replay;

use replay::Reader;

const READERS: [(&str, Reader); 3] =
    [("gate", drive::gate), ("answer", drive::answer), ("frame", drive::frame)];

#[test]
fn every_input_of_the_corpora_holds() {
    replay::every_input_holds(&READERS);
}

#[test]
fn random_changes_to_the_corpora_hold() {
    replay::random_changes_hold(&READERS);
}
