//! What no DNS message may look like, as what follows its question: for questions to
//! the stub and replies to the resolver alike. Beside it what is odd and allowed.
#![allow(dead_code, reason = "each test binary uses its part")]

/// The records that follow a question, and how many the header says there are.
pub(crate) struct Tail {
    pub(crate) what: String,
    /// Answers, authorities, additionals.
    counts: [u16; 3],
    bytes: Vec<u8>,
}

impl Tail {
    /// A header and a question with this behind it, beside the records it has.
    pub(crate) fn after(&self, message: &[u8]) -> Vec<u8> {
        let mut message = message.to_vec();
        for (at, count) in [6, 8, 10].into_iter().zip(self.counts) {
            let before = u16::from_be_bytes([message[at], message[at + 1]]);
            let all = before.saturating_add(count).to_be_bytes();
            message[at..at + 2].copy_from_slice(&all);
        }
        message.extend(&self.bytes);
        message
    }
}

const A: u16 = 1;
const OPT: u16 = 41;
/// Of the private range: its data is nobody's to read.
const OPAQUE: u16 = 65_400;

/// The question's name.
const QUESTION: &[u8] = b"\xC0\x0C";

pub(crate) fn pointer(to: usize) -> [u8; 2] {
    (0xC000 | u16::try_from(to).unwrap()).to_be_bytes()
}

/// A record of class IN.
pub(crate) fn record(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap();
    record_of(owner, kind, length, data)
}

/// One that says that its data is so long.
fn record_of(owner: &[u8], kind: u16, length: u16, data: &[u8]) -> Vec<u8> {
    let mut record = [owner, &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 0]].concat();
    record.extend(length.to_be_bytes());
    record.extend(data);
    record
}

/// An OPT record that takes 1,232 bytes.
pub(crate) fn opt(options: &[u8]) -> Vec<u8> {
    let mut opt = record(b"\0", OPT, options);
    opt[3..9].copy_from_slice(&[4, 208, 0, 0, 0, 0]);
    opt
}

pub(crate) fn option(code: u16, length: usize) -> Vec<u8> {
    let counted = u16::try_from(length).unwrap().to_be_bytes();
    [&code.to_be_bytes()[..], &counted, &vec![7; length]].concat()
}

fn label(length: u8) -> Vec<u8> {
    [vec![length], vec![b'x'; length.into()]].concat()
}

/// A name of 255 bytes and, with one more in its last label, of 256.
fn long_name(last: u8) -> Vec<u8> {
    [label(63), label(63), label(63), label(last), vec![0]].concat()
}

fn labels(count: usize) -> Vec<u8> {
    [&b"\x01a".repeat(count)[..], b"\0"].concat()
}

/// Opaque data that starts at `at` once it has an owner of two bytes: pointers each to
/// the one before it, the first to where it is told.
fn chain(at: usize, first: usize, links: usize) -> Vec<u8> {
    let start = at + 12;
    let mut data = pointer(first).to_vec();
    for link in 1..links {
        data.extend(pointer(start + 2 * (link - 1)));
    }
    record(QUESTION, OPAQUE, &data)
}

/// A signature (RFC 8945, section 4.2): algorithm, time, fudge, MAC, id, error, other.
pub(crate) fn tsig() -> Vec<u8> {
    let data = b"\x0bhmac-sha256\0\0\0\0\0\0\0\x01\x2c\0\x04abcd\0\x01\0\0\0\0";
    let mut record = record(b"\x03key\0", 250, data);
    record[7..9].copy_from_slice(&[0, 255]);
    record
}

fn sig() -> Vec<u8> {
    record(b"\0", 24, &[&[0; 18][..], b"\x03key\0", b"signed"].concat())
}

fn tails(cases: Vec<(&str, [u16; 3], Vec<u8>)>) -> Vec<Tail> {
    let tail = |(what, counts, bytes): (&str, _, _)| Tail {
        what: what.to_owned(),
        counts,
        bytes,
    };
    cases.into_iter().map(tail).collect()
}

