//! The machine below: what a virtual machine's host takes away is no fault of what is measured.

use std::{fs, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{Row, field::verdict::Verdict, number};

/// Where the host takes more of the processors' time than that, latencies are its own.
const DISTURBED: f64 = 0.02;

/// How many seconds a quiet moment is waited for. With none a row is played once, whatever the
/// host does.
fn patience() -> u64 {
    number("PATIENCE", 180)
}

/// A row is played so often at most where the host disturbs it.
const TRIES: usize = 3;

/// Ticks of all processors, and of these those that the host took away (proc_stat(5)).
#[derive(Clone, Copy)]
struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    fn now() -> Self {
        let told = fs::read_to_string("/proc/stat").unwrap_or_default();
        let first = told.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = (first.split_whitespace().skip(1))
            .map_while(|word| word.parse().ok())
            .collect();
        Self {
            // The last two are part of the first two.
            all: ticks.iter().take(8).sum(),
            stolen: ticks.get(7).copied().unwrap_or_default(),
        }
    }

    /// What share was taken away since then.
    fn share_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        self.stolen.saturating_sub(before.stolen) as f64 / all as f64
    }
}

/// Waits until the host has left this machine alone for a while, if it does so at all.
pub(crate) async fn calm() {
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(patience()) {
        let before = Ticks::now();
        sleep(Duration::from_secs(3)).await;
        let share = Ticks::now().share_since(before);
        if share < DISTURBED / 2.0 {
            return;
        }
        eprintln!(
            "the host takes {:.0} % of the processors away",
            share * 100.0
        );
    }
}

/// Plays a row in a quiet moment; again, where the host disturbed it and it was late. What is
/// wrong is no fault of the host's.
pub(crate) async fn undisturbed(row: &Row) -> Vec<Verdict> {
    let mut least: Option<(f64, Vec<Verdict>)> = None;
    let tries = if patience() == 0 { 1 } else { TRIES };
    for _ in 0..tries {
        calm().await;
        let before = Ticks::now();
        let verdicts = row().await;
        let share = Ticks::now().share_since(before);
        let is_wrong = |verdict: &Verdict| !verdict.broken.is_empty();
        let is_done = share < DISTURBED
            || verdicts.iter().all(Verdict::passed)
            || verdicts.iter().any(is_wrong);
        if least.as_ref().is_none_or(|(known, _)| share < *known) || is_done {
            least = Some((share, verdicts));
        }
        if is_done {
            break;
        }
    }
    let (share, mut verdicts) = least.unwrap_or_default();
    for verdict in verdicts.iter_mut().filter(|_| share >= DISTURBED) {
        let what = "% of the processors taken away by the host";
        verdict.seen.push((what.to_owned(), share * 100.0, true));
    }
    verdicts
}
