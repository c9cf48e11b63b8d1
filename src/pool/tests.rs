use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use compact_str::CompactString;
use tokio::time::advance;

use super::*;
use crate::{
    balance::Strategy,
    endpoint::{Health, Source, Transport},
    found::Found,
};

const REST: Duration = Duration::from_secs(60);

/// 10.0.0.`last`:80, with what only the HTTP API tells.
fn endpoint(last: u8, meta: &[(&str, &str)]) -> Endpoint {
    let meta: BTreeMap<Box<str>, Box<str>> = (meta.iter())
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect();
    Endpoint {
        address: IpAddr::from([10, 0, 0, last]),
        port: 80,
        priority: 1,
        weight: 1,
        target: "web.".into(),
        node: Some("node".into()),
        id: Some(format!("web-{last}").into()),
        tags: Some([].into()),
        meta: Some(meta.into()),
        health: Some(Health::Passing),
        others: Vec::new(),
    }
}

fn held(endpoints: Vec<Endpoint>) -> Option<Arc<Held>> {
    Some(Arc::new(Held {
        key: CompactString::default(),
        name: "web.service.consul.".into(),
        found: Found::Instances(Vec::new()),
        endpoints: endpoints.into(),
        source: Source::Http,
        transport: Transport::Http,
        ttl: Duration::ZERO,
        complete: true,
        warnings: Box::default(),
        part: false,
        carried: None,
    }))
}

fn set(count: u8) -> Option<Arc<Held>> {
    held((1..=count).map(|last| endpoint(last, &[])).collect())
}

fn pool(policy: Policy, held: Option<Arc<Held>>) -> Arc<Pool> {
    let pool = Pool::new("web.service.consul.", policy, 1, &Arc::default());
    pool.feed(0, held);
    pool
}

fn last(lease: &Lease) -> u8 {
    match lease.endpoint().address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => 0,
    }
}

/// Who is given in so many picks, each ended at once.
fn given(pool: &Pool, picks: usize) -> HashMap<u8, usize> {
    let mut counts = HashMap::new();
    for _ in 0..picks {
        *counts.entry(last(&pool.pick(None).unwrap())).or_default() += 1;
    }
    counts
}

fn who(pool: &Pool) -> BTreeSet<u8> {
    given(pool, 400).into_keys().collect()
}

/// Lets the calls to one endpoint fail, until so many have.
fn fail(pool: &Pool, whom: u8, times: usize) {
    let mut failed = 0;
    while failed < times {
        let lease = pool.pick(None).unwrap();
        if last(&lease) == whom {
            lease.failed();
            failed += 1;
        }
    }
}

/// What is spawned is run, so that alarms are set and heard.
async fn pass(time: Duration) {
    tokio::task::yield_now().await;
    advance(time).await;
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

fn state(pool: &Pool, whom: u8) -> BreakerState {
    let standings = pool.standings();
    let one = standings
        .iter()
        .find(|one| one.endpoint.address == IpAddr::from([10, 0, 0, whom]));
    one.unwrap().breaker
}

#[tokio::test]
async fn round_robin_gives_each_as_often_as_any_other() {
    let pool = pool(Policy::new(Strategy::RoundRobin), set(7));
    let counts = given(&pool, 700);
    assert!(
        counts.len() == 7 && counts.values().all(|count| *count == 100),
        "{counts:?}"
    );
}

#[tokio::test]
async fn each_thread_gives_nothing_twice_and_loses_nothing() {
    let pool = pool(Policy::new(Strategy::RoundRobin), set(5));
    thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                // Threads beyond the seats share turns: all of them together are even.
                let mut seen = 0;
                for _ in 0..1_000 {
                    seen += usize::from(pool.pick(None).is_some());
                }
                assert_eq!(seen, 1_000);
            });
        }
    });
    assert!(pool.standings().iter().all(|one| one.in_flight.is_none()));
}

