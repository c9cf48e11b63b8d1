//! **Shell.** The last rung: what the operator has written down, in the static catalog or as
//! the default address of a service.

use std::time::Duration;

use super::{Finding, Question, Sources, judged, said_nothing, static_file::StaticFile};
use crate::{
    clock,
    endpoint::{Attempt, Outcome, Source, Transport},
    ladder::Heard,
    name::Subject,
};

/// Services of a catalog that are told to who asked for another.
const MOST_NAMES: usize = 10;

impl Sources {
    /// The static catalog, then the default address.
    pub(super) async fn ask_static(
        &self,
        question: Question<'_>,
        attempts: &mut Vec<Attempt>,
    ) -> Option<Heard<Box<Finding>>> {
        let listed = match &self.catalog {
            Some(file) => self.ask_catalog_file(file, question, attempts).await,
            None => Some(said_nothing(None)),
        };
        let finding = match listed {
            Some(Heard::Whole(finding)) => return Some(Heard::Whole(finding)),
            _ => self.default_of(question),
        };
        if self.defaults.is_empty() {
            return listed;
        }
        let (outcome, count, detail) = match &finding {
            Some(_) => (Outcome::Answered, 1, ""),
            None => (Outcome::NotFound, 0, "there is none of it"),
        };
        attempts.push(Attempt {
            source: Source::Static,
            address: "default address".into(),
            transport: Transport::File,
            outcome,
            elapsed: Duration::ZERO,
            received: 0,
            count,
            detail: detail.into(),
        });
        finding.map(judged).or(listed)
    }

    /// A default is of the service as a whole, here.
    fn default_of(&self, question: Question<'_>) -> Option<Finding> {
        let Subject::Service { service, tag: None } = question.name.subject() else {
            return None;
        };
        let home = self.is_home(question.name.locality());
        let found = (self.defaults).find(service, self.zones.first()?.as_str());
        found.filter(|_| home).map(|found| Finding {
            found,
            source: Source::Static,
            transport: Transport::File,
            ttl: Some(Duration::ZERO),
            doubt: None,
            unconfirmed: None,
        })
    }

    async fn ask_catalog_file(
        &self,
        file: &StaticFile,
        question: Question<'_>,
        attempts: &mut Vec<Attempt>,
    ) -> Option<Heard<Box<Finding>>> {
        let start = clock::now();
        let loaded = file.load().await;
        let (outcome, count, detail, heard) = match (&loaded, question.name.subject()) {
            (Err(error), _) => (Outcome::Unreachable, 0, error.to_string(), None),
            (Ok(_), _) if !self.is_home(question.name.locality()) => {
                let detail = "the catalog knows its own datacenter only".to_owned();
                (Outcome::NotFound, 0, detail, Some(said_nothing(None)))
            }
            (Ok(loaded), Subject::Service { service, tag }) => {
                match loaded.catalog.find(service, tag.as_deref()) {
                    Some(found) => {
                        let count = found.len();
                        let outdated = loaded.outdated.as_ref().map(|error| error.to_string());
                        let finding = Finding {
                            found,
                            source: Source::Static,
                            transport: Transport::File,
                            ttl: Some(Duration::ZERO),
                            doubt: None,
                            unconfirmed: None,
                        };
                        let heard = Some(judged(finding));
                        (
                            Outcome::Answered,
                            count,
                            outdated.unwrap_or_default(),
                            heard,
                        )
                    }
                    None => {
                        let names = loaded.catalog.services().map(|(name, _)| name);
                        let names = names.take(MOST_NAMES).collect::<Vec<_>>().join(", ");
                        let detail = format!("not in the catalog, which has {names}");
                        (Outcome::NotFound, 0, detail, Some(said_nothing(None)))
                    }
                }
            }
            (Ok(_), _) => {
                let detail = "the catalog holds services only".to_owned();
                (Outcome::NotFound, 0, detail, Some(said_nothing(None)))
            }
        };
        attempts.push(Attempt {
            source: Source::Static,
            address: file.path().display().to_string().into(),
            transport: Transport::File,
            outcome,
            elapsed: clock::took(start),
            received: 0,
            count,
            detail: detail.into(),
        });
        heard
    }
}