/// What is malformed, behind a question that ends at `at`. All of it fits 4,000 bytes.
pub(crate) fn malformed(at: usize) -> Vec<Tail> {
    let good = record(QUESTION, A, &[10, 0, 0, 1]);
    let data = |kind: u16, data: &[u8]| record(QUESTION, kind, data);
    let owned = |owner: &[u8]| record(owner, A, &[10, 0, 0, 1]);
    let answer = [1, 0, 0];
    let additional = [0, 0, 1];
    let both = |one: Vec<u8>, other: Vec<u8>| [one, other].concat();
    let top = |links: usize| pointer(at + 12 + 2 * (links - 1));
    let mut all = tails(vec![
        ("an answer that is not there", answer, vec![]),
        ("an authority that is not there", [0, 1, 0], vec![]),
        ("an additional that is not there", additional, vec![]),
        ("65,535 answers in no bytes", [65_535, 0, 0], vec![]),
        (
            "65,535 additionals in 17 bytes",
            [0, 0, 65_535],
            vec![0; 17],
        ),
        ("one record more than is there", [2, 0, 0], good.clone()),
        ("one record less than is there", [0, 0, 0], good.clone()),
        ("one byte left over", [0, 0, 0], vec![0]),
        (
            "bytes left over behind a record",
            answer,
            both(good.clone(), vec![1; 9]),
        ),
        ("half a record", answer, good[..9].to_vec()),
        ("a pointer to itself", answer, owned(&pointer(at))),
        (
            "a name that ends in itself",
            answer,
            owned(&[b"\x01a", &pointer(at)[..]].concat()),
        ),
        (
            "two pointers to each other",
            [2, 0, 0],
            both(chain(at, at + 14, 1), owned(&pointer(at + 12))),
        ),
        (
            "a hundred pointers in a ring",
            [2, 0, 0],
            both(chain(at, at + 12 + 198, 100), owned(&top(100))),
        ),
        (
            "a pointer forward",
            [2, 0, 0],
            both(owned(&pointer(at + 16)), good.clone()),
        ),
        (
            "a pointer past the end",
            answer,
            owned(&pointer(at + 5_000)),
        ),
        (
            "a pointer to the header's first byte",
            answer,
            owned(&pointer(0)),
        ),
        (
            "a pointer to the header's last byte",
            answer,
            owned(&pointer(11)),
        ),
        ("half a pointer", answer, vec![0xC0]),
        (
            "pointers followed again and again",
            [101, 0, 0],
            both(chain(at, 12, 900), owned(&top(900)).repeat(100)),
        ),
        (
            "a label of type 01",
            answer,
            owned(&[&[0x41][..], &[b'x'; 65], &[0]].concat()),
        ),
        (
            "a label of type 10",
            answer,
            owned(&[&[0x80][..], &[b'x'; 128], &[0]].concat()),
        ),
        (
            "a label of 191",
            answer,
            owned(&[&[0xBF][..], &[b'x'; 191], &[0]].concat()),
        ),
        ("a name of 256 bytes", answer, owned(&long_name(62))),
        (
            "a name of 256 bytes with a pointer",
            [2, 0, 0],
            both(
                owned(&long_name(61)),
                owned(&[&b"\x01a"[..], &pointer(at)].concat()),
            ),
        ),
        ("128 labels", answer, owned(&labels(128))),
        ("a name without its root", answer, b"\x03abc".to_vec()),
        (
            "a label longer than the message",
            answer,
            b"\x3fabc".to_vec(),
        ),
        (
            "data longer than the message",
            answer,
            record_of(QUESTION, A, 65_535, &[10, 0, 0, 1]),
        ),
        (
            "data one byte longer than the message",
            answer,
            record_of(QUESTION, A, 5, &[10, 0, 0, 1]),
        ),
        ("no data for A", answer, data(A, b"")),
        ("no data for AAAA", answer, data(28, b"")),
        ("no data for SRV", answer, data(33, b"")),
        ("no data for SOA", answer, data(6, b"")),
        ("no data for CNAME", answer, data(5, b"")),
        ("A of 3 bytes", answer, data(A, &[10; 3])),
        ("A of 5 bytes", answer, data(A, &[10; 5])),
        ("A of 16 bytes", answer, data(A, &[10; 16])),
        ("AAAA of 4 bytes", answer, data(28, &[10; 4])),
        ("AAAA of 17 bytes", answer, data(28, &[10; 17])),
        ("SRV of 6 bytes", answer, data(33, &[0; 6])),
        (
            "SRV with bytes behind its target",
            answer,
            data(33, b"\0\x01\0\x01\0\x50\x01a\0\0"),
        ),
        (
            "SRV whose target goes beyond",
            [2, 0, 0],
            both(
                record_of(QUESTION, 33, 8, b"\0\x01\0\x01\0\x50\x01a"),
                good.clone(),
            ),
        ),
        (
            "SOA with three numbers",
            answer,
            data(6, &[&[0; 2][..], &[0; 12]].concat()),
        ),
        (
            "CNAME with two names",
            answer,
            data(5, &[QUESTION, QUESTION].concat()),
        ),
        (
            "TXT whose string goes beyond",
            [2, 0, 0],
            both(data(16, b"\x05abc"), good.clone()),
        ),
        ("TXT of one length", answer, data(16, b"\x01")),
        ("an OPT record among the answers", answer, opt(b"")),
        ("an OPT record among the authorities", [0, 1, 0], opt(b"")),
        ("two OPT records", [0, 0, 2], both(opt(b""), opt(b""))),
        (
            "an OPT record of somebody",
            additional,
            both(b"\x01a".to_vec(), opt(b"")),
        ),
        ("half an EDNS option", additional, opt(&[0, 3])),
        (
            "an EDNS option that goes beyond",
            additional,
            opt(&[0xFD, 0xE9, 0, 9, 1]),
        ),
        (
            "an EDNS option of 65,535 bytes",
            additional,
            opt(&[0xFD, 0xE9, 0xFF, 0xFF]),
        ),
        (
            "33 EDNS options",
            additional,
            opt(&option(65_001, 0).repeat(33)),
        ),
        (
            "900 EDNS options",
            additional,
            opt(&option(65_001, 0).repeat(900)),
        ),
        (
            "a hundred times the same option",
            additional,
            opt(&option(3, 0).repeat(100)),
        ),
        (
            "a signature that is not the last",
            [0, 0, 2],
            both(tsig(), good.clone()),
        ),
        (
            "a signature before the OPT record",
            [0, 0, 2],
            both(tsig(), opt(b"")),
        ),
        ("two signatures", [0, 0, 2], both(tsig(), tsig())),
        ("a signature among the answers", answer, tsig()),
        (
            "a signature of a public key that is not the last",
            [0, 0, 2],
            both(sig(), good.clone()),
        ),
        (
            "a signature of no bytes",
            additional,
            record(b"\x03key\0", 250, b""),
        ),
        (
            "a signature of one byte",
            additional,
            record(b"\x03key\0", 250, b"\0"),
        ),
        (
            "a signature that ends in its time",
            additional,
            record(b"\x03key\0", 250, b"\x01a\0\0\0\0"),
        ),
        (
            "a signature whose MAC goes beyond",
            additional,
            record(b"\x03key\0", 250, b"\0\0\0\0\0\0\0\x01\x2c\xff\xff"),
        ),
    ]);
    for length in (1..8).chain(9..16).chain([0, 41, 100]) {
        all.push(Tail {
            what: format!("a cookie of {length} bytes"),
            counts: additional,
            bytes: opt(&option(10, length)),
        });
    }
    all
}

