use hickory_proto::{
    op::Message,
    serialize::binary::{BinDecodable as _, BinDecoder},
};

use super::*;

const SIZE: usize = 65_535;

/// What may be asked for, for a message of so many bytes.
fn room(message: &[u8]) -> u64 {
    64 * message.len() as u64 + 4_096
}

/// What reading a message asks for, and whether it can be read.
fn read(message: &[u8]) -> (u64, bool) {
    let mut is_read = false;
    let asked = allocation_counter::measure(|| {
        is_read = shape(message).is_some() && Message::read(&mut BinDecoder::new(message)).is_ok();
    });
    (asked.bytes_max, is_read)
}

/// A question for `web.consul.`, with these counts of records, and then some bytes.
fn message(counts: [u16; 3], rest: &[u8]) -> Vec<u8> {
    let mut message = b"\0\x01\x80\0\0\x01".to_vec();
    message.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    message.extend(b"\x03web\x06consul\0\0\x01\0\x01");
    message.extend(rest);
    message
}

/// A record of class IN whose owner is written so.
fn record(owner: &[u8], kind: u16, data: &[u8]) -> Vec<u8> {
    let mut record = owner.to_vec();
    record.extend(kind.to_be_bytes());
    record.extend([0, 1, 0, 0, 0, 0]);
    record.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    record.extend(data);
    record
}

fn pointer(to: usize) -> [u8; 2] {
    (0xC000 | u16::try_from(to).unwrap()).to_be_bytes()
}

/// As many records as there is room for in a message of so many bytes.
fn filled(size: usize, first: &[u8], record: &[u8]) -> Vec<u8> {
    let start = message([0; 3], first).len();
    let count = (size - start) / record.len();
    let counted = u16::try_from(count + usize::from(!first.is_empty())).unwrap();
    message([counted, 0, 0], &[first, &record.repeat(count)].concat())
}

/// Data of pointers, each to the one before it, the first to the question. Where it
/// starts depends on where its record does: right behind the question.
fn chain(links: usize) -> Vec<u8> {
    let start = message([0; 3], &record(&pointer(12), 65_400, b"")).len();
    let mut data = pointer(12).to_vec();
    for link in 1..links {
        data.extend(pointer(start + 2 * (link - 1)));
    }
    record(&pointer(12), 65_400, &data)
}

/// A name of 255 bytes.
fn long_name() -> Vec<u8> {
    let label = |length: u8| [&[length][..], &vec![b'x'; length.into()]].concat();
    [label(63), label(63), label(63), label(61), vec![0]].concat()
}

#[test]
fn a_count_that_lies_asks_for_no_memory() {
    for section in [4, 6, 8, 10] {
        for body in [17, 500] {
            let mut message = message([0; 3], &vec![0; body]);
            message[section..section + 2].fill(0xFF);
            assert_eq!(read(&message), (0, false), "{section}, {body}");
        }
    }
    let good = filled(SIZE, b"", &record(&pointer(12), 1, &[10, 0, 0, 1]));
    let asked = allocation_counter::measure(|| assert!(shape(&good).is_some()));
    assert_eq!(asked.count_total, 0, "looking at it asks for none either");
}

