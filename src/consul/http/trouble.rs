//! **Word.** [`Trouble`]: how a request to an agent fails. One line each, lower
//! case, with no token in it.

use std::{error::Error, fmt, io, time::Duration};

use crate::{consul::token::Token, endpoint::Outcome, error::ErrorKind};

/// How a request fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nothing listens there.
    Refused,
    /// No whole reply within the time allowed, or a body that stopped.
    TimedOut,
    /// The body passes [`BODY_LIMIT`](super::BODY_LIMIT), or the headers
    /// [`HEAD_LIMIT`](super::HEAD_LIMIT).
    TooLarge,
    /// 401 or 403, with the first line of its text.
    Denied(Box<str>),
    /// Any other status that is no reply, with the first line of its text, and the pause
    /// that is asked for.
    Status {
        code: u16,
        text: Box<str>,
        after: Option<Duration>,
    },
    /// A redirect, which is never followed, and the host it leads to.
    Redirected(Box<str>),
    /// The other side could not prove who it is, or speaks no TLS.
    Tls(Box<str>),
    /// The connection could not be made or did not hold.
    Transport(Box<str>),
    /// Our own settings and files.
    Config(Box<str>),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::TimedOut => f.write_str("no whole reply in time"),
            Self::TooLarge => {
                f.write_str("the reply is larger than 64 MiB, or its headers than 16 KiB")
            }
            Self::Denied(text) if text.is_empty() => f.write_str("permission denied"),
            Self::Denied(text) => write!(f, "not permitted: {text}"),
            Self::Status { code, text, .. } if text.is_empty() => write!(f, "status {code}"),
            Self::Status { code, text, .. } => write!(f, "status {code}: {text}"),
            Self::Redirected(host) => write!(f, "redirected to {host}, which is not followed"),
            Self::Tls(cause) => write!(f, "tls: {cause}"),
            Self::Transport(cause) | Self::Config(cause) => f.write_str(cause),
        }
    }
}

impl Error for Trouble {}

impl Trouble {
    /// What it is as the end of an attempt.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Refused => Outcome::Refused,
            Self::TimedOut => Outcome::TimedOut,
            Self::TooLarge => Outcome::Malformed,
            Self::Denied(_) => Outcome::Denied,
            Self::Status {
                code: 429 | 503, ..
            } => Outcome::Throttled,
            Self::Status { .. } | Self::Redirected(_) => Outcome::Failed,
            Self::Tls(_) | Self::Transport(_) | Self::Config(_) => Outcome::Unreachable,
        }
    }

    /// How long it asks to be left alone (RFC 9110, section 10.2.3), where it says so in
    /// seconds.
    pub(crate) fn after(&self) -> Option<Duration> {
        match self {
            Self::Status { after, .. } => *after,
            _ => None,
        }
    }

    /// Whose turn it is while the same is asked again and again: who gives rights, or nobody.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Denied(_) => ErrorKind::Denied,
            _ => ErrorKind::Unavailable,
        }
    }

    /// Finds the cause of a client's error in the chain of its sources.
    pub(super) fn caused_by(error: &(dyn Error + 'static)) -> Self {
        let mut last = String::new();
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(tls) = error.downcast_ref::<rustls::Error>() {
                return Self::Tls(tls_cause(tls));
            }
            next = error.source();
            if let Some(io) = error.downcast_ref::<io::Error>() {
                match io.kind() {
                    io::ErrorKind::ConnectionRefused => return Self::Refused,
                    io::ErrorKind::TimedOut => return Self::TimedOut,
                    _ => {}
                }
                // An io::Error passes over the error it carries: its source is
                // that one's source.
                if let Some(inner) = io.get_ref() {
                    next = Some(inner);
                }
            }
            last = error.to_string();
        }
        Self::Transport(line(&last, None))
    }
}

fn tls_cause(error: &rustls::Error) -> Box<str> {
    match error {
        rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            "the other side speaks no tls; is it http?".into()
        }
        other => line(&other.to_string(), None),
    }
}

/// The first line that says something, at most 200 characters of it, with
/// nothing in it that moves a terminal's cursor, and without the token, should
/// the other side repeat it.
pub(super) fn line(text: &str, token: Option<&Token>) -> Box<str> {
    let hidden = token.map(|token| text.replace(token.secret(), "(token)"));
    let text = hidden.as_deref().unwrap_or(text);
    let first = text.lines().map(str::trim).find(|line| !line.is_empty());
    let mut told = String::new();
    for c in first.unwrap_or_default().chars().take(200) {
        match c {
            '"' | '\'' | '\\' => told.push(c),
            _ => told.extend(c.escape_debug()),
        }
    }
    told.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug)]
    struct Wrapped<E>(E);

    impl<E: fmt::Debug> fmt::Display for Wrapped<E> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("error sending request for url (http://hush)")
        }
    }

    impl<E: Error + 'static> Error for Wrapped<E> {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn the_cause_is_found_at_the_end_of_the_chain() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let caused = |error: &(dyn Error + 'static)| Trouble::caused_by(error);
        assert_eq!(caused(&Wrapped(Wrapped(refused()))), Trouble::Refused);
        assert_eq!(
            caused(&Wrapped(io::Error::other(refused()))),
            Trouble::Refused
        );
        let late = io::Error::from(io::ErrorKind::TimedOut);
        assert_eq!(caused(&Wrapped(late)), Trouble::TimedOut);
        let tls = rustls::Error::DecryptError;
        let tls = io::Error::new(io::ErrorKind::InvalidData, tls);
        assert!(matches!(caused(&Wrapped(tls)), Trouble::Tls(_)));
        let other = Wrapped(io::Error::other("connection\x1b closed\nhush"));
        let told = Trouble::Transport("connection\\u{1b} closed".into());
        assert_eq!(caused(&other), told);
    }

    #[test]
    fn a_text_is_one_short_line_without_the_token() {
        let token = Token::parse("hush").unwrap();
        let told = |text: &str| line(text, token.as_ref());
        assert_eq!(&*told("\n\n Permission denied \nmore"), "Permission denied");
        assert_eq!(&*told("no hush here"), "no (token) here");
        assert_eq!(&*told("the \"ns\" \x1b[2J"), "the \"ns\" \\u{1b}[2J");
        assert_eq!(told(&"x".repeat(300)).len(), 200);
        assert_eq!(&*told(""), "");
    }

    proptest! {
        #[test]
        fn no_text_holds_the_token_or_a_control_character(text in ".{0,300}", before in 0usize..9) {
            let token = Token::parse("hush").unwrap();
            let mut text: String = text;
            let at = text.char_indices().nth(before).map_or(0, |(at, _)| at);
            text.insert_str(at, "hush");
            let told = line(&text, token.as_ref());
            prop_assert!(!told.contains("hush") && !told.contains(char::is_control));
        }
    }
}
