//! **Pure.** The rules of what an agent's HTTP API says.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use rand::{SeedableRng as _, rngs::SmallRng};
use serde_json::value::RawValue;

use crate::{
    clock,
    consul::{
        blocking::{Blocking, Failure},
        health::{
            Read, Reading, Unread,
            ask::{Ask, Place, Question, Reader},
        },
        http::{
            Head, Trouble,
            reading::{self, Body},
        },
        instances,
        token::Token,
    },
    source::static_catalog::StaticCatalog,
};

/// Any bytes as replies of the catalog: what is read of them holds what a look-up promises.
pub fn catalog(bytes: &[u8]) {
    let place = Place {
        datacenter: None,
        namespace: None,
        partition: None,
        peer: None,
        sameness_group: None,
    };
    for ask in [
        Ask::Service {
            name: "web",
            tag: None,
        },
        Ask::Query { name: "near" },
        Ask::Node { name: "node" },
        Ask::Reverse {
            ip: IpAddr::from([10, 0, 0, 1]),
        },
        Ask::Servers,
    ] {
        let question = Question {
            ask,
            place,
            reader: Reader::Any,
            domain: "consul",
            name: "web.service.consul.",
        };
        for translated in [false, true] {
            let read = in_pieces(&question, bytes, bytes.len(), translated);
            // However it comes.
            for piece in [1, bytes.len() % 61, bytes.len() / 2] {
                assert_eq!(in_pieces(&question, bytes, piece, translated), read);
            }
            if matches!(ask, Ask::Service { .. } | Ask::Servers) {
                let is_list = serde_json::from_slice::<Option<Vec<&RawValue>>>(bytes).is_ok();
                let no_json = "the reply is not the JSON";
                match &read {
                    Err(Unread::Malformed(why)) if is_list => assert!(!why.starts_with(no_json)),
                    Err(Unread::Malformed(_)) => {}
                    told => assert!(is_list, "{told:?}"),
                }
            }
            match read {
                Ok(read) => {
                    assert!(read.found.len() <= bytes.len(), "more than there are bytes");
                    assert!(read.skipped == 0 || read.first_reason.is_some());
                }
                Err(Unread::Malformed(why)) => assert!(!why.is_empty()),
                Err(Unread::NotFound { .. }) => {}
            }
        }
    }
    if let Ok(all) = instances::instances("web", bytes) {
        assert!(all.len() <= bytes.len());
        for one in &all {
            let worst = one.checks.iter().map(|check| check.health.rank()).max();
            assert_eq!(one.health.rank(), worst.unwrap_or_default());
        }
    }
    _ = instances::services(bytes);
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(catalog) = StaticCatalog::parse(text, "consul")
    {
        for (service, _) in catalog.services() {
            assert!(
                catalog.find(service, None).is_some(),
                "listed and not found"
            );
        }
    }
}

fn in_pieces(
    question: &Question<'_>,
    bytes: &[u8],
    piece: usize,
    translated: bool,
) -> Result<Read, Unread> {
    let mut reading = Reading::new(question, translated);
    for piece in bytes.chunks(piece.max(1)) {
        reading.more(piece);
    }
    reading.end()
}

/// Replies and failures of a server that a blocking query is put to: it is never asked with
/// an index that would not wait, nor faster than it may be, nor forgotten.
pub fn blocking(bytes: &[u8]) {
    let start = clock::now();
    let mut now = start;
    let mut blocking = Blocking::new(now);
    let mut dice = SmallRng::seed_from_u64(7);
    let mut asked = 0_u32;
    let mut before = None;
    for pair in bytes.chunks_exact(2).take(512) {
        let turn = blocking.turn(Duration::from_secs(1));
        assert!(turn.due <= now + Duration::from_secs(80), "it is forgotten");
        assert_ne!(turn.index, Some(0), "a query that does not wait");
        // The index before, or none: an index that was never heard would wait for ever.
        assert!(
            turn.index.is_none() || turn.index == before,
            "an index of nowhere"
        );
        now = now.max(turn.due);
        asked += 1;
        let (kind, more) = (pair[0] % 8, u64::from(pair[1]));
        let took = match kind {
            0..=3 => Duration::from_millis(more),
            _ => Duration::from_secs(more % 56),
        };
        now += took;
        match kind {
            6 => blocking.failed(Failure::Refused, None, now, &mut dice),
            7 => {
                let pause = (more > 128).then(|| Duration::from_secs(more));
                blocking.failed(Failure::Other, pause, now, &mut dice);
            }
            _ => {
                let index = (more != 0).then_some(more % 17);
                if !blocking.believes(index, true, now) {
                    continue;
                }
                before = index.map(|index| index.max(1));
                // As those who follow do with what cannot be followed.
                if !blocking.answered(index, kind % 2 == 0, took, now, &mut dice) {
                    blocking.again(now + Duration::from_secs(1));
                }
            }
        }
    }
    let seconds = now.duration_since(start).as_secs_f64();
    assert!(
        f64::from(asked) <= seconds * 15.0 + 25.0,
        "{asked} in {seconds} s"
    );
}