#[test]
fn reading_asks_for_memory_in_proportion_to_the_message() {
    let long = long_name();
    let many = [&b"\x01a".repeat(127)[..], b"\0"].concat();
    let (question, start) = (pointer(12), message([0; 3], b"").len());
    let again = pointer(start);
    let cases = [
        ("addresses", vec![], record(&question, 1, &[1; 4])),
        ("bytes", vec![], record(&question, 65_400, b"x")),
        ("aliases", vec![], record(&question, CNAME, &question)),
        ("empty strings", vec![], record(&question, 16, &[0; 100])),
        (
            "one of empty strings",
            vec![],
            record(&question, 16, &[0; 30_000]),
        ),
        (
            "long owners",
            record(&long, 1, &[1; 4]),
            record(&again, 1, &[1; 4]),
        ),
        (
            "owners of many labels",
            record(&many, 1, &[1; 4]),
            record(&again, 1, &[1; 4]),
        ),
    ];
    for (what, first, each) in cases {
        // The last doubles what was asked for before.
        for size in [512, 4_096, start + first.len() + 4_097 * each.len(), SIZE] {
            let message = filled(size.min(SIZE), &first, &each);
            let (asked, is_read) = read(&message);
            assert!(is_read, "{what}");
            assert!(
                asked <= room(&message),
                "{what}: {asked} for {}",
                message.len()
            );
        }
    }
    let aliases = filled(
        SIZE,
        &record(&long, 1, &[1; 4]),
        &record(&again, CNAME, &again),
    );
    assert_eq!(read(&aliases), (0, false), "two long names for 14 bytes");
}

#[test]
fn options_ask_for_memory_in_proportion_too() {
    let unknown = |length: u16| {
        let data = vec![7; length.into()];
        [&[0xFD, 0xE9][..], &length.to_be_bytes(), &data].concat()
    };
    for (length, count, is_good) in [
        (0, 32, true),
        (500, 32, true),
        (0, 33, false),
        (0, 5_000, false),
    ] {
        let mut opt = record(b"\0", OPT, &unknown(length).repeat(count));
        opt[3..9].copy_from_slice(&[16, 0, 0, 0, 0, 0]);
        let message = message([0, 0, 1], &opt);
        let (asked, is_read) = read(&message);
        assert_eq!(is_read, is_good, "{count} of {length}");
        assert!(asked <= room(&message), "{asked} for {count} of {length}");
    }
}

#[test]
fn a_chain_of_pointers_is_followed_once_and_not_by_all() {
    // Data begins behind the question, an owner and the rest of a record.
    let last = |links: usize| pointer(message([0; 3], b"").len() + 12 + 2 * (links - 1));
    for (links, followers, is_good) in [
        (100, 1, true),
        (10, 3, true),
        (100, 3, false),
        (5_000, 1, true),
        (5_000, 3, false),
        (5_000, 4_000, false),
    ] {
        let owners = record(&last(links), 1, &[10, 0, 0, 1]).repeat(followers);
        let counted = u16::try_from(1 + followers).unwrap();
        let message = message([counted, 0, 0], &[chain(links), owners].concat());
        let shape = shape(&message);
        assert_eq!(
            shape.is_some(),
            is_good,
            "{links} links, {followers} followers"
        );
        assert!(shape.is_none_or(|shape| shape.steps <= 40 * message.len()));
    }
}

#[test]
fn steps_are_in_proportion_to_the_message() {
    let many = [&b"\x01a".repeat(127)[..], b"\0"].concat();
    let again = pointer(message([0; 3], b"").len());
    for size in [600, 5_000, SIZE] {
        let message = filled(
            size,
            &record(&many, 1, &[1; 4]),
            &record(&again, 1, &[1; 4]),
        );
        let steps = shape(&message).unwrap().steps;
        assert!(steps <= 40 * message.len(), "{steps} for {size}");
    }
}

#[test]
fn an_answer_of_consuls_that_fills_a_message_has_the_shape_of_one() {
    // Each names its own target, in full; the address behind points to it.
    let mut answers = Vec::new();
    let mut glue = Vec::new();
    for number in 0..1_000_u16 {
        let target = format!("\x08{number:08x}\x04addr\x03dc1\x06consul\0");
        let at = message([0; 3], &answers).len() + 18;
        answers.extend(record(
            &pointer(12),
            SRV,
            &[b"\0\x01\0\x01\0\x50", target.as_bytes()].concat(),
        ));
        if at < 0x4000 {
            glue.push(record(&pointer(at), 1, &[10, 0, 0, 1]));
        }
    }
    let counts = [1_000, 0, u16::try_from(glue.len()).unwrap()];
    assert!(shape(&message(counts, &[answers, glue.concat()].concat())).is_some());
}
