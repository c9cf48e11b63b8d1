//! Contenders that take turns: each round runs a batch of every one, and every
//! second round in the opposite order, so that no one has the quiet moments to
//! itself.

use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

/// How much is run.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) rounds: usize,
    /// Look-ups of each contender in a round.
    pub(crate) look_ups: usize,
}

/// Somebody who looks names up.
pub(crate) struct Contender<'a> {
    label: String,
    batch: Box<dyn FnMut(usize) -> (Duration, usize) + 'a>,
}

/// What one contender did.
pub(crate) struct Result {
    pub(crate) label: String,
    /// A look-up, in nanoseconds: median of the rounds, and the quickest round.
    pub(crate) median: f64,
    pub(crate) least: f64,
    /// Time of the first contender over this one's: median of the rounds.
    pub(crate) first_over_this: f64,
    /// Instances that the last look-up gave.
    pub(crate) instances: usize,
    /// Allocations and bytes asked for by a look-up, on this thread; a vector
    /// that grows counts once more each time.
    pub(crate) allocations: f64,
    pub(crate) bytes: f64,
}

/// One group of contenders.
pub(crate) struct Group {
    pub(crate) row: String,
    pub(crate) results: Vec<Result>,
}

/// `look_up` gives back how many instances it found.
pub(crate) fn contender<'a>(
    runtime: &'a Runtime,
    label: &str,
    mut look_up: impl AsyncFnMut() -> usize + 'a,
) -> Contender<'a> {
    let batch = move |times| {
        runtime.block_on(async {
            let mut instances = 0;
            let start = Instant::now();
            for _ in 0..times {
                instances = std::hint::black_box(look_up().await);
            }
            (start.elapsed(), instances)
        })
    };
    Contender {
        label: label.to_owned(),
        batch: Box::new(batch),
    }
}

/// Lets them take turns. The first is the one that the others stand beside.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(crate) fn run(row: &str, mut contenders: Vec<Contender<'_>>, pace: Pace) -> Group {
    eprintln!("{row} ...");
    let look_ups = pace.look_ups;
    // The first batch warms up; in the second allocations are counted.
    let counted: Vec<_> = contenders
        .iter_mut()
        .map(|contender| {
            (contender.batch)(look_ups);
            allocation_counter::measure(|| {
                (contender.batch)(look_ups);
            })
        })
        .collect();
    let mut times = vec![Vec::with_capacity(pace.rounds); contenders.len()];
    let mut instances = vec![0; contenders.len()];
    for round in 0..pace.rounds {
        for turn in 0..contenders.len() {
            let who = if round % 2 == 0 {
                turn
            } else {
                contenders.len() - 1 - turn
            };
            let (elapsed, found) = (contenders[who].batch)(look_ups);
            times[who].push(elapsed.as_secs_f64() * 1e9 / look_ups as f64);
            instances[who] = found;
        }
    }
    let results = (contenders.into_iter().enumerate())
        .map(|(who, contender)| {
            let ratios = times[0].iter().zip(&times[who]).map(|(a, b)| a / b);
            Result {
                label: contender.label,
                median: median(times[who].iter().copied()),
                least: times[who].iter().copied().fold(f64::INFINITY, f64::min),
                first_over_this: median(ratios),
                instances: instances[who],
                allocations: counted[who].count_total as f64 / look_ups as f64,
                bytes: counted[who].bytes_total as f64 / look_ups as f64,
            }
        })
        .collect();
    Group {
        row: row.to_owned(),
        results,
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
