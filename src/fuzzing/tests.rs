use std::{fs, path::Path};

use proptest::prelude::*;

use super::*;

type Rule = fn(&[u8]);

const RULES: [(&str, Rule); 20] = [
    ("accept", accept),
    ("balance", balance),
    ("blocking", blocking),
    ("cache", cache),
    ("catalog", catalog),
    ("connect", connect),
    ("conversation", conversation),
    ("encode", encode),
    ("files", files),
    ("http", http),
    ("name", name),
    ("packet", packet),
    ("redaction", redaction),
    ("registration", registration),
    ("reply", reply),
    ("settings", settings),
    ("shortcut", shortcut),
    ("snapshot", snapshot),
    ("stream", stream),
    ("stub", stub),
];

/// What is in a folder of `fuzz`; nothing where there is none.
pub(super) fn inputs(folder: &str) -> Vec<Vec<u8>> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let Ok(entries) = fs::read_dir(fuzz.join(folder)) else {
        return Vec::new();
    };
    entries
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect()
}

#[test]
fn every_seed_keeps_its_rule_and_every_rule_has_a_target() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (target, rule) in RULES {
        assert!(
            fuzz.join(format!("fuzz_targets/{target}.rs")).exists(),
            "{target}"
        );
        let seeds = inputs(&format!("seeds/{target}"));
        assert!(!seeds.is_empty(), "{target} has no seed");
        seeds.iter().for_each(|seed| rule(seed));
        // What a fuzzer has learned on this machine.
        inputs(&format!("corpus/{target}"))
            .iter()
            .for_each(|input| rule(input));
    }
    let targets = fs::read_dir(fuzz.join("fuzz_targets")).unwrap().count();
    assert_eq!(targets, RULES.len());
}

