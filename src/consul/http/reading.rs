//! **Pure.** What a reply says: its headers, as much of its body as is taken, and why it is
//! none.

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

use std::time::{Duration, UNIX_EPOCH};

use super::{Head, Reply, Trouble, trouble::line};
use crate::consul::token::Token;

/// What a status and headers say. `header`: its text, by its name.
pub(crate) fn head<'a>(status: u16, header: impl Fn(&str) -> Option<&'a str>) -> Head {
    let text = |name: &str| header(name).map(str::trim);
    let number = |name: &str| text(name)?.parse::<u64>().ok();
    let boolean = |name: &str| match text(name)? {
        value if value.eq_ignore_ascii_case("true") => Some(true),
        value if value.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    };
    Head {
        status,
        index: number("X-Consul-Index"),
        known_leader: boolean("X-Consul-Knownleader"),
        last_contact: number("X-Consul-Lastcontact").map(Duration::from_millis),
        filtered_by_acls: boolean("X-Consul-Results-Filtered-By-ACLs") == Some(true),
        translate_addresses: boolean("X-Consul-Translate-Addresses") == Some(true),
        date: text("Date").and_then(|date| {
            let date = httpdate::parse_http_date(date).ok()?;
            date.duration_since(UNIX_EPOCH).ok()
        }),
    }
}

/// What is made of a body as it comes.
pub(crate) trait Made {
    fn more(&mut self, bytes: &[u8]);
}

/// All of it. It takes room for what comes, not for what is announced.
impl Made for Vec<u8> {
    fn more(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// A body on its way in.
#[derive(Debug)]
pub(crate) struct Body<B> {
    made: B,
    received: usize,
    most: usize,
}

impl<B: Made> Body<B> {
    /// One of at most so many bytes, `announced` with as many.
    pub(crate) fn new(made: B, most: usize, announced: Option<u64>) -> Result<Self, Trouble> {
        match announced {
            Some(announced) if announced > most as u64 => Err(Trouble::TooLarge),
            _ => Ok(Self {
                made,
                received: 0,
                most,
            }),
        }
    }

    pub(crate) fn add(&mut self, more: &[u8]) -> Result<(), Trouble> {
        if more.len() > self.most.saturating_sub(self.received) {
            return Err(Trouble::TooLarge);
        }
        self.received = self.received.saturating_add(more.len());
        self.made.more(more);
        Ok(())
    }

    /// All of it came.
    pub(crate) fn ends(self, head: Head) -> Reply<B> {
        Reply {
            head,
            body: self.made,
            received: self.received,
        }
    }
}

/// Why a status is no reply, with the first line of what came with it, and the pause that
/// was asked for.
pub(crate) fn refusal(
    status: u16,
    text: &[u8],
    token: Option<&Token>,
    after: Option<Duration>,
) -> Trouble {
    let text = line(&String::from_utf8_lossy(text), token);
    match status {
        401 | 403 => Trouble::Denied(text),
        code => Trouble::Status { code, text, after },
    }
}
