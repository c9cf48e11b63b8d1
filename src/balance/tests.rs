use std::{collections::HashMap, net::IpAddr};

use proptest::{prop_assert, prop_assert_eq, proptest};
use rand::{SeedableRng as _, rngs::SmallRng};

use super::*;

fn endpoint(last: u8, port: u16, priority: u16, weight: u16) -> Endpoint {
    Endpoint {
        address: IpAddr::from([10, 0, 0, last]),
        port,
        priority,
        weight,
        target: "web.".into(),
        node: None,
        id: None,
        tags: None,
        meta: None,
        health: None,
        others: Vec::new(),
    }
}

/// How often each last octet comes up in `draws`.
fn counts(endpoints: &[Endpoint], strategy: Strategy, draws: usize) -> HashMap<String, usize> {
    let mut picker = Picker::new(endpoints, strategy, SmallRng::seed_from_u64(7));
    let mut counts = HashMap::new();
    for _ in 0..draws {
        let picked = picker.pick().unwrap().to_string();
        *counts.entry(picked).or_default() += 1;
    }
    counts
}

fn near(counted: Option<&usize>, expected: usize) {
    let counted = counted.copied().unwrap_or_default();
    let slack = expected / 20;
    assert!(
        counted.abs_diff(expected) <= slack,
        "{counted} is not near {expected}"
    );
}

#[test]
fn weighted_picks_follow_the_weights() {
    let set = [
        endpoint(1, 80, 1, 10),
        endpoint(2, 80, 1, 30),
        endpoint(3, 80, 1, 60),
    ];
    let counts = counts(&set, Strategy::Weighted, 100_000);
    near(counts.get("10.0.0.1:80"), 10_000);
    near(counts.get("10.0.0.2:80"), 30_000);
    near(counts.get("10.0.0.3:80"), 60_000);
}

#[test]
fn a_higher_priority_number_gets_nothing_while_a_lower_one_is_there() {
    let set = [endpoint(1, 80, 2, 65_535), endpoint(2, 80, 1, 0)];
    assert_eq!(
        counts(&set, Strategy::Weighted, 1_000)["10.0.0.2:80"],
        1_000
    );
}

#[test]
fn rfc2782_weight_zero_is_picked_least_and_still_picked() {
    let set = [
        endpoint(1, 80, 1, 0),
        endpoint(2, 80, 1, 0),
        endpoint(3, 80, 1, 98),
    ];
    let counts = counts(&set, Strategy::Weighted, 99_000);
    let zeros = counts["10.0.0.1:80"] + counts["10.0.0.2:80"];
    assert!((900..1_100).contains(&zeros), "{zeros}");
    assert!(counts["10.0.0.1:80"].abs_diff(counts["10.0.0.2:80"]) < 150);
}

#[test]
fn where_all_weights_are_zero_all_are_alike() {
    let set = [endpoint(1, 80, 1, 0), endpoint(2, 80, 1, 0)];
    let counts = counts(&set, Strategy::Weighted, 20_000);
    near(counts.get("10.0.0.1:80"), 10_000);
}

#[test]
fn the_largest_weights_do_not_overflow() {
    let set: Vec<_> = (0..=255)
        .map(|last| endpoint(last, 80, 65_535, 65_535))
        .collect();
    assert_eq!(
        counts(&set, Strategy::Weighted, 10_000)
            .values()
            .sum::<usize>(),
        10_000
    );
}

#[test]
fn a_million_weighted_picks_are_spread_as_dice_would() {
    let weights = [1, 2, 3, 10, 20, 64, 100, 200, 300, 300];
    let set: Vec<_> = (0_u8..)
        .zip(weights)
        .map(|(last, weight)| endpoint(last, 80, 65_535, weight))
        .collect();
    let draws = 1_000_000;
    let counts = counts(&set, Strategy::Weighted, draws);
    let square: f64 = set
        .iter()
        .map(|one| {
            let expected = draws as f64 * f64::from(one.weight) / 1_000.0;
            let counted = counts[&one.to_string()] as f64;
            (counted - expected).powi(2) / expected
        })
        .sum();
    // Nine degrees of freedom: above 40 once in a hundred thousand sets of true dice.
    assert!(square < 40.0, "chi-square {square}: {counts:?}");
}

#[test]
fn one_weight_among_zeros_has_all_but_a_few_picks() {
    // RFC 2782: zeros are to be picked very seldom, and not never.
    let mut set: Vec<_> = (1..=9).map(|last| endpoint(last, 80, 0, 0)).collect();
    set.push(endpoint(10, 80, 0, 65_535));
    // Another priority has nothing to say.
    set.push(endpoint(11, 80, 65_535, 65_535));
    let counts = counts(&set, Strategy::Weighted, 1_000_000);
    let large = counts["10.0.0.10:80"];
    assert!((999_700..1_000_000).contains(&large), "{large}");
    assert!(!counts.contains_key("10.0.0.11:80"));
}

#[test]
fn random_is_even_and_first_is_always_the_same() {
    let set = [
        endpoint(2, 80, 1, 1),
        endpoint(1, 81, 1, 60_000),
        endpoint(1, 80, 1, 1),
    ];
    let random = counts(&set, Strategy::Random, 30_000);
    for key in ["10.0.0.1:80", "10.0.0.1:81", "10.0.0.2:80"] {
        near(random.get(key), 10_000);
    }
    assert_eq!(
        counts(&set, Strategy::First, 10),
        HashMap::from([("10.0.0.1:80".to_owned(), 10)])
    );
}

#[test]
fn an_endpoint_without_a_port_is_never_picked() {
    for strategy in Strategy::ALL {
        let set = [endpoint(1, 0, 0, 9), endpoint(2, 80, 1, 1)];
        assert_eq!(counts(&set, strategy, 10)["10.0.0.2:80"], 10);
        assert_eq!(
            Picker::new(&set[..1], strategy, SmallRng::seed_from_u64(7)).pick(),
            None
        );
    }
}

#[test]
fn strategies_are_read_by_the_names_they_print() {
    for strategy in Strategy::ALL {
        assert_eq!(strategy.to_string().parse(), Ok(strategy));
    }
    assert_eq!("Round_Robin".parse(), Ok(Strategy::RoundRobin));
    assert!(
        "best"
            .parse::<Strategy>()
            .unwrap_err()
            .to_string()
            .contains("weighted")
    );
}

proptest! {
    #[test]
    fn round_robin_loses_nothing_and_gives_nothing_twice(count in 1u8..60, rounds in 1usize..4) {
        let set: Vec<_> = (0..count).map(|last| endpoint(last, 80, 1, 1)).collect();
        let counts = counts(&set, Strategy::RoundRobin, usize::from(count) * rounds);
        prop_assert_eq!(counts.len(), usize::from(count));
        prop_assert!(counts.values().all(|times| *times == rounds));
    }
}