/// A server that says what it likes: its first byte is the status, then come lines of headers
/// until an empty one, and the rest is the body, in pieces. What is read stands there; no more
/// is taken than may be, whatever was announced; and a refusal is one line without the token.
pub fn http(bytes: &[u8]) {
    let Some((&[status, piece], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let end = rest.windows(2).position(|two| two == b"\n\n");
    let (head, body) = rest.split_at(end.map_or(rest.len(), |end| end + 2));
    let mut headers: HashMap<String, &str> = HashMap::new();
    for line in head.split(|byte| *byte == b'\n') {
        // A client's own reader lets nothing else through.
        let graphic = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t');
        if let Ok(line) = std::str::from_utf8(line)
            && line.as_bytes().iter().all(graphic)
            && let Some((name, value)) = line.split_once(':')
        {
            headers.entry(name.to_ascii_lowercase()).or_insert(value);
        }
    }
    let header = |name: &str| headers.get(&name.to_ascii_lowercase()).copied();
    let reply = reading::head(200, header);
    for (name, read) in [
        ("x-consul-index", reply.index),
        (
            "x-consul-lastcontact",
            reply
                .last_contact
                .map(|time| u64::try_from(time.as_millis()).expect("it was a number")),
        ),
    ] {
        assert_eq!(read, header(name).and_then(digits), "{name}");
    }
    let says = |name: &str| header(name).map(|value| value.trim().to_ascii_lowercase());
    let yes = Some("true".to_owned());
    assert_eq!(
        reply.known_leader == Some(true),
        says("x-consul-knownleader") == yes
    );
    assert_eq!(
        reply.filtered_by_acls,
        says("x-consul-results-filtered-by-acls") == yes
    );

    // A limit that inputs can pass.
    let most = 256;
    let announced = header("content-length").and_then(digits);
    match Body::new(Vec::new(), most, announced) {
        Err(trouble) => {
            assert_eq!(trouble, Trouble::TooLarge);
            assert!(
                announced > Some(most as u64),
                "refused for what it did not say"
            );
        }
        Ok(mut taken) => {
            let pieces = body.chunks(usize::from(piece) + 1);
            let told = pieces.map(|piece| taken.add(piece)).find(Result::is_err);
            assert_eq!(told.is_some(), body.len() > most);
            let reply = taken.ends(Head::default());
            let taken = reply.body;
            assert!(body.starts_with(&taken) && taken.len() <= most);
            assert_eq!(reply.received, taken.len());
            assert!(
                taken.capacity() <= 2 * body.len().min(most).max(8),
                "room for what is said"
            );
            assert!(told.is_some() || taken == body, "something is lost");
        }
    }

    let token = Token::parse("hush").expect("a plain token");
    let trouble = reading::refusal(400 + u16::from(status), body, token.as_ref(), None);
    let told = trouble.to_string();
    assert!(
        !told.contains("hush") && !told.contains(char::is_control),
        "{told:?}"
    );
    // 200 characters, each in at most ten, and what we say ourselves.
    assert!(told.len() <= 2_100, "{} bytes", told.len());
    follow(reply.index);
}

/// A number as it stands in a header.
fn digits(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.strip_prefix('+').unwrap_or(text);
    let mut number = (!digits.is_empty()).then_some(0_u64)?;
    for digit in digits.bytes() {
        let digit = digit.is_ascii_digit().then(|| digit - b'0')?;
        number = number.checked_mul(10)?.checked_add(digit.into())?;
    }
    Some(number)
}

/// An index is asked with as it is, but never 0, which would not wait.
fn follow(index: Option<u64>) {
    let now = clock::now();
    let mut blocking = Blocking::new(now);
    let mut dice = SmallRng::seed_from_u64(7);
    assert!(blocking.believes(index, true, now), "it is the first");
    let follows = blocking.answered(index, true, Duration::ZERO, now, &mut dice);
    assert_eq!(follows, index.is_some());
    let asked = blocking.turn(Duration::from_secs(1)).index;
    assert_eq!(asked, index.map(|index| index.max(1)));
}
