use std::{collections::HashSet, net::IpAddr};

use proptest::prelude::*;

use super::*;
use crate::{
    clock,
    endpoint::{Source, Transport},
    found::Host,
};

const KEEP: Duration = Duration::from_secs(3_600);

fn limits() -> Limits {
    Limits {
        entries: NonZeroUsize::new(4).unwrap(),
        bytes: 1 << 20,
        floor: Duration::from_secs(1),
        cap: Duration::from_secs(60),
        negative: Duration::from_millis(500)..=Duration::from_secs(10),
        keep: KEEP,
    }
}

fn held(key: &str, ttl: u64) -> Arc<Held> {
    sized(key, ttl, 1, true)
}

fn sized(key: &str, ttl: u64, addresses: usize, complete: bool) -> Arc<Held> {
    Arc::new(Held {
        key: key.into(),
        name: "web.service.consul.".into(),
        found: Found::Host(Host {
            addresses: vec![IpAddr::from([10, 0, 0, 1]); addresses],
            ..Host::default()
        }),
        endpoints: Box::default(),
        source: Source::Dns,
        transport: Transport::Udp,
        ttl: Duration::from_secs(ttl),
        complete,
        warnings: Box::default(),
        part: false,
        carried: None,
    })
}

fn is_fresh(look: &Look) -> bool {
    matches!(look, Look::Fresh(..))
}

/// Whether an entry put at 0 s holds just before and no longer at `holds` ms.
fn holds_for(put: impl Fn(&mut Cache, Instant), holds: u64) {
    let start = clock::now();
    let mut cache = Cache::new(limits());
    put(&mut cache, start);
    let at = |ms| start + Duration::from_millis(ms);
    let holds_at =
        |cache: &mut Cache, ms| matches!(cache.look("1", at(ms)), Look::Fresh(..) | Look::Nothing);
    assert!(holds_at(&mut cache, holds - 1), "gone before {holds} ms");
    assert!(!holds_at(&mut cache, holds), "still there at {holds} ms");
}

#[test]
fn a_set_holds_for_its_ttl_within_floor_and_cap() {
    holds_for(|cache, now| _ = cache.put(held("1", 5), now), 5_000);
    holds_for(|cache, now| _ = cache.put(held("1", 0), now), 1_000);
    holds_for(|cache, now| _ = cache.put(held("1", 86_400), now), 60_000);
}

#[test]
fn a_partial_set_holds_for_the_floor_only() {
    holds_for(
        |cache, now| _ = cache.put(sized("1", 30, 1, false), now),
        1_000,
    );
}

#[test]
fn no_such_name_holds_for_its_own_ttl_within_its_own_bounds() {
    let seconds = |s| Some(Duration::from_secs(s));
    holds_for(
        |cache, now| _ = cache.put_nothing("1", seconds(3), now),
        3_000,
    );
    holds_for(
        |cache, now| _ = cache.put_nothing("1", seconds(0), now),
        500,
    );
    holds_for(
        |cache, now| _ = cache.put_nothing("1", seconds(86_400), now),
        10_000,
    );
    holds_for(|cache, now| _ = cache.put_nothing("1", None, now), 500);
}

#[test]
fn with_a_floor_of_zero_nothing_that_has_no_ttl_is_fresh() {
    let now = clock::now();
    let mut cache = Cache::new(Limits {
        floor: Duration::ZERO,
        ..limits()
    });
    cache.put(held("1", 0), now);
    assert!(matches!(cache.look("1", now), Look::Stale(..)));
}

#[test]
fn age_counts_from_the_answer_and_serving_does_not_renew_it() {
    let start = clock::now();
    let mut cache = Cache::new(limits());
    cache.put(held("1", 4), start);
    for second in 0..4 {
        let age = Duration::from_secs(second);
        let Look::Fresh(_, seen, _) = cache.look("1", start + age) else {
            panic!("gone at {age:?}")
        };
        assert_eq!(seen, age);
    }
    assert!(!is_fresh(&cache.look("1", start + Duration::from_secs(4))));
}

#[test]
fn a_stale_set_is_kept_from_its_last_success_and_giving_it_renews_nothing() {
    let start = clock::now();
    let mut cache = Cache::new(limits());
    cache.put(held("1", 5), start);
    for minute in 1..60 {
        let age = Duration::from_secs(60) * minute;
        let Look::Stale(_, seen, _) = cache.look("1", start + age) else {
            panic!("gone at {age:?}")
        };
        assert_eq!(seen, age);
    }
    assert!(matches!(cache.look("1", start + KEEP), Look::Unknown));
    assert_eq!(cache.sets(start + KEEP).count(), 0);
}

