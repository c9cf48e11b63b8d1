use super::*;
use crate::{
    clock,
    endpoint::{Source, Transport},
    found::Found,
};

const NONE: Nothing = Nothing {
    ttl: None,
    unhealthy: 0,
    leader: Some(true),
    index: None,
};

const LED: bool = true;

fn word(key: &str) -> Word<'_> {
    Word {
        key,
        place: "",
        by: Rung::Http,
        nothing: &NONE,
        denied: false,
        canary: Canary::There,
        trickled: false,
        known: 10,
        others: Some(Others::default()),
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Lets `count` names vanish at once.
fn vanish(evidence: &mut Evidence, count: usize, known: usize, now: Instant) -> Vec<Belief> {
    (0..count)
        .map(|index| {
            let key = format!("web{index}");
            let known = known - index;
            evidence.judge(
                Word {
                    known,
                    ..word(&key)
                },
                now,
            )
        })
        .collect()
}

#[test]
fn one_service_that_is_taken_down_is_gone_at_once() {
    let (mut evidence, now) = (Evidence::default(), clock::now());
    assert_eq!(evidence.judge(word("web"), now), Belief::Gone);
    assert_eq!(evidence.held(now).len(), 0);
}

#[test]
fn instances_that_are_all_critical_are_no_question_of_evidence() {
    let mut evidence = Evidence::default();
    let unhealthy = Nothing {
        unhealthy: 2,
        leader: Some(false),
        ..NONE
    };
    let word = Word {
        nothing: &unhealthy,
        denied: true,
        ..word("web")
    };
    assert_eq!(evidence.judge(word, clock::now()), Belief::Gone);
}

#[test]
fn a_server_without_a_leader_and_a_token_without_rights_delete_nothing() {
    let (mut evidence, now) = (Evidence::default(), clock::now());
    let leaderless = Nothing {
        leader: Some(false),
        ..NONE
    };
    let no_leader = Word {
        nothing: &leaderless,
        ..word("web")
    };
    assert_eq!(
        evidence.judge(no_leader, now),
        Belief::Held(Reason::NoLeader)
    );
    let denied = Word {
        denied: true,
        ..word("web")
    };
    assert_eq!(evidence.judge(denied, now), Belief::Held(Reason::Denied));
    assert_eq!(
        evidence.held(now).collect::<Vec<_>>(),
        [("web", Reason::Denied)]
    );
    evidence.found("web");
    assert_eq!(evidence.held(now).len(), 0);
}

#[test]
fn a_canary_that_is_gone_proves_something_only_where_it_was_seen() {
    let (mut evidence, now) = (Evidence::default(), clock::now());
    let no_canary = Word {
        canary: Canary::Gone,
        ..word("web")
    };
    assert_eq!(evidence.judge(no_canary, now), Belief::Gone);
    evidence.canary(Rung::Http, "", Canary::There, now);
    assert_eq!(
        evidence.judge(no_canary, now),
        Belief::Held(Reason::NoCanary)
    );
    let elsewhere = Word {
        place: "dc2",
        ..no_canary
    };
    assert_eq!(evidence.judge(elsewhere, now), Belief::Gone);
    // Another source has rights of its own.
    let by_dns = Word {
        by: Rung::Dns,
        ..no_canary
    };
    assert_eq!(evidence.judge(by_dns, now), Belief::Gone);
}

#[test]
fn a_canary_that_nobody_answered_for_is_met_again() {
    let mut evidence = Evidence::default();
    assert!(evidence.meets_canary("") && !evidence.meets_canary(""));
    evidence.misses_canary("");
    assert!(evidence.meets_canary(""));
    assert!(evidence.is_unmet(Rung::Http, ""));
    evidence.hides_canary(Rung::Http, "");
    assert!(!evidence.is_unmet(Rung::Http, "") && !evidence.knows_canary(Rung::Http, ""));
    assert!(evidence.is_unmet(Rung::Dns, "") && evidence.is_unmet(Rung::Http, "dc2"));
    evidence.canary(Rung::Http, "", Canary::There, clock::now());
    assert!(evidence.knows_canary(Rung::Http, ""));
}

#[test]
fn a_canary_is_asked_again_where_a_name_could_be_believed_gone() {
    let (mut evidence, now) = (Evidence::default(), clock::now());
    assert_eq!(evidence.canary_lately(Rung::Http, "", now), None);
    evidence.canary(Rung::Http, "", Canary::There, now);
    assert_eq!(evidence.canary_lately(Rung::Http, "", now), None);
    for holds in [Canary::Gone, Canary::Silent] {
        evidence.canary(Rung::Http, "", holds, now);
        assert_eq!(evidence.canary_lately(Rung::Http, "", now), Some(holds));
        // Another may have other rights.
        assert_eq!(evidence.canary_lately(Rung::Dns, "", now), None);
    }
}

#[test]
fn dns_alone_deletes_after_three_words_over_two_seconds() {
    let (mut evidence, now) = (Evidence::default(), clock::now());
    let by_dns = Word {
        by: Rung::Dns,
        known: 3,
        others: None,
        ..word("web")
    };
    let held = Belief::Held(Reason::Unconfirmed);
    assert_eq!(evidence.judge(by_dns, now), held);
    assert_eq!(evidence.judge(by_dns, now + seconds(1)), held);
    assert_eq!(evidence.judge(by_dns, now + seconds(2)), Belief::Gone);
    // Found in between, it starts anew.
    assert_eq!(evidence.judge(by_dns, now), held);
    evidence.found("web");
    assert_eq!(evidence.judge(by_dns, now + seconds(5)), held);
}

#[test]
fn a_mass_is_held_and_a_small_system_may_be_shut_down() {
    let now = clock::now();
    let believed = |count, known| {
        let beliefs = vanish(&mut Evidence::default(), count, known, now);
        beliefs
            .iter()
            .filter(|belief| **belief == Belief::Gone)
            .count()
    };
    assert_eq!(believed(2, 2), 2);
    assert_eq!(believed(3, 3), 3);
    assert_eq!(believed(8, 10), 3);
    assert_eq!(believed(50, 100), 15);
    assert_eq!(believed(10, 100), 10);
}

#[test]
fn the_first_of_a_mass_is_held_already_when_the_others_are_gone_too() {
    let now = clock::now();
    let lost = |gone| {
        let others = Some(Others {
            asked: 4,
            gone,
            ..Others::default()
        });
        Evidence::default().judge(
            Word {
                others,
                ..word("web")
            },
            now,
        )
    };
    assert_eq!(lost(0), Belief::Gone);
    assert_eq!(lost(2), Belief::Gone);
    assert_eq!(lost(3), Belief::Held(Reason::Mass));
    let asks = |known| {
        let others = None;
        Evidence::default().judge(
            Word {
                known,
                others,
                ..word("web")
            },
            now,
        )
    };
    assert_eq!(asks(3), Belief::Gone);
    assert_eq!(asks(4), Belief::AskOthers(OTHERS));
}

#[test]
fn others_of_which_most_do_not_answer_prove_nothing() {
    for (asked, silent, belief) in [
        (0, 4, Belief::Held(Reason::Unconfirmed)),
        (1, 3, Belief::Held(Reason::Unconfirmed)),
        (2, 2, Belief::Gone),
        (0, 0, Belief::Gone),
    ] {
        let others = Some(Others {
            asked,
            silent,
            ..Others::default()
        });
        let told = Word {
            others,
            ..word("web")
        };
        let judged = Evidence::default().judge(told, clock::now());
        assert_eq!(judged, belief, "{asked} and {silent}");
    }
}

#[test]
fn who_is_behind_what_was_heard_of_a_name_deletes_it_only_if_that_does_not_pass() {
    let (mut evidence, now) = (Evidence::default(), clock::now());
    let judged = |evidence: &mut Evidence, index, after| {
        let nothing = Nothing {
            index: Some(index),
            ..NONE
        };
        let word = Word {
            nothing: &nothing,
            ..word("web")
        };
        evidence.judge(word, now + Duration::from_millis(after))
    };
    evidence.followed("web", Some(200), LED, now);
    // Whoever is followed and behind makes nobody else believe it.
    evidence.followed("web", Some(140), LED, now);
    let held = Belief::Held(Reason::Unconfirmed);
    assert_eq!(judged(&mut evidence, 150, 0), held);
    assert_eq!(judged(&mut evidence, 199, 2_900), held);
    assert_eq!(judged(&mut evidence, 200, 2_950), Belief::Gone);
    evidence.followed("web", Some(300), LED, now);
    assert_eq!(judged(&mut evidence, 200, 3_000), held);
    // The servers' data are others.
    assert_eq!(judged(&mut evidence, 200, 6_000), Belief::Gone);
}

#[test]
fn what_is_older_deletes_nothing_without_a_leader_and_each_restart_has_its_time() {
    let (mut evidence, now) = (Evidence::default(), clock::now());
    let judged = |evidence: &mut Evidence, leader, after| {
        let nothing = Nothing {
            index: Some(300),
            leader: Some(leader),
            ..NONE
        };
        let word = Word {
            nothing: &nothing,
            ..word("web")
        };
        evidence.judge(word, now + Duration::from_millis(after))
    };
    evidence.followed("web", Some(900), LED, now);
    let held = Belief::Held(Reason::Unconfirmed);
    for after in [0, 4_000, 90_000] {
        assert_eq!(judged(&mut evidence, !LED, after), held);
    }
    assert_eq!(judged(&mut evidence, LED, 100_000), held);
    // Another restart, long after.
    evidence.lost("web");
    assert_eq!(judged(&mut evidence, LED, 200_000), held);
    assert_eq!(judged(&mut evidence, LED, 203_000), Belief::Gone);
}

#[test]
fn a_name_that_is_there_again_a_moment_later_is_not_gone() {
    let others = Some(Others {
        asked: 4,
        gone: 0,
        back: true,
        ..Others::default()
    });
    let belief = Evidence::default().judge(
        Word {
            others,
            ..word("web")
        },
        clock::now(),
    );
    assert_eq!(belief, Belief::Held(Reason::Unconfirmed));
}

#[test]
fn services_that_go_one_by_one_are_no_mass() {
    let (mut evidence, now) = (Evidence::default(), clock::now());
    for index in 0..20_u32 {
        let key = format!("web{index}");
        let trickled = Word {
            trickled: true,
            ..word(&key)
        };
        assert_eq!(evidence.judge(trickled, now), Belief::Gone);
        let slow = evidence.judge(word(&format!("slow{index}")), now + seconds(31) * index);
        assert_eq!(slow, Belief::Gone);
    }
}

#[test]
fn a_mass_is_let_go_after_five_minutes() {
    let now = clock::now();
    let mut evidence = Evidence::default();
    vanish(&mut evidence, 10, 10, now);
    assert_eq!(evidence.held(now).len(), 7);
    let again = |evidence: &mut Evidence, after| evidence.judge(word("web9"), now + after);
    assert_eq!(
        again(&mut evidence, seconds(299)),
        Belief::Held(Reason::Mass)
    );
    assert_eq!(again(&mut evidence, seconds(300)), Belief::Gone);
}

#[test]
fn a_mass_is_over_too_when_most_others_have_been_there_for_half_a_minute() {
    let now = clock::now();
    let mut evidence = Evidence::default();
    evidence.canary(Rung::Http, "", Canary::There, now);
    let asked = |gone| {
        Some(Others {
            asked: 4,
            gone,
            ..Others::default()
        })
    };
    let with = |others| Word {
        others,
        ..word("web")
    };
    assert_eq!(
        evidence.judge(with(asked(4)), now),
        Belief::Held(Reason::Mass)
    );
    assert_eq!(
        evidence.canary_lately(Rung::Http, "", now),
        Some(Canary::There)
    );
    assert_eq!(evidence.canary_lately(Rung::Http, "dc2", now), None);
    assert_eq!(
        evidence.canary_lately(Rung::Http, "", now + seconds(1)),
        None
    );
    let late = now + seconds(29);
    assert_eq!(evidence.judge(with(None), late), Belief::Held(Reason::Mass));
    let later = now + seconds(31);
    assert_eq!(evidence.judge(with(None), later), Belief::AskOthers(OTHERS));
    assert_eq!(
        evidence.judge(with(asked(3)), later),
        Belief::Held(Reason::Mass)
    );
    assert_eq!(
        evidence.judge(with(None), later),
        Belief::Held(Reason::Mass)
    );
    let again = later + seconds(5);
    assert_eq!(evidence.judge(with(None), again), Belief::AskOthers(OTHERS));
    assert_eq!(evidence.judge(with(asked(1)), again), Belief::Gone);
}

#[test]
fn what_nobody_asks_for_any_more_is_not_held() {
    let (mut evidence, now) = (Evidence::default(), clock::now());
    let denied = Word {
        denied: true,
        ..word("web")
    };
    evidence.judge(denied, now);
    assert!(evidence.is_blinded(now + seconds(299)));
    assert_eq!(evidence.held(now + seconds(299)).len(), 1);
    assert!(!evidence.is_blinded(now + seconds(300)));
    assert_eq!(evidence.held(now + seconds(300)).len(), 0);
}

#[test]
fn the_operator_has_the_last_word() {
    let now = clock::now();
    let mut off = Evidence::new(Protection::Off);
    assert!(
        vanish(&mut off, 50, 50, now)
            .iter()
            .all(|belief| *belief == Belief::Gone)
    );
    let mut keep = Evidence::new(Protection::KeepAll);
    assert_eq!(keep.judge(word("web"), now), Belief::Held(Reason::KeepAll));
    let mut evidence = Evidence::default();
    vanish(&mut evidence, 10, 10, now);
    assert!(!evidence.release().is_empty());
    assert_eq!(evidence.held(now).len(), 0);
    assert_eq!(evidence.judge(word("web9"), now), Belief::Gone);
    assert_eq!(keep.release(), ["web".into()]);
    assert_eq!(keep.judge(word("web"), now), Belief::Gone);
}

#[test]
fn what_was_released_is_believed_gone_whatever_speaks_against_it_until_it_is_found() {
    let (mut evidence, now) = (Evidence::default(), clock::now());
    let denied = |key| Word {
        denied: true,
        ..word(key)
    };
    let held = Belief::Held(Reason::Denied);
    assert_eq!(evidence.judge(denied("web"), now), held);
    assert_eq!(evidence.judge(denied("db"), now), held);
    evidence.release();
    assert!(evidence.is_released("web") && !evidence.wants_canary("web", &NONE));
    assert_eq!(evidence.judge(denied("web"), now), Belief::Gone);
    evidence.found("db");
    for key in ["web", "db", "new"] {
        assert!(!evidence.is_released(key));
        assert_eq!(evidence.judge(denied(key), now), held, "{key}");
    }
}

fn set(key: &str) -> Arc<Held> {
    let found = Found::Pointers(Vec::new());
    Arc::new(Held {
        key: key.into(),
        name: key.into(),
        endpoints: Box::new([]),
        found,
        source: Source::Dns,
        transport: Transport::Udp,
        ttl: Duration::ZERO,
        complete: true,
        part: false,
        carried: None,
        warnings: Box::new([]),
    })
}

#[test]
fn the_first_of_a_mass_are_taken_back_once_with_those_of_their_place() {
    let (mut evidence, now) = (Evidence::default(), clock::now());
    let beliefs = vanish(&mut evidence, 3, 20, now);
    assert_eq!(beliefs, [Belief::Gone; 3]);
    for (key, place) in [("web0", ""), ("web1", ""), ("web2", "dc2")] {
        evidence.went(set(key), now, place, now);
    }
    // What went one by one is not even remembered, and what was found since is there.
    evidence.went(set("trickled"), now, "", now);
    evidence.found("web1");
    evidence.judge(word("web1"), now);
    let mass = vanish(&mut evidence, 5, 20, now);
    assert_eq!(mass[4], Belief::Held(Reason::Mass));
    evidence.found("web1");
    let keys = |back: Vec<(Arc<Held>, Instant)>| -> Vec<String> {
        back.iter().map(|(held, _)| held.key.to_string()).collect()
    };
    assert_eq!(keys(evidence.take_back("", now)), ["web0"]);
    assert_eq!(evidence.reason("web0"), Some(Reason::Mass));
    assert!(evidence.take_back("", now).is_empty());
    let late = now + AT_ONCE;
    assert!(evidence.take_back("dc2", late).is_empty());
}

#[test]
fn what_is_let_go_while_others_are_held_is_not_taken_back() {
    let (mut evidence, now) = (Evidence::default(), clock::now());
    vanish(&mut evidence, 6, 20, now);
    assert_eq!(evidence.reason("web5"), Some(Reason::Mass));
    evidence.canary(Rung::Http, "", Canary::There, now);
    let stay = Others {
        asked: 4,
        ..Others::default()
    };
    let settled = now + WINDOW;
    // It vanished not long ago, as a part of the same.
    evidence.judge(word("late"), settled - seconds(10));
    let word = Word {
        others: Some(stay),
        ..word("late")
    };
    assert_eq!(evidence.judge(word, settled), Belief::Gone);
    evidence.went(set("late"), now, "", settled);
    assert!(evidence.take_back("", settled).is_empty());
}

#[test]
fn what_went_and_came_and_went_again_is_taken_back_as_it_was_last() {
    let (mut evidence, now) = (Evidence::default(), clock::now());
    for since in [now - seconds(9), now] {
        assert_eq!(vanish(&mut evidence, 1, 20, now), [Belief::Gone]);
        evidence.went(set("web0"), since, "", now);
        if since < now {
            evidence.found("web0");
        }
    }
    let mass = vanish(&mut evidence, 5, 20, now);
    assert_eq!(mass[4], Belief::Held(Reason::Mass));
    let back = evidence.take_back("", now);
    let since: Vec<_> = back.iter().map(|(_, since)| *since).collect();
    assert_eq!(since, [now]);
}
