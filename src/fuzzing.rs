//! **Pure.** The rules that hold for every input, for the targets of `fuzz/`. Built
//! only with `--cfg fuzzing`; each function panics where its rule is broken.

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use crate::{
    ConsulName, Domain, Endpoint, Health, ResolverBuilder, ServiceDefinition, SpiffeId, Strategy,
    balance::{self, Draw, Plan},
    clock,
    consul::{
        address::HttpAddress,
        blocking::{Blocking, Failure},
        health::{
            self, Unread,
            ask::{Ask, Place, Question},
        },
        instances,
    },
    registration::agenda::{Agenda, Failed, Seen, Step, Wishes},
    source::static_catalog::StaticCatalog,
};
pub use crate::{
    records::fuzz::reply, snapshot::snapshot, stub::answer::fuzz::packet,
    stub::answer::fuzz_lanes::shortcut,
};

/// Labels off the wire, and text: what is read is printed and read again as the
/// same, and no error lets a raw byte through.
pub fn name(bytes: &[u8]) {
    for domain in ["consul", "corp.example"] {
        let domain: Domain = domain.parse().expect("a plain domain");
        let labels: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
        for srv in [true, false] {
            if let Ok(name) = ConsulName::from_labels(&labels, srv, &domain) {
                same(&name, &domain);
            }
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            continue;
        };
        match ConsulName::parse(text, &domain) {
            Ok(name) => {
                assert!(
                    name.fqdn(&domain).len() < 255,
                    "a name too long for the wire"
                );
                same(&name, &domain);
            }
            Err(error) => assert!(error.to_string().chars().all(|c| !c.is_control())),
        }
    }
}

fn same(name: &ConsulName, domain: &Domain) {
    let printed = name.fqdn(domain);
    let read = ConsulName::parse(&printed, domain).expect("what is printed can be read");
    assert_eq!(
        (&read, read.subject(), read.locality()),
        (name, name.subject(), name.locality())
    );
}

/// Any bytes as replies of the catalog: what is read of them holds what a look-up promises.
pub fn catalog(bytes: &[u8]) {
    let place = Place {
        datacenter: None,
        namespace: None,
        partition: None,
        peer: None,
        sameness_group: None,
    };
    for ask in [
        Ask::Service {
            name: "web",
            tag: None,
        },
        Ask::Query { name: "near" },
        Ask::Node { name: "node" },
        Ask::Reverse {
            ip: IpAddr::from([10, 0, 0, 1]),
        },
        Ask::Servers,
    ] {
        let question = Question {
            ask,
            place,
            domain: "consul",
            name: "web.service.consul.",
        };
        for translated in [false, true] {
            match health::read(&question, bytes, translated) {
                Ok(read) => {
                    assert!(read.found.len() <= bytes.len(), "more than there are bytes");
                    assert!(read.skipped == 0 || read.first_reason.is_some());
                }
                Err(Unread::Malformed(why)) => assert!(!why.is_empty()),
                Err(Unread::NotFound { .. }) => {}
            }
        }
    }
    if let Ok(all) = instances::instances("web", bytes) {
        assert!(all.len() <= bytes.len());
        for one in &all {
            let worst = one.checks.iter().map(|check| check.health.rank()).max();
            assert_eq!(one.health.rank(), worst.unwrap_or_default());
        }
    }
    _ = instances::services(bytes);
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(catalog) = StaticCatalog::parse(text, "consul")
    {
        for (service, _) in catalog.services() {
            assert!(
                catalog.find(service, None).is_some(),
                "listed and not found"
            );
        }
    }
}

/// A world made of bytes: the agent forgets, is away, has the id of somebody else, and the
/// user changes his mind. Whatever happened, five quiet seconds later the service is there,
/// once, with all that was said; what belongs to somebody else never is overwritten; and no
/// agent is asked more than a few times a second.
pub fn registration(bytes: &[u8]) {
    const TTL: Duration = Duration::from_secs(9);
    let start = clock::now();
    let mut world = World {
        now: start,
        agenda: Agenda::new(Some(TTL), start),
        wishes: Wishes::default(),
        there: None,
        told: (None, None),
        away: false,
        asked: 0,
    };
    let mut changes = 0_u32;
    for byte in bytes.iter().take(512) {
        match byte % 8 {
            0 => world.there = None,
            1 => world.away = !world.away,
            2 => world.there = Some(Owner::Another),
            3 if world.there == Some(Owner::Another) => world.there = None,
            4 => {
                let reason = byte.is_multiple_of(3).then(|| "upgrade".into());
                world.wishes.maintenance = reason;
            }
            5 => world.wishes.health = (Health::Warning, byte.to_string().into()),
            // The heartbeat's check alone is gone.
            6 => world.told.1 = None,
            _ => {}
        }
        changes += 1;
        world.pass(Duration::from_millis(u64::from(*byte) * 10));
    }
    world.away = false;
    world.pass(Duration::from_secs(5));
    if world.there != Some(Owner::Another) {
        assert_eq!(world.there, Some(Owner::Ours), "it is not registered");
        assert_eq!(world.told.0, world.wishes.maintenance, "maintenance");
        assert_eq!(world.told.1.as_ref(), Some(&world.wishes.health), "health");
    }
    let seconds = world.now.duration_since(start).as_secs_f64();
    let most = seconds * 4.0 + f64::from(changes) * 6.0 + 10.0;
    assert!(
        f64::from(world.asked) <= most,
        "{} in {seconds} s",
        world.asked
    );
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Ours,
    Another,
}

