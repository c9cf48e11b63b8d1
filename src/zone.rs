//! **Door.** What Consul's zone answers to one question for records. The stub and
//! [`Resolver::records`] both ask here; the shapes are
//! [`records::write`](crate::records::write)'s.

use std::time::{Duration, Instant};

use crate::{
    cache::fate::Term,
    clock,
    consul::dns_settings::DnsSettings,
    endpoint::{Answer, Freshness},
    error::Error,
    flight::Runs,
    name::{ConsulName, NotAName, Subject},
    records::{
        Asked,
        write::{self, MORE_THAN_FIT, Sections, Zone},
    },
    resolver::Resolver,
};

/// What depends on nobody may be given for so long.
const LONGEST: Duration = Duration::from_secs(10);

/// What is stale may be given for so long before it is looked at again.
const STALE: Duration = Duration::from_secs(1);

/// The sections of the answer, and the set that they were made of, if one was
/// needed. `runs`: where the question for it does; `by`: from then on what is known, or written
/// down, is as good as an answer; `most`: that many answers are enough.
pub(crate) async fn answer(
    resolver: &Resolver,
    asked: &Asked,
    runs: Runs,
    by: Option<Instant>,
    most: usize,
) -> (Sections, Result<Option<Answer>, Error>) {
    let settings = resolver.dns_settings();
    let zone = zone(resolver, &settings);
    if asked.is_about_the_zone() {
        return apex(resolver, asked, &zone, runs, by).await;
    }
    let name = match &asked.meaning {
        Err(NotAName::Elsewhere) => return (Sections::refused(), Ok(None)),
        Err(NotAName::NoSuchName) => return (Sections::no_such_name(&zone), Ok(None)),
        Ok(name) => name,
    };
    match name.subject() {
        Subject::Apex => return (Sections::no_such_name(&zone), Ok(None)),
        Subject::Address(address) => return (write::decoded(*address, asked, &zone), Ok(None)),
        Subject::Node(_) if asked.is_nothing_of_a_node() => {
            return (Sections::empty(), Ok(None));
        }
        _ => {}
    }
    let found = resolver.lookup(name).runs(runs).by(by).await;
    // They may have been learned by this very question.
    let settings = resolver.dns_settings();
    let zone = Zone {
        settings: &settings,
        ..zone
    };
    match found {
        Ok(answer) => {
            let sections = of(&answer, asked, &zone, most);
            (sections, Ok(Some(answer)))
        }
        Err(error) if error.is_not_found() => (Sections::no_such_name(&zone), Err(error)),
        Err(error) => (Sections::failed(error.kind()), Err(error)),
    }
}

/// The sections of what is known without asking anybody, for a message. `None`: nothing is, or
/// nobody has to be asked for it.
pub(crate) fn known(resolver: &Resolver, asked: &Asked) -> Option<Sections> {
    let answer = resolver.known(sought(asked)?)?;
    let settings = resolver.dns_settings();
    let zone = zone(resolver, &settings);
    Some(of(&answer, asked, &zone, MORE_THAN_FIT))
}

fn zone<'a>(resolver: &'a Resolver, settings: &'a DnsSettings) -> Zone<'a> {
    Zone {
        origin: resolver.origin(),
        serial: clock::serial(),
        settings,
    }
}

fn of(answer: &Answer, asked: &Asked, zone: &Zone<'_>, most: usize) -> Sections {
    Sections {
        partial: answer.held.part,
        ..write::answer(answer, asked, zone, most, &mut clock::dice())
    }
}

/// The name that is looked up for a question, unless what it asks for is written in it.
pub(crate) fn sought(asked: &Asked) -> Option<&ConsulName> {
    if asked.is_about_the_zone() {
        return None;
    }
    let name = asked.meaning.as_ref().ok();
    name.filter(|name| match name.subject() {
        Subject::Apex | Subject::Address(_) => false,
        Subject::Node(_) => !asked.is_nothing_of_a_node(),
        _ => true,
    })
}

/// How long an answer to a question may be given again without asking. `None`: not at all.
/// `answer`: what [`answer`] made it of.
pub(crate) fn hold(
    resolver: &Resolver,
    asked: &Asked,
    answer: &Result<Option<Answer>, Error>,
) -> Option<Term> {
    let long = || Some(Term::of(clock::now() + LONGEST));
    if asked.is_about_the_zone() {
        // Its serial is the time.
        return None;
    }
    let name = match &asked.meaning {
        Err(NotAName::Elsewhere) => return None,
        Err(NotAName::NoSuchName) => return long(),
        Ok(name) => name,
    };
    match (name.subject(), answer) {
        (Subject::Apex | Subject::Address(_), _) => long(),
        (Subject::Node(_), _) if asked.is_nothing_of_a_node() => long(),
        (_, Ok(Some(answer))) => {
            let mut term = resolver.hold(name, Some(answer))?;
            match answer.freshness() {
                // What holds for no time at all is not remembered either.
                Freshness::Fresh if term.until <= clock::now() => return None,
                Freshness::Fresh => {}
                // It may be given as long as its TTL there says.
                Freshness::Stale => term.until = term.until.max(clock::now() + STALE),
            }
            Some(term)
        }
        (_, Err(error)) if error.is_not_found() => resolver.hold(name, None),
        _ => None,
    }
}

/// SOA and NS of any name of the zone are the zone's own. Where its servers
/// cannot be had, the SOA is told all the same, as Consul does.
async fn apex(
    resolver: &Resolver,
    asked: &Asked,
    zone: &Zone<'_>,
    runs: Runs,
    by: Option<Instant>,
) -> (Sections, Result<Option<Answer>, Error>) {
    let found = resolver.lookup(ConsulName::apex()).runs(runs).by(by).await;
    let servers = found.as_ref().ok();
    let settings = resolver.dns_settings();
    let zone = Zone {
        settings: &settings,
        ..*zone
    };
    (write::apex(servers, asked.kind, &zone), Ok(found.ok()))
}
