//! Messages on a byte stream: two octets of length, then the message (RFC 1035 section 4.2.2).

/// Cuts a stream of octets into messages. Holds at most one message and what was read behind it.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
}

impl Framer {
    /// A framer that has read nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the octets that are read go, at the end.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.buffer.reserve(512);
        &mut self.buffer
    }

    /// Takes the next whole message out.
    #[expect(
        clippy::should_implement_trait,
        reason = "more messages can follow a `None` as more octets arrive"
    )]
    pub fn next(&mut self) -> Option<Vec<u8>> {
        let length = usize::from(crate::wire::u16_at(&self.buffer, 0)?);
        let message = self.buffer.get(2..2 + length)?.to_vec();
        self.buffer.drain(..2 + length);
        if self.buffer.is_empty() {
            self.buffer.shrink_to(4096);
        }
        Some(message)
    }
}

/// `message` behind its length. Longer messages than 65,535 octets do not exist here: every reader
/// and writer of the crate stops there.
pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&message[..usize::from(length)]);
    framed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_survive_any_cut_of_the_stream(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
            cut in 1usize..50,
        ) {
            let stream: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
            let mut framer = Framer::new();
            let mut read = Vec::new();
            for piece in stream.chunks(cut) {
                framer.buffer().extend_from_slice(piece);
                while let Some(message) = framer.next() {
                    read.push(message);
                }
            }
            prop_assert_eq!(read, messages);
        }
    }

    #[test]
    fn half_a_message_waits_for_the_rest() {
        let mut framer = Framer::new();
        for octet in [0, 2, 7] {
            framer.buffer().push(octet);
            assert_eq!(framer.next(), None);
        }
        framer.buffer().push(8);
        assert_eq!(framer.next(), Some(vec![7, 8]));
        assert_eq!(framer.next(), None);
    }
}