#[test]
fn a_followed_set_holds_until_its_follower_says_otherwise() {
    let start = clock::now();
    let mut cache = Cache::new(limits());
    let at = |seconds| start + Duration::from_secs(seconds);
    let set = held("1", 0);
    cache.put_followed(Arc::clone(&set), start, at(60), start);
    assert!(cache.confirm("1", &set, (at(55), at(115)), at(55)));
    cache.followers_live(at(99));
    let Look::Fresh(_, age, _) = cache.look("1", at(100)) else {
        panic!("gone")
    };
    assert_eq!(age, Duration::from_secs(45));
    cache.expire("1", at(100));
    assert!(matches!(cache.look("1", at(100)), Look::Stale(..)));
}

#[test]
fn without_word_that_its_follower_lives_a_followed_set_holds_for_three_seconds() {
    let start = clock::now();
    let mut cache = Cache::new(limits());
    let at = |seconds| start + Duration::from_secs(seconds);
    let is_fresh = |cache: &mut Cache, now| {
        let listed = cache.list(now).next().unwrap().2;
        let fresh = is_fresh(&cache.look("1", now));
        assert_eq!(fresh, listed == Freshness::Fresh);
        fresh
    };
    let set = held("1", 0);
    cache.put_followed(Arc::clone(&set), start, at(60), start);
    assert!(is_fresh(&mut cache, at(2)));
    // Whoever gives it on looks here in time.
    assert_eq!(cache.hold("1", Some(&set)).unwrap().until, at(3));
    assert!(!is_fresh(&mut cache, at(3)));
    cache.followers_live(at(1));
    assert!(is_fresh(&mut cache, at(3)));
    assert_eq!(cache.hold("1", Some(&set)).unwrap().until, at(4));
    // The process was stopped, and goes on.
    assert!(!is_fresh(&mut cache, at(30)));
    cache.followers_live(at(31));
    assert!(is_fresh(&mut cache, at(31)));
    assert!(cache.confirm("1", &set, (at(32), at(90)), at(32)));
    assert!(is_fresh(&mut cache, at(34)));
    cache.followers_live(at(89));
    assert!(is_fresh(&mut cache, at(89)));
    assert!(!is_fresh(&mut cache, at(90)));
    // What its follower takes back stays so.
    assert!(cache.confirm("1", &set, (at(91), at(190)), at(91)));
    cache.expire("1", at(92));
    cache.followers_live(at(92));
    assert!(!is_fresh(&mut cache, at(92)));
}

#[test]
fn a_change_of_a_followed_set_makes_nobody_forget_how_often_it_is_asked() {
    let start = clock::now();
    let mut cache = Cache::new(limits());
    let until = start + Duration::from_secs(60);
    cache.put_followed(held("1", 0), start, until, start);
    for _ in 0..25 {
        cache.look("1", start);
    }
    cache.put_followed(held("1", 0), start, until, start);
    cache.look("1", start);
    assert_eq!(cache.take_asked("1"), 26);
    // Of others it is how often the set was given that is there.
    cache.look("1", start);
    cache.put(held("1", 60), start);
    cache.look("1", start);
    assert_eq!(cache.take_asked("1"), 1);
}

#[test]
fn who_was_asked_before_a_follower_was_told_says_nothing_newer() {
    let start = clock::now();
    let mut cache = Cache::new(limits());
    let at = |seconds| start + Duration::from_secs(seconds);
    let told = |cache: &Cache, asked, now| cache.told_since("1", asked, now);
    assert!(told(&cache, start, start).is_none());
    cache.put(held("1", 60), at(1));
    assert!(told(&cache, start, at(1)).is_none(), "nobody follows it");
    cache.put_followed(held("1", 0), at(1), at(60), at(1));
    let Some(Look::Fresh(_, age, _)) = told(&cache, at(1), at(2)) else {
        panic!("it was told")
    };
    assert_eq!(age, Duration::from_secs(1));
    assert!(told(&cache, at(2), at(2)).is_none(), "asked later");
    assert!(told(&cache, start, at(5)).is_none(), "does it live?");
    cache.followers_live(at(4));
    assert!(told(&cache, start, at(5)).is_some());
    cache.expire("1", at(5));
    assert!(told(&cache, start, at(5)).is_none());
    cache.put_nothing("1", None, at(6));
    assert!(told(&cache, start, at(6)).is_none(), "somebody was told");
    cache.put_followed_nothing("1", None, at(7));
    assert!(matches!(told(&cache, at(7), at(9)), Some(Look::Nothing)));
    assert!(told(&cache, at(8), at(9)).is_none(), "asked later");
}

