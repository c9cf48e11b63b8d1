//! **Word.** DNS records as a person or a script reads them: [`Records`] is what
//! the stub would answer to the same question.

use std::fmt;

use crate::{
    endpoint::{Answer, Attempt},
    error::Error,
};

/// The records of one question, in the shape of Consul's own answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Records {
    /// The response code by its name: `NOERROR`, `NXDOMAIN`.
    pub code: Box<str>,
    /// All records, in the order of their sections.
    pub records: Box<[Record]>,
    /// The set that they were made of, where one was needed.
    pub answer: Option<Answer>,
    /// Why there is none, for a name that does not exist.
    pub error: Option<Error>,
}

impl Records {
    /// The records of the answer section.
    pub fn answers(&self) -> impl Iterator<Item = &Record> {
        self.records
            .iter()
            .filter(|record| record.section == Section::Answer)
    }

    /// Every step of the look-up behind it.
    pub fn attempts(&self) -> &[Attempt] {
        match (&self.answer, &self.error) {
            (Some(answer), _) => answer.attempts(),
            (None, Some(error)) => error.attempts(),
            (None, None) => &[],
        }
    }
}

/// One DNS record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// Where it stands.
    pub section: Section,
    /// Its owner, absolute.
    pub name: Box<str>,
    /// Its type: `SRV`, `A`.
    pub kind: Box<str>,
    /// Its TTL in seconds.
    pub ttl: u32,
    /// Its data in presentation form (RFC 1035, section 5).
    pub data: Box<str>,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} IN {} {}",
            self.name, self.ttl, self.kind, self.data
        )
    }
}

/// A section of a DNS message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Section {
    /// What was asked for.
    Answer,
    /// Who says so.
    Authority,
    /// What helps to use it.
    Additional,
}

impl Section {
    /// `answer`, `authority`, `additional`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Authority => "authority",
            Self::Additional => "additional",
        }
    }
}
