//! **Pure.** The draw of RFC 2782, section "The format of the SRV RR", in one look
//! however many endpoints there are (the alias method, after Vose).
//!
//! One is drawn with a chance that is proportional to its weight. Where some have weight
//! 0, a number is drawn from 0 to the sum of weights, both included, and 0 means one of
//! those: they keep a very small chance while others have any.

/// A column is as wide as all others: the lower part is its own, the rest another's.
#[derive(Clone, Copy, Debug)]
struct Column {
    own: u64,
    other: u32,
}

/// Weights, ready to be drawn from.
#[derive(Clone, Debug)]
pub(crate) struct Alias(Box<[Column]>);

impl Alias {
    pub(crate) fn new(weights: impl Iterator<Item = u16> + Clone) -> Self {
        let zeros = weights.clone().filter(|weight| *weight == 0).count() as u64;
        // Whole numbers: a weight is worth its own for each of the zeros, which share one.
        let scale = |weight: u16| match weight {
            0 => 1,
            weight => u64::from(weight) * zeros.max(1),
        };
        let mut left: Vec<u64> = weights.map(scale).collect();
        let (count, total) = (left.len() as u64, left.iter().sum::<u64>());
        let mut columns: Vec<Column> = (0..left.len() as u32)
            .map(|at| Column {
                own: u64::MAX,
                other: at,
            })
            .collect();
        for share in &mut left {
            *share *= count;
        }
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..left.len()).partition(|&at| left[at] < total);
        while let (Some(&at), Some(&giver)) = (small.last(), large.last()) {
            small.pop();
            columns[at] = Column {
                own: ((u128::from(left[at]) << 64) / u128::from(total)) as u64,
                other: giver as u32,
            };
            left[giver] -= total - left[at];
            if left[giver] < total {
                large.pop();
                small.push(giver);
            }
        }
        Self(columns.into())
    }

    /// One of them, by 64 random bits; 0 where there is none.
    pub(crate) fn draw(&self, bits: u64) -> u32 {
        let product = u128::from(bits) * self.0.len() as u128;
        let (at, within) = ((product >> 64) as u32, product as u64);
        match self.0.get(at as usize) {
            Some(column) if within >= column.own => column.other,
            _ => at,
        }
    }
}