/// What a heartbeat says.
type Word = (Health, Box<str>);

struct World {
    now: Instant,
    agenda: Agenda,
    wishes: Wishes,
    there: Option<Owner>,
    /// Maintenance and heartbeat, as the agent has them.
    told: (Option<Box<str>>, Option<Word>),
    away: bool,
    asked: u32,
}

impl World {
    /// Time goes by, and what is due is done.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            match self.agenda.next(&self.wishes, self.now) {
                Step::Rest(until) => {
                    assert!(until > self.now, "it rests and does not");
                    if until > end {
                        self.now = end;
                        return;
                    }
                    self.now = until;
                }
                step => self.take(step),
            }
        }
    }

    /// The agent's side of one request.
    fn take(&mut self, step: Step) {
        self.asked += 1;
        let now = self.now;
        if self.away {
            return self.agenda.failed(Failed::Other, now);
        }
        match step {
            Step::Look => {
                let seen = match self.there {
                    None => Seen::Nothing,
                    Some(Owner::Ours) => Seen::Ours,
                    Some(Owner::Another) => Seen::Another,
                };
                self.agenda.saw(seen, now);
            }
            Step::Register => {
                // It was looked at just before.
                assert_ne!(
                    self.there,
                    Some(Owner::Another),
                    "somebody else's is overwritten"
                );
                self.there = Some(Owner::Ours);
                self.told = (None, Some((Health::Critical, Box::default())));
                self.agenda.has_registered(now);
            }
            Step::Maintain(reason) if self.there == Some(Owner::Ours) => {
                self.told.0.clone_from(&reason);
                self.agenda.has_maintained(reason);
            }
            Step::Beat if self.there == Some(Owner::Ours) && self.told.1.is_some() => {
                self.told.1 = Some(self.wishes.health.clone());
                self.agenda.has_beaten(self.wishes.health.clone(), now);
            }
            Step::Maintain(_) | Step::Beat => self.agenda.failed(Failed::Forgotten, now),
            Step::Rest(_) => {}
        }
    }
}

/// Replies and failures of a server that a blocking query is put to: it is never asked with
/// an index that would not wait, nor faster than it may be, nor forgotten.
pub fn blocking(bytes: &[u8]) {
    let start = clock::now();
    let mut now = start;
    let mut blocking = Blocking::new(now);
    let mut dice = SmallRng::seed_from_u64(7);
    let mut asked = 0_u32;
    let mut before = None;
    for pair in bytes.chunks_exact(2).take(512) {
        let turn = blocking.turn(Duration::from_secs(1));
        assert!(turn.due <= now + Duration::from_secs(80), "it is forgotten");
        assert_ne!(turn.index, Some(0), "a query that does not wait");
        // The index before, or none: an index that was never heard would wait for ever.
        assert!(
            turn.index.is_none() || turn.index == before,
            "an index of nowhere"
        );
        now = now.max(turn.due);
        asked += 1;
        let (kind, more) = (pair[0] % 8, u64::from(pair[1]));
        let took = match kind {
            0..=3 => Duration::from_millis(more),
            _ => Duration::from_secs(more % 56),
        };
        now += took;
        match kind {
            6 => blocking.failed(Failure::Refused, None, now, &mut dice),
            7 => {
                let pause = (more > 128).then(|| Duration::from_secs(more));
                blocking.failed(Failure::Other, pause, now, &mut dice);
            }
            _ => {
                let index = (more != 0).then_some(more % 17);
                before = index.map(|index| index.max(1));
                // As those who follow do with what cannot be followed.
                if !blocking.answered(index, kind % 2 == 0, took, now, &mut dice) {
                    blocking.again(now + Duration::from_secs(1));
                }
            }
        }
    }
    let seconds = now.duration_since(start).as_secs_f64();
    assert!(
        f64::from(asked) <= seconds * 12.0 + 30.0,
        "{asked} in {seconds} s"
    );
}

