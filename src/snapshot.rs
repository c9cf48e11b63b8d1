//! **Pure.** The last good answers as bytes, and back. A header line, then JSON:
//!
//! ```text
//! proconsul-snapshot 1 <bytes of the body> <SHA-256 of the body>
//! {"domain":"consul","written":1763690000,"sets":[...]}
//! ```
//!
//! It is read whole or not at all: a wrong length, sum, version or domain refuses
//! all of it, and the resolver starts without. Ages count from the last time that a
//! source gave a set: what passed between writing and reading is added, nothing is
//! taken off where the clock was set back. Reading the file is
//! [`snapshot_file`](crate::source::snapshot_file)'s.

// What comes from outside is read here: nothing that it says may end in a panic.
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

use std::{fmt, sync::Arc, time::Duration};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::{
    endpoint::{Source, Transport},
    found::{Found, Held},
    records,
};

const MAGIC: &str = "proconsul-snapshot";

/// How each begins.
pub(crate) const BEGIN: &str = "proconsul-snapshot ";

const VERSION: &str = "1";

/// Longest body, in bytes: a cache of the default size fits four times.
pub(crate) const BODY_LIMIT: usize = 64 << 20;

/// Longest header line.
pub(crate) const HEADER_LIMIT: usize = 128;

#[derive(Serialize, Deserialize)]
struct Body<S> {
    domain: Box<str>,
    /// Seconds since 1970.
    written: u64,
    sets: Vec<S>,
}

/// One set on disk.
#[derive(Serialize, Deserialize)]
struct Set<F> {
    key: Box<str>,
    name: Box<str>,
    found: F,
    ttl_ms: u64,
    complete: bool,
    warnings: Box<[Box<str>]>,
    /// At writing.
    age_ms: u64,
}

/// Why a snapshot is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    NotOne,
    Version(Box<str>),
    Damaged,
    Domain(Box<str>),
    Unreadable(Box<str>),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOne => f.write_str("it is no snapshot: give another path, or remove it"),
            Self::Version(version) => write!(f, "it is of version {version}, not {VERSION}"),
            Self::Damaged => f.write_str("it is damaged: its length or its checksum is wrong"),
            Self::Domain(domain) => {
                write!(
                    f,
                    "it is of the domain {domain}: give each its own, or remove it"
                )
            }
            Self::Unreadable(why) => write!(f, "it cannot be read: {why}"),
        }
    }
}

/// Writes sets with their ages, the first ones as far as there is room. `now` is
/// since 1970.
pub(crate) fn encode<'a>(
    domain: &str,
    now: Duration,
    sets: impl Iterator<Item = (&'a Held, Duration)>,
) -> Vec<u8> {
    let mut room = BODY_LIMIT - 1024;
    let sets = sets.map_while(|(held, age)| {
        let set = Set {
            key: held.key.as_str().into(),
            name: held.name.clone(),
            found: &held.found,
            ttl_ms: millis(held.ttl),
            complete: held.complete,
            warnings: held.warnings.clone(),
            age_ms: millis(age),
        };
        let written = serde_json::value::to_raw_value(&set).ok()?;
        room = room.checked_sub(written.get().len())?.checked_sub(1)?;
        Some(written)
    });
    let body = Body {
        domain: domain.into(),
        written: now.as_secs(),
        sets: sets.collect(),
    };
    // Texts, numbers and lists: there is nothing in it that JSON cannot say.
    let body = serde_json::to_vec(&body).unwrap_or_default();
    with_header(&body)
}

/// Whether bytes begin as a snapshot does, or as one that was cut off there.
pub(crate) fn begins(bytes: &[u8]) -> bool {
    let begin = BEGIN.as_bytes();
    bytes.starts_with(begin) || (!bytes.is_empty() && begin.starts_with(bytes))
}

