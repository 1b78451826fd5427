//! The fuzz corpora, replayed.

use std::path::Path;

#[path = "../fuzz/drive.rs"]
mod drive;

type Reader = fn(&[u8]);

#[test]
fn every_input_of_the_corpora_holds() {
    let readers: [(&str, Reader); 3] =
        [("gate", drive::gate), ("answer", drive::answer), ("frame", drive::frame)];
    for (name, reader) in readers {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut inputs = 0;
        for entry in std::fs::read_dir(&corpus).expect("the corpus is committed") {
            let path = entry.expect("a readable corpus").path();
            let input = std::fs::read(&path).expect("a readable input");
            if std::panic::catch_unwind(|| reader(&input)).is_err() {
                panic!("{} breaks the reader", path.display());
            }
            inputs += 1;
        }
        assert!(inputs > 0, "{name} has no corpus");
    }
}