#[test]
fn what_an_earlier_run_knew_is_stale_and_gives_way() {
    let now = clock::now();
    let mut cache = Cache::new(limits());
    cache.restore(held("1", 60), now);
    assert!(matches!(cache.look("1", now), Look::Stale(..)));
    cache.put(held("1", 5), now);
    cache.restore(held("1", 60), now);
    assert!(is_fresh(&cache.look("1", now)));
}

#[test]
fn what_is_gone_is_handed_out_and_may_come_back_as_stale() {
    let now = clock::now();
    let mut cache = Cache::new(limits());
    assert!(cache.put_nothing("1", None, now).is_none());
    let set = held("1", 5);
    cache.put(Arc::clone(&set), now);
    let later = now + Duration::from_secs(2);
    let was = cache.put_nothing("1", None, later).unwrap();
    assert!(Arc::ptr_eq(&was.0, &set) && was.1 == now);
    assert!(matches!(cache.look("1", later), Look::Nothing));
    cache.restore(was.0, was.1);
    let Look::Stale(_, age, Rest::Due) = cache.look("1", later) else {
        panic!("not stale")
    };
    assert_eq!(age, Duration::from_secs(2));
    assert_eq!(cache.len(), 1);
}

#[test]
fn a_set_that_lost_instances_is_remembered_to_have_shrunk() {
    let now = clock::now();
    let mut cache = Cache::new(limits());
    let window = Duration::from_secs(30);
    let was = cache.put(sized("1", 5, 3, true), now);
    assert!(matches!(was, Was::Unknown));
    assert!(!cache.shrank_within("1", window, now));
    let was = cache.put(sized("1", 5, 2, true), now);
    assert!(matches!(was, Was::Set(_)));
    cache.put(sized("1", 5, 2, true), now);
    assert!(cache.shrank_within("1", window, now));
    assert!(!cache.shrank_within("1", window, now + window));
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let now = clock::now();
    let mut cache = Cache::new(limits());
    for name in ["0", "1", "2", "3"] {
        cache.put(held(name, 5), now);
    }
    assert!(is_fresh(&cache.look("0", now)));
    cache.put(held("4", 5), now);
    assert!(is_fresh(&cache.look("0", now)));
    assert!(!is_fresh(&cache.look("1", now)));
}

#[test]
fn a_set_too_large_for_the_cache_is_not_kept_and_pushes_nothing_out() {
    let now = clock::now();
    let mut cache = Cache::new(limits());
    cache.put(held("1", 5), now);
    cache.put(sized("2", 5, 100_000, true), now);
    assert!(is_fresh(&cache.look("1", now)));
    assert!(!is_fresh(&cache.look("2", now)));
}

#[test]
fn a_newer_set_takes_the_place_of_the_older() {
    let now = clock::now();
    let mut cache = Cache::new(limits());
    cache.put_nothing("1", None, now);
    cache.put(held("1", 5), now);
    assert!(is_fresh(&cache.look("1", now)));
    cache.put_nothing("1", None, now);
    assert!(matches!(cache.look("1", now), Look::Nothing));
    assert_eq!(cache.len(), 1);
}

proptest! {
    #[test]
    fn bounds_are_kept_and_bytes_add_up_whatever_is_put(
        steps in prop::collection::vec((0u32..8, 0u64..90, 0usize..6_000, any::<bool>(), 0u64..40), 0..200),
    ) {
        let start = clock::now();
        let mut now = start;
        let bounds = Limits { bytes: 200_000, ..limits() };
        let mut cache = Cache::new(bounds.clone());
        for (name, ttl, size, positive, pause) in steps {
            now += Duration::from_secs(pause);
            if positive {
                cache.put(sized(&name.to_string(), ttl, size, true), now);
            } else {
                cache.put_nothing(&name.to_string(), Some(Duration::from_secs(ttl)), now);
            }
            for (map, used, most) in [
                (&cache.entries, cache.bytes, bounds.bytes),
                (&cache.nothing, cache.nothing_bytes, bounds.bytes / NOTHING),
            ] {
                prop_assert!(map.len() <= bounds.entries.get());
                prop_assert!(used <= most);
                let sum: usize = map.iter().map(|(_, entry)| entry.bytes).sum();
                prop_assert_eq!(used, sum);
            }
            for name in 0..8 {
                if let Look::Fresh(held, age, _) = cache.look(&name.to_string(), now) {
                    let most = held.ttl.max(bounds.floor).min(bounds.cap);
                    prop_assert!(age < most, "{age:?} old, promised {most:?}");
                }
            }
        }
    }
}

