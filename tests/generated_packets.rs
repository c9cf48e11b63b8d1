//! Packets by the thousand at the stub, over UDP. Another reader of DNS messages than
//! the stub's own says what each comes to, and reads what comes back. A case that fails
//! is printed as it was sent; a run is played again with the seed that it names
//! (`PROCONSUL_SEED`).
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "support/malformed.rs"]
mod malformed;
#[path = "support/oracle.rs"]
mod oracle;
mod support;

use std::{collections::HashMap, fmt::Write as _, time::Duration};

use malformed::{malformed, odd, opt, option, pointer, record, tsig};
use oracle::{Expected, expected, fault};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};
use support::lonely_stub;
use tokio::{net::UdpSocket, time::timeout};

/// Drawn at random, beside those that are listed.
const DRAWN: usize = 12_000;

/// Sent at once: the stub takes no more than twice as many of one client.
const BATCH: usize = 64;

const NAMES: [&[u8]; 9] = [
    b"\x080a000001\x04addr\x06consul\0",
    b"\x080A0000fF\x04aDDr\x06CONSUL\0",
    b"\x06consul\0",
    b"\x06nosuch\x06consul\0",
    b"\x03web\x07service\x06consul\0",
    b"\x03www\x07example\x03com\0",
    b"\x01.\x02\\\xFF\x07service\x06consul\0",
    b"\0",
    b"\x011\x010\x010\x0210\x07in-addr\x04arpa\0",
];

fn packet(name: &[u8], kind: u16, class: u16) -> Vec<u8> {
    let head = b"\0\0\x01\0\0\x01\0\0\0\0\0\0";
    [head, name, &kind.to_be_bytes(), &class.to_be_bytes()].concat()
}

fn edns(size: u16, version: u8, flags: u16, options: &[u8]) -> Vec<u8> {
    let mut opt = opt(options);
    opt[3..5].copy_from_slice(&size.to_be_bytes());
    opt[6] = version;
    opt[7..9].copy_from_slice(&flags.to_be_bytes());
    opt
}

/// Adds records to a section: 6 for answers, 8 for authorities, 10 for additionals. The
/// sections have to be filled in that order.
fn with(mut packet: Vec<u8>, section: usize, record: &[u8]) -> Vec<u8> {
    packet[section + 1] = packet[section + 1].wrapping_add(1);
    packet.extend(record);
    packet
}

