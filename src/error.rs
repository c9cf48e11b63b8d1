//! **Word.** [`Error`]: what went wrong, whose turn it is, and every attempt
//! that was made. Rooms have small errors of their own; only doors make this one.

use std::{error, fmt, sync::Arc};

use crate::{endpoint::Attempt, name::NameError};

/// Why a look-up gave no answer, or why something could not be set up.
///
/// Cheap to clone. `Display` is one line that says what was tried and what to do
/// next; the single attempts are in [`Error::attempts`].
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Message,
    attempts: Vec<Attempt>,
    source: Option<Box<dyn error::Error + Send + Sync + 'static>>,
}

/// The line that an error is told by.
enum Message {
    Written(Box<str>),
    /// Put together when somebody reads it.
    Told(Box<dyn fmt::Display + Send + Sync>),
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written(text) => f.write_str(text),
            Self::Told(told) => told.fmt(f),
        }
    }
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Consul answered: there is no such name, or none of its instances is healthy.
    NotFound,
    /// Consul answered: the token may not see this.
    Denied,
    /// No source answered.
    Unavailable,
    /// No source answered within the time allowed.
    Timeout,
    /// The machine said no: an address that cannot be bound.
    Io,
    /// The caller's mistake: a name that DNS can't carry, a bad setting or file.
    Invalid,
}

impl ErrorKind {
    /// The word used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Io => "io",
            Self::Invalid => "invalid",
        }
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<Box<str>>) -> Self {
        Self::with_attempts(kind, message, Vec::new())
    }

    /// [`ErrorKind::Invalid`] with a message, for programs that have settings of their
    /// own beside ours.
    pub fn invalid_setting(message: impl Into<Box<str>>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub(crate) fn with_attempts(
        kind: ErrorKind,
        message: impl Into<Box<str>>,
        attempts: Vec<Attempt>,
    ) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: Message::Written(message.into()),
            attempts,
            source: None,
        }))
    }

    /// With a message that few will read.
    pub(crate) fn told(
        kind: ErrorKind,
        message: impl fmt::Display + Send + Sync + 'static,
        attempts: Vec<Attempt>,
    ) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: Message::Told(Box::new(message)),
            attempts,
            source: None,
        }))
    }

    /// A caller's mistake, with the room's own error as its cause.
    pub(crate) fn invalid(
        message: impl Into<Box<str>>,
        cause: impl error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::caused(ErrorKind::Invalid, message, cause)
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        message: impl Into<Box<str>>,
        cause: impl error::Error + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            kind,
            message: Message::Written(message.into()),
            attempts: Vec::new(),
            source: Some(Box::new(cause)),
        }))
    }

    /// The same error, with what it is about before its message.
    pub(crate) fn about(&self, what: &str) -> Self {
        Self::new(self.kind(), format!("{what}: {self}"))
    }

    /// Whose turn it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Consul says that there is no such name, or that nothing behind it is healthy.
    pub fn is_not_found(&self) -> bool {
        self.kind() == ErrorKind::NotFound
    }

    /// Consul says that the token may not see this.
    pub fn is_denied(&self) -> bool {
        self.kind() == ErrorKind::Denied
    }

    /// No source answered, in time or at all: the same question may succeed later.
    pub fn is_unavailable(&self) -> bool {
        matches!(self.kind(), ErrorKind::Unavailable | ErrorKind::Timeout)
    }

    /// Every question that was put to a source, in order.
    pub fn attempts(&self) -> &[Attempt] {
        &self.0.attempts
    }
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        Self::invalid(error.to_string(), error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.message.fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message.to_string())
            .field("attempts", &self.0.attempts)
            .field("source", &self.0.source)
            .finish()
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.0.source.as_deref().map(|cause| cause as _)
    }
}
