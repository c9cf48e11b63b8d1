//! What a fault cost: every answer of the load held against what was true, and against the
//! bounds that its row has.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use hickory_proto::op::ResponseCode;
use tokio::time::Instant;

use super::{
    Field,
    history::History,
    load::{Asked, Reply},
    machine::{self, Standstill},
};

/// How late a change may be seen while all is well: a watch's second and a little.
const SEEN: Duration = Duration::from_secs(2);

/// Every question has an answer by then, whatever is wrong.
const LATEST: Duration = Duration::from_millis(900);

/// What Consul is asked in a second where no name is followed: each known one, at a TTL of a
/// second, and the new ones of two sources.
const USUAL: f64 = 100.0;

/// The first questions that meet a fault come in this time.
const FIRST: Duration = Duration::from_millis(1_000);

/// Such a share is stale only where nobody asks those who could tell: a machine that stands
/// still now and then makes no such share.
const FAR_TOO_MANY: f64 = 0.5;

/// A client with a stale set waits no longer for a fresh one.
const CLIENT_TIMER: Duration = Duration::from_millis(150);

/// Of answers that take longer is told how many came in how many moments, each so long apart.
const SLOW: Duration = Duration::from_millis(20);
const MOMENT: Duration = Duration::from_millis(200);

/// What the stub says of one fault, in lines: above it nobody reads them.
pub(crate) const SAID: usize = 10;

/// What a row asks of names that were never asked before.
#[derive(Clone, Copy, Debug)]
pub(crate) enum New {
    /// Such a share of them is found, within so long.
    Found(f64, Duration),
    /// None can be found; that is said within so long.
    Fails(Duration),
    /// Found or not, within so long.
    Either(Duration),
    /// Nobody registered them, or nobody can tell; that is said within so long.
    Gone(Duration),
}

/// One row: the fault and its bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Law {
    pub(crate) row: &'static str,
    pub(crate) fault: &'static str,
    /// A cached name when the fault is met, and later.
    pub(crate) first: Duration,
    pub(crate) next: Duration,
    pub(crate) new: New,
    /// From so long after the fault on nothing stale is given, until those who failed come
    /// back: somebody can be asked who tells the truth. `None`: nobody can, or not in time.
    pub(crate) fresh: Option<Duration>,
    /// Answers are true again, and not stale, so long after the fault's end.
    pub(crate) recovers: Option<Duration>,
    /// Lines that the stub says from the fault on, at most.
    pub(crate) said: usize,
}

impl Law {
    /// With the bounds that most rows have.
    pub(crate) const fn usual(row: &'static str, fault: &'static str) -> Self {
        Self {
            row,
            fault,
            first: ms(5),
            next: ms(5),
            new: New::Found(1.0, ms(50)),
            fresh: Some(FIRST),
            recovers: Some(ms(2_000)),
            said: SAID,
        }
    }
}

pub(crate) const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// What was found.
pub(crate) struct Verdict {
    pub(crate) law: Law,
    pub(crate) asked: usize,
    pub(crate) answered: usize,
    pub(crate) stale: usize,
    /// Those of them that the law has to be fresh, and all of whom it has that.
    stale_later: (usize, usize),
    pub(crate) first: Duration,
    /// 999 of 1,000, and the worst, after the first.
    pub(crate) next: Duration,
    pub(crate) worst: Duration,
    /// 999 of 1,000 before the fault: what this machine takes while all is well.
    pub(crate) before: Duration,
    pub(crate) new_asked: usize,
    pub(crate) new_found: usize,
    pub(crate) new_worst: Duration,
    /// Of all that were asked from the fault until all was well.
    pub(crate) slowest: Duration,
    /// The same without what the machine stood still meanwhile.
    slowest_here: Duration,
    pub(crate) recovered: Option<Duration>,
    /// Questions and requests to Consul in a second, before the fault and while it lasts.
    pub(crate) upstream: (f64, f64),
    pub(crate) seen: Vec<(String, f64, bool)>,
    /// Lines that the stub said from the fault on.
    said: usize,
    /// Broken whatever the machine is like: wrong, missing, lost.
    pub(crate) broken: Vec<String>,
    /// Later than the row's bound.
    pub(crate) late: Vec<String>,
}

