//! **Pure.** A JSON list that comes in pieces, cut into what stands in it: no more than one
//! element is held at a time, however long the list is, and each byte is looked at once here.
//! Whether an element is JSON is for whoever reads it; commas and brackets between them are not.

/// White space of JSON (RFC 8259, section 2).
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// How far it has come.
#[derive(Debug, Default)]
pub(super) struct List {
    at: At,
    /// What came of an element that goes on in the next piece.
    begun: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before the list.
    #[default]
    Start,
    /// After its bracket.
    First,
    /// After a comma.
    Next,
    In(Within),
    /// After an element.
    Behind,
    End,
    /// It is no list.
    Wrong,
}

/// Where in an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Within {
    /// So deep in objects and lists.
    Open(usize),
    /// The same, in a string; `true`: what comes next is escaped.
    Text(usize, bool),
    /// A number, or a word.
    Word,
}

/// What a byte does to an element.
enum Does {
    GoesOn(Within),
    /// It is the last one.
    Ends,
    /// It is behind it.
    IsBehind,
}

impl Within {
    fn begins(byte: u8) -> Self {
        match byte {
            b'{' | b'[' => Self::Open(1),
            b'"' => Self::Text(0, false),
            _ => Self::Word,
        }
    }

    fn takes(self, byte: u8) -> Does {
        let closed = |depth: usize| match depth {
            0 => Does::Ends,
            depth => Does::GoesOn(Self::Open(depth)),
        };
        match (self, byte) {
            (Self::Text(depth, true), _) => Does::GoesOn(Self::Text(depth, false)),
            (Self::Text(depth, false), b'\\') => Does::GoesOn(Self::Text(depth, true)),
            (Self::Text(depth, false), b'"') => closed(depth),
            (Self::Open(depth), b'"') => Does::GoesOn(Self::Text(depth, false)),
            (Self::Open(depth), b'{' | b'[') => Does::GoesOn(Self::Open(depth.saturating_add(1))),
            (Self::Open(depth), b'}' | b']') => closed(depth.saturating_sub(1)),
            (Self::Word, byte) if is_space(byte) || matches!(byte, b',' | b']' | b'}') => {
                Does::IsBehind
            }
            (as_before, _) => Does::GoesOn(as_before),
        }
    }
}

impl List {
    /// The next piece; `element` is given each that is whole by now.
    pub(super) fn more(&mut self, bytes: &[u8], mut element: impl FnMut(&[u8])) {
        // Where the element begins in this piece.
        let mut from = 0;
        for (at, byte) in bytes.iter().copied().enumerate() {
            let behind = match self.at {
                At::In(within) => match within.takes(byte) {
                    Does::GoesOn(within) => {
                        self.at = At::In(within);
                        continue;
                    }
                    Does::Ends => {
                        self.ends(bytes.get(from..=at), &mut element);
                        continue;
                    }
                    Does::IsBehind => {
                        self.ends(bytes.get(from..at), &mut element);
                        At::Behind
                    }
                },
                at => at,
            };
            self.at = match (behind, byte) {
                (behind, byte) if is_space(byte) => behind,
                (At::Start, b'[') => At::First,
                (At::First | At::Behind, b']') => At::End,
                (At::Behind, b',') => At::Next,
                (At::First | At::Next, byte) if !matches!(byte, b',' | b']' | b'}' | b':') => {
                    from = at;
                    At::In(Within::begins(byte))
                }
                _ => At::Wrong,
            };
            if self.at == At::Wrong {
                return;
            }
        }
        if let (At::In(_), Some(begun)) = (self.at, bytes.get(from..)) {
            self.begun.extend_from_slice(begun);
        }
    }

    fn ends(&mut self, rest: Option<&[u8]>, element: &mut impl FnMut(&[u8])) {
        let rest = rest.unwrap_or_default();
        if self.begun.is_empty() {
            element(rest);
        } else {
            self.begun.extend_from_slice(rest);
            element(&self.begun);
            self.begun.clear();
        }
        self.at = At::Behind;
    }

    /// Whether anything of it came.
    pub(super) fn is_begun(&self) -> bool {
        self.at != At::Start
    }

    /// Whether all of it came, and nothing else; or what it is instead.
    pub(super) fn end(&self) -> Result<(), &'static str> {
        match self.at {
            At::End => Ok(()),
            At::Wrong => Err("something is between its elements that is no comma, or behind them"),
            At::Start | At::First | At::Next | At::In(_) | At::Behind => {
                Err("it ends in the middle of its list")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;

    /// The elements of a list that comes in pieces of so many bytes; `None`: it is none.
    fn cut(text: &str, piece: usize) -> Option<Vec<String>> {
        let (mut list, mut elements) = (List::default(), Vec::new());
        for piece in text.as_bytes().chunks(piece) {
            list.more(piece, |element| elements.push(element.to_owned()));
        }
        let is_json = |element: &Vec<u8>| serde_json::from_slice::<&RawValue>(element).is_ok();
        (list.end().is_ok() && elements.iter().all(is_json)).then(|| {
            let text = |element| String::from_utf8(element).unwrap();
            elements.into_iter().map(text).collect()
        })
    }

    fn expected(text: &str) -> Option<Vec<String>> {
        let elements = serde_json::from_str::<Vec<&RawValue>>(text).ok()?;
        Some(elements.iter().map(|raw| raw.get().to_owned()).collect())
    }

    #[test]
    fn what_a_piece_ends_in_is_whole_with_the_next() {
        for text in [
            "[]",
            " [ ] ",
            r#"[{"a":"]}\"\\"},[[],{}],"x,]",1,-1e9,null , true]"#,
            "[1 2]",
            "[1,]",
            "[,1]",
            "[1}]",
            "[{]}]",
            "[\"\\",
            "[[",
            "[] []",
            "{}",
            "1",
            "",
            "[1]]",
            "[:1]",
            "[\"a\"\"b\"]",
            "[{}{}]",
            "[nul]",
        ] {
            for piece in 1..=text.len().max(1) {
                assert_eq!(cut(text, piece), expected(text), "{text} by {piece}");
            }
        }
    }

    proptest! {
        #[test]
        fn it_cuts_where_a_reader_of_the_whole_does(
            text in r#"\[[\[\]{}",:\\ 0-9a-f\n]{0,24}\]?"#,
            piece in 1_usize..30,
        ) {
            prop_assert_eq!(cut(&text, piece), expected(&text));
        }

        #[test]
        fn a_list_is_cut_as_a_reader_of_the_whole_does(
            elements in prop::collection::vec(
                r#"(\{"[a-f\[\]]{0,4}":[1-9][0-9]{0,2}\}|"(\\"|[a-f,\]])*"|[1-9]{1,4}|null|\[\]) ?"#,
                0..6,
            ),
            piece in 1_usize..30,
        ) {
            let text = format!("[{}]", elements.join(","));
            prop_assert!(expected(&text).is_some());
            prop_assert_eq!(cut(&text, piece), expected(&text));
        }
    }
}
