//! The laws of the house, read off the sources: which kind each file is, and
//! what that kind may name.
//!
//! | kind | may | may not |
//! | --- | --- | --- |
//! | **Word** | hold plain data and its grammar | do anything |
//! | **Pure** | decide, from bytes, a time and dice that it is given | name sockets, files, clocks, a runtime |
//! | **Shell** | do one kind of I/O and give back what it heard | decide what happens next |
//! | **Door** | be the handle that a user holds | contain rules of its own |
//!
//! Only code is judged: comments, text in quotes and what follows the line
//! `#[cfg(test)]` may name anything. The last law alone reads everything.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// Longer files are what nobody wants to open.
const LONGEST: usize = 700;

const KINDS: [&str; 4] = ["Word", "Pure", "Shell", "Door"];

/// What Pure and Word files may not name.
const OUTSIDE_WORLD: [&str; 11] = [
    "tokio",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "socket2",
    "fs",
    "reqwest",
    "Instant::now",
    "SystemTime::now",
    "rand::rng",
];

/// What reads clocks or seeds dice.
const CLOCKS_AND_DICE: [&str; 7] = [
    "Instant::now",
    "SystemTime::now",
    "rand::rng",
    "rand::random",
    "rand::random_range",
    "rand::make_rng",
    "SysRng",
];

/// What is left undone, or waved through without a reason.
const UNFINISHED: [&str; 7] = [
    "TODO",
    "FIXME",
    "todo!",
    "unimplemented!",
    "#[ignore",
    "#[allow(",
    "#![allow(",
];

struct Source {
    /// From the root of the repository, with slashes.
    path: String,
    text: String,
    /// The lines before the tests, without comments and text in quotes.
    code: Vec<String>,
}

impl Source {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("sources can be read");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = path
            .strip_prefix(root)
            .expect("sources are in the repository");
        let path = path
            .to_str()
            .expect("sources have plain names")
            .replace('\\', "/");
        Self::new(path, text)
    }

    fn new(path: String, text: String) -> Self {
        let bare = without_comments_and_quotes(&text);
        // A module of tests in a file of its own is tests throughout.
        let length = if path.ends_with("/tests.rs") {
            0
        } else {
            before_tests(&text)
        };
        let code = bare.lines().take(length).map(String::from).collect();
        Self { path, text, code }
    }

    fn kind(&self) -> Option<&'static str> {
        let first = self.text.lines().next()?;
        let named = |kind: &&str| first.starts_with(&format!("//! **{kind}.**"));
        KINDS.into_iter().find(named)
    }

    fn is_outside_the_kinds(&self) -> bool {
        self.path == "src/lib.rs"
            || self.path.starts_with("src/bin/")
            || self.path.ends_with("/tests.rs")
    }

    /// The lines of code in which one of the words stands as a word of its own.
    fn naming(&self, words: &[&str]) -> Vec<String> {
        let lines = self.code.iter().enumerate();
        let found = lines.flat_map(|(index, line)| {
            let found = words.iter().filter(|word| names(line, word));
            found.map(move |word| format!("{}:{} names {word}", self.path, index + 1))
        });
        found.collect()
    }
}

/// How many lines come before the tests.
fn before_tests(text: &str) -> usize {
    let is_start = |line: &str| line.trim_start().starts_with("#[cfg(test)]");
    let lines: Vec<_> = text.lines().collect();
    let starts = lines.iter().enumerate().filter(|(_, line)| is_start(line));
    // `mod tests;` names a sibling; other lines under the attribute are single
    // items, after which the code goes on.
    let mut starts = starts.filter(|(index, _)| {
        let next = lines.get(index + 1).unwrap_or(&"");
        next.trim_start().starts_with("mod ") && next.ends_with('{')
    });
    starts.next().map_or(lines.len(), |(index, _)| index)
}

/// Blanks out comments, strings and characters, and keeps the lines.
fn without_comments_and_quotes(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let skipped = match next {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => quoted(rest),
            'r' if !bare.ends_with(is_word) => raw_quoted(rest).unwrap_or(0),
            '\'' => character(rest).unwrap_or(0),
            _ => 0,
        };
        if skipped == 0 {
            bare.push(next);
            rest = &rest[next.len_utf8()..];
        } else {
            bare.extend(rest[..skipped].chars().filter(|&char| char == '\n'));
            rest = &rest[skipped..];
        }
    }
    bare
}

fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (index, char) in text.char_indices().skip(1) {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw_quoted(text: &str) -> Option<usize> {
    let hashes = text[1..].chars().take_while(|&char| char == '#').count();
    let body = text[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let length = body.find(&end)? + end.len();
    Some(1 + hashes + 1 + length)
}

/// A character in quotes; a lifetime is none.
fn character(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        // The escaped one may be the quote itself.
        chars.next()?;
        return chars.find(|(_, char)| *char == '\'').map(|(at, _)| at + 1);
    }
    let (at, last) = chars.next()?;
    (last == '\'').then_some(at + 1)
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

fn rust_files(folder: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    collect(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join(folder),
        &mut paths,
    );
    paths.sort();
    paths.iter().map(|path| Source::read(path)).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    // A folder that is not there has no files; `src` is asserted below.
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("folders of sources can be read").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let sources = rust_files("src");
    assert!(!sources.is_empty(), "src has no Rust files");
    sources
}

/// Fails with the law's name and every place where it is broken.
fn assert_kept(law: &str, broken: impl IntoIterator<Item = String>) {
    let mut places = String::new();
    for place in broken {
        _ = write!(places, "\n  {place}");
    }
    assert!(places.is_empty(), "broken law: {law}{places}");
}

#[test]
fn every_file_says_first_which_kind_it_is() {
    let sources = sources();
    let broken = sources
        .iter()
        .filter(|source| !source.is_outside_the_kinds() && source.kind().is_none());
    assert_kept(
        "a file's first line is `//! **Word.**`, `**Pure.**`, `**Shell.**` or `**Door.**`",
        broken.map(|source| source.path.clone()),
    );
}

#[test]
fn words_and_pure_rooms_know_nothing_of_the_outside_world() {
    let sources = sources();
    let inner = sources
        .iter()
        .filter(|source| matches!(source.kind(), Some("Word" | "Pure")));
    assert_kept(
        "Word and Pure files name no runtime, socket, file, clock or global dice",
        inner.flat_map(|source| source.naming(&OUTSIDE_WORLD)),
    );
}

#[test]
fn hickory_stays_behind_its_wall() {
    let may = |path: &str| {
        ["src/records/", "src/stub/answer"]
            .iter()
            .any(|room| path.starts_with(room))
            || path.starts_with("src/source/dns")
    };
    let sources = sources();
    let others = sources.iter().filter(|source| !may(&source.path));
    assert_kept(
        "only records/, stub/answer* and source/dns* name hickory_proto",
        others.flat_map(|source| source.naming(&["hickory_proto"])),
    );
}

#[test]
fn only_the_clock_reads_time_and_seeds_dice() {
    let sources = sources();
    let others = sources
        .iter()
        .filter(|source| source.path != "src/clock.rs");
    assert_kept(
        "only clock.rs reads clocks and seeds dice",
        others.flat_map(|source| source.naming(&CLOCKS_AND_DICE)),
    );
}

#[test]
fn only_the_clock_tells_timers_when_they_are_due() {
    // Ages go on while the machine is suspended, timers do not.
    let sources = sources();
    let others = sources
        .iter()
        .filter(|source| source.path != "src/clock.rs");
    let broken = others.flat_map(|source| {
        let lines = source.code.iter().enumerate();
        let tokios = lines.filter(|(_, line)| {
            ["sleep_until", "timeout_at", "interval_at"]
                .iter()
                .any(|timer| names(&line.replace(&format!("clock::{timer}"), ""), timer))
        });
        tokios.map(|(index, _)| format!("{}:{}", source.path, index + 1))
    });
    assert_kept("a timer that is due at a time is clock.rs's", broken);
}

#[test]
fn the_wall_clock_is_for_dates_alone() {
    // A snapshot outlives its machine's start, and a serial is a date. All else is as old as
    // the monotonic clock says, whatever is done to the other.
    let may = ["src/clock.rs", "src/resolver/warm.rs", "src/cluster.rs"];
    let sources = sources();
    let others = sources
        .iter()
        .filter(|source| !may.contains(&source.path.as_str()));
    assert_kept(
        "only a snapshot's age and a comparison of clocks read the time of day",
        others.flat_map(|source| source.naming(&["since_1970", "UnixTime::now"])),
    );
}

#[test]
fn no_file_is_too_long_to_read() {
    let sources = sources();
    let long = sources.iter().filter(|source| source.code.len() > LONGEST);
    assert_kept(
        "a file has at most 700 lines before its tests",
        long.map(|source| format!("{}: {}", source.path, source.code.len())),
    );
}

/// Rooms that read what comes from outside, with all that is below them.
const READERS: [&str; 23] = [
    "src/config/environment.rs",
    "src/connect/spiffe.rs",
    "src/connect/verify.rs",
    "src/consul/address.rs",
    "src/consul/dns_settings.rs",
    "src/consul/health.rs",
    "src/consul/http/reading.rs",
    "src/consul/http/token_file.rs",
    "src/consul/instances.rs",
    "src/consul/tls.rs",
    "src/kv.rs",
    "src/name/mod.rs",
    "src/records/mod.rs",
    "src/snapshot.rs",
    "src/source/default_address.rs",
    "src/source/dns/message.rs",
    "src/source/snapshot_file.rs",
    "src/source/static_catalog.rs",
    "src/stub/answer.rs",
    "src/stub/forward/message.rs",
    "src/stub/networks.rs",
    "src/stub/shortcut.rs",
    "src/stub/upstreams.rs",
];

/// What may end in a panic on what somebody else wrote. `unwrap` is for nobody.
const PANICS: [&str; 4] = [
    "arithmetic_side_effects",
    "expect_used",
    "indexing_slicing",
    "panic",
];

#[test]
fn rooms_that_read_what_comes_from_outside_are_held_to_have_no_panic() {
    let sources = sources();
    let held = |room: &str| {
        let source = sources.iter().find(|source| source.path == room);
        let code = source.map(|source| source.code.concat().replace(' ', ""));
        let code = code.unwrap_or_default();
        let attribute = code.split_once("#![cfg_attr(not(test),warn(");
        let lints = attribute.and_then(|(_, rest)| rest.split_once(')'));
        let lints = lints.map_or("", |(lints, _)| lints);
        let lints: Vec<_> = lints.split(',').collect();
        PANICS
            .iter()
            .all(|lint| lints.contains(&format!("clippy::{lint}").as_str()))
    };
    let broken = READERS.iter().filter(|room| !held(room));
    assert_kept(
        "rooms that read from outside switch on the lints on panics",
        broken.map(|room| (*room).to_owned()),
    );
}

#[test]
fn nothing_is_left_undone_or_waved_through() {
    let here = "tests/house_rules.rs";
    let folders = ["src", "tests", "examples"];
    let files: Vec<_> = folders.into_iter().flat_map(rust_files).collect();
    let others = files.iter().filter(|file| file.path != here);
    assert_kept(
        "no TODO, no ignored test, no `allow` without a reason",
        others.flat_map(unfinished),
    );
}

fn unfinished(file: &Source) -> Vec<String> {
    let words = UNFINISHED.into_iter();
    let found = words.flat_map(|word| {
        let places = file.text.match_indices(word);
        let places = places.filter(move |(at, _)| !has_reason(&file.text[*at..]));
        places.map(move |(at, _)| {
            let line = file.text[..at].matches('\n').count() + 1;
            format!("{}:{line} has {word}", file.path)
        })
    });
    found.collect()
}

/// Whether this is an attribute that gives its reason.
fn has_reason(text: &str) -> bool {
    let attribute = text.split_inclusive(")]").next().unwrap_or_default();
    attribute.starts_with('#') && attribute.contains("reason = \"")
}

mod the_reader {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("src/made_up.rs".into(), text.into())
    }

    #[test]
    fn sees_code_and_not_what_is_said_about_it() {
        let text = r##"//! **Pure.** No tokio here.
fn f<'a>(x: &'a str) -> char { let _ = ("tokio \" tokio", r#"tokio "#, '"'); '\'' } // tokio
/* tokio
*/ use tokio::net;
#[cfg(test)]
mod tests { use tokio::time; }
"##;
        let text = text.replace("mod tests { use", "mod tests {\n use");
        let found = source(&text).naming(&["tokio"]);
        assert_eq!(found, ["src/made_up.rs:4 names tokio"]);
    }

    #[test]
    fn knows_a_word_from_a_part_of_one() {
        assert!(names("use tokio::net;", "tokio"));
        assert!(!names("use tokio_rustls::x;", "tokio"));
        assert!(names("std::time::Instant::now()", "Instant::now"));
        assert!(!names("Instant::nowhere()", "Instant::now"));
    }

    #[test]
    fn takes_an_attribute_for_its_reason() {
        let with = "#![allow(\n    dead_code,\n    reason = \"x\"\n)]";
        assert_eq!(unfinished(&source(with)), Vec::<String>::new());
        let without = "\n#[allow(dead_code)]\n#[expect(x, reason = \"y\")]";
        assert_eq!(
            unfinished(&source(without)),
            ["src/made_up.rs:2 has #[allow("]
        );
    }

    #[test]
    fn knows_the_kinds() {
        assert_eq!(source("//! **Door.** x").kind(), Some("Door"));
        assert_eq!(source("//! A door.").kind(), None);
    }
}
