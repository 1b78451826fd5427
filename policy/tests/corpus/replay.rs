//! Fuzz corpora replayed, and random changes to them: shared by the crates that have some.

use std::path::Path;

use proptest::prelude::*;

/// What takes an input, and panics where something about it does not hold.
pub(crate) type Reader = fn(&[u8]);

/// Each input goes through its reader without a panic.
pub(crate) fn every_input_holds(readers: &[(&str, Reader)]) {
    for (name, reader) in readers {
        for (path, input) in corpus(name) {
            if std::panic::catch_unwind(|| reader(&input)).is_err() {
                panic!("{path} breaks the reader");
            }
        }
    }
}

/// So do inputs with a few octets changed, cut or taken from another.
pub(crate) fn random_changes_hold(readers: &[(&str, Reader)]) {
    for (name, reader) in readers {
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

/// The committed inputs of the crate that is tested, with where they are.
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
