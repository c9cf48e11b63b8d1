use std::fs;

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::*;
use crate::{clock, consul::blocking};

#[test]
fn every_scenario_comes_out_as_it_is_written() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios");
    let (mut files, mut asked) = (0, 0);
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("# "),
            "{}: the first line says what it shows",
            path.display()
        );
        match scenario::play(&text, clock::now()) {
            Ok(questions) => asked += questions,
            Err(why) => panic!("{}: {why}", path.display()),
        }
        files += 1;
    }
    assert!(
        files >= 20 && asked >= 60,
        "{files} scenarios with {asked} questions"
    );
}

#[test]
fn a_scenario_that_is_wrong_is_told_with_its_line() {
    let wrong = |text: &str| scenario::play(text, clock::now()).unwrap_err();
    assert!(wrong("0s dns dancing").contains("line 1"));
    assert!(wrong("0s dns well\n0s ask web").contains("line 2"));
    assert!(wrong("1s dns well\n0s http well").contains("before"));
    let truth = "0s dns well\n0s service web 1\n0s ask web -> ";
    assert!(wrong(&format!("{truth}http fresh 1")).contains("another source"));
    assert!(wrong(&format!("{truth}dns stale 1")).contains("fresh or stale"));
    assert!(wrong(&format!("{truth}dns fresh 2")).contains("other instances"));
    assert!(wrong(&format!("{truth}dns fresh 1 within 0ms")).contains("took"));
    assert!(wrong(&format!("{truth}not-found")).contains("something else"));
}

const SERVICES: usize = 20;

/// So many of them are followed by blocking queries, and [`registration::NAME`] beside them.
const FOLLOWED: usize = 3;

/// How long after the cluster can take it what we register has to be found: the law's 5 s,
/// and a second more than the pause where a token was not permitted.
const REGISTERED: Duration = Duration::from_secs(5);
const PERMITTED: Duration = Duration::from_secs(6);
const FLOOR: Duration = Duration::from_secs(1);

/// The slowest source that answers.
const SLOWEST: Duration = Duration::from_millis(1_500);

/// How long after the sources are well again everything has to be true again: a
/// hold for a mass ends when the cluster has shown for 30 s that it works.
const HEALED: Duration = Duration::from_secs(45);

fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn is_followed(name: &str) -> bool {
    let number = name
        .strip_prefix('s')
        .and_then(|number| number.parse().ok());
    name == registration::NAME || number.is_some_and(|number: usize| number < FOLLOWED)
}

/// One random run: what happens, and then every answer against the invariants.
struct Run {
    seed: u64,
    minutes: u64,
    start: Instant,
    world: World,
    /// When the sources are not both well, or forget.
    faults: Vec<(Instant, Instant)>,
    log: Vec<String>,
    /// When what is registered is taken away again.
    leaves: Instant,
    questions: usize,
    answers: usize,
    stale: usize,
    /// How often what is registered had to be found, and was.
    registered: usize,
}

impl Run {
    fn new(seed: u64, minutes: u64) -> Self {
        let start = clock::now();
        let mut dice = SmallRng::seed_from_u64(seed);
        let mut run = Self {
            seed,
            minutes,
            start,
            world: World::new(start, Protection::Evidence, seed),
            faults: Vec::new(),
            log: Vec::new(),
            leaves: start + Duration::from_secs(60 * minutes) * 3 / 4,
            questions: 0,
            answers: 0,
            stale: 0,
            registered: 0,
        };
        for index in 0..SERVICES {
            let count = dice.random_range(1..4);
            run.serve(index, start, &mut dice, count);
        }
        for rung in [Rung::Dns, Rung::Http] {
            let takes = milliseconds(dice.random_range(1..10));
            run.world.set(rung, start, Condition::Well(takes));
        }
        run.plan(start + Duration::from_secs(60 * minutes), &mut dice);
        run
    }

    fn serve(&mut self, index: usize, at: Instant, dice: &mut SmallRng, count: usize) {
        let ports: BTreeSet<u16> = (0..count)
            .map(|_| dice.random_range(8_000..8_020))
            .collect();
        self.world.serve(&format!("s{index}"), at, ports);
    }