/// Reads sets and their ages at `now`, which is since 1970. Those that are `keep`
/// or older are left out.
pub(crate) fn decode(
    bytes: &[u8],
    domain: &str,
    now: Duration,
    keep: Duration,
) -> Result<Vec<(Held, Duration)>, Refused> {
    if !begins(bytes) {
        return Err(Refused::NotOne);
    }
    let end = bytes
        .iter()
        .take(HEADER_LIMIT)
        .position(|byte| *byte == b'\n');
    let (head, body) = bytes.split_at(end.ok_or(Refused::Damaged)?);
    let body = body.get(1..).unwrap_or_default();
    let head = str::from_utf8(head).map_err(|_| Refused::Damaged)?;
    let words: Vec<&str> = head.split(' ').collect();
    let (length, expected) = match words.as_slice() {
        [MAGIC, VERSION, length, expected] => (*length, *expected),
        [MAGIC, version, ..] if *version != VERSION => {
            return Err(Refused::Version(version.escape_debug().to_string().into()));
        }
        _ => return Err(Refused::Damaged),
    };
    if length != body.len().to_string() || expected != sum(body) {
        return Err(Refused::Damaged);
    }
    let body: Body<Set<Found>> = serde_json::from_slice(body)
        .map_err(|error| Refused::Unreadable(error.to_string().into()))?;
    if *body.domain != *domain {
        return Err(Refused::Domain(
            body.domain.escape_debug().to_string().into(),
        ));
    }
    let since = now.saturating_sub(Duration::from_secs(body.written));
    let sets = body.sets.into_iter().filter_map(|set| {
        let age = Duration::from_millis(set.age_ms).checked_add(since)?;
        (age < keep).then(|| (held(set), age))
    });
    Ok(sets.collect())
}

fn held(set: Set<Found>) -> Held {
    Held {
        key: (&*set.key).into(),
        endpoints: records::endpoints(&set.found, &set.name),
        ttl: Duration::from_millis(set.ttl_ms),
        source: Source::Snapshot,
        transport: Transport::File,
        complete: set.complete,
        part: !set.complete,
        name: set.name,
        found: set.found,
        warnings: set.warnings,
        carried: None,
    }
}

