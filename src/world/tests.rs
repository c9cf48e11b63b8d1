use std::fs;

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use super::*;
use crate::clock;

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
const FLOOR: Duration = Duration::from_secs(1);

/// How long after the sources are well again everything has to be true again: a
/// hold for a mass ends when the cluster has shown for 30 s that it works.
const HEALED: Duration = Duration::from_secs(45);

fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// One random run: what happens, and then every answer against the invariants.
struct Run {
    seed: u64,
    minutes: u64,
    start: Instant,
    world: World,
    /// When the sources are not both well, in order.
    faults: Vec<(Instant, Instant)>,
    log: Vec<String>,
    /// Names whose removal was truly seen, or never found: NXDOMAIN is right there.
    answers: usize,
    stale: usize,
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
            answers: 0,
            stale: 0,
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
                    let condition = match dice.random_range(0..9) {
                        0 => Condition::Refused,
                        1 => Condition::Silent,
                        2 => Condition::Failing,
                        3 => Condition::Denied,
                        4 => Condition::Lost,
                        5 => Condition::Blind,
                        6 => Condition::Leaderless,
                        7 if rung == Rung::Dns => Condition::Cut(milliseconds(2)),
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
        // Every name is found once before anything happens.
        for index in 0..SERVICES {
            self.world.ask(&format!("s{index}"), Wish::default());
        }
        let mut at = self.start;
        while at < end {
            at += milliseconds(dice.random_range(1..120));
            for given in self.world.advance(at) {
                self.check(&given);
            }
            let index = dice.random_range(0..SERVICES);
            self.world.ask(&format!("s{index}"), Wish::default());
        }
        self.check_load(end);
    }

    fn fail(&self, what: &str, given: &Given) -> ! {
        let at = given.at - self.start;
        let truth = self.world.truth.get(&given.name).map(|truth| {
            let one = |(at, ports): (&Instant, &BTreeSet<u16>)| (*at - self.start, ports.clone());
            truth.iter().map(one).collect::<Vec<_>>()
        });
        panic!(
            "seed {}: {what} at {at:?}: {given:?}\ntruth {truth:?}\n{}\nPROCONSUL_SEED={} PROCONSUL_MINUTES={} replays it",
            self.seed,
            self.log.join("\n"),
            self.seed,
            self.minutes
        );
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
        // I2 and I3.
        if set.fresh && set.age >= FLOOR {
            self.fail("I2: fresh and too old", given);
        }
        if set.age >= Duration::from_secs(86_400) {
            self.fail("I3: too old", given);
        }
        // I1: it was true at some moment within its age and the time of a look-up.
        let from = given
            .asked
            .checked_sub(set.age + LIMIT)
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
            assert!(
                worst <= 2 * healthy,
                "seed {}: I7: {worst} questions to {rung:?} in a second",
                self.seed
            );
        }
    }
}

/// Random faults, and the invariants I1 to I8 at every answer. `PROCONSUL_SEEDS` says
/// how many runs, `PROCONSUL_MINUTES` how long each is in its own time,
/// `PROCONSUL_SEED` replays one.
#[test]
fn whatever_fails_the_invariants_hold() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let minutes = number("PROCONSUL_MINUTES").unwrap_or(2);
    let (minutes, seeds) = match (number("PROCONSUL_SEED"), number("PROCONSUL_SEEDS")) {
        (Some(seed), _) => (minutes, seed..seed + 1),
        (None, seeds) => (minutes, 0..seeds.unwrap_or(1_000)),
    };
    let (mut answers, mut stale) = (0, 0);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let mut run = Run::new(seed, minutes);
        run.play();
        answers += run.answers;
        stale += run.stale;
    }
    println!("{count} seeds of {minutes} minutes: {answers} answers, {stale} of them stale");
    assert!(
        stale * 100 > answers,
        "hardly anything failed: {stale} of {answers} stale"
    );
}