/// All that a judge looks at: what was asked and answered, and what was so when.
pub(super) struct Case {
    pub(super) asked: Vec<Asked>,
    pub(super) history: Arc<History>,
    pub(super) began: Instant,
    pub(super) fault: Instant,
    /// In these moments another part of the fault begins.
    pub(super) steps: Vec<Instant>,
    pub(super) waning: Option<Instant>,
    pub(super) behind: Vec<(Instant, Option<Instant>)>,
    pub(super) healed: Option<Instant>,
    /// What is not marked was true so long ago, at most.
    pub(super) fresh: Duration,
    /// Questions and requests to Consul in a second, before the fault and while it lasts.
    pub(super) upstream: (f64, f64),
    pub(super) seen: Vec<(String, f64, bool)>,
    pub(super) troubles: Vec<String>,
    pub(super) late: Vec<String>,
    /// When the machine stood still.
    pub(super) stood: Vec<Standstill>,
    /// What the stub said from the fault on.
    pub(super) said: Vec<String>,
}

impl Field {
    /// Ends the load, and holds all that was answered against the law.
    pub(crate) async fn judge(mut self, law: Law) -> Verdict {
        self.pause_load().await;
        self.stop_changes().await;
        self.listen();
        let fault = self.fault.expect("fault_begins() was said");
        let healed = self.healed.unwrap_or_else(Instant::now);
        let lasted = |since: Instant, until: Instant| (until - since).as_secs_f64().max(0.001);
        let asked_in = |from: usize| (self.passed[from + 1] - self.passed[from]) as f64;
        let case = Case {
            asked: std::mem::take(&mut self.before),
            history: Arc::clone(&self.history),
            began: self.began,
            fault,
            steps: std::mem::take(&mut self.steps),
            waning: self.waning,
            behind: std::mem::take(&mut self.behind),
            healed: self.healed,
            fresh: self.plan.ttl + SEEN + self.late_by,
            upstream: (
                asked_in(0) / lasted(self.began, fault),
                asked_in(1) / lasted(fault, healed),
            ),
            seen: std::mem::take(&mut self.seen),
            troubles: std::mem::take(&mut self.troubles),
            late: std::mem::take(&mut self.late),
            stood: self.machine.stood(),
            said: std::mem::take(&mut self.said),
        };
        case.judged(law)
    }
}