/// What is odd and allowed, behind a question that ends at `at`.
pub(crate) fn odd(at: usize) -> Vec<Tail> {
    let owned = |owner: &[u8]| record(owner, 28, &[1; 16]);
    let answer = [1, 0, 0];
    let additional = [0, 0, 1];
    tails(vec![
        ("a name of 255 bytes", answer, owned(&long_name(61))),
        (
            "a name of 255 bytes by a pointer",
            [2, 0, 0],
            [owned(&long_name(61)), owned(&pointer(at))].concat(),
        ),
        ("127 labels", answer, owned(&labels(127))),
        (
            "a pointer into the middle of a label",
            [2, 0, 0],
            [owned(b"\x06\x01a\x01b\0\0\0"), owned(&pointer(at + 1))].concat(),
        ),
        (
            "ten pointers one after the other",
            [2, 0, 0],
            [chain(at, 12, 10), owned(&pointer(at + 30))].concat(),
        ),
        (
            "data of a type that nobody knows",
            answer,
            record(QUESTION, OPAQUE, &[0xC0, 0xFF, 0xC0]),
        ),
        (
            "SRV with a pointer for its target",
            additional,
            record(
                QUESTION,
                33,
                &[&b"\0\x01\0\x01\0\x50"[..], QUESTION].concat(),
            ),
        ),
        (
            "an OPT record that is not the last",
            [0, 0, 2],
            [opt(b""), owned(QUESTION)].concat(),
        ),
        (
            "options that nobody knows",
            additional,
            opt(&option(65_001, 9)),
        ),
        (
            "32 EDNS options",
            additional,
            opt(&option(65_001, 0).repeat(32)),
        ),
        (
            "three times the same option",
            additional,
            opt(&option(3, 0).repeat(3)),
        ),
        ("keepalive", additional, opt(&option(11, 2))),
        ("a cookie of 8 bytes", additional, opt(&option(10, 8))),
        ("a cookie of 16 bytes", additional, opt(&option(10, 16))),
        ("a cookie of 40 bytes", additional, opt(&option(10, 40))),
    ])
}
