//! **Pure.** Which endpoint a key belongs to: the same for all who know the same set, and
//! little else moves when one comes or goes (Maglev: Eisenbud and others, NSDI 2016,
//! section 3.4).

use crate::endpoint::Endpoint;

/// Sizes, both prime: a hundred places for each of some hundred endpoints. Only a set
/// that outgrows the first is shuffled whole.
const SIZE: usize = 65_537;
const LARGE: usize = 655_373;

/// Sets up to this many endpoints have the first size.
const MOST: usize = 655;

const FREE: u32 = u32::MAX;

#[derive(Clone, Debug, Default)]
pub(crate) struct Table(Box<[u32]>);

impl Table {
    pub(crate) fn new<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Self {
        let hashes: Vec<u64> = endpoints
            .map(|endpoint| hash(endpoint.to_string().as_bytes()))
            .collect();
        if hashes.is_empty() {
            return Self::default();
        }
        let size = if hashes.len() <= MOST { SIZE } else { LARGE };
        let mut places = vec![FREE; size];
        let wide = size as u64;
        // Each has an order of its own in which it wants the places, and they take turns.
        let mut wants: Vec<(u64, u64)> = hashes
            .iter()
            .map(|hash| (hash % wide, mix(*hash) % (wide - 1) + 1))
            .collect();
        let mut left = size;
        loop {
            for (at, (next, skip)) in wants.iter_mut().enumerate() {
                while places[*next as usize] != FREE {
                    *next = (*next + *skip) % wide;
                }
                places[*next as usize] = at as u32;
                left -= 1;
                if left == 0 {
                    return Self(places.into());
                }
            }
        }
    }

    /// The endpoint of a key, by its [`hash`]; 0 where there is none.
    pub(crate) fn of(&self, hash: u64) -> u32 {
        let at = (u128::from(hash) * self.0.len() as u128) >> 64;
        self.0.get(at as usize).copied().unwrap_or_default()
    }
}

/// The same on every machine and in every version: FNV-1a, mixed.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
    mix(bytes.iter().fold(0xCBF2_9CE4_8422_2325, fold))
}

/// All bits of the result hang on all of the argument (SplitMix64's last steps).
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}
