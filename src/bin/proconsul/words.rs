//! The words of a command line before it is read as a whole: what has to be known of one that
//! cannot be read.

use clap::ColorChoice;

/// Those that are ours to read.
pub(crate) fn own() -> Vec<String> {
    let words = std::env::args_os().skip(1);
    let own = words.take_while(|word| word != "--");
    own.map(|word| word.to_string_lossy().into_owned())
        .collect()
}

/// Whether JSON is asked for in a command line that cannot be read as a whole.
pub(crate) fn wants_json(words: &[String]) -> bool {
    let forms = values(words, Some('o'), "--output");
    words.iter().any(|word| word == "--json") || forms.contains(&"json")
}

/// When colour is wanted, in a command line that is not read yet: its errors and its help have
/// colours too.
pub(crate) fn wants_color(words: &[String]) -> ColorChoice {
    match values(words, None, "--color")[..] {
        [.., "always"] => ColorChoice::Always,
        [.., "never"] => ColorChoice::Never,
        _ => ColorChoice::Auto,
    }
}

/// What is given to a flag, in each of the ways in which it can be.
fn values<'a>(words: &'a [String], short: Option<char>, long: &str) -> Vec<&'a str> {
    let mut values = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let behind = match short.and_then(|short| bundled(word, short)) {
            Some(rest) => rest,
            None => match word.strip_prefix(long) {
                Some(rest) if rest.is_empty() || rest.starts_with('=') => rest,
                _ => continue,
            },
        };
        match behind.strip_prefix('=').unwrap_or(behind) {
            "" => values.extend(words.get(at + 1).map(String::as_str)),
            value => values.push(value),
        }
    }
    values
}

/// What stands behind a short flag, alone or after those that take no value: `-qojson`.
fn bundled(word: &str, short: char) -> Option<&str> {
    let flags = word.strip_prefix('-')?;
    let (before, rest) = flags.split_once(short)?;
    let takes_none = |flag| matches!(flag, 'q' | 'v');
    before.chars().all(takes_none).then_some(rest)
}