impl Case {
    fn judged(mut self, law: Law) -> Verdict {
        let fault = self.fault;
        let healed = self.healed.unwrap_or_else(Instant::now);
        let fresh = self.fresh;

        let mut broken = std::mem::take(&mut self.troubles);
        let mut wrong = Vec::new();
        let mut unanswered = 0;
        let (mut known, mut answered, mut stale) = (0, 0, 0);
        let mut stale_later = (0, 0);
        let (mut first, mut calm, mut later) = (Duration::ZERO, Vec::new(), Vec::new());
        let (mut new_asked, mut new_found, mut new_worst) = (0, 0, Duration::ZERO);
        let (mut slowest, mut slowest_here) = (Duration::ZERO, Duration::ZERO);
        let mut still_stale = Vec::new();
        let mut replayed = 0;
        let mut slow = Vec::new();
        for one in self.asked.iter().filter(|one| one.sent >= self.began) {
            let reply = one.reply();
            let in_fault = (fault..healed).contains(&one.sent);
            let coming_back = self.waning.is_some_and(|from| one.sent >= from);
            let within = |time: Duration| {
                let sent = one.sent;
                move |step: Instant| (step..step + time).contains(&sent)
            };
            let is_at = within(FIRST);
            let took = reply
                .as_ref()
                .map_or(Duration::MAX, |reply| reply.at - one.sent);
            if reply.is_none() {
                unanswered += 1;
                if wrong.len() < 5 {
                    wrong.push(format!("{} {}: no answer", when(one, fault), one.name));
                }
            }
            if let Some(reply) = &reply {
                if reply.is_stale() && one.sent >= healed {
                    still_stale.push((one.sent, &one.name, format!("{:?}", reply.reasons)));
                }
                let replays =
                    self.waning.is_some_and(|from| reply.at >= from) && one.sent < healed + fresh;
                match self.amiss(one, reply, law.new) {
                    // Its set may be an old one; that there is none may not.
                    Some(_) if replays && (one.new || !reply.ports.is_empty()) => replayed += 1,
                    Some(amiss) if wrong.len() < 5 => {
                        wrong.push(format!("{} {}: {amiss}", when(one, fault), one.name));
                    }
                    Some(_) | None => {}
                }
            }
            let well = reply.as_ref().is_some_and(|reply| {
                reply.code == ResponseCode::NoError && !reply.ports.is_empty()
            });
            if in_fault {
                slowest = slowest.max(took);
                let stood = reply.as_ref().map_or(Duration::ZERO, |reply| {
                    machine::between(&self.stood, one.sent, reply.at)
                });
                slowest_here = slowest_here.max(took.saturating_sub(stood));
                slow.extend((!one.new && took > SLOW).then_some((one.sent, &one.name)));
            }
            let at_a_step = self.steps.iter().copied().any(is_at);
            if one.new {
                if in_fault && !coming_back && !at_a_step {
                    new_asked += 1;
                    new_found += usize::from(well);
                    new_worst = new_worst.max(took);
                }
                continue;
            }
            let is_stale = reply.is_some_and(|reply| reply.is_stale());
            known += 1;
            answered += usize::from(well);
            stale += usize::from(is_stale);
            let settled = !within(law.fresh.unwrap_or_default())(fault) && !at_a_step;
            if in_fault && !coming_back && settled && law.fresh.is_some() {
                stale_later.0 += usize::from(is_stale);
                stale_later.1 += 1;
            }
            if in_fault && (is_at(fault) || at_a_step || coming_back) {
                first = first.max(took);
            } else if in_fault {
                later.push(took);
            } else if one.sent < fault {
                calm.push(took);
            }
        }
        if answered < known {
            broken.push(format!(
                "{} of {known} known names were not given",
                known - answered
            ));
        }
        if unanswered > 0 {
            broken.push(format!("{unanswered} questions had no answer"));
        }
        broken.extend(wrong);
        let panics = self.said.iter().filter(|line| line.contains("panicked"));
        broken.extend(panics.cloned());
        if self.waning.is_some() {
            let what = "old or missing while Consul read its log";
            self.seen.push((what.to_owned(), f64::from(replayed), true));
        }
        if !slow.is_empty() {
            let count = slow.len() as f64;
            self.seen.push((slow_ones(slow), count, true));
        }
        let stood = machine::between(&self.stood, fault, healed);
        if !stood.is_zero() {
            let what = "the machine stood still, ms".to_owned();
            self.seen.push((what, stood.as_secs_f64() * 1_000.0, true));
        }
        let last_stale = still_stale.iter().max();
        if let Some((_, name, reasons)) = last_stale {
            let what = format!("stale afterwards, {name} last, {reasons}");
            self.seen.push((what, still_stale.len() as f64, true));
        }
        let most = |times: &mut Vec<Duration>| {
            times.sort_unstable();
            let at = (times.len() * 999 / 1_000).min(times.len().saturating_sub(1));
            times.get(at).copied().unwrap_or_default()
        };
        let mut verdict = Verdict {
            law,
            asked: known,
            answered,
            stale,
            stale_later,
            first,
            next: most(&mut later),
            before: most(&mut calm),
            worst: later.last().copied().unwrap_or_default(),
            new_asked,
            new_found,
            new_worst,
            slowest,
            slowest_here,
            recovered: (self.healed)
                .map(|healed| last_stale.map_or(Duration::ZERO, |(last, ..)| *last - healed)),
            upstream: self.upstream,
            seen: std::mem::take(&mut self.seen),
            said: self.said.len(),
            broken,
            late: std::mem::take(&mut self.late),
        };
        verdict.hold();
        verdict
    }

    /// What is wrong with an answer, if anything.
    fn amiss(&self, one: &Asked, reply: &Reply, new: New) -> Option<String> {
        if reply.code != ResponseCode::NoError || reply.ports.is_empty() {
            // Whether a new name must be found is the row's to say; one that is known must.
            let denied = reply.code == ResponseCode::NXDomain && !matches!(new, New::Gone(_));
            return (!one.new || denied).then(|| format!("{:?} {:?}", reply.code, reply.reasons));
        }
        // Who is behind does not say so over DNS.
        let is_behind = |(from, until): &(Instant, Option<Instant>)| {
            reply.at >= *from && until.is_none_or(|until| one.sent < until)
        };
        let holds = !reply.is_stale() && !self.behind.iter().any(is_behind);
        let is_recent = |until: Instant| {
            let stood = machine::between(&self.stood, until, one.sent);
            !holds || one.sent.saturating_duration_since(until) <= self.fresh + stood
        };
        let was = (self.history).was(&one.name, &reply.ports, reply.at, is_recent);
        (!was).then(|| {
            let marked = if reply.is_stale() { "stale" } else { "fresh" };
            let when = (self.history).told(&one.name, &reply.ports, one.sent, reply.at);
            format!("{:?}, {marked}, {when}", reply.ports)
        })
    }
}

