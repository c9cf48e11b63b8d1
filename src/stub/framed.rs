//! **Pure.** Messages that go out together over a stream, each with its length before it
//! (RFC 1035, section 4.2.2).

/// Bytes of a length.
const LENGTH: usize = 2;

/// What is to be written. It keeps its room, which is filled with zeros once and then written
/// over.
#[derive(Debug, Default)]
pub(super) struct Framed {
    bytes: Vec<u8>,
    end: usize,
}

impl Framed {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.end]
    }

    pub(super) fn len(&self) -> usize {
        self.end
    }

    pub(super) fn is_empty(&self) -> bool {
        self.end == 0
    }

    pub(super) fn clear(&mut self) {
        self.end = 0;
    }

    /// Room for a message of at most so many bytes, which is [taken](Self::take) then or not.
    pub(super) fn room(&mut self, most: usize) -> &mut [u8] {
        let start = self.end + LENGTH;
        if self.bytes.len() < start + most {
            self.bytes.resize(start + most, 0);
        }
        &mut self.bytes[start..start + most]
    }

    /// The message in the room is so long. `None`: longer than any may be.
    pub(super) fn take(&mut self, length: usize) -> Option<&[u8]> {
        let prefix = u16::try_from(length).ok()?.to_be_bytes();
        let start = self.end + LENGTH;
        self.bytes[self.end..start].copy_from_slice(&prefix);
        self.end = start + length;
        Some(&self.bytes[start..self.end])
    }

    /// Adds a message; nothing for nothing, and for what is longer than any may be.
    pub(super) fn push(&mut self, message: &[u8]) {
        if !message.is_empty() && message.len() <= usize::from(u16::MAX) {
            self.room(message.len()).copy_from_slice(message);
            self.take(message.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_has_its_length_and_what_was_written_before_is_in_none() {
        let mut out = Framed::default();
        out.push(&[7; 300]);
        out.clear();
        assert!(out.is_empty());
        out.push(b"one");
        out.push(b"");
        out.room(9)[..4].copy_from_slice(b"four");
        assert_eq!(out.take(4), Some(&b"four"[..]));
        // Not taken.
        out.room(9).fill(9);
        out.push(b"x");
        assert_eq!(out.as_bytes(), b"\0\x03one\0\x04four\0\x01x");
        assert_eq!(out.len(), out.as_bytes().len());
    }

    #[test]
    fn what_is_longer_than_any_message_is_not_sent() {
        let mut out = Framed::default();
        let most = usize::from(u16::MAX);
        out.push(&vec![1; most + 1]);
        out.room(most + 1);
        assert_eq!(out.take(most + 1), None);
        assert_eq!(out.len(), 0);
        out.push(&vec![1; most]);
        assert_eq!(out.as_bytes()[..3], [0xFF, 0xFF, 1]);
    }
}