#[test]
fn every_rule_takes_the_seeds_of_all_others() {
    for (target, _) in RULES {
        for seed in inputs(&format!("seeds/{target}")) {
            RULES.iter().for_each(|(_, rule)| rule(&seed));
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_keep_the_rules(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for (_, rule) in RULES {
            rule(&bytes);
        }
    }

    #[test]
    fn any_text_keeps_the_rules_of_what_people_write(text in "\\PC{0,80}") {
        for rule in [settings, name, files, redaction] {
            rule(text.as_bytes());
        }
    }
}

/// How much the readers of bytes from outside take for them.
mod work {
    use allocation_counter::measure;

    use super::*;
    use crate::{
        ConsulName, Domain,
        consul::{
            address::HttpAddress,
            health::{
                Reading,
                ask::{Ask, Place, Question, Reader},
            },
            instances,
        },
        records::{
            self,
            read::Asks,
            wire::{self, hostile::chained},
        },
        source::{dns::message::decode, static_catalog::StaticCatalog},
        stub::{
            answer::{Recursion, judge},
            shortcut::{self, Recipe},
            upstreams,
        },
    };

    /// Label and pointer steps for each byte of a message.
    const STEPS: usize = 40;

    /// Bytes that may be allocated for each byte of an input, and beside them.
    struct Bound {
        each: u64,
        beside: u64,
    }

    /// Nothing is kept of it.
    const NOTHING: Bound = Bound { each: 0, beside: 0 };

    /// Texts are copied a few times.
    const TEXT: Bound = Bound {
        each: 64,
        beside: 4_096,
    };

    /// A record of 14 bytes is one of some 250 when it is read, its name among them, and a
    /// vector of them grows by doubling: each may be paid for three times.
    const RECORDS: Bound = Bound {
        each: 80,
        beside: 4_096,
    };

    /// The same, and what is made of them: instances, and an endpoint for each.
    const SET: Bound = Bound {
        each: 96,
        beside: 4_096,
    };

    /// `{},` may be an instance: three bytes for one of some 150, paid for twice.
    const JSON: Bound = Bound {
        each: 128,
        beside: 4_096,
    };

    fn read_reply(bytes: &[u8], name: &str) {
        let Ok(message) = decode(bytes) else { return };
        let asks = Asks::of(&name.parse::<ConsulName>().unwrap());
        if let Some((found, _)) = asks.read(&message, &[Domain::default()]) {
            records::endpoints(&found, name);
        }
    }

    fn read_catalog(bytes: &[u8]) {
        let question = Question {
            ask: Ask::Service {
                name: "web",
                tag: None,
            },
            place: Place {
                datacenter: None,
                namespace: None,
                partition: None,
                peer: None,
                sameness_group: None,
            },
            reader: Reader::Any,
            domain: "consul",
            name: "web.service.consul.",
        };
        let mut reading = Reading::new(&question, false);
        reading.more(bytes);
        _ = reading.end();
    }

    fn read_text(bytes: &[u8]) {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        _ = HttpAddress::parse(text, false);
        _ = text.parse::<ConsulName>();
        upstreams::resolv_conf(text, &[], |_| None);
    }

    const READERS: [(&str, Rule, Bound); 11] = [
        ("shape", |bytes| _ = wire::shape(bytes), NOTHING),
        (
            "fast lane",
            |bytes| _ = shortcut::read(bytes, shortcut::Way::Loopback),
            NOTHING,
        ),
        ("message", |bytes| _ = decode(bytes), RECORDS),
        ("reply", |bytes| read_reply(bytes, "web"), SET),
        ("servers", |bytes| read_reply(bytes, "consul"), SET),
        (
            "question",
            |bytes| _ = judge(bytes, &Domain::default(), Recursion::None),
            RECORDS,
        ),
        (
            "forwarded",
            |bytes| _ = Recipe::of_forwarded(bytes, 86_400, 300),
            TEXT,
        ),
        ("catalog", read_catalog, JSON),
        (
            "instances",
            |bytes| _ = instances::instances("web", bytes),
            JSON,
        ),
        (
            "static catalog",
            |bytes| {
                if let Ok(text) = std::str::from_utf8(bytes) {
                    _ = StaticCatalog::parse(text, "consul");
                }
            },
            JSON,
        ),
        ("text", read_text, TEXT),
    ];

    /// Messages of a size that are made to be expensive.
    fn hostile(size: usize) -> Vec<(&'static str, Vec<u8>)> {
        let record = |owner: &[u8], kind: u16, data: &[u8]| {
            let mut record = owner.to_vec();
            record.extend(kind.to_be_bytes());
            record.extend([0, 1, 0, 0, 0, 9]);
            record.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            record.extend_from_slice(data);
            record
        };
        // `n.node.consul.` is the question, and what the rest points to.
        let question = b"\x01n\x04node\x06consul\0\0\x21\0\x01";
        let name = [0xC0, 12];
        let message = |answer: &[u8], additional: &[u8]| {
            let both = answer.len() + additional.len();
            let times = (size / both.max(1)).max(1);
            let count = |one: &[u8]| u16::try_from(if one.is_empty() { 0 } else { times }).unwrap();
            let mut body = question.to_vec();
            body.extend(answer.repeat(times));
            body.extend(additional.repeat(times));
            let counts = [1, count(answer), 0, count(additional)];
            wire::hostile::message(counts, &body)
        };
        let srv = record(&name, 33, &[0, 1, 0, 1, 0, 80, 0xC0, 12]);
        let address = record(&name, 1, &[10, 0, 0, 1]);
        let mut deep = [1, b'a'].repeat(120);
        deep.push(0);
        vec![
            (
                "pointers",
                chained(size.min(30_000) / 4, u16::try_from(size / 24).unwrap()),
            ),
            ("nothing", message(&record(&[0], 0xFF00, &[7]), &[])),
            ("as many targets as addresses", message(&srv, &address)),
            ("servers", message(&record(&name, 2, &name), &address)),
            ("aliases", message(&srv, &record(&name, 5, &name))),
            ("texts", message(&srv, &record(&name, 16, &[0]))),
            ("many labels", message(&record(&deep, 0xFF00, &[7]), &[])),
            (
                "soas",
                message(
                    &record(&name, 6, &[&name[..], &name, &[0; 20]].concat()),
                    &[],
                ),
            ),
            ("lists", b"[{},".repeat(size / 4)),
            (
                "instances",
                [b"[", &b"{},".repeat(size / 3)[..], b"{}]"].concat(),
            ),
            ("services", [b"{\"a\":", &b"[".repeat(size)[..]].concat()),
            ("text", b"a.".repeat(size / 2)),
        ]
    }

    fn check(what: &str, input: &[u8]) {
        let length = input.len() as u64;
        for (reader, read, bound) in &READERS {
            let told = measure(|| read(input));
            let most = bound.each * length + bound.beside;
            assert!(
                told.bytes_total <= most,
                "{reader}: {} bytes for {length} of {what}",
                told.bytes_total
            );
        }
        if let Some(shape) = wire::shape(input) {
            let steps = shape.steps;
            assert!(
                steps <= STEPS * input.len(),
                "{steps} steps for {length} of {what}"
            );
        }
    }

    #[test]
    fn what_is_read_takes_room_in_proportion_to_its_length() {
        // What is made once is not the input's.
        READERS.iter().for_each(|(_, read, _)| read(b""));
        for (target, _) in RULES {
            for input in inputs(&format!("seeds/{target}")) {
                check(target, &input);
            }
            for input in inputs(&format!("corpus/{target}")) {
                check(target, &input);
            }
        }
        for size in [1_000, 4_000, 16_000, 60_000] {
            for (what, input) in hostile(size) {
                check(what, &input);
            }
        }
    }

    #[test]
    fn twice_the_input_takes_twice_the_work() {
        for size in [8_000, 16_000, 30_000] {
            for ((what, once), (_, twice)) in hostile(size).into_iter().zip(hostile(2 * size)) {
                for (reader, read, _) in &READERS {
                    let room = |input: &[u8]| measure(|| read(input)).bytes_total;
                    let (one, two) = (room(&once), room(&twice));
                    // A vector doubles when it likes.
                    assert!(
                        two <= 3 * one + 4_096,
                        "{reader}, {what}: {one}, then {two} bytes"
                    );
                }
                let steps = |input: &[u8]| wire::shape(input).map_or(0, |shape| shape.steps);
                let (one, two) = (steps(&once), steps(&twice));
                assert!(
                    one == 0 || two <= 3 * one,
                    "{what}: {one}, then {two} steps"
                );
            }
        }
    }
}