/// All at once is a machine that stands still; a few names now and then are ours.
fn slow_ones(mut slow: Vec<(Instant, &Arc<str>)>) -> String {
    slow.sort_unstable();
    let apart = |pair: &&[(Instant, &Arc<str>)]| pair[1].0 - pair[0].0 > MOMENT;
    let moments = 1 + slow.windows(2).filter(apart).count();
    let names: HashSet<_> = slow.iter().map(|(_, name)| *name).collect();
    let names = names.len();
    format!("answers after more than {SLOW:?}, of {names} names in {moments} moments")
}

/// When it was asked, from the fault on.
fn when(one: &Asked, fault: Instant) -> String {
    match one.sent.checked_duration_since(fault) {
        Some(after) => format!("{:.2} s after", after.as_secs_f64()),
        None => format!("{:.2} s before", (fault - one.sent).as_secs_f64()),
    }
}

impl Verdict {
    fn hold(&mut self) {
        let law = self.law;
        let mut late = std::mem::take(&mut self.late);
        let mut bound = |what: &str, found: Duration, most: Duration| {
            if found > most {
                late.push(format!("{what} {found:.1?}, at most {most:?}"));
            }
        };
        // A fault may cost no more than its bound, nor more than what is usual here.
        bound("first", self.first, law.first.max(self.before * 2));
        bound(
            "next (999 of 1,000)",
            self.next,
            law.next.max(self.before * 2),
        );
        let most = law.first.max(Duration::from_millis(200));
        bound("worst", self.worst, most);
        match law.new {
            New::Found(share, most) => {
                bound("new", self.new_worst, most);
                let found = self.new_found as f64 / self.new_asked.max(1) as f64;
                if found < share {
                    self.broken.push(format!(
                        "{} of {} new names were found",
                        self.new_found, self.new_asked
                    ));
                }
            }
            New::Fails(most) | New::Either(most) | New::Gone(most) => {
                bound("new", self.new_worst, most);
            }
        }
        if let (Some(most), Some(took)) = (law.recovers, self.recovered) {
            bound("recovery", took, most);
        }
        let (stale, of) = self.stale_later;
        let share = stale as f64 / of.max(1) as f64;
        let told = format!("{stale} of {of} cached names were stale, though somebody could tell");
        // Where this machine takes as long as the stub waits for fresh sets, that is why.
        if share > FAR_TOO_MANY && self.before < CLIENT_TIMER {
            self.broken.push(told);
        } else if stale > 0 {
            late.push(told);
        }
        if self.said > law.said {
            late.push(format!("the stub said {} lines", self.said));
        }
        let slowest = self.slowest;
        if slowest > LATEST && slowest < Duration::MAX {
            late.push(format!("slowest {slowest:.1?}, at most {LATEST:?}"));
        }
        // Names that are followed cost next to nothing while all is well: twice what they
        // would cost otherwise, and a new name, is no burden.
        let (before, now) = self.upstream;
        if now > 2.0 * before.max(USUAL) {
            late.push(format!("Consul was asked {now:.0} times a second"));
        }
        for (what, value, shown) in &self.seen {
            if !shown {
                self.broken.push(format!("{what} is {value}"));
            }
        }
        self.late = late;
    }

    pub(crate) fn passed(&self) -> bool {
        self.broken.is_empty() && self.late.is_empty()
    }

    /// For ordinary tests on machines that do other things besides: what is true and what is
    /// answered in time for any client, and not how fast.
    ///
    /// # Panics
    /// Where something was wrong, lost or later than any client waits.
    pub(crate) fn assert_sound(&self) {
        assert!(
            self.broken.is_empty(),
            "{}: {:#?}",
            self.law.fault,
            self.broken
        );
        let slowest = self.slowest_here;
        assert!(
            slowest < LATEST + Duration::from_millis(100),
            "{}: {slowest:?}",
            self.law.fault
        );
        assert!(self.new_asked > 0 && self.asked > 0, "no load");
    }
}

