//! **Word.** Absolute names as text, whatever bytes their labels have.
//!
//! A byte that could be taken for something else is written as a backslash and
//! three decimal digits (RFC 1035, section 5.1), a dot within a label too: text
//! that was written here may be parted at its dots, and names that are equal but
//! for case are equal text but for case. Any escape is read, `\.` as well as
//! `\046`, as Consul reads those in the names of nodes.

use std::{borrow::Cow, fmt::Write as _};

use super::{LONGEST, parse};

/// Writes an absolute name, with its final dot.
pub(crate) fn text<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut text = String::new();
    for label in labels {
        for &byte in label {
            match char::from(byte) {
                plain if parse::is_plain(plain) => text.push(plain),
                // Into a string all can be written.
                _ => _ = write!(text, "\\{byte:03}"),
            }
        }
        text.push('.');
    }
    if text.is_empty() {
        text.push('.');
    }
    text
}

/// The labels left of a domain, which the name lies in. `None`: it does not. Case does
/// not count. `domain`: its labels from the right.
pub(crate) fn below<'a, 'b>(
    mut labels: &'a [&'b [u8]],
    domain: impl IntoIterator<Item: AsRef<[u8]>>,
) -> Option<&'a [&'b [u8]]> {
    for label in domain {
        let (last, rest) = labels.split_last()?;
        if !last.eq_ignore_ascii_case(label.as_ref()) {
            return None;
        }
        labels = rest;
    }
    Some(labels)
}

/// Whether a name asks who has an address.
pub(crate) fn is_reverse(labels: &[&[u8]]) -> bool {
    let zones = [["arpa", "in-addr"], ["arpa", "ip6"]];
    (zones.into_iter()).any(|zone| below(labels, zone).is_some())
}

/// The labels of an absolute name, the root's left out; its final dot may be
/// missing. `None` for what the wire does not carry.
pub(crate) fn labels(text: &str) -> Option<Vec<Cow<'_, [u8]>>> {
    let labels: Vec<Cow<'_, [u8]>> = if text == "." {
        Vec::new()
    } else if text.as_bytes().contains(&b'\\') {
        unescaped(text)?.into_iter().map(Cow::Owned).collect()
    } else {
        let text = text.strip_suffix('.').unwrap_or(text).as_bytes();
        text.split(|byte| *byte == b'.').map(Cow::from).collect()
    };
    let fits = |label: &Cow<'_, [u8]>| matches!(label.len(), 1..=parse::LONGEST_LABEL);
    let letters: usize = labels.iter().map(|label| label.len()).sum();
    let length = letters.saturating_add(labels.len());
    (labels.iter().all(fits) && length < LONGEST).then_some(labels)
}

/// The same name as [`text`] writes it. `None` for what the wire does not carry.
pub(crate) fn canonical(name: &str) -> Option<String> {
    let labels = labels(name)?;
    Some(text(labels.iter().map(Cow::as_ref)))
}

/// Labels without their escapes, joined with dots, for a person to read.
pub(super) fn readable(name: &str) -> String {
    match unescaped(name) {
        Some(labels) => String::from_utf8_lossy(&labels.join(&b'.')).into_owned(),
        None => name.to_owned(),
    }
}

/// `None` where an escape is cut off or no byte.
fn unescaped(text: &str) -> Option<Vec<Vec<u8>>> {
    let (mut labels, mut label) = (Vec::new(), Vec::new());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (
                b'\\',
                [
                    a @ b'0'..=b'9',
                    b @ b'0'..=b'9',
                    c @ b'0'..=b'9',
                    after @ ..,
                ],
            ) => {
                let digits = [*a, *b, *c];
                label.push(std::str::from_utf8(&digits).ok()?.parse().ok()?);
                after
            }
            (b'\\', [escaped, after @ ..]) => {
                label.push(*escaped);
                after
            }
            (b'\\', []) => return None,
            (b'.', after) => {
                labels.push(std::mem::take(&mut label));
                after
            }
            (plain, after) => {
                label.push(plain);
                after
            }
        };
    }
    if !label.is_empty() {
        labels.push(label);
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_escape_is_read_and_one_of_them_is_written() {
        for (name, written) in [
            (".", "."),
            ("web.service.consul.", "web.service.consul."),
            ("Web.service.consul", "Web.service.consul."),
            ("bad node.consul.", r"bad\032node.consul."),
            (r"bad\ node.consul.", r"bad\032node.consul."),
            (r"bad\032node.consul.", r"bad\032node.consul."),
            ("a/b.-c.$*.consul.", "a/b.-c.$*.consul."),
            (r"back\slash.consul.", "backslash.consul."),
            (r"back\\slash.consul.", r"back\092slash.consul."),
            (r"one\.label.consul.", r"one\046label.consul."),
            (r"one.label\.", r"one.label\046."),
            (r"\1.\12.\1234.", "1.12.{4."),
            ("bücher.", r"b\195\188cher."),
            ("\0\u{7f}.", r"\000\127."),
        ] {
            assert_eq!(canonical(name).as_deref(), Some(written), "{name}");
        }
        for (name, read) in [
            (r"bad\032node", "bad node"),
            (r"node.with\046dots", "node.with.dots"),
            (r"b\195\188cher", "bücher"),
            (r"\255", "\u{fffd}"),
        ] {
            assert_eq!(readable(name), read, "{name}");
        }
    }

    #[test]
    fn what_the_wire_does_not_carry_is_no_name() {
        let long = ["a"; 128].join(".");
        let label = "a".repeat(64);
        for name in ["", "a..b.", ".a.", "a..", r"a\", r"\256.", &long, &label] {
            assert_eq!(labels(name), None, "{name:?}");
        }
        // Escapes count as what they stand for.
        assert!(labels(&r"\032".repeat(63)).is_some());
        assert!(labels(&long[2..]).is_some());
    }

    proptest! {
        #[test]
        fn any_labels_come_back_from_their_text(
            bytes in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=63), 0..=3)
        ) {
            let text = text(bytes.iter().map(Vec::as_slice));
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
            let dots = text.matches('.').count();
            prop_assert_eq!(dots, bytes.len().max(1));
            let read: Vec<Vec<u8>> =
                labels(&text).unwrap().into_iter().map(Cow::into_owned).collect();
            prop_assert_eq!(read, bytes);
        }
    }
}
