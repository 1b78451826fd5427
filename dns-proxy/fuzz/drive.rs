//! What the fuzz targets do with an input. `cargo test` replays the corpora through the same
//! functions.

#![allow(dead_code, reason = "each fuzz target drives one reader")]

use namegate_dns_proxy::{answer, frame::Framer, gate};

/// A message from a pod.
pub(crate) fn gate(input: &[u8]) {
    match gate::read(input) {
        Ok(query) => {
            let question = query.question();
            assert_eq!(question.len(), query.name().as_wire().len() + 4);
            assert!(input[12..].starts_with(question));
        }
        Err(rejection) => {
            if let Some(reply) = rejection.reply {
                assert!(reply.len() <= 23, "no amplification");
                assert_eq!(reply[..2], input[..2]);
                assert_eq!(reply[2] & 0x80, 0x80);
            }
        }
    }
}

/// An octet that says how long the query is, the query, and an answer to it.
pub(crate) fn answer(input: &[u8]) {
    let Some((&length, rest)) = input.split_first() else {
        return;
    };
    let Some((query, message)) = rest.split_at_checked(usize::from(length)) else {
        return;
    };
    let Ok(query) = gate::read(query) else {
        return;
    };
    if let Ok(answer) = answer::read(message, &query) {
        assert!(answer::is_response_to(message, &query));
        let most = message.len() / 4;
        assert!(answer.addresses.len() <= most, "an address takes octets");
        for taught in &answer.addresses {
            assert!(taught.ttl <= 0x7fff_ffff);
        }
    }
}

/// An octet that says how the stream is cut, and the stream.
pub(crate) fn frame(input: &[u8]) {
    let Some((&cut, stream)) = input.split_first() else {
        return;
    };
    let mut framer = Framer::new();
    let mut taken = 0;
    for piece in stream.chunks(usize::from(cut).max(1)) {
        framer.buffer().extend_from_slice(piece);
        while let Some(message) = framer.next() {
            taken += 2 + message.len();
        }
    }
    assert!(taken <= stream.len());
}
