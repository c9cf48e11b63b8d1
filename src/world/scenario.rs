//! **Pure.** Scenarios as text, read and played. `tests/scenarios/README.md` is their
//! grammar for those who write them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{Given, World, source::Condition};
use crate::{
    cache::stale::Wish,
    endpoint::{Outcome, Source},
    error::ErrorKind,
    ladder::Rung,
    protection::Protection,
};

/// One question, and what is to come of it.
struct Expected {
    line: usize,
    words: Vec<String>,
}

/// Plays a scenario. The error names the line and what is wrong there.
pub(super) fn play(text: &str, start: Instant) -> Result<usize, String> {
    let mut world = World::new(start, Protection::Evidence, 1);
    let (mut asked, mut last) = (0, start);
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        let at_line = |why: String| format!("line {line_number}: {line}\n  {why}");
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let [time, words @ ..] = words.as_slice() else {
            continue;
        };
        let at = start + duration(time).map_err(at_line)?;
        if at < last {
            return Err(at_line("is before the line above".to_owned()));
        }
        last = at;
        // An answer may have taken a while.
        let at = at.max(world.now);
        let given = world.advance(at);
        if !given.is_empty() {
            return Err(at_line(format!(
                "an answer came that nobody waited for: {given:?}"
            )));
        }
        if let ["ask", name, rest @ ..] = words {
            let split = rest.iter().position(|word| *word == "->");
            let split = split.ok_or_else(|| at_line("no -> says what is to come".to_owned()))?;
            let (wish, expected) = (&rest[..split], &rest[split + 1..]);
            world.ask(name, read_wish(wish).map_err(at_line)?);
            asked += 1;
            let expected = Expected {
                line: line_number,
                words: expected.iter().map(|word| (*word).to_owned()).collect(),
            };
            // Nobody else asks in between: the next answer is this one's.
            let limit = at + Duration::from_secs(2);
            let mut answers = Vec::new();
            let mut step = at;
            while answers.is_empty() && step <= limit {
                answers = world.advance(step);
                step += Duration::from_millis(1);
            }
            let [given] = answers.as_slice() else {
                return Err(at_line(format!("{} answers", answers.len())));
            };
            check(&expected, given).map_err(at_line)?;
        } else {
            set(&mut world, at, words).map_err(at_line)?;
        }
    }
    Ok(asked)
}

fn set(world: &mut World, at: Instant, words: &[&str]) -> Result<(), String> {
    match words {
        ["protection", word] => {
            let protection = match *word {
                "evidence" => Protection::Evidence,
                "off" => Protection::Off,
                "keep-all" => Protection::KeepAll,
                _ => return Err(format!("{word}: evidence, off or keep-all")),
            };
            world.evidence = crate::evidence::Evidence::new(protection);
        }
        [source @ ("dns" | "http"), condition @ ..] => {
            let rung = if *source == "dns" {
                Rung::Dns
            } else {
                Rung::Http
            };
            let takes = |takes: &[&str]| match takes {
                [] => Ok(Duration::from_millis(1)),
                [takes] => duration(takes),
                _ => Err("one duration at most".to_owned()),
            };
            let condition = match condition {
                ["well", rest @ ..] => Condition::Well(takes(rest)?),
                ["cut", rest @ ..] => Condition::Cut(takes(rest)?),
                ["refused"] => Condition::Refused,
                ["silent"] => Condition::Silent,
                ["failing"] => Condition::Failing,
                ["denied"] => Condition::Denied,
                ["lost"] => Condition::Lost,
                ["blind"] => Condition::Blind,
                ["limited"] => Condition::Limited,
                ["leaderless"] => Condition::Leaderless,
                _ => return Err("a source cannot do that".to_owned()),
            };
            world.set(rung, at, condition);
        }
        ["service", name, rest @ ..] => world.serve(name, at, ports(rest)?),
        ["static", name, rest @ ..] => {
            world.listed.insert((*name).to_owned(), ports(rest)?);
        }
        ["snapshot", name, age, rest @ ..] => {
            world.snapshot(name, duration(age)?, &ports(rest)?);
        }
        ["release"] => {
            for name in world.evidence.release() {
                world.cache.wake(&name);
            }
        }
        _ => return Err("unknown words".to_owned()),
    }
    Ok(())
}

