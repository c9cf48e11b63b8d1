use super::*;
use crate::clock;

const ALL: &[Rung] = &[Rung::Dns, Rung::Http, Rung::Static];
const HEDGE: Duration = Duration::from_millis(50);

/// What each rung says, the rungs that are asked, and the end.
type Row = (Vec<Heard<u8>>, &'static [Rung], Step<u8>);

fn nothing(unhealthy: usize) -> Nothing {
    Nothing {
        unhealthy,
        ..Nothing::default()
    }
}

fn ladder(rungs: &[Rung], known: bool, now: Instant) -> Ladder<u8> {
    Ladder::start(Start {
        rungs,
        overdue: &[],
        shut: false,
        known,
        hedge: HEDGE,
        deadline: now + Duration::from_secs(1),
        end: now + Duration::from_millis(1_100),
    })
}

/// Climbs `rungs`, each saying what is listed; gives the rungs asked and the end.
fn climb(rungs: &[Rung], known: bool, said: &[Heard<u8>]) -> (Vec<Rung>, Step<u8>) {
    let now = clock::now();
    let mut ladder = ladder(rungs, known, now);
    let (mut asked, mut said) = (Vec::new(), said.iter());
    loop {
        match ladder.step(now) {
            Step::Ask(rung, _) => {
                asked.push(rung);
                ladder.hear(rung, said.next().expect("a rung too many").clone());
            }
            Step::Wait(_) => panic!("nobody is waited for"),
            end => return (asked, end),
        }
    }
}

#[test]
fn the_failure_table() {
    use ErrorKind as E;
    use Heard::*;
    use Rung::*;
    let none = || Nothing(nothing(0));
    let gone = |rung| Step::Nothing(rung, nothing(0));
    let table: Vec<Row> = vec![
        (vec![Whole(1)], &[Dns], Step::Give(1)),
        (vec![none()], &[Dns], gone(Dns)),
        (vec![Partial(1), Whole(2)], &[Dns, Http], Step::Give(2)),
        (vec![Partial(1), Partial(2)], &[Dns, Http], Step::Give(2)),
        (vec![Partial(1), none()], &[Dns, Http], Step::Give(1)),
        (vec![Partial(1), Failed], &[Dns, Http], Step::Give(1)),
        (vec![Partial(1), Denied], &[Dns, Http], Step::Give(1)),
        (vec![Failed, Whole(2)], &[Dns, Http], Step::Give(2)),
        (vec![TimedOut, Whole(2)], &[Dns, Http], Step::Give(2)),
        (vec![Failed, none()], &[Dns, Http], gone(Http)),
        (vec![Failed, Failed, Whole(3)], ALL, Step::Give(3)),
        (vec![Failed, Denied, Whole(3)], ALL, Step::Give(3)),
        (vec![Failed, Denied, none()], ALL, Step::GiveUp(E::Denied)),
        (
            vec![Failed, Failed, none()],
            ALL,
            Step::GiveUp(E::Unavailable),
        ),
        (
            vec![TimedOut, TimedOut, none()],
            ALL,
            Step::GiveUp(E::Timeout),
        ),
        (
            vec![Failed, TimedOut, none()],
            ALL,
            Step::GiveUp(E::Unavailable),
        ),
        (
            vec![Failed, Failed, Failed],
            ALL,
            Step::GiveUp(E::Unavailable),
        ),
    ];
    for (said, asked, end) in table {
        assert_eq!(climb(ALL, false, &said), (asked.to_vec(), end), "{said:?}");
    }
}

#[test]
fn where_there_was_a_set_before_http_confirms_that_it_is_gone() {
    use Heard::*;
    use Rung::*;
    let none = || Nothing(nothing(0));
    let table: Vec<Row> = vec![
        (
            vec![none(), none()],
            &[Dns, Http],
            Step::Nothing(Http, nothing(0)),
        ),
        (
            vec![none(), Nothing(nothing(3))],
            &[Dns, Http],
            Step::Nothing(Http, nothing(3)),
        ),
        (vec![none(), Whole(2)], &[Dns, Http], Step::Give(2)),
        (
            vec![none(), Failed],
            &[Dns, Http],
            Step::Nothing(Dns, nothing(0)),
        ),
        (
            vec![none(), Denied],
            &[Dns, Http],
            Step::Nothing(Dns, nothing(0)),
        ),
        // The static catalog is no better than a set that Consul gave once.
        (
            vec![Failed, Failed],
            &[Dns, Http],
            Step::GiveUp(ErrorKind::Unavailable),
        ),
    ];
    for (said, asked, end) in table {
        assert_eq!(climb(ALL, true, &said), (asked.to_vec(), end), "{said:?}");
    }
}

#[test]
fn a_rung_that_is_not_configured_is_passed_over() {
    let give = |set| Step::Give(set);
    assert_eq!(
        climb(&[Rung::Http], false, &[Heard::Whole(2)]),
        (vec![Rung::Http], give(2))
    );
    assert_eq!(
        climb(&[Rung::Dns], false, &[Heard::Partial(1)]),
        (vec![Rung::Dns], give(1))
    );
    assert_eq!(
        climb(&[], false, &[]),
        (vec![], Step::GiveUp(ErrorKind::Unavailable))
    );
}

#[test]
fn a_name_that_only_the_static_catalog_could_have_is_not_found() {
    let (_, end) = climb(&[Rung::Static], false, &[Heard::Nothing(nothing(0))]);
    assert_eq!(end, Step::Nothing(Rung::Static, nothing(0)));
}

#[test]
fn a_name_that_is_not_in_the_static_catalog_is_not_gone_while_consul_is_passed_over() {
    let now = clock::now();
    let mut ladder = Ladder::<u8>::start(Start {
        rungs: &[Rung::Static],
        overdue: &[],
        shut: true,
        known: false,
        hedge: HEDGE,
        deadline: now + Duration::from_secs(1),
        end: now + Duration::from_millis(1_100),
    });
    assert!(matches!(ladder.step(now), Step::Ask(Rung::Static, _)));
    ladder.hear(Rung::Static, Heard::Nothing(nothing(0)));
    assert_eq!(ladder.step(now), Step::GiveUp(ErrorKind::Unavailable));
}

/// A climb where some rungs are well, and others were not probed for long.
fn doubtful(rungs: &[Rung], overdue: &[Rung], said: &[Heard<u8>]) -> (Vec<Rung>, Step<u8>) {
    let now = clock::now();
    let mut ladder = Ladder::start(Start {
        rungs,
        overdue,
        shut: false,
        known: false,
        hedge: HEDGE,
        deadline: now + Duration::from_secs(1),
        end: now + Duration::from_millis(1_100),
    });
    let (mut asked, mut said) = (Vec::new(), said.iter().cloned());
    loop {
        match ladder.step(now) {
            Step::Ask(rung, _) => asked.push(rung),
            Step::Wait(_) => {
                let rung = *asked.last().unwrap();
                ladder.hear(rung, said.next().unwrap());
            }
            end => return (asked, end),
        }
    }
}

#[test]
fn who_was_not_probed_for_long_is_asked_where_those_that_are_well_give_nothing() {
    use Heard::*;
    use Rung::*;
    let none = || Nothing(nothing(0));
    let gone = |rung| Step::Nothing(rung, nothing(0));
    let table: Vec<(_, _, _, &[Rung], _)> = vec![
        (
            vec![Http, Static],
            vec![Dns],
            vec![Whole(2)],
            &[Http],
            Step::Give(2),
        ),
        (
            vec![Http, Static],
            vec![Dns],
            vec![Denied, Whole(1)],
            &[Http, Dns],
            Step::Give(1),
        ),
        // It is not needed to confirm anything.
        (
            vec![Dns, Static],
            vec![Http],
            vec![Partial(1)],
            &[Dns],
            Step::Give(1),
        ),
        (
            vec![Dns, Static],
            vec![Http],
            vec![none()],
            &[Dns],
            gone(Dns),
        ),
        (
            vec![Dns, Static],
            vec![Http],
            vec![Failed, Whole(2)],
            &[Dns, Http],
            Step::Give(2),
        ),
        // Where nobody is well, they are as good as ever.
        (
            vec![Static],
            vec![Dns, Http],
            vec![Partial(1), Whole(2)],
            &[Dns, Http],
            Step::Give(2),
        ),
        (
            vec![Static],
            vec![Dns, Http],
            vec![Failed, Failed, Whole(3)],
            ALL,
            Step::Give(3),
        ),
    ];
    for (rungs, overdue, said, asked, end) in table {
        let came = doubtful(&rungs, &overdue, &said);
        assert_eq!(
            came,
            (asked.to_vec(), end),
            "{rungs:?} {overdue:?} {said:?}"
        );
    }
}

#[test]
fn http_is_asked_beside_a_dns_that_is_late_and_the_first_whole_set_wins() {
    let now = clock::now();
    let deadline = now + Duration::from_secs(1);
    let start = || {
        let mut ladder = ladder(ALL, false, now);
        assert_eq!(ladder.step(now), Step::Ask(Rung::Dns, deadline));
        assert_eq!(ladder.step(now), Step::Wait(now + HEDGE));
        assert_eq!(ladder.step(now + HEDGE), Step::Ask(Rung::Http, deadline));
        assert_eq!(ladder.step(now + HEDGE), Step::Wait(deadline));
        ladder
    };
    let mut first = start();
    first.hear(Rung::Http, Heard::Whole(2));
    assert_eq!(first.step(now + HEDGE), Step::Give(2));
    let mut second = start();
    second.hear(Rung::Dns, Heard::Partial(1));
    assert_eq!(second.step(now + HEDGE), Step::Wait(deadline));
    second.hear(Rung::Http, Heard::Failed);
    assert_eq!(second.step(now + HEDGE), Step::Give(1));
    let mut third = start();
    third.hear(Rung::Http, Heard::Failed);
    assert_eq!(third.step(now + HEDGE), Step::Wait(deadline));
    third.hear(Rung::Dns, Heard::Whole(1));
    assert_eq!(third.step(now + HEDGE), Step::Give(1));
}

#[test]
fn after_the_deadline_only_what_is_on_this_machine_is_asked() {
    let now = clock::now();
    let mut ladder = ladder(ALL, false, now);
    let deadline = now + Duration::from_secs(1);
    let end = now + Duration::from_millis(1_100);
    assert_eq!(ladder.step(now), Step::Ask(Rung::Dns, deadline));
    assert_eq!(ladder.step(deadline), Step::Ask(Rung::Static, end));
    // It may take a moment to be read.
    let later = deadline + Duration::from_millis(50);
    assert_eq!(ladder.step(later), Step::Wait(end));
    ladder.hear(Rung::Dns, Heard::Whole(1));
    let mut found = ladder.clone();
    found.hear(Rung::Static, Heard::Whole(2));
    assert_eq!(found.step(later), Step::Give(2));
    let mut unheard = ladder.clone();
    assert_eq!(unheard.step(end), Step::GiveUp(ErrorKind::Timeout));
    ladder.hear(Rung::Static, Heard::Nothing(nothing(0)));
    assert_eq!(ladder.step(later), Step::GiveUp(ErrorKind::Timeout));
}

#[test]
fn where_many_are_late_http_is_asked_beside_dns_as_late_as_may_be() {
    let now = clock::now();
    let mut ladder = ladder(&[Rung::Dns, Rung::Http], false, now);
    let deadline = now + Duration::from_secs(1);
    assert_eq!(ladder.step(now), Step::Ask(Rung::Dns, deadline));
    ladder.hedge_later();
    let latest = now + circuit::LATEST_HEDGE;
    assert_eq!(ladder.step(now + HEDGE), Step::Wait(latest));
    ladder.hedge_later();
    assert_eq!(ladder.step(latest), Step::Ask(Rung::Http, deadline));
}