/// Every value of what a packet may say, one after the other.
fn listed() -> Vec<Vec<u8>> {
    let known = NAMES[0];
    let good = packet(known, 1, 1);
    let mut all: Vec<Vec<u8>> = Vec::new();
    let flagged = |packet: &[u8], high: u8, low: u8| {
        let mut packet = packet.to_vec();
        packet[2..4].copy_from_slice(&[high, low]);
        packet
    };
    all.extend((0..=255).map(|high| flagged(&good, high, 0)));
    all.extend((0..=255).map(|low| flagged(&good, 1, low)));
    all.extend((0..=255).map(|high| flagged(&good[..12], high, 0)));
    for name in NAMES {
        let kinds = (0..=300).chain([32_768, 65_280, 65_535]);
        all.extend(kinds.map(|kind| packet(name, kind, 1)));
    }
    all.extend(
        (0..=300)
            .chain([65_535])
            .map(|class| packet(known, 1, class)),
    );
    for section in [4, 6, 8, 10] {
        for count in (0..40).chain([255, 256, 257, 65_535]) {
            let mut packet = good.clone();
            packet[section..section + 2].copy_from_slice(&u16::to_be_bytes(count));
            all.push(packet);
        }
    }
    // Labels, pointers and lengths in the question and in a record behind it.
    for byte in 0..=255 {
        let mut first = good.clone();
        first[12] = byte;
        all.push(first);
        let data = [&[byte][..], &[b'x'; 70], &[0; 3]].concat();
        all.push(with(good.clone(), 10, &record(&data, 1, &[1; 4])));
        all.push(with(
            good.clone(),
            10,
            &record(b"\xC0\x0C", 16, &[byte, 1, 2, 3]),
        ));
    }
    for to in 0..120 {
        all.push(with(good.clone(), 10, &record(&pointer(to), 1, &[1; 4])));
        all.push(with(good.clone(), 6, &record(b"\xC0\x0C", 5, &pointer(to))));
        all.push([&good[..12], &pointer(to), &[0, 1, 0, 1]].concat());
    }
    for kind in oracle::KNOWN {
        for length in 0..40 {
            all.push(with(
                good.clone(),
                10,
                &record(b"\xC0\x0C", kind, &vec![0; length]),
            ));
        }
    }
    for length in 1..=255_usize {
        // Names of that length, of long labels and of short ones.
        for label in [63, 1] {
            let mut name = Vec::new();
            while name.len() + 1 < length {
                let rest = label.min(length - name.len() - 2);
                name.push(u8::try_from(rest.max(1)).unwrap());
                name.extend(vec![b'y'; rest.max(1)]);
            }
            name.push(0);
            all.push(packet(&name, 1, 1));
        }
    }
    for size in (0..5_000)
        .step_by(41)
        .chain([511, 512, 513, 1_232, 4_095, 4_096, 65_535])
    {
        all.push(with(good.clone(), 10, &edns(size, 0, 0, b"")));
    }
    all.extend((0..=255).map(|version| with(good.clone(), 10, &edns(1_232, version, 0, b""))));
    all.extend((0..16).map(|bit| with(good.clone(), 10, &edns(1_232, 0, 1 << bit, b""))));
    for length in 0..60 {
        for code in [3, 8, 9, 10, 11, 12, 15, 65_001] {
            all.push(with(
                good.clone(),
                10,
                &edns(1_232, 0, 0, &option(code, length)),
            ));
        }
        all.push(with(
            good.clone(),
            10,
            &edns(1_232, 0, 0, &option(3, 0).repeat(length)),
        ));
        let mut past = edns(1_232, 0, 0, &option(3, 7));
        past[14] = u8::try_from(length).unwrap();
        all.push(with(good.clone(), 10, &past));
        all.push([&good[..], &vec![0; length]].concat());
        all.push(
            [
                &with(good.clone(), 10, &edns(1_232, 0, 0, b""))[..],
                &vec![0; length],
            ]
            .concat(),
        );
    }
    for prefix in 0..=255 {
        for (family, length) in [(1, 4), (1, 3), (2, 16), (0, 0), (3, 4)] {
            let subnet = [
                &[0, 8, 0, length + 4, 0, family, prefix, 0][..],
                &vec![0; length.into()],
            ]
            .concat();
            all.push(with(good.clone(), 10, &edns(1_232, 0, 0, &subnet)));
        }
    }
    for tail in malformed(good.len()).iter().chain(&odd(good.len())) {
        all.push(tail.after(&good));
    }
    let rich = with(
        with(
            packet(NAMES[0], 1, 1),
            6,
            &record(b"\xC0\x0C", 33, b"\0\0\0\0\0\0\xC0\x0C"),
        ),
        10,
        &edns(1_232, 0, 0, &option(10, 8)),
    );
    for whole in [good, rich.clone(), with(rich, 10, &tsig())] {
        all.extend((0..whole.len()).map(|length| whole[..length].to_vec()));
    }
    all
}

fn drawn(dice: &mut SmallRng) -> Vec<u8> {
    let kinds = [1, 28, 33, 255, 16, 6, 2, 12, 5, 0, 41, 251, 252, 65_280];
    let name = if dice.random_bool(0.8) {
        NAMES.choose(dice).unwrap().to_vec()
    } else {
        let count = dice.random_range(0..8);
        let label = |_| {
            let length = dice.random_range(1..=40_u8);
            let bytes: Vec<u8> = (0..length).map(|_| dice.random()).collect();
            [&[length][..], &bytes].concat()
        };
        let random: Vec<u8> = (0..count).flat_map(label).collect();
        [&random[..], &NAMES.choose(dice).unwrap()[..]].concat()
    };
    let class = if dice.random_bool(0.9) {
        1
    } else {
        dice.random()
    };
    let mut packet = packet(&name, *kinds.choose(dice).unwrap(), class);
    packet[2] = dice.random::<u8>() & if dice.random_bool(0.9) { 0x07 } else { 0x7F };
    packet[3] = dice.random();
    for section in [6, 8, 10] {
        // Most questions have none but an OPT record.
        let count = if section == 10 {
            dice.random_range(0..3)
        } else {
            usize::from(dice.random_bool(0.1))
        };
        for _ in 0..count {
            let added = any_record(dice, packet.len());
            packet = with(packet, section, &added);
        }
    }
    match dice.random_range(0..14) {
        0 => packet.truncate(dice.random_range(12..=packet.len())),
        1 => packet.extend((0..dice.random_range(1..20)).map(|_| dice.random::<u8>())),
        2 | 3 => {
            for _ in 0..dice.random_range(1..4) {
                let at = dice.random_range(4..packet.len());
                packet[at] = dice.random();
            }
        }
        4 => {
            let at = dice.random_range(12..packet.len() - 1);
            let to = pointer(dice.random_range(0..packet.len()));
            packet[at..at + 2].copy_from_slice(&to);
        }
        _ => {}
    }
    packet
}