    /// Faults of one source or of both, with pauses, and changes of the truth. No
    /// more than one service is taken down in half a minute: more would be a mass.
    fn plan(&mut self, end: Instant, dice: &mut SmallRng) {
        let mut at = self.start + Duration::from_secs(5);
        while at < end {
            let fault = milliseconds(dice.random_range(50..40_000));
            let which = dice.random_range(0..3);
            for (rung, hit) in [(Rung::Dns, which != 1), (Rung::Http, which != 0)] {
                if hit {
                    let condition = match dice.random_range(0..11) {
                        0 => Condition::Refused,
                        1 => Condition::Silent,
                        2 => Condition::Failing,
                        3 => Condition::Denied,
                        4 => Condition::Lost,
                        5 => Condition::Blind,
                        6 => Condition::Leaderless,
                        7 if rung == Rung::Dns => Condition::Cut(milliseconds(2)),
                        8 | 9 => {
                            let delay = milliseconds(dice.random_range(1..400));
                            Condition::Lossy(dice.random_range(1..60), delay)
                        }
                        _ => Condition::Well(milliseconds(dice.random_range(1..1_500))),
                    };
                    self.log
                        .push(format!("{:?} {rung:?} {condition:?}", at - self.start));
                    self.world.set(rung, at, condition);
                    let takes = milliseconds(dice.random_range(1..10));
                    self.world.set(rung, at + fault, Condition::Well(takes));
                }
            }
            self.faults.push((at, at + fault));
            self.log.push(format!("{:?} well", at + fault - self.start));
            at += fault + milliseconds(dice.random_range(100..60_000));
        }
        let mut at = self.start + milliseconds(dice.random_range(1_000..60_000));
        while at < end {
            self.log.push(format!("{:?} forgets", at - self.start));
            self.world.restart(at);
            self.faults.push((at, at));
            at += milliseconds(dice.random_range(10_000..90_000));
        }
        let mut at = self.start + Duration::from_secs(3);
        while at < end {
            let index = dice.random_range(0..SERVICES);
            let count = dice.random_range(0..4);
            self.log
                .push(format!("{:?} s{index} has {count}", at - self.start));
            self.serve(index, at, dice, count);
            at += milliseconds(dice.random_range(31_000..50_000));
        }
    }

    fn is_faulty_within(&self, from: Instant, to: Instant) -> bool {
        self.faults
            .iter()
            .any(|(start, end)| *start <= to && from <= *end)
    }

    fn play(&mut self) {
        let end = self.start + Duration::from_secs(60 * self.minutes);
        let mut dice = SmallRng::seed_from_u64(self.seed ^ 0x5eed);
        self.world.register(self.seed.is_multiple_of(2));
        // Every name is found once before anything happens.
        for index in 0..SERVICES {
            self.ask(index);
        }
        for index in 0..FOLLOWED {
            self.world.follow(&format!("s{index}"));
        }
        self.world.follow(registration::NAME);
        let mut at = self.start;
        while at < end {
            at += milliseconds(dice.random_range(1..120));
            if self.world.now < self.leaves && at >= self.leaves {
                self.step(self.leaves);
                self.world.deregister(self.seed % 4 > 1);
            }
            self.step(at);
            match dice.random_range(0..=SERVICES) {
                SERVICES => {
                    self.questions += 1;
                    self.world.ask(registration::NAME, Wish::default());
                }
                index => self.ask(index),
            }
        }
        self.check_load(end);
        self.check_rest(end);
    }

    fn ask(&mut self, index: usize) {
        self.questions += 1;
        self.world.ask(&format!("s{index}"), Wish::default());
    }

    fn step(&mut self, to: Instant) {
        for given in self.world.advance(to) {
            self.check(&given);
        }
        self.check_registered();
    }

