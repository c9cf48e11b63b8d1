//! **Pure.** Messages that are made to keep a reader busy, for tests.

use super::HEADER;

/// A header with these counts.
pub(crate) fn message(counts: [u16; 4], body: &[u8]) -> Vec<u8> {
    let mut message = vec![0, 7, 0x80, 0];
    message.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    message.extend_from_slice(body);
    message
}

/// A record of no known type whose data is a chain of pointers, each to the one before it, and so
/// many records that begin with the last one.
pub(crate) fn chained(pointers: usize, records: u16) -> Vec<u8> {
    // The first one points to the root, which is the owner of that record.
    let start = HEADER + 11;
    let mut body = vec![0, 0xFF, 0, 0, 1, 0, 0, 0, 0];
    body.extend(
        u16::try_from(2 * pointers)
            .expect("a small number")
            .to_be_bytes(),
    );
    let mut to = HEADER;
    for at in 0..pointers {
        body.extend((0xC000 | u16::try_from(to).expect("a small number")).to_be_bytes());
        to = start + 2 * at;
    }
    for _ in 0..records {
        body.extend((0xC000 | u16::try_from(to).expect("a small number")).to_be_bytes());
        body.extend([0xFF, 0, 0, 1, 0, 0, 0, 0, 0, 1, 7]);
    }
    message([0, records + 1, 0, 0], &body)
}