fn any_record(dice: &mut SmallRng, at: usize) -> Vec<u8> {
    let to = pointer(if dice.random_bool(0.8) {
        12
    } else {
        dice.random_range(12..at)
    });
    let owner: &[u8] = [&b"\xC0\x0C"[..], b"\0", b"\x01x\xC0\x0C", b"\x03abc\0", &to]
        .choose(dice)
        .unwrap();
    let length = dice.random_range(0..30);
    let bytes: Vec<u8> = (0..length).map(|_| dice.random()).collect();
    match dice.random_range(0..30) {
        0..15 => {
            let codes = if dice.random_bool(0.9) { 11..16 } else { 0..16 };
            let options: Vec<u8> = (0..dice.random_range(0..4))
                .flat_map(|_| option(dice.random_range(codes.clone()), dice.random_range(0..24)))
                .collect();
            edns(
                dice.random(),
                u8::from(dice.random_bool(0.1)),
                dice.random(),
                &options,
            )
        }
        15..18 => record(owner, 1, &[1; 4]),
        18..20 => record(owner, 5, &to),
        20..23 => record(owner, 33, &[&[0; 6][..], &to].concat()),
        23 => record(owner, 6, &[owner, &to, &[0; 20]].concat()),
        24..28 => record(owner, 65_400, &bytes),
        28 => record(owner, *oracle::KNOWN.choose(dice).unwrap(), &bytes),
        _ => tsig(),
    }
}

fn hex(packet: &[u8]) -> String {
    packet.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[tokio::test]
async fn whatever_comes_gets_what_another_reader_says_it_must() {
    let seed = std::env::var("PROCONSUL_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut dice = SmallRng::seed_from_u64(seed);
    let mut packets = listed();
    packets.extend((0..DRAWN).map(|_| drawn(&mut dice)));
    let (stub, _) = lonely_stub().await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(stub).await.unwrap();

    let mut report = String::new();
    let mut kinds: HashMap<String, usize> = HashMap::new();
    let mut sent: HashMap<[u8; 2], (Vec<u8>, Expected)> = HashMap::new();
    let mut buffer = vec![0; 65_535];
    for (number, packets) in packets.chunks_mut(BATCH).enumerate() {
        let mut due = 0;
        for (at, packet) in packets.iter_mut().enumerate() {
            // Each has an id of its own, so that what comes late is known too.
            let id = u16::try_from(number * BATCH + at).unwrap().to_be_bytes();
            packet.iter_mut().zip(id).for_each(|(byte, id)| *byte = id);
            let expected = expected(packet);
            let kind = match &expected {
                Expected::Reply { codes, .. } => format!("{codes:?}"),
                other => format!("{other:?}"),
            };
            *kinds.entry(kind).or_default() += 1;
            due += usize::from(expected != Expected::Silence);
            client.send(packet).await.unwrap();
            sent.insert(id, (std::mem::take(packet), expected));
        }
        while due > 0 {
            let Ok(reply) = timeout(Duration::from_secs(5), client.recv(&mut buffer)).await else {
                let missing = sent
                    .values()
                    .filter(|(_, expected)| *expected != Expected::Silence);
                let missing: Vec<_> = missing.map(|(packet, _)| hex(packet)).collect();
                panic!("seed {seed}: no reply to {missing:#?}");
            };
            let reply = &buffer[..reply.unwrap()];
            let id = [reply[0], reply[1]];
            let Some((packet, expected)) = sent.remove(&id) else {
                panic!("seed {seed}: a second reply: {}", hex(reply));
            };
            due -= usize::from(expected != Expected::Silence);
            if let Some(fault) = fault(&packet, reply, &expected) {
                let (packet, reply) = (hex(&packet), hex(reply));
                writeln!(
                    report,
                    "{packet}\n  is {expected:?}, and it is {fault}:\n  {reply}"
                )
                .unwrap();
            }
        }
    }
    // What is to be silent stays so.
    while let Ok(reply) = timeout(Duration::from_millis(100), client.recv(&mut buffer)).await {
        writeln!(report, "to silence: {}", hex(&buffer[..reply.unwrap()])).unwrap();
    }
    println!("{} packets, seed {seed}: {kinds:#?}", packets.len());
    let faults = report.lines().count() / 3;
    let shown: Vec<_> = report.lines().take(30).collect();
    assert!(
        report.is_empty(),
        "seed {seed}: {faults} faults\n{}",
        shown.join("\n")
    );
    assert!(packets.len() >= 10_000, "{}", packets.len());
    assert!(
        kinds
            .get("Unknown")
            .is_none_or(|few| few * 50 < packets.len()),
        "{kinds:?}"
    );
}
