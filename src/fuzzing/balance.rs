//! **Pure.** The rule of drawing an endpoint.

use std::{collections::HashSet, net::IpAddr};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use crate::{
    Endpoint, Strategy,
    balance::{self, Draw, Plan},
};

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
        others: Vec::new(),
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
