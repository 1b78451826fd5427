//! The fuzz corpora, replayed, and random changes to them.

#![expect(clippy::expect_used, reason = "a helper that fails fails its test")]

use std::path::Path;

use proptest::prelude::*;

#[path = "../fuzz/drive.rs"]
mod drive;

type Reader = fn(&[u8]);

const READERS: [(&str, Reader); 2] = [("matcher", drive::matcher), ("object", drive::object)];

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = std::fs::read_dir(&folder).expect("the corpus is committed");
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("a readable corpus").path();
            (path.display().to_string(), std::fs::read(&path).expect("a readable input"))
        })
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{name} has no corpus");
    inputs
}

#[test]
fn every_input_of_the_corpora_holds() {
    for (name, reader) in READERS {
        for (path, input) in corpus(name) {
            if std::panic::catch_unwind(|| reader(&input)).is_err() {
                panic!("{path} breaks the reader");
            }
        }
    }
}

#[test]
fn random_changes_to_the_corpora_hold() {
    for (name, reader) in READERS {
        let inputs: Vec<Vec<u8>> = corpus(name).into_iter().map(|(_, input)| input).collect();
        let one = prop::sample::select(inputs.clone());
        let edits =
            prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6);
        let changed = (one, prop::sample::select(inputs), edits);
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 3_000,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let run = runner.run(&changed, |(mut input, other, edits)| {
            for (spot, octet, how) in edits {
                let at = spot.index(input.len() + 1);
                match how {
                    0 => input.insert(at, octet),
                    1 => input.truncate(at.max(1)),
                    _ => input.splice(at.., other.iter().skip(at).copied()).for_each(drop),
                }
                if let Some(place) = input.get_mut(at) {
                    *place = octet;
                }
            }
            reader(&input);
            Ok(())
        });
        if let Err(error) = run {
            panic!("{name}: {error}");
        }
    }
}