    /// What we registered is found once the cluster could take it for so long, and not any
    /// more once it was taken away; and it was not registered again without need.
    fn check_registered(&mut self) {
        let now = self.world.now;
        let Some(keeper) = &self.world.keeper else {
            return;
        };
        let (needless, unheard) = (keeper.needless, keeper.unheard);
        let (gone, disturbed) = (keeper.deregistered, keeper.disturbed);
        let since = now
            .checked_sub(PERMITTED)
            .unwrap_or(self.start)
            .max(self.start);
        let well = |at| {
            let condition = self.world.condition(Rung::Http, at);
            matches!(condition, Some(Condition::Well(_)))
        };
        let denied = |at| {
            let condition = self.world.condition(Rung::Http, at);
            matches!(condition, Some(Condition::Denied | Condition::Blind))
        };
        let bound = if denied(since) { PERMITTED } else { REGISTERED };
        let writable = now - self.start >= bound
            && well(now)
            && disturbed.is_none_or(|at| now - at > bound)
            && !self
                .faults
                .iter()
                .any(|(from, to)| *from <= now && now - bound <= *to);
        if writable {
            let is_there = self.world.truth_at(registration::NAME, now);
            let should = now < self.leaves;
            if is_there.contains(&registration::PORT) != should && (should || gone) {
                let what = if should {
                    "is not found"
                } else {
                    "is still found"
                };
                self.failed(&format!(
                    "what is registered {what} at {:?}",
                    now - self.start
                ));
            }
            self.registered += usize::from(should);
        }
        if needless > unheard {
            self.failed(&format!(
                "registered {needless} times without need at {:?}",
                now - self.start
            ));
        }
    }

    /// I8 and I9: each question has its answer, and nothing is left in the air or held.
    fn check_rest(&mut self, end: Instant) {
        self.world.followers.clear();
        self.step(end + Duration::from_secs(60));
        // Those who follow ask as well.
        if self.answers < self.questions {
            self.failed("I8: a question without an answer");
        }
        if !self.world.flights.is_empty() || !self.world.events.is_empty() {
            self.failed("I9: something is left in the air");
        }
        // As many names as there are, each with a few instances.
        let names = SERVICES + 2;
        if self.world.cache.len() > names || self.world.cache.bytes() > names * 8_192 {
            self.failed("I9: more is held than there is");
        }
    }

    fn failed(&self, what: &str) -> ! {
        panic!(
            "seed {}: {what}\n{}\nPROCONSUL_SEED={} PROCONSUL_MINUTES={} replays it",
            self.seed,
            self.log.join("\n"),
            self.seed,
            self.minutes
        );
    }

    fn fail(&self, what: &str, given: &Given) -> ! {
        let at = given.at - self.start;
        let truth = self.world.truth.get(&given.name).map(|truth| {
            let one = |(at, ports): (&Instant, &BTreeSet<u16>)| (*at - self.start, ports.clone());
            truth.iter().map(one).collect::<Vec<_>>()
        });
        self.failed(&format!("{what} at {at:?}: {given:?}\ntruth {truth:?}"));
    }

    fn check(&mut self, given: &Given) {
        self.answers += 1;
        // I8: one answer, and in time.
        if given.at - given.asked > LIMIT {
            self.fail("I8: late", given);
        }
        match &given.answer {
            Ok(set) => {
                self.stale += usize::from(!set.fresh);
                self.check_set(given, set);
            }
            // I5: only what was taken down may be not there.
            Err(_) if self.was_empty(given) => {}
            Err(_) => self.fail("I5: an error for a name that was found", given),
        }
    }

    fn check_set(&self, given: &Given, set: &Set) {
        // I4: the age is that of the last success, whoever was given it since.
        let age = given
            .found
            .map(|found| given.at.saturating_duration_since(found));
        if age.is_some_and(|age| age.abs_diff(set.age) > milliseconds(1)) {
            self.fail("I4: another age", given);
        }
        // I2 and I3. What is followed is told when it changes, or once in so long.
        let holds = if is_followed(&given.name) {
            blocking::longest()
        } else {
            FLOOR
        };
        if set.fresh && set.age >= holds {
            self.fail("I2: fresh and too old", given);
        }
        if set.age >= Duration::from_secs(86_400) {
            self.fail("I3: too old", given);
        }
        // I1: it was true at some moment within its age and the time of a look-up; a reply to
        // a blocking query may be under way for longer.
        let under_way = if is_followed(&given.name) {
            LIMIT + SLOWEST
        } else {
            LIMIT
        };
        let from = given
            .asked
            .checked_sub(set.age + under_way)
            .unwrap_or(self.start);
        if !self
            .truths(&given.name, from, given.at)
            .contains(&set.ports)
        {
            self.fail("I1: never true", given);
        }
        // I6: what was taken down is gone after its bound, where all is well.
        let bound = if self.is_faulty_within(given.at - HEALED.min(given.at - self.start), given.at)
        {
            return;
        } else {
            FLOOR + LIMIT
        };
        let from = given.asked.checked_sub(bound).unwrap_or(self.start);
        if !self
            .truths(&given.name, from, given.at)
            .contains(&set.ports)
        {
            self.fail("I6: outlived its bound", given);
        }
    }