#[test]
fn only_the_set_that_is_known_can_be_confirmed() {
    let start = clock::now();
    let mut cache = Cache::new(limits());
    let (old, new) = (held("1", 0), held("1", 0));
    cache.put(Arc::clone(&old), start);
    cache.put(Arc::clone(&new), start);
    let (now, until) = (start, start + Duration::from_secs(60));
    assert!(!cache.confirm("1", &old, (now, until), now));
    assert!(cache.confirm("1", &new, (now, until), now));
    cache.put_nothing("1", None, start);
    assert!(!cache.confirm("1", &new, (now, until), now));
}

#[test]
fn names_that_do_not_exist_push_out_no_set() {
    let start = clock::now();
    let mut cache = Cache::new(limits());
    cache.put(held("kept", 0), start);
    for at in 0..100_000 {
        cache.put_nothing(&format!("nosuch{at}"), None, start);
    }
    assert!(matches!(cache.look("kept", start), Look::Fresh(..)));
    assert!(matches!(cache.look("nosuch99999", start), Look::Nothing));
    assert!(matches!(cache.look("nosuch0", start), Look::Unknown));
    assert_eq!(cache.sets_held(), 1);
}

#[test]
fn a_set_is_asked_for_ahead_of_its_time_by_one_of_all_who_are_given_it() {
    let start = clock::now();
    let mut cache = Cache::new(limits());
    let at = |ms| start + Duration::from_millis(ms);
    let rest = |cache: &mut Cache, ms| match cache.look("1", at(ms)) {
        Look::Fresh(_, _, rest) => rest,
        look => panic!("{look:?}"),
    };
    cache.put(held("1", 4), start);
    assert_eq!(rest(&mut cache, 2_999), Rest::Resting);
    assert_eq!(rest(&mut cache, 3_500), Rest::Aside);
    // Who gives it on without asking looks here then.
    let set = cache.set("1").unwrap().0;
    let until = cache.hold("1", Some(&set)).unwrap().until;
    assert!((at(3_000)..=at(3_500)).contains(&until));
    assert!(cache.renews("1", at(3_500), at(4_000)));
    assert!(!cache.renews("1", at(3_500), at(4_000)));
    assert_eq!(rest(&mut cache, 3_600), Rest::Resting);
    assert_eq!(cache.hold("1", Some(&set)).unwrap().until, at(4_000));
    // A long time is not cut by much, and what is followed needs nobody.
    cache.put(held("1", 60), start);
    assert_eq!(rest(&mut cache, 57_999), Rest::Resting);
    assert_eq!(rest(&mut cache, 59_000), Rest::Aside);
    let each: HashSet<_> = (0..50)
        .map(|at| ahead(&format!("web-{at}"), KEEP))
        .collect();
    assert!(each.len() > 40, "each name at a time of its own");
    cache.put_followed(held("1", 4), start, at(60_000), start);
    cache.followers_live(at(59_000));
    assert_eq!(rest(&mut cache, 59_999), Rest::Resting);
}

#[test]
fn after_a_failure_a_stale_set_is_asked_for_beside_whoever_is_given_it() {
    let start = clock::now();
    let mut cache = Cache::new(limits());
    let at = |ms| start + Duration::from_millis(ms);
    let rest = |cache: &mut Cache, ms| match cache.look("1", at(ms)) {
        Look::Stale(_, _, rest) => rest,
        look => panic!("{look:?}"),
    };
    cache.put(held("1", 1), start);
    assert_eq!(rest(&mut cache, 1_000), Rest::Due);
    cache.rest("1", at(1_000), at(1_500));
    assert_eq!(rest(&mut cache, 1_499), Rest::Resting);
    assert_eq!(rest(&mut cache, 1_500), Rest::Aside);
    assert!(cache.renews("1", at(1_500), at(2_000)));
    assert!(!cache.renews("1", at(1_500), at(2_000)));
    assert_eq!(rest(&mut cache, 1_999), Rest::Resting);
    // Whoever was to ask may never have come to it.
    assert_eq!(rest(&mut cache, 2_000), Rest::Due);
}

#[test]
fn a_set_that_is_too_large_leaves_the_one_before_it_to_be_given_as_stale() {
    let start = clock::now();
    let mut cache = Cache::new(Limits {
        bytes: 64 << 10,
        ..limits()
    });
    let addresses = |look: Look| match look {
        Look::Fresh(held, ..) => (true, held.found.len()),
        Look::Stale(held, ..) => (false, held.found.len()),
        other => panic!("{other:?}"),
    };
    cache.put(held("1", 60), start);
    cache.put(sized("1", 60, 10_000, true), start);
    assert_eq!(addresses(cache.look("1", start)), (false, 1));
    // One that fills a third is kept.
    cache.put(sized("1", 60, 1_200, true), start);
    assert_eq!(addresses(cache.look("1", start)), (true, 1_200));
}
