//! **Pure.** The shape of a DNS message, walked once before anything is made of it: where
//! its names, records and its end are, by what they say of themselves.
//!
//! A name may point to a name before it (RFC 1035, section 4.1.4), and that one to another.
//! Thousands of pointers in a row, and hundreds of records that begin with the last of them,
//! keep a reader busy for as long as it takes to read them all again for each record. So the
//! pointers that are followed are counted for the whole message: no more than one for each
//! two bytes of it. No encoder comes near that. Labels need no count of their own: a name
//! has 127 at most, and a record that costs 127 labels has 12 bytes of its own.

/// Length of a header (RFC 1035, section 4.1.1).
const HEADER: usize = 12;

/// Longest name on the wire (RFC 1035, section 2.3.4).
const NAME: usize = 255;

/// Bytes of a message for each pointer that may be followed in it.
const BYTES_A_POINTER: usize = 2;

/// Walks a message to its last byte, and tells how many labels and pointers that took.
/// `None`: it ends early or late, a name of it is none, or there are too many pointers to
/// follow.
pub(crate) fn steps(message: &[u8]) -> Option<usize> {
    let header: &[u8; HEADER] = message.first_chunk()?;
    let count = |at: usize| u32::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let mut walk = Walk {
        message,
        at: HEADER,
        steps: 0,
        pointers: message.len() / BYTES_A_POINTER,
    };
    // Each takes bytes: counts that lie end with them.
    for _ in 0..count(4) {
        walk.name()?;
        walk.skip(4)?;
    }
    for _ in 0..count(6) + count(8) + count(10) {
        walk.record()?;
    }
    (walk.at == message.len()).then_some(walk.steps)
}

struct Walk<'a> {
    message: &'a [u8],
    at: usize,
    steps: usize,
    /// That may still be followed.
    pointers: usize,
}

impl Walk<'_> {
    fn record(&mut self) -> Option<()> {
        self.name()?;
        let kind = self.number(self.at)?;
        let length = usize::from(self.number(self.at + 8)?);
        self.skip(10)?;
        let end = self.at + length;
        if end > self.message.len() {
            return None;
        }
        // What comes before the names in the data, and how many there are.
        let (before, names) = match kind {
            // NS, CNAME, PTR; ANAME.
            2 | 5 | 12 | 65_305 => (0, 1),
            // SOA.
            6 => (0, 2),
            // MX; SVCB, HTTPS.
            15 | 64 | 65 => (2, 1),
            // SRV.
            33 => (6, 1),
            // NAPTR: order, preference, and three texts.
            35 => (self.texts(4, 3)?, 1),
            _ => (0, 0),
        };
        if names > 0 {
            self.skip(before)?;
        }
        for _ in 0..names {
            self.name()?;
        }
        if self.at > end {
            return None;
        }
        self.at = end;
        Some(())
    }

    /// Bytes until behind so many texts (RFC 1035, section 3.3), which begin after `before`.
    fn texts(&self, before: usize, count: usize) -> Option<usize> {
        let mut length = before;
        for _ in 0..count {
            length += 1 + usize::from(*self.message.get(self.at + length)?);
        }
        Some(length)
    }

    /// Goes past a name, which has to be one to its end, wherever it points.
    fn name(&mut self) -> Option<()> {
        let (mut at, mut begun) = (self.at, self.at);
        let (mut end, mut length) = (None, 1);
        loop {
            self.steps += 1;
            let byte = *self.message.get(at)?;
            match byte {
                0 => break,
                1..=63 => {
                    length += 1 + usize::from(byte);
                    if length > NAME {
                        return None;
                    }
                    at += 1 + usize::from(byte);
                }
                0xC0.. => {
                    self.pointers = self.pointers.checked_sub(1)?;
                    let to = usize::from(self.number(at)? & 0x3FFF);
                    // Backwards only: there is no circle.
                    if to >= begun || to < HEADER {
                        return None;
                    }
                    end.get_or_insert(at + 2);
                    (at, begun) = (to, to);
                }
                _ => return None,
            }
        }
        self.at = end.unwrap_or(at + 1);
        Some(())
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.at += length;
        (self.at <= self.message.len()).then_some(())
    }

    fn number(&self, at: usize) -> Option<u16> {
        let two = self.message.get(at..at + 2)?;
        Some(u16::from_be_bytes([two[0], two[1]]))
    }
}

/// Messages that are made to keep a reader busy.
#[cfg(test)]
pub(crate) mod hostile {
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
}

#[cfg(test)]
mod tests {
    use super::{
        hostile::{chained, message},
        *,
    };

    #[test]
    fn what_a_message_says_of_itself_has_to_be_so() {
        let question = [3, b'w', b'e', b'b', 0, 0, 33, 0, 1];
        assert_eq!(steps(&message([1, 0, 0, 0], &question)), Some(2));
        for (why, counts, body) in [
            ("no header", [0; 4], None),
            ("no question", [1, 0, 0, 0], Some(&[][..])),
            ("bytes left over", [0; 4], Some(&question[..])),
            ("more questions", [2, 0, 0, 0], Some(&question)),
            (
                "all records there can be",
                [1, 0xFFFF, 0xFFFF, 0xFFFF],
                Some(&question),
            ),
            ("no root", [1, 0, 0, 0], Some(&question[..4])),
            ("to itself", [1, 0, 0, 0], Some(&[0xC0, 12, 0, 1, 0, 1])),
            ("forwards", [1, 0, 0, 0], Some(&[0xC0, 14, 0, 0, 1, 0, 1])),
            (
                "into the header",
                [1, 0, 0, 0],
                Some(&[0xC0, 4, 0, 1, 0, 1]),
            ),
            ("a label of 64", [1, 0, 0, 0], Some(&[0x40, 0, 1, 0, 1])),
        ] {
            let body = body.map(|body| message(counts, body));
            assert_eq!(steps(&body.unwrap_or_else(|| vec![0; 11])), None, "{why}");
        }
    }

    #[test]
    fn data_that_is_said_to_be_longer_or_shorter_than_its_name_is_refused() {
        let record = |length: u16, data: &[u8]| {
            let mut body = vec![0, 0, 5, 0, 1, 0, 0, 0, 0];
            body.extend(length.to_be_bytes());
            body.extend_from_slice(data);
            steps(&message([0, 1, 0, 0], &body))
        };
        assert_eq!(record(3, &[1, b'a', 0]), Some(3));
        assert_eq!(record(4, &[1, b'a', 0]), None);
        assert_eq!(record(2, &[1, b'a', 0]), None);
        assert_eq!(record(0, &[]), None);
    }

    #[test]
    fn chains_of_pointers_cost_no_more_than_the_message_is_long() {
        assert_eq!(steps(&chained(10, 2)), Some(1 + 2 * 12));
        for (pointers, records) in [(500, 500), (4_000, 100), (8_000, 3_000)] {
            assert_eq!(
                steps(&chained(pointers, records)),
                None,
                "{pointers} {records}"
            );
        }
    }
}