/// Any set, any strategy: whoever is drawn is of the set, weights of the lowest priority
/// alone count, and one after the other nobody is left out or drawn twice.
pub fn balance(bytes: &[u8]) {
    let endpoint = |one: &[u8]| Endpoint {
        address: IpAddr::from([10, 0, 0, one[0]]),
        port: u16::from(one[1]),
        priority: u16::from(one[2] % 4),
        weight: u16::from_be_bytes([one[3], one[4]]),
        target: "t.".into(),
        node: None,
        id: None,
        tags: None,
        meta: None,
        health: None,
    };
    let all: Vec<_> = bytes.chunks_exact(5).take(64).map(endpoint).collect();
    let usable = balance::usable(all.iter());
    let with_port: HashSet<_> = (all.iter())
        .filter(|one| one.port != 0)
        .map(|one| (one.address, one.port))
        .collect();
    assert_eq!(usable.len(), with_port.len(), "lost or twice");
    let lowest = usable.iter().map(|one| one.priority).min();
    for strategy in [
        Strategy::Weighted,
        Strategy::RoundRobin,
        Strategy::Random,
        Strategy::First,
        Strategy::LeastLoaded,
        Strategy::Latency,
        Strategy::Hash,
    ] {
        // Its table is large: most inputs are for the others.
        if strategy == Strategy::Hash && bytes.first().is_none_or(|first| first % 16 != 0) {
            continue;
        }
        let plan = Plan::new(&usable, strategy);
        let mut dice = Dice {
            bits: SmallRng::seed_from_u64(bytes.len() as u64),
            turn: 0,
            bytes,
        };
        let mut drawn = vec![0_usize; usable.len()];
        for round in 0..usable.len() * 2 {
            let at = plan.draw((round % 3 == 0).then_some(round as u64), &mut dice);
            let at = at.expect("a set that is not empty gives somebody") as usize;
            drawn[at] += 1;
            if strategy == Strategy::Weighted {
                assert_eq!(Some(usable[at].priority), lowest, "a later priority");
            }
        }
        assert_eq!(plan.draw(None, &mut dice).is_none(), usable.is_empty());
        if strategy == Strategy::RoundRobin {
            assert!(drawn.iter().all(|times| *times == 2), "{drawn:?}");
        }
    }
}

struct Dice<'a> {
    bits: SmallRng,
    turn: usize,
    bytes: &'a [u8],
}

impl Draw for Dice<'_> {
    fn bits(&mut self) -> u64 {
        self.bits.random()
    }

    fn turn(&mut self) -> usize {
        self.turn += 1;
        self.turn - 1
    }

    fn load(&mut self, at: u32) -> u32 {
        self.bytes
            .get(at as usize)
            .map_or(0, |byte| u32::from(*byte))
    }

    fn cost(&mut self, at: u32) -> f64 {
        f64::from(self.load(at))
    }
}

/// Any text as what a user, a variable or a file says: it is taken or refused, what is taken
/// prints as what is read again as the same, and no refusal repeats a token or moves a cursor.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for ssl in [false, true] {
        if let Ok(address) = HttpAddress::parse(text, ssl) {
            let printed = address.to_string();
            let again = HttpAddress::parse(&printed, false);
            assert_eq!(again.as_ref(), Ok(&address), "{printed}");
        }
    }
    let built = |builder: ResolverBuilder| {
        if let Err(error) = builder.finish() {
            let told = error.to_string();
            assert!(!told.contains(|c: char| c.is_control()), "{told:?}");
        }
    };
    let builder = ResolverBuilder::default;
    built(builder().dns(text));
    built(builder().http(text));
    built(builder().domain(text));
    built(builder().default_address("web", text));
    built(builder().default_address(text, "10.0.0.1:80"));
    let token = format!("hush{text}hush");
    if let Err(error) = builder().token(&token).finish() {
        assert!(!format!("{error} {error:?}").contains("hush"));
    }
    let peer = ServiceDefinition::new(text, 80)
        .address(text)
        .tag(text)
        .meta(text, text);
    _ = (peer.validate(), peer.lint(), peer.id());
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use proptest::prelude::*;

    use super::*;

    type Rule = fn(&[u8]);

    const RULES: [(&str, Rule); 10] = [
        ("balance", balance),
        ("blocking", blocking),
        ("catalog", catalog),
        ("name", name),
        ("packet", packet),
        ("registration", registration),
        ("reply", reply),
        ("settings", settings),
        ("shortcut", shortcut),
        ("snapshot", snapshot),
    ];

    #[test]
    fn every_seed_keeps_its_rule_and_every_rule_has_a_target() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        for (target, rule) in RULES {
            assert!(
                fuzz.join(format!("fuzz_targets/{target}.rs")).exists(),
                "{target}"
            );
            let seeds = fs::read_dir(fuzz.join("seeds").join(target)).unwrap();
            let seeds: Vec<_> = seeds
                .map(|seed| fs::read(seed.unwrap().path()).unwrap())
                .collect();
            assert!(!seeds.is_empty(), "{target} has no seed");
            seeds.iter().for_each(|seed| rule(seed));
        }
        let targets = fs::read_dir(fuzz.join("fuzz_targets")).unwrap().count();
        assert_eq!(targets, RULES.len());
    }

    proptest! {
        #[test]
        fn any_bytes_keep_the_rules(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for rule in [balance, blocking, catalog, registration, settings] {
                rule(&bytes);
            }
        }

        #[test]
        fn any_text_keeps_the_rules_of_settings(text in "\\PC{0,80}") {
            settings(text.as_bytes());
            name(text.as_bytes());
        }
    }
}