#[tokio::test]
async fn what_is_in_the_air_is_counted_whoever_ends_it() {
    let pool = pool(Policy::new(Strategy::LeastLoaded), set(1));
    let leases: Vec<_> = (0..9).map(|_| pool.pick(None).unwrap()).collect();
    let loads = || {
        let standings = pool.standings();
        standings
            .iter()
            .filter_map(|one| one.in_flight)
            .collect::<Vec<_>>()
    };
    assert_eq!(loads(), [9]);
    pool.feed(0, set(3));
    assert_eq!(loads(), [9, 0, 0], "a change does not lose count");
    thread::spawn(move || drop(leases)).join().unwrap();
    assert_eq!(loads(), [0, 0, 0]);
}

#[tokio::test]
async fn the_least_loaded_gets_the_next_call_and_twice_as_much_for_twice_the_weight() {
    let mut endpoints: Vec<_> = (1..=4).map(|last| endpoint(last, &[])).collect();
    endpoints[0].weight = 2;
    let pool = pool(Policy::new(Strategy::LeastLoaded), held(endpoints));
    let _leases: Vec<_> = (0..500).map(|_| pool.pick(None).unwrap()).collect();
    let loads: Vec<_> = pool
        .standings()
        .iter()
        .filter_map(|one| one.in_flight)
        .collect();
    assert!((185..=215).contains(&loads[0]), "{loads:?}");
    assert!(
        loads[1..].iter().all(|load| (90..=110).contains(load)),
        "{loads:?}"
    );
}

#[tokio::test]
async fn who_fails_at_once_is_not_the_fastest() {
    let breaker = Breaker::default().failures(0);
    let pool = pool(Policy::new(Strategy::Latency).breaker(breaker), set(2));
    let mut failed = 0;
    for _ in 0..1_000 {
        let lease = pool.pick(None).unwrap();
        if last(&lease) == 1 {
            lease.report(Feedback::Failure, Duration::from_micros(200));
            failed += 1;
        } else {
            lease.report(Feedback::Success, Duration::from_millis(20));
        }
    }
    assert!((1..20).contains(&failed), "{failed}");
}

#[tokio::test(start_paused = true)]
async fn latency_sends_less_to_the_slow_one_and_looks_at_it_again() {
    let pool = pool(Policy::new(Strategy::Latency), set(3));
    for _ in 0..300 {
        let lease = pool.pick(None).unwrap();
        let slow = last(&lease) == 1;
        lease.report(
            Feedback::Success,
            Duration::from_millis(if slow { 200 } else { 10 }),
        );
    }
    let counts = given(&pool, 600);
    assert_eq!(counts.get(&1), None, "{counts:?}");
    assert_eq!(
        pool.standings()[0].latency,
        Some(Duration::from_millis(200))
    );
    // It is well again, and found to be so.
    advance(Duration::from_secs(120)).await;
    let mut again = 0;
    for _ in 0..2_000 {
        let lease = pool.pick(None).unwrap();
        again += usize::from(last(&lease) == 1);
        lease.report(Feedback::Success, Duration::from_millis(10));
        advance(Duration::from_millis(50)).await;
    }
    assert!(again > 400, "{again} of 2,000");
}