/// A body with the header that belongs to it.
fn with_header(body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{MAGIC} {VERSION} {} {}\n", body.len(), sum(body)).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Any body under a header that is right: what is read is written and read again as
/// the same.
#[cfg(any(fuzzing, test))]
pub fn snapshot(body: &[u8]) {
    let (now, keep) = (
        Duration::from_secs(2_000_000_000),
        Duration::from_secs(604_800),
    );
    let Ok(read) = decode(&with_header(body), "consul", now, keep) else {
        return;
    };
    let written = encode("consul", now, read.iter().map(|(held, age)| (held, *age)));
    let again = decode(&written, "consul", now, keep).expect("what is written can be read");
    assert_eq!(read.len(), again.len());
    for ((one, age), (other, same)) in read.iter().zip(&again) {
        assert_eq!(
            (&one.key, &one.found, age),
            (&other.key, &other.found, same)
        );
        assert_eq!((&one.endpoints, one.ttl), (&other.endpoints, other.ttl));
    }
}

/// Whether a set is worth keeping for another run: what Consul itself gave.
pub(crate) fn is_worth(held: &Arc<Held>) -> bool {
    held.source != Source::Static
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn sum(bytes: &[u8]) -> String {
    let digest = digest(&SHA256, bytes);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Health;
    use crate::found::{Facts, Host, Instance, NodeText, TargetKind};

    const DAY: Duration = Duration::from_secs(86_400);
    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn set(key: &str, found: Found) -> Held {
        Held {
            key: key.into(),
            name: format!("{key}.consul.").into(),
            endpoints: records::endpoints(&found, &format!("{key}.consul.")),
            found,
            source: Source::Http,
            transport: Transport::Http,
            ttl: Duration::from_secs(7),
            complete: true,
            part: false,
            warnings: Box::new(["something".into()]),
            carried: None,
        }
    }

    fn instances() -> Found {
        Found::Instances(vec![Instance {
            other: None,
            target: "0a000001.addr.dc1.consul.".into(),
            kind: TargetKind::Address,
            addresses: vec!["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
            glued: true,
            port: 80,
            priority: 1,
            weight: 3,
            node: Some("n1".into()),
            text: Some(Arc::new(NodeText {
                owner: "n1.node.dc1.consul.".into(),
                strings: vec![vec![0, 255, b'"'].into()],
            })),
            facts: Some(Box::new(Facts {
                id: Some("web-1".into()),
                tags: Box::new(["v2".into()]),
                meta: [("zone".into(), "a".into())].into(),
                health: Some(Health::Warning),
                others: vec![Facts {
                    id: Some("web-2".into()),
                    ..Facts::default()
                }],
            })),
        }])
    }

    fn sample() -> Vec<u8> {
        let host = Found::Host(Host {
            addresses: vec!["10.0.0.2".parse().unwrap()],
            alias: Some("db.internal.".into()),
            text: vec![b"a=b".to_vec().into()],
        });
        let servers = Found::Servers(vec![("n.node.consul.".into(), Vec::new())]);
        let sets = [
            set("web.service", instances()),
            set("n1.node", host),
            set(
                "1.0.0.10.in-addr.arpa",
                Found::Pointers(vec!["n1.node.consul.".into()]),
            ),
            set("", servers),
        ];
        encode(
            "consul",
            NOW,
            sets.iter().map(|set| (set, Duration::from_secs(60))),
        )
    }

    #[test]
    fn what_is_written_is_read_back_and_has_aged() {
        let read = decode(&sample(), "consul", NOW + DAY / 2, DAY).unwrap();
        assert_eq!(read.len(), 4);
        let (web, age) = &read[0];
        assert_eq!(*age, DAY / 2 + Duration::from_secs(60));
        assert_eq!(
            (&*web.key, &*web.name),
            ("web.service", "web.service.consul.")
        );
        assert_eq!((web.source, web.complete), (Source::Snapshot, true));
        assert_eq!(web.found, instances());
        assert_eq!(web.endpoints.len(), 2);
        assert_eq!(web.ttl, Duration::from_secs(7));
    }

    #[test]
    fn what_is_too_old_is_left_out_and_a_clock_set_back_makes_nothing_younger() {
        let aged = |now| decode(&sample(), "consul", now, DAY).unwrap();
        assert!(aged(NOW + DAY).is_empty());
        let from_the_future = aged(NOW - DAY * 3_000);
        assert_eq!(from_the_future[0].1, Duration::from_secs(60));
    }

    #[test]
    fn anything_else_is_refused_whole() {
        let good = sample();
        let refused = |bytes: &[u8], domain| decode(bytes, domain, NOW, DAY).unwrap_err();
        assert_eq!(refused(b"", "consul"), Refused::NotOne);
        assert_eq!(refused(b"hello\nworld", "consul"), Refused::NotOne);
        assert_eq!(
            refused(b"proconsul-snapshots of before\n", "consul"),
            Refused::NotOne
        );
        assert_eq!(
            refused(b"proconsul-snapshot 1\n", "consul"),
            Refused::Damaged
        );
        assert_eq!(refused(&good, "other"), Refused::Domain("consul".into()));
        let newer = String::from_utf8(good.clone())
            .unwrap()
            .replacen(" 1 ", " 2 ", 1);
        assert_eq!(
            refused(newer.as_bytes(), "consul"),
            Refused::Version("2".into())
        );
        // What is left of one of ours is no other file.
        for end in 1..good.len() {
            let cut = decode(&good[..end], "consul", NOW, DAY);
            assert_eq!(cut.unwrap_err(), Refused::Damaged, "cut at {end}");
        }
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes, "consul", NOW, DAY).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let large = Found::Pointers(vec!["x".repeat(1 << 20).into(); 30]);
        let sets = [
            set("a", large.clone()),
            set("b", large.clone()),
            set("c", large),
        ];
        let bytes = encode("consul", NOW, sets.iter().map(|set| (set, Duration::ZERO)));
        assert!(bytes.len() <= BODY_LIMIT + HEADER_LIMIT);
        assert_eq!(decode(&bytes, "consul", NOW, DAY).unwrap().len(), 2);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_at_all_make_it_panic(body in ".{0,200}") {
            let body = body.into_bytes();
            let _ = decode(&with_header(&body), "consul", NOW, DAY);
            let _ = decode(&body, "consul", NOW, DAY);
        }
    }
}