fn read_wish(words: &[&str]) -> Result<Wish, String> {
    match words {
        [] => Ok(Wish::default()),
        ["require-fresh"] => Ok(Wish {
            fresh: true,
            max_age: None,
        }),
        ["max-age", age] => Ok(Wish {
            fresh: false,
            max_age: Some(duration(age)?),
        }),
        _ => Err("a wish is require-fresh or max-age DURATION".to_owned()),
    }
}

/// What was given, against what the line says.
fn check(expected: &Expected, given: &Given) -> Result<(), String> {
    let wrong = |what: &str| format!("(line {}) {what}: {given:?}", expected.line);
    let mut words = expected.words.iter().map(String::as_str).peekable();
    let first = words.next().ok_or("nothing is expected")?;
    match (first, &given.answer) {
        ("not-found", Err(ErrorKind::NotFound))
        | ("denied", Err(ErrorKind::Denied))
        | ("unavailable", Err(ErrorKind::Unavailable))
        | ("timeout", Err(ErrorKind::Timeout)) => {}
        ("dns" | "http" | "snapshot" | "static", Ok(set)) => {
            if set.source.as_str() != first {
                return Err(wrong("another source"));
            }
            let freshness = words.next();
            if freshness != Some(if set.fresh { "fresh" } else { "stale" }) {
                return Err(wrong("fresh or stale"));
            }
            let mut told = BTreeSet::new();
            while let Some(port) = words.peek().and_then(|word| word.parse::<u16>().ok()) {
                told.insert(port);
                words.next();
            }
            if told != set.ports {
                return Err(wrong("other instances"));
            }
        }
        _ => return Err(wrong("something else")),
    }
    let mut complete = true;
    let mut protected = None;
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} of what?"));
        match word {
            "within" => {
                let limit = duration(value()?)?;
                let took = given.at - given.asked;
                if took > limit {
                    return Err(wrong(&format!("took {took:?}")));
                }
            }
            "age" => {
                let age = duration(value()?)?;
                let is = given.answer.as_ref().map(|set| set.age).unwrap_or_default();
                if is.abs_diff(age) > Duration::from_millis(300) {
                    return Err(wrong(&format!("is {is:?} old")));
                }
            }
            "asked" => {
                let steps: Vec<_> = given
                    .steps
                    .iter()
                    .filter_map(|(rung, outcome)| step(*rung, *outcome))
                    .collect();
                let told = value()?;
                if steps.join(",") != told {
                    return Err(wrong(&format!("asked {}", steps.join(","))));
                }
            }
            "partial" => complete = false,
            "protected" => protected = Some(value()?),
            _ => return Err(format!("{word} is unknown")),
        }
    }
    if let Ok(set) = &given.answer {
        let reason = set
            .protected
            .map(|reason| format!("{reason:?}").to_lowercase());
        if reason.as_deref() != protected {
            return Err(wrong(&format!("protected by {reason:?}")));
        }
        if set.complete != complete {
            return Err(wrong("complete or partial"));
        }
    }
    Ok(())
}

/// `dns`, `dns:refused`, ….
fn step(rung: Rung, outcome: Outcome) -> Option<String> {
    let source = match rung {
        Rung::Dns => Source::Dns,
        Rung::Http => Source::Http,
        Rung::Static => Source::Static,
    };
    Some(match outcome {
        Outcome::Answered => source.to_string(),
        outcome => format!("{source}:{outcome}"),
    })
}

fn ports(words: &[&str]) -> Result<BTreeSet<u16>, String> {
    let port = |word: &&str| word.parse().map_err(|_| format!("{word} is no port"));
    words.iter().map(port).collect()
}

/// `15ms`, `1.5s`, `2m`, `3h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text} is no duration: 15ms, 1.5s, 2m, 3h");
    let end = text
        .find(|char: char| char.is_ascii_alphabetic())
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}
