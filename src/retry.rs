//! **Word.** [`Retry`]: how often a call is made again, and when; and how it ended in vain.

use std::{error, fmt, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};

use crate::error::Error;

/// How often a call is made again, and when: to another endpoint each time, as long as
/// there is one.
///
/// | | attempts | pauses | for |
/// | --- | --- | --- | --- |
/// | [`Retry::default`] | 4 | 2 s, 4 s, 8 s, at most 10 s | what the retry policies of gRPC clients usually say |
/// | [`Retry::http`] | 3 | 25 ms, 50 ms, at most 250 ms | requests that somebody waits for |
/// | [`Retry::none`] | 1 | | |
///
/// Each pause is longer or shorter by chance, so that many who failed together do not come
/// back together.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    pub(crate) attempts: usize,
    first: Duration,
    longest: Duration,
    pub(crate) budget: f64,
    pub(crate) deadline: Option<Duration>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 4,
            first: Duration::from_secs(2),
            longest: Duration::from_secs(10),
            budget: 0.2,
            deadline: None,
        }
    }
}

impl Retry {
    /// For requests that somebody waits for.
    pub fn http() -> Self {
        Self {
            attempts: 3,
            first: Duration::from_millis(25),
            longest: Duration::from_millis(250),
            ..Self::default()
        }
    }

    /// One attempt.
    pub fn none() -> Self {
        Self {
            attempts: 1,
            ..Self::default()
        }
    }

    /// Attempts, the first among them; 0 counts as 1.
    #[must_use]
    pub fn attempts(mut self, attempts: usize) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// The first pause, which is doubled each time, and the longest.
    #[must_use]
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        (self.first, self.longest) = (first, longest);
        self
    }

    /// Repeats a service is asked for at most, for each call to it: where all fail, clients
    /// do not make it worse. Up to ten are saved up; so many are there at the start.
    /// Default: 0.2.
    #[must_use]
    pub fn budget(mut self, share: f64) -> Self {
        self.budget = if share.is_nan() {
            0.0
        } else {
            share.clamp(0.0, 100.0)
        };
        self
    }

    /// All attempts and pauses together end then. Default: no end. It counts against an
    /// endpoint that had 50 ms, or half of it where that is less, but for less than 10 ms.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The pauses between attempts.
    pub(crate) fn pauses(&self) -> impl Iterator<Item = Duration> + Send + use<> {
        let builder = ExponentialBuilder::new()
            .with_min_delay(self.first)
            .with_max_delay(self.longest)
            .with_max_times(self.attempts.saturating_sub(1))
            .with_jitter();
        let longest = self.longest;
        builder.build().map(move |pause| pause.min(longest))
    }
}

/// Whose fault it is that a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Blame {
    /// The endpoint's: it counts against it, and the call is made again elsewhere.
    Endpoint,
    /// The endpoint's, which could not even be reached: as above, and it costs nothing of
    /// the budget, since nobody has more to do for it.
    Unreached,
    /// The question's: it would fail everywhere. Nothing is counted, nothing repeated.
    Question,
    /// The endpoint's, but what was begun there may have been done: it counts against it,
    /// and is not repeated.
    Unsafe,
}

/// Why a call came to nothing.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError<E> {
    /// There is no endpoint to call, and why.
    NoEndpoint(Error),
    /// The last attempt's own error, and how many there were.
    Failed {
        /// What the call gave.
        error: E,
        /// How often it was made.
        attempts: usize,
    },
    /// The deadline of the [`Retry`] was over.
    Deadline {
        /// How often the call was made.
        attempts: usize,
        /// What the attempt before gave, if there was one.
        last: Option<E>,
    },
}

impl<E> CallError<E> {
    /// The error of the last attempt that ended, if one did.
    pub fn last(&self) -> Option<&E> {
        match self {
            Self::NoEndpoint(_) => None,
            Self::Failed { error, .. } => Some(error),
            Self::Deadline { last, .. } => last.as_ref(),
        }
    }
}

impl<E: fmt::Display> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEndpoint(error) => error.fmt(f),
            Self::Failed { error, attempts: 1 } => error.fmt(f),
            Self::Failed { error, attempts } => write!(f, "{error} (attempt {attempts})"),
            Self::Deadline { attempts, last } => {
                write!(f, "the deadline was over in attempt {attempts}")?;
                match last {
                    Some(last) => write!(f, "; before, {last}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl<E: error::Error + 'static> error::Error for CallError<E> {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::NoEndpoint(error) => Some(error),
            Self::Failed { error, .. } => Some(error),
            Self::Deadline { last, .. } => last.as_ref().map(|last| last as _),
        }
    }
}
