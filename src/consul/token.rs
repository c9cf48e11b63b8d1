//! **Word.** [`Token`]: an ACL token. It goes into one HTTP header and nowhere
//! else: it has no `Display`, its `Debug` says only that it is there, its
//! error does not repeat what was given, and its memory is wiped when it is dropped.

use std::fmt;

use zeroize::Zeroizing;

/// An ACL token: not empty, visible ASCII, so always a legal header value.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(Zeroizing<Box<str>>);

impl Token {
    /// Reads a token as people keep it in variables and files: blanks and line
    /// ends around it do not count, and nothing but those is no token.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, TokenError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        match text.bytes().position(|byte| !byte.is_ascii_graphic()) {
            None => Ok(Some(Self(Zeroizing::new(text.into())))),
            Some(at) => Err(TokenError { at }),
        }
    }

    /// The token itself, for the header only.
    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The text cannot be a token. Holds where, never what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenError {
    at: usize,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at + 1;
        write!(
            f,
            "the token holds a character that no HTTP header carries (at byte {at})"
        )
    }
}

impl std::error::Error for TokenError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_around_a_token_do_not_count() {
        let token = Token::parse(" \t8a2f-11\r\n").unwrap().unwrap();
        assert_eq!(token.secret(), "8a2f-11");
    }

    #[test]
    fn nothing_is_no_token() {
        for text in ["", " ", "\n", "\r\n\t "] {
            assert_eq!(Token::parse(text), Ok(None));
        }
    }

    #[test]
    fn what_no_header_carries_is_refused_without_being_repeated() {
        for text in [
            "hush hush",
            "hush\nhush",
            "hush\0",
            "hüsh",
            "hush\u{7f}hush",
        ] {
            let error = Token::parse(text).unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(!told.contains("hush") && !told.contains("hüsh"), "{told}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_token_stood_in_is_wiped_with_it() {
        use std::os::unix::fs::FileExt as _;
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let text = "8a2f-11.".repeat(500);
        let token = Token::parse(&text).unwrap().unwrap();
        let place = token.secret().as_ptr().addr();
        let mut bytes = vec![0; text.len()];
        let mut there = || {
            let read = memory.read_exact_at(&mut bytes, place.try_into().unwrap());
            // What the allocator gave back is there for nobody.
            read.is_ok() && bytes.windows(8).any(|part| part == b"8a2f-11.")
        };
        assert!(there());
        drop(token);
        assert!(!there());
    }

    #[test]
    fn debug_does_not_tell_the_token() {
        let token = Token::parse("hush").unwrap();
        assert_eq!(format!("{token:?}"), "Some(Token(..))");
    }
}