/// A line of the report.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| match time {
            Duration::MAX => "never".to_owned(),
            time => format!("{:.1}", time.as_secs_f64() * 1_000.0),
        };
        let new = match self.law.new {
            New::Found(share, most) => format!("{} % in {} ms", share * 100.0, most.as_millis()),
            New::Fails(most) => format!("an error in {} ms", most.as_millis()),
            New::Either(most) => format!("in {} ms", most.as_millis()),
            New::Gone(most) => format!("gone in {} ms", most.as_millis()),
        };
        let fresh = match self.law.fresh {
            Some(_) => format!("{} of {}", self.stale_later.0, self.stale_later.1),
            None => "may be".to_owned(),
        };
        let seen: Vec<_> = (self.seen.iter())
            .map(|(what, value, _)| {
                let what = what.strip_prefix("proconsul_").unwrap_or(what);
                format!("{what} {}", (value * 100.0).round() / 100.0)
            })
            .collect();
        let verdict = match self.passed() {
            true => "yes".to_owned(),
            false => format!(
                "**no**: {}",
                [&self.broken[..], &self.late].concat().join("; ")
            ),
        };
        write!(
            f,
            "| {} | {} | {} / {} ms | {} ms | {} / {} / {} ms | {} of {} | {}, {fresh} | {new} | {} of {}, {} ms | {} | {:.0} / {:.0} | {} | {} | {verdict} |",
            self.law.row,
            self.law.fault,
            self.law.first.as_millis(),
            self.law.next.as_millis(),
            ms(self.before),
            ms(self.first),
            ms(self.next),
            ms(self.worst),
            self.answered,
            self.asked,
            self.stale,
            self.new_found,
            self.new_asked,
            ms(self.new_worst),
            self.recovered
                .map_or_else(|| "-".into(), |took| format!("{} ms", took.as_millis())),
            self.upstream.0,
            self.upstream.1,
            self.said,
            seen.join(", "),
        )
    }
}

/// The head of the report's table.
pub(crate) const HEAD: &str = "\
| row | fault | bound: first / next | 999 of 1,000 before | first / 999 of 1,000 / worst | known names answered | stale, and where none may be | bound: new names | new names found, worst | true again after | asked of Consul in a second, before / then | lines said | shown by | passed |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |";