    /// Everything that was true of a name in that time.
    fn truths(&self, name: &str, from: Instant, to: Instant) -> Vec<BTreeSet<u16>> {
        let mut all = vec![self.world.truth_at(name, from)];
        if let Some(truth) = self.world.truth.get(name) {
            all.extend(truth.range(from..=to).map(|(_, ports)| ports.clone()));
        }
        all
    }

    /// Whether a name had no instance at some time since it was last found: then
    /// nobody has to know it.
    fn was_empty(&self, given: &Given) -> bool {
        let from = given.found.unwrap_or(self.start);
        let mut truths = self.truths(&given.name, from, given.at).into_iter();
        truths.any(|truth| truth.is_empty())
    }

    /// I7: no second sees more than twice the questions that a healthy one can see.
    fn check_load(&self, end: Instant) {
        let seconds = (end - self.start).as_secs();
        for rung in [Rung::Dns, Rung::Http] {
            let mut load = vec![0_usize; usize::try_from(seconds).unwrap() + 2];
            for (at, asked, name) in &self.world.asked {
                // Canary and neighbours are asked for once an event, not once a look-up.
                if *asked == rung && name != "consul" {
                    load[usize::try_from((*at - self.start).as_secs()).unwrap()] += 1;
                }
            }
            // Each name once a floor; a second may hold the end of one and the
            // beginning of the next.
            let healthy = 2 * SERVICES;
            let worst = load.iter().max().copied().unwrap_or_default();
            if worst > 2 * healthy {
                self.failed(&format!("I7: {worst} questions to {rung:?} in a second"));
            }
        }
        // Two a second of each where it is refused, and one for each change.
        let mut load = vec![0_usize; usize::try_from(seconds).unwrap() + 2];
        for at in &self.world.blocked {
            load[usize::try_from((*at - self.start).as_secs()).unwrap()] += 1;
        }
        let worst = load.iter().max().copied().unwrap_or_default();
        if worst > 4 * (FOLLOWED + 1) {
            self.failed(&format!("I7: {worst} blocking queries in a second"));
        }
    }
}

/// Random faults, and the invariants I1 to I9 at every answer; I10, that no token gets out,
/// has no meaning where there is none. `PROCONSUL_SEEDS` says
/// how many runs, `PROCONSUL_MINUTES` how long each is in its own time,
/// `PROCONSUL_SEED` replays one, or begins with it.
#[test]
fn whatever_fails_the_invariants_hold() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let minutes = number("PROCONSUL_MINUTES").unwrap_or(2);
    let (minutes, seeds) = match (number("PROCONSUL_SEED"), number("PROCONSUL_SEEDS")) {
        (Some(seed), seeds) => (minutes, seed..seed + seeds.unwrap_or(1)),
        (None, seeds) => (minutes, 0..seeds.unwrap_or(500)),
    };
    let (mut answers, mut stale, mut registered) = (0, 0, 0);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let mut run = Run::new(seed, minutes);
        run.play();
        answers += run.answers;
        stale += run.stale;
        registered += run.registered;
    }
    println!(
        "{count} seeds of {minutes} minutes: {answers} answers, {stale} of them stale; what was \
         registered had to be found {registered} times"
    );
    if count < 10 {
        return;
    }
    assert!(registered > 0, "nothing had to be registered");
    assert!(
        stale * 100 > answers,
        "hardly anything failed: {stale} of {answers} stale"
    );
}
