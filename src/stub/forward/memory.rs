//! **Pure.** What upstreams have said, and what could not be had of them. Time comes in as an
//! argument.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::message::{cannot_tell, is_told};
use crate::{
    bounded::{Bounded, Weigh},
    cache::fate::{Fate, Term},
    stub::shortcut::{Fill, Plain, Recipe},
};

/// How long an answer is kept to be given as stale, and its TTL then (RFC 8767,
/// section 4).
const KEEP: Duration = Duration::from_secs(86_400);
const STALE_TTL: u32 = 30;

/// TTLs above this are cut (RFC 8767, section 4), those of what does not exist above
/// that (RFC 2308, section 5, asks for less than three hours).
const LONGEST_TTL: u32 = 86_400;
const LONGEST_NEGATIVE: u32 = 300;

/// Bytes of answers kept, and of failures.
const MOST_BYTES: usize = 8 << 20;
const MOST_FAILED: usize = 1 << 20;

/// What an upstream answered.
pub(super) type Reply = Arc<Vec<u8>>;

/// Answers and failures, by the key of their question.
#[derive(Debug)]
pub(super) struct Memory {
    answers: Bounded<Kept>,
    failures: Bounded<Failed>,
}

#[derive(Debug)]
struct Kept {
    recipe: Recipe,
    since: Instant,
    ttl: Duration,
    fate: Fate,
}

impl Drop for Kept {
    /// It was replaced or forgotten: whoever gives it on is to ask again.
    fn drop(&mut self) {
        self.fate.end();
    }
}

impl Weigh for Kept {
    fn weigh(&self, key: &[u8]) -> usize {
        self.recipe.weigh(key)
    }
}

/// What could not be had.
#[derive(Debug)]
struct Failed {
    at: Instant,
    told: Option<Reply>,
}

impl Weigh for Failed {
    fn weigh(&self, key: &[u8]) -> usize {
        const OVERHEAD: usize = 256;
        OVERHEAD + key.len() + self.told.as_ref().map_or(0, |told| told.len())
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            answers: Bounded::new(MOST_BYTES),
            failures: Bounded::new(MOST_FAILED),
        }
    }
}

impl Memory {
    /// Takes in what came of a question. What was known before stays where nobody could tell.
    pub(super) fn hear(&mut self, key: Box<[u8]>, told: Option<&Reply>, now: Instant) {
        match told {
            Some(told) if !cannot_tell(told) => {
                self.failures.forget(&key);
                self.keep(key, told, now);
            }
            told => self.fail(key, told.cloned(), now),
        }
    }

    /// A question failed; `told`: what was said all the same.
    pub(super) fn fail(&mut self, key: Box<[u8]>, told: Option<Reply>, now: Instant) {
        // The last ones are what counts, and nobody uses them more than once.
        self.failures.keep_newest(key, Failed { at: now, told });
    }

    /// What was told where a question failed so shortly ago.
    pub(super) fn failure(
        &self,
        key: &[u8],
        within: Duration,
        now: Instant,
    ) -> Option<Option<Reply>> {
        let failed = self.failures.peek(key)?;
        let age = now.saturating_duration_since(failed.at);
        (age < within).then(|| failed.told.clone())
    }

    pub(super) fn knows(&self, key: &[u8]) -> bool {
        self.answers.peek(key).is_some()
    }

    /// An answer, made to fit a packet; `stale`: whatever its TTL.
    pub(super) fn answer(
        &mut self,
        packet: &[u8],
        plain: &Plain,
        stale: bool,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let kept = self.answers.get(plain.key.as_bytes())?;
        let age = now.saturating_duration_since(kept.since);
        if age >= kept.ttl && (!stale || age >= KEEP) {
            return None;
        }
        let mut reply = vec![0; kept.recipe.room()];
        let length = if age < kept.ttl {
            let elapsed = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            kept.recipe.give(packet, plain, elapsed, &mut reply)?
        } else {
            kept.recipe
                .give_stale(packet, plain, STALE_TTL, &mut reply)?
        };
        reply.truncate(length);
        Some(reply)
    }

    /// For the fast lane: what is known and holds.
    pub(super) fn fill(&mut self, plain: &Plain, now: Instant) -> Option<Fill> {
        let kept = self.answers.get(plain.key.as_bytes())?;
        let until = kept.since.checked_add(kept.ttl)?;
        (now < until).then(|| Fill {
            key: plain.key.as_bytes().into(),
            recipe: kept.recipe.clone(),
            since: kept.since,
            term: Term {
                until,
                kept: kept.since + KEEP,
                fate: Some(kept.fate.clone()),
            },
        })
    }

    fn keep(&mut self, key: Box<[u8]>, reply: &[u8], now: Instant) {
        let Some((recipe, ttl)) = Recipe::of_forwarded(reply, LONGEST_TTL, LONGEST_NEGATIVE) else {
            if is_told(reply) {
                // What was known before is not so any more. Of what cannot be read nobody
                // knows what it says.
                self.answers.forget(&key);
            }
            return;
        };
        let kept = Kept {
            recipe,
            since: now,
            ttl: Duration::from_secs(ttl.into()),
            fate: Fate::default(),
        };
        self.answers.keep(key, kept);
    }
}