#[tokio::test]
async fn a_key_belongs_to_one_endpoint_and_moves_only_with_it() {
    let policy = || Policy::new(Strategy::Hash);
    let (ten, nine) = (pool(policy(), set(10)), pool(policy(), set(9)));
    let mut counts = HashMap::<u8, usize>::new();
    let mut moved = 0;
    for key in 0..20_000_u32 {
        let key = balance::hash(&key.to_be_bytes());
        let of = |pool: &Pool| last(&pool.pick(Some(key)).unwrap());
        let before = of(&ten);
        assert_eq!(before, of(&ten));
        *counts.entry(before).or_default() += 1;
        moved += usize::from(before != 10 && before != of(&nine));
    }
    assert!(
        counts.values().all(|count| (1_800..=2_200).contains(count)),
        "{counts:?}"
    );
    assert!(moved < 1_000, "{moved} of 18,000 moved that had no need");
    // Known to others too: not to change.
    assert_eq!(last(&ten.pick(Some(balance::hash(b"user-7"))).unwrap()), 9);
}

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_rest_for_a_minute_and_one_call_tries_then() {
    let pool = pool(Policy::new(Strategy::RoundRobin), set(4));
    fail(&pool, 2, 4);
    let good = std::iter::from_fn(|| pool.pick(None)).find(|lease| last(lease) == 2);
    good.unwrap().succeeded();
    fail(&pool, 2, 4);
    assert_eq!(
        state(&pool, 2),
        BreakerState::Closed,
        "in a row, they were not"
    );
    fail(&pool, 2, 1);
    assert_eq!(
        (state(&pool, 2), who(&pool)),
        (BreakerState::Open, [1, 3, 4].into())
    );

    pass(REST - Duration::from_secs(1)).await;
    assert_eq!(who(&pool), [1, 3, 4].into());
    pass(Duration::from_secs(2)).await;
    assert_eq!(state(&pool, 2), BreakerState::HalfOpen);
    let try_it = || {
        let mut others = Vec::new();
        std::iter::from_fn(|| pool.pick(None))
            .take(40)
            .find_map(|lease| {
                if last(&lease) == 2 {
                    return Some(lease);
                }
                others.push(lease);
                None
            })
    };
    let trial = try_it().unwrap();
    assert!(try_it().is_none(), "one at a time");
    drop(trial);
    try_it().unwrap().failed();
    assert_eq!(
        (state(&pool, 2), try_it().is_none()),
        (BreakerState::Open, true)
    );

    pass(REST + Duration::from_secs(1)).await;
    try_it().unwrap().succeeded();
    assert_eq!(
        (state(&pool, 2), who(&pool)),
        (BreakerState::Closed, [1, 2, 3, 4].into())
    );
}

#[tokio::test(start_paused = true)]
async fn breakers_that_are_open_are_counted_until_they_close_or_their_endpoint_goes() {
    let open = Arc::new(AtomicU64::new(0));
    let policy = Policy::new(Strategy::RoundRobin).breaker(Breaker::default().failures(1));
    let pool = Pool::new("web", policy, 1, &open);
    pool.feed(0, set(4));
    let count = || open.load(Ordering::Relaxed);
    fail(&pool, 1, 1);
    fail(&pool, 4, 1);
    assert_eq!(count(), 2);
    pool.feed(0, set(3));
    assert_eq!(count(), 1, "whoever remembers the one that is gone");
    pass(REST + Duration::from_secs(1)).await;
    let trial = std::iter::from_fn(|| pool.pick(None)).find(|lease| last(lease) == 1);
    trial.unwrap().succeeded();
    assert_eq!(count(), 0);
}

