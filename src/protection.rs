//! **Word.** What is done with a name that a source says is gone, and why it may be
//! given all the same. The rules are in [`evidence`](crate::evidence).

use std::fmt;

/// What the operator wants done with what vanishes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protection {
    /// Believe what the evidence proves. The default.
    #[default]
    Evidence,
    /// Believe every "there is nothing" at once, as a plain DNS client does.
    Off,
    /// Believe none: what was found once is given, as stale, for as long as stale
    /// answers are kept.
    KeepAll,
}

/// Why what is said to be gone is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A source says that the token may not see this.
    Denied,
    /// The server that answered knows no leader.
    NoLeader,
    /// Consul's own service is gone as well.
    NoCanary,
    /// Only DNS says so, and not for long enough yet; or the leader, who was asked, does not
    /// answer.
    Unconfirmed,
    /// Too many services vanished at once.
    Mass,
    /// The operator said so.
    KeepAll,
}

impl Reason {
    /// What a person is told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "Consul says that it is gone, and elsewhere that we may not know",
            Self::NoLeader => "a server that knows no leader says that it is gone",
            Self::NoCanary => "Consul says that it is gone, and its own service too",
            Self::Unconfirmed => "one server says that it is gone, and nobody confirms it yet",
            Self::Mass => "too many services vanished at once",
            Self::KeepAll => "nothing is believed gone, as configured",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
