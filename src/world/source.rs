//! **Pure.** What the sources of the made-up world say, and what they do instead.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::RngExt as _;

use super::{Event, LIMIT, PROBES, World};
use crate::{
    circuit::Circuit,
    endpoint::{Outcome, Source, Transport},
    found::{Found, Held, Instance, TargetKind},
    ladder::{Heard, Nothing, Rung},
    records,
};

/// What a source does from a certain time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Tells the truth after so long.
    Well(Duration),
    Refused,
    Silent,
    /// SERVFAIL, or status 500.
    Failing,
    /// Not permitted.
    Denied,
    /// Has lost its data: nothing but its own service is there.
    Lost,
    /// The token sees nothing any more, and nobody says so.
    Blind,
    /// The token sees services, and never saw Consul's own.
    Limited,
    /// Knows no leader, and nothing.
    Leaderless,
    /// Tells the truth, which may be cut (DNS alone).
    Cut(Duration),
    /// Tells the truth after so long, but of a hundred packets so many are lost.
    Lossy(u32, Duration),
}

impl World {
    /// What a source says when it is asked at a time, and how long that takes.
    pub(super) fn reply(
        &mut self,
        rung: Rung,
        name: &str,
        at: Instant,
    ) -> (Heard<Arc<Held>>, Outcome, Duration) {
        self.asked.push((at, rung, name.to_owned()));
        let quick = Duration::from_millis(1);
        let nothing = |leader| {
            let nothing = Nothing {
                ttl: None,
                unhealthy: 0,
                leader,
                index: None,
            };
            (Heard::Nothing(nothing), Outcome::NotFound, quick)
        };
        if rung == Rung::Static {
            return match self.listed.get(name) {
                Some(ports) => {
                    let held = held(name, ports, Source::Static, true);
                    (
                        Heard::Whole(Arc::new(held)),
                        Outcome::Answered,
                        Duration::ZERO,
                    )
                }
                None => nothing(None),
            };
        }
        let source = if rung == Rung::Dns {
            Source::Dns
        } else {
            Source::Http
        };
        let leader = (rung == Rung::Http).then_some(true);
        let mut roll = || self.dice.random_range(0..100_u32);
        let lost = (roll(), roll());
        let told = |takes, complete| {
            let ports = match name {
                "consul" => BTreeSet::from([8300]),
                _ => self.truth_at(name, at),
            };
            match ports.is_empty() {
                true => nothing(leader),
                false => {
                    let held = Arc::new(held(name, &ports, source, complete));
                    let heard = if complete {
                        Heard::Whole(held)
                    } else {
                        Heard::Partial(held)
                    };
                    (heard, Outcome::Answered, takes)
                }
            }
        };
        match self.condition(rung, at).unwrap_or(Condition::Refused) {
            Condition::Well(takes) => told(takes, true),
            Condition::Cut(takes) => told(takes, false),
            Condition::Lossy(percent, delay) => {
                // Two datagrams, the second after 100 ms; of a connection all comes, but late.
                let more = match (rung, lost.0 < percent, lost.1 < percent) {
                    (_, false, _) => Duration::ZERO,
                    (Rung::Dns, true, false) => Duration::from_millis(100),
                    (Rung::Dns, true, true) => Duration::from_secs(60),
                    (_, true, second) => Duration::from_millis(200 << (2 * u32::from(second))),
                };
                told(delay + more, true)
            }
            Condition::Lost if name == "consul" => told(quick, true),
            Condition::Limited if name == "consul" => nothing(leader),
            Condition::Limited => told(quick, true),
            Condition::Lost | Condition::Blind => nothing(leader),
            Condition::Leaderless => nothing((rung == Rung::Http).then_some(false)),
            Condition::Refused => (Heard::Failed, Outcome::Refused, Duration::ZERO),
            Condition::Failing => (Heard::Failed, Outcome::Failed, quick),
            Condition::Denied => (Heard::Denied, Outcome::Denied, quick),
            Condition::Silent => (Heard::TimedOut, Outcome::TimedOut, Duration::from_secs(60)),
        }
    }

    pub(super) fn is_probed_apart(&self, rung: Rung) -> bool {
        self.circuits.get(&rung).is_some_and(Circuit::is_silent)
    }

    /// `Inner::probe_beside`.
    pub(super) fn probe(&mut self, rung: Rung, name: &str) {
        let now = self.now;
        self.circuits.entry(rung).or_default().probing(now);
        let apart = self.is_probed_apart(rung);
        let asked = if apart { "consul" } else { name };
        let (heard, outcome, takes) = self.reply(rung, asked, now);
        let (outcome, takes) = match takes < LIMIT {
            true => (outcome, takes),
            false => (Outcome::TimedOut, LIMIT),
        };
        self.hear(rung, outcome, PROBES, now + takes, takes);
        if let (Heard::Whole(held), true) = (heard, outcome == Outcome::Answered) {
            let held = (!apart).then_some(held);
            self.later(now + takes, Event::Probed(name.to_owned(), held));
        }
    }
}

pub(super) fn held(name: &str, ports: &BTreeSet<u16>, source: Source, complete: bool) -> Held {
    let instance = |port: &u16| Instance {
        other: None,
        target: "0a000001.addr.dc1.consul.".into(),
        kind: TargetKind::Address,
        addresses: vec![[10, 0, 0, 1].into()],
        glued: true,
        port: *port,
        priority: 1,
        weight: 1,
        node: None,
        text: None,
        facts: None,
    };
    let found = Found::Instances(ports.iter().map(instance).collect());
    Held {
        key: name.into(),
        endpoints: records::endpoints(&found, name),
        found,
        ttl: Duration::ZERO,
        source,
        transport: Transport::Udp,
        complete,
        name: name.into(),
        warnings: Box::default(),
        part: false,
        carried: None,
    }
}