#[tokio::test]
async fn a_service_that_is_let_go_takes_its_open_breakers_with_it() {
    let open = Arc::new(AtomicU64::new(0));
    let policy = Policy::new(Strategy::RoundRobin).breaker(Breaker::default().failures(1));
    let pool = Pool::new("web", policy, 1, &open);
    pool.feed(0, set(4));
    let late = pool.pick(None).unwrap();
    fail(&pool, 1, 1);
    assert_eq!(open.load(Ordering::Relaxed), 1);
    // This thread remembers what it picked from.
    drop(pool);
    assert_eq!(open.load(Ordering::Relaxed), 0);
    late.failed();
    assert_eq!(open.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_its_share_of_a_set_rests() {
    let policy = Policy::new(Strategy::RoundRobin).breaker(Breaker::default().failures(1));
    let pool = pool(policy.clone(), set(4));
    for whom in [3, 1, 4, 2] {
        fail(&pool, whom, 1);
        advance(Duration::from_millis(1)).await;
    }
    assert_eq!(who(&pool), [2, 4].into(), "those that failed last");
    let all = policy.breaker(Breaker::default().failures(1).share(1.0));
    let pool = self::pool(all, set(2));
    fail(&pool, 1, 1);
    fail(&pool, 2, 1);
    assert!(pool.pick(None).is_none());
    assert!(pool.why_empty().to_string().contains("failed and rest"));
    let waiting = pool.ready();
    let mut waiting = std::pin::pin!(waiting);
    assert!(futures_poll(waiting.as_mut()).is_pending());
    pass(REST + Duration::from_secs(1)).await;
    waiting.await;
}

fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> std::task::Poll<F::Output> {
    future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn what_is_new_begins_slowly_where_that_is_wished() {
    let policy = Policy::new(Strategy::RoundRobin).slow_start(Duration::from_secs(100));
    let pool = pool(policy, set(3));
    assert_eq!(given(&pool, 300)[&3], 100, "the first of all begin at once");
    pool.feed(0, set(4));
    let share = || given(&pool, 4_000).get(&4).copied().unwrap_or_default();
    assert_eq!(share(), 0);
    pass(Duration::from_secs(50)).await;
    let half = share();
    assert!((400..=700).contains(&half), "{half}");
    pass(Duration::from_secs(51)).await;
    assert_eq!(share(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn those_that_begin_together_share_as_the_strategy_says() {
    let replaced = async |strategy| {
        let policy = Policy::new(strategy).slow_start(Duration::from_secs(60));
        let pool = pool(policy, set(10));
        let others = (11..=20).map(|last| endpoint(last, &[])).collect();
        pool.feed(0, held(others));
        pass(Duration::from_secs(1)).await;
        pool
    };
    for strategy in Strategy::ALL {
        let pool = replaced(strategy).await;
        let counts = given(&pool, 10_000);
        let share = match strategy {
            Strategy::First => 10_000..=10_000,
            Strategy::RoundRobin => 1_000..=1_000,
            _ => 850..=1_150,
        };
        assert!(
            (counts.values()).all(|count| share.contains(count)),
            "{strategy}: {counts:?}"
        );
    }
    let steady = pool(
        Policy::new(Strategy::Hash),
        held((11..=20).map(|last| endpoint(last, &[])).collect()),
    );
    let pool = replaced(Strategy::Hash).await;
    for key in 0..1_000_u32 {
        let key = balance::hash(&key.to_be_bytes());
        let of = |pool: &Pool| last(&pool.pick(Some(key)).unwrap());
        assert_eq!(of(&pool), of(&steady), "a key stays where it belongs");
    }
}

#[tokio::test(start_paused = true)]
async fn those_that_come_back_from_one_outage_share_evenly() {
    let policy = Policy::new(Strategy::RoundRobin)
        .breaker(Breaker::default().failures(1).share(1.0))
        .slow_start(Duration::from_secs(60));
    let pool = pool(policy, set(10));
    (1..=10).for_each(|whom| fail(&pool, whom, 1));
    pass(REST + Duration::from_secs(1)).await;
    let trials: Vec<_> = (0..10).map(|_| pool.pick(None).unwrap()).collect();
    trials.into_iter().for_each(Lease::succeeded);
    pass(Duration::from_secs(1)).await;
    let counts = given(&pool, 10_000);
    assert!(
        counts.len() == 10 && counts.values().all(|count| *count == 1_000),
        "{counts:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn another_is_one_that_was_not_called_however_newly_it_began() {
    let policy = Policy::new(Strategy::RoundRobin).slow_start(Duration::from_secs(60));
    let pool = pool(policy, set(1));
    pool.feed(0, set(3));
    let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 80));
    let mut others = BTreeSet::new();
    for _ in 0..100 {
        let other = pool.pick_other(&[address(1)]);
        others.insert(last(&other.unwrap()));
    }
    assert_eq!(others, [2, 3].into());
    let only = pool.pick_other(&[address(1), address(3)]).unwrap();
    assert_eq!(last(&only), 2);
    assert!(pool.pick_other(&[1, 2, 3].map(address)).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_is_required_is_kept_to_and_what_is_preferred_while_there_is_any() {
    let openai = |last, model| endpoint(last, &[("provider", "openai"), ("model", model)]);
    let all = vec![
        openai(1, "gpt-4"),
        openai(2, "gpt-4"),
        openai(3, "gpt-3"),
        endpoint(4, &[]),
    ];
    let policy = Policy::new(Strategy::RoundRobin)
        .require(Filter::new().meta("provider", "openai").passing())
        .prefer(Filter::new().meta("model", "gpt-4"))
        .breaker(Breaker::default().failures(1).share(0.7));
    let pool = pool(policy, held(all.clone()));
    assert_eq!(who(&pool), [1, 2].into());
    fail(&pool, 1, 1);
    assert_eq!(who(&pool), [2].into());
    fail(&pool, 2, 1);
    assert_eq!(
        who(&pool),
        [3].into(),
        "those that are left of what is required"
    );
    pass(REST + Duration::from_secs(1)).await;
    assert_eq!(who(&pool).first(), Some(&1));

    // DNS tells nothing of metadata; what was known holds.
    let poor = |one: &Endpoint| Endpoint {
        tags: None,
        meta: None,
        health: None,
        id: None,
        ..one.clone()
    };
    pool.feed(0, held(all[2..].iter().map(poor).collect()));
    assert_eq!(who(&pool), [3].into());
    let mut warns = all[2].clone();
    warns.health = Some(Health::Warning);
    pool.feed(0, held(vec![warns, all[3].clone()]));
    assert!(pool.pick(None).is_none());
    let why = pool.why_empty();
    assert!(
        why.is_not_found() && why.to_string().contains("required"),
        "{why}"
    );
}

#[tokio::test]
async fn the_only_one_that_is_preferred_may_rest_where_there_are_others() {
    let mut endpoints = vec![endpoint(1, &[("zone", "a")])];
    endpoints.extend((2..=4).map(|last| endpoint(last, &[])));
    let policy = Policy::new(Strategy::RoundRobin).prefer(Filter::new().meta("zone", "a"));
    let pool = pool(policy, held(endpoints));
    fail(&pool, 1, 5);
    assert_eq!(who(&pool), [2, 3, 4].into());
    // And one that is alone never does.
    pool.feed(0, set(1));
    fail(&pool, 1, 5);
    assert_eq!(who(&pool), [1].into());
}

#[tokio::test]
async fn a_place_that_two_datacenters_know_is_what_either_says() {
    let policy = Policy::default().require(Filter::new().tag("v2"));
    let pool = Pool::new("web", policy, 2, &Arc::default());
    let tagged = |id: &str, tag: &str| {
        let mut one = endpoint(1, &[]);
        (one.id, one.tags) = (Some(id.into()), Some([tag.into()].into()));
        held(vec![one])
    };
    pool.feed(0, tagged("a", "v1"));
    assert!(pool.pick(None).is_none());
    pool.feed(1, tagged("b", "v2"));
    assert_eq!((who(&pool), pool.standings().len()), ([1].into(), 1));
    pool.feed(1, None);
    assert!(pool.pick(None).is_none());
}

#[tokio::test]
async fn another_datacenter_stands_in_while_the_own_has_none() {
    let pool = Pool::new("web", Policy::default(), 2, &Arc::default());
    assert_eq!(pool.why_empty().kind(), ErrorKind::Unavailable);
    pool.feed(1, held(vec![endpoint(9, &[])]));
    assert_eq!(who(&pool), [9].into());
    pool.feed(0, set(2));
    assert_eq!(who(&pool), [1, 2].into());
    pool.feed(0, None);
    assert_eq!(who(&pool), [9].into());
    pool.feed(1, None);
    assert!(pool.pick(None).is_none());
    assert!(pool.why_empty().is_not_found());
}

#[tokio::test(start_paused = true)]
async fn while_the_only_one_is_tried_others_are_given_it_too() {
    let policy = Policy::new(Strategy::RoundRobin).breaker(Breaker::default().failures(1));
    let pool = pool(policy, set(2));
    fail(&pool, 1, 1);
    fail(&pool, 2, 1);
    pass(REST + Duration::from_secs(1)).await;
    // Both are to be tried, and somebody tries them for long.
    let long = [pool.pick(None).unwrap(), pool.pick(None).unwrap()];
    for _ in 0..10 {
        pool.pick(None).unwrap().succeeded();
    }
    drop(long);
    assert!(
        [1, 2]
            .iter()
            .any(|whom| state(&pool, *whom) == BreakerState::Closed)
    );
}

#[tokio::test(start_paused = true)]
async fn who_works_though_it_should_rest_rests_no_more() {
    let policy = Policy::new(Strategy::RoundRobin).breaker(Breaker::default().failures(1));
    let pool = pool(policy, set(2));
    fail(&pool, 1, 1);
    advance(Duration::from_millis(1)).await;
    let before = pool.pick(None).unwrap();
    fail(&pool, 2, 1);
    assert_eq!(who(&pool), [2].into(), "not more than half of them rest");
    before.succeeded();
    assert_eq!(state(&pool, 2), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn the_favourite_that_has_rested_is_tried_by_one_call_while_others_serve() {
    let mut endpoints = vec![endpoint(1, &[("zone", "a")])];
    endpoints.extend((2..=4).map(|last| endpoint(last, &[])));
    let policy = Policy::new(Strategy::RoundRobin).prefer(Filter::new().meta("zone", "a"));
    let pool = pool(policy, held(endpoints));
    fail(&pool, 1, 5);
    pass(REST + Duration::from_secs(1)).await;
    let leases: Vec<_> = (0..40).map(|_| pool.pick(None).unwrap()).collect();
    let (tried, others): (Vec<_>, Vec<_>) = leases.into_iter().partition(|one| last(one) == 1);
    assert_eq!((tried.len(), others.len()), (1, 39));
    tried.into_iter().for_each(Lease::succeeded);
    assert_eq!(who(&pool), [1].into());
}

#[tokio::test]
async fn a_wish_larger_than_the_share_that_may_rest_rests_wholly_where_there_are_others() {
    let mut endpoints: Vec<_> = (1..=3)
        .map(|last| endpoint(last, &[("zone", "a")]))
        .collect();
    endpoints.extend((4..=8).map(|last| endpoint(last, &[])));
    let policy = Policy::new(Strategy::RoundRobin)
        .prefer(Filter::new().meta("zone", "a"))
        .breaker(Breaker::default().failures(1));
    let pool = pool(policy, held(endpoints));
    let others: BTreeSet<_> = (4..=8).collect();
    for _ in 0..10 {
        pool.pick(None).unwrap().failed();
        if who(&pool) == others {
            return;
        }
    }
    panic!("{:?}", who(&pool));
}

#[cfg(feature = "grpc")]
#[tokio::test]
async fn who_does_not_serve_leaves_no_room_for_others_to_rest() {
    let policy = Policy::new(Strategy::RoundRobin).breaker(Breaker::default().failures(1));
    let pool = pool(policy, set(2));
    pool.set_serving("10.0.0.1:80".parse().unwrap(), 1, false);
    fail(&pool, 2, 1);
    assert_eq!(who(&pool), [2].into());
}

#[cfg(feature = "grpc")]
#[tokio::test(start_paused = true)]
async fn who_has_rested_and_cannot_be_connected_to_rests_again() {
    let breaker = Breaker::default().failures(1).rest(Duration::from_secs(9));
    let pool = pool(Policy::new(Strategy::RoundRobin).breaker(breaker), set(2));
    let address = "10.0.0.1:80".parse().unwrap();
    for _ in 0..3 {
        pool.unreached(address, Duration::from_secs(1));
        assert_eq!(state(&pool, 1), BreakerState::Open);
        advance(Duration::from_secs(10)).await;
        assert_eq!(state(&pool, 1), BreakerState::HalfOpen);
    }
}

#[test]
fn a_rest_ends_though_the_runtime_of_the_reporter_has() {
    let long = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let breaker = Breaker::default().failures(1).rest(Duration::from_secs(1));
    let policy = Policy::new(Strategy::RoundRobin).breaker(breaker);
    let pool = long.block_on(async { pool(policy, set(2)) });
    let short = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    short.block_on(async { fail(&pool, 1, 1) });
    drop(short);
    assert_eq!(state(&pool, 1), BreakerState::Open);
    for _ in 0..200 {
        if who(&pool) == [1, 2].into() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("it rests for ever");
}

#[tokio::test(start_paused = true)]
async fn a_latency_that_falls_is_believed_also_of_who_is_called_without_pause() {
    let pool = pool(Policy::new(Strategy::Latency), set(1));
    let report = |millis| {
        let lease = pool.pick(None).unwrap();
        lease.report(Feedback::Success, Duration::from_millis(millis));
    };
    report(1_000);
    for _ in 0..20_000 {
        report(10);
        advance(Duration::from_millis(2)).await;
    }
    let latency = pool.standings()[0].latency.unwrap();
    assert!(latency < Duration::from_millis(60), "{latency:?}");
}