#[cfg(test)]
#[allow(
    unused_imports,
    reason = "the runner of all rows has no test of its own"
)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NAME: &str = "web.service.consul.";
    const STALE_ANSWER: Option<u16> = Some(3);

    /// A fault from second 3 to second 13, in which the set was 1, and since second 8 is 2.
    fn case(asked: impl Fn(&dyn Fn(f64) -> Instant) -> Vec<Asked>) -> Case {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs_f64(seconds);
        let history = History::default();
        history.changed(NAME, BTreeSet::from([1]), at(0.0), Some(at(0.0)));
        history.changed(NAME, BTreeSet::from([2]), at(7.9), Some(at(8.0)));
        Case {
            asked: asked(&at),
            history: Arc::new(history),
            began: at(0.0),
            fault: at(3.0),
            steps: Vec::new(),
            waning: None,
            behind: Vec::new(),
            healed: Some(at(13.0)),
            fresh: SEEN,
            upstream: (1.0, 1.0),
            seen: Vec::new(),
            troubles: Vec::new(),
            late: Vec::new(),
            stood: Vec::new(),
            said: Vec::new(),
        }
    }

    /// Answers of a row in which new names do not matter.
    fn judged(case: Case, fresh: Option<Duration>) -> Verdict {
        case.judged(Law {
            new: New::Either(ms(900)),
            fresh,
            ..Law::usual("0", "made up")
        })
    }

    /// What is answered at once.
    fn told(at: Instant, port: u16, reason: Option<u16>) -> Asked {
        Asked::made_up(NAME, at, at + ms(1), &[port], reason)
    }

    #[test]
    fn stale_sets_for_the_whole_fault_are_no_answer_where_somebody_tells_the_truth() {
        let all_stale = || {
            case(|at| {
                let seconds = (30..130).map(|tenth| f64::from(tenth) / 10.0);
                seconds
                    .map(|second| told(at(second), 1, STALE_ANSWER))
                    .collect()
            })
        };
        let verdict = judged(all_stale(), Some(FIRST));
        assert_eq!(verdict.stale_later, (90, 90));
        assert!(!verdict.broken.is_empty());
        let verdict = judged(all_stale(), None);
        assert!(verdict.passed(), "{verdict}");
    }

    #[test]
    fn what_is_stale_when_a_fault_is_met_is_no_finding_and_a_little_later_is_only_late() {
        let some = |stale: f64| {
            case(move |at| {
                let seconds = (30..130).map(|tenth| f64::from(tenth) / 10.0);
                let tell = |second: f64| {
                    let port = if second < 8.0 { 1 } else { 2 };
                    let is_stale = (second - stale).abs() < 0.01;
                    told(at(second), port, is_stale.then_some(3))
                };
                seconds.map(tell).collect()
            })
        };
        assert!(judged(some(3.5), Some(FIRST)).passed());
        let verdict = judged(some(4.5), Some(FIRST));
        assert!(
            verdict.broken.is_empty() && verdict.late.len() == 1,
            "{verdict}"
        );
        let mut stepped = some(4.5);
        stepped.steps.push(stepped.fault + ms(1_000));
        assert!(judged(stepped, Some(FIRST)).passed());
    }

    #[test]
    fn what_the_machine_stood_still_is_no_lateness_of_a_set_nor_of_an_answer() {
        for (stands, holds) in [(0.0, false), (0.8, false), (1.2, true)] {
            // Of 3.1 s ago; and an answer after 1.1 s.
            let mut one = case(|at| {
                let (sent, heard) = (at(11.1), at(12.2));
                vec![Asked::made_up(NAME, sent, heard, &[1], None)]
            });
            let at = |seconds: f64| one.began + Duration::from_secs_f64(seconds);
            // Once while the set was old, and once while it was waited for.
            one.stood = [9.0, 11.2].map(|from| (at(from), at(from + stands))).into();
            let verdict = judged(one, None);
            assert_eq!(verdict.broken.is_empty(), holds, "{stands}: {verdict}");
            assert_eq!(verdict.slowest, ms(1_100));
            let left = 1.1 - stands.min(1.0);
            assert!((verdict.slowest_here.as_secs_f64() - left).abs() < 0.001);
        }
    }

    #[test]
    fn while_a_server_is_behind_a_set_was_true_once_and_no_set_is_made_up() {
        for (second, port, holds) in [(11.0, 1, true), (11.0, 3, false), (12.5, 1, false)] {
            let mut one = case(|at| vec![told(at(second), port, None)]);
            let at = |seconds: u64| one.began + Duration::from_secs(seconds);
            one.behind = vec![(at(10), Some(at(12)))];
            let verdict = judged(one, None);
            assert_eq!(verdict.broken.is_empty(), holds, "{second} {port}");
        }
    }

    #[test]
    fn a_set_that_is_not_marked_was_true_lately_and_no_set_is_made_up() {
        for (second, port, reason, holds) in [
            (9.0, 1, None, true),
            (11.0, 1, None, false),
            (11.0, 1, STALE_ANSWER, true),
            (7.0, 2, None, false),
            (7.0, 2, STALE_ANSWER, false),
            (11.0, 3, STALE_ANSWER, false),
        ] {
            let one = case(|at| vec![told(at(second), port, reason)]);
            let verdict = judged(one, None);
            assert_eq!(
                verdict.broken.is_empty(),
                holds,
                "{second} {port}: {verdict}"
            );
        }
    }

    #[test]
    fn a_panic_of_the_stub_breaks_a_row_and_a_flood_of_its_words_is_too_much() {
        let mut one = case(|at| vec![told(at(4.0), 1, None)]);
        one.said = vec!["thread 'main' panicked at src/lib.rs:1:1:".into()];
        assert_eq!(judged(one, None).broken.len(), 1);
        let mut one = case(|at| vec![told(at(4.0), 1, None)]);
        one.said = vec![" WARN source".into(); SAID + 1];
        let verdict = judged(one, None);
        assert!(verdict.broken.is_empty() && !verdict.passed());
    }

    #[test]
    fn an_error_for_a_known_name_breaks_a_row_whatever_it_is_called() {
        let one = case(|at| {
            let at = at(4.0);
            vec![Asked::made_up(NAME, at, at + ms(1), &[], Some(22))]
        });
        assert!(!judged(one, None).broken.is_empty());
    }
}
