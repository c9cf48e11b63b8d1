//! **Pure.** Which upstreams answer, in which order they are asked, and how long each is
//! waited for before the next one is asked as well. Time comes in as an argument.
//!
//! | an upstream that | is asked | the next one |
//! | --- | --- | --- |
//! | is well | in the order in which they were named | after its share of the time, [`TURN`] at most |
//! | failed, and has rested | so too | after [`FAIR`] |
//! | rests | after all others: first who failed less often, then who failed longer ago | after [`FAIR`] |
//! | sends the questions of a route back to us | none of that route, but whether it still does | |

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{message::cannot_tell, tally::Standing};

/// Shorter silence says nothing of a server.
const FAIR: Duration = Duration::from_millis(100);

/// Nobody is waited for alone longer than that: where one of two is dead, a name is there within
/// 400 ms all the same.
pub(super) const TURN: Duration = Duration::from_millis(380);

/// Whoever failed is asked last for so long, doubled with each failure. A question that
/// failed is not asked again before the shortest of it is over (RFC 9520, section 3.2), and
/// not waited for by who has a stale answer before the longest is.
pub(super) const REST: Duration = Duration::from_secs(1);
pub(super) const LONGEST_REST: Duration = Duration::from_secs(30);

/// Who was silent to so many questions in a row is not waited for by who has a stale answer
/// either, as long as it rests.
const DOWN: u32 = 3;

/// How often an upstream is asked whether it sends questions back to us: a circle may be closed,
/// and opened, by somebody else at any time. Who did not say is asked again sooner.
const PROBE: Duration = Duration::from_secs(300);
const PROBE_AGAIN: Duration = Duration::from_secs(10);

/// What is known of each upstream.
#[derive(Debug, Default)]
pub(super) struct Health {
    states: HashMap<SocketAddr, State>,
    circles: HashMap<Hop, Circle>,
}

/// An upstream, and the number of the route whose questions go to it, if it is not for all: it may
/// send back those of one domain, and answer all others.
pub(super) type Hop = (SocketAddr, Option<usize>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// In a row, and those without any reply.
    failures: u32,
    silent: u32,
    /// When it failed last, and until when it rests for that.
    failed: Option<(Instant, Instant)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Circle {
    /// It sends questions back to us.
    loops: bool,
    /// When it is to be asked whether it does; `None`: now.
    probe: Option<Instant>,
}

impl State {
    /// Since when it rests.
    fn rests(&self, now: Instant) -> Option<Instant> {
        let (since, until) = self.failed?;
        (now < until).then_some(since)
    }
}

impl Health {
    /// Puts the servers of a route into the order in which they are asked.
    pub(super) fn order(&self, servers: &mut Vec<SocketAddr>, route: Option<usize>, now: Instant) {
        servers.retain(|server| {
            let circle = self.circles.get(&(*server, route));
            !circle.is_some_and(|circle| circle.loops)
        });
        // Stable: whoever is well stays in the order in which it was named.
        servers.sort_by_key(|server| {
            let state = self.of(*server);
            state.rests(now).map(|since| (state.failures, since))
        });
    }

    /// How long a server is waited for before the next one of so many that are left, itself
    /// among them, is asked as well.
    pub(super) fn share(&self, server: SocketAddr, servers: usize, left: Duration) -> Duration {
        let is_well = self.of(server).failures == 0;
        let share = match u32::try_from(servers) {
            Ok(0 | 1) => left,
            Ok(servers) if is_well => (left / servers).min(TURN),
            _ => FAIR,
        };
        share.max(FAIR).min(left)
    }

    /// Whether nobody there says anything any more.
    pub(super) fn are_down(&self, servers: &[SocketAddr], now: Instant) -> bool {
        servers.iter().all(|server| {
            let state = self.of(*server);
            state.silent >= DOWN && state.rests(now).is_some()
        })
    }

    pub(super) fn standing(&self, server: SocketAddr) -> Standing {
        let state = self.of(server);
        Standing {
            server,
            is_up: state.silent == 0,
            loops: self.is_in_a_circle(server),
        }
    }

    /// Takes in what came of a question. `None`: nothing did.
    pub(super) fn heard(&mut self, server: SocketAddr, reply: Option<&[u8]>, now: Instant) {
        let state = self.states.entry(server).or_default();
        state.silent = match reply {
            Some(_) => 0,
            None => state.silent.saturating_add(1),
        };
        if reply.is_some_and(|reply| !cannot_tell(reply)) {
            state.failures = 0;
            state.failed = None;
            return;
        }
        let rest = REST.saturating_mul(1 << state.failures.min(5));
        state.failures = state.failures.saturating_add(1);
        state.failed = Some((now, now + rest.min(LONGEST_REST)));
    }

    /// Whether a server is to be asked now if it sends questions back to us. It is, then.
    pub(super) fn is_to_be_probed(&mut self, hop: Hop, now: Instant) -> bool {
        let circle = self.circle(hop);
        let is_due = circle.probe.is_none_or(|at| now >= at);
        if is_due {
            circle.probe = Some(now + PROBE);
        }
        is_due
    }

    /// It said nothing to that.
    pub(super) fn kept_silent(&mut self, hop: Hop, now: Instant) {
        self.circle(hop).probe = Some(now + PROBE_AGAIN);
    }

    /// It does. Whether that is new.
    pub(super) fn loops(&mut self, hop: Hop) -> bool {
        !std::mem::replace(&mut self.circle(hop).loops, true)
    }

    /// It does not. Whether that is new.
    pub(super) fn passes(&mut self, hop: Hop) -> bool {
        std::mem::take(&mut self.circle(hop).loops)
    }

    /// Who asks whom may be another: all are to say anew whether they send questions back, and
    /// who did has another chance.
    pub(super) fn forgive(&mut self) {
        let circles = std::mem::take(&mut self.circles);
        for ((server, _), _) in circles.into_iter().filter(|(_, circle)| circle.loops) {
            self.states.remove(&server);
        }
    }

    fn is_in_a_circle(&self, server: SocketAddr) -> bool {
        let mut circles = self.circles.iter();
        circles.any(|((whose, _), circle)| *whose == server && circle.loops)
    }

    fn circle(&mut self, hop: Hop) -> &mut Circle {
        self.circles.entry(hop).or_default()
    }

    fn of(&self, server: SocketAddr) -> State {
        self.states.get(&server).copied().unwrap_or_default()
    }
}

/// Whether silence from one moment until another, which was over now, says anything. A wait
/// that ends long after its time does not: we stood still, and a reply may lie unread.
pub(super) fn is_fair(since: Instant, until: Instant, now: Instant) -> bool {
    until.saturating_duration_since(since) >= FAIR && now.saturating_duration_since(until) < FAIR
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const WELL: &[u8] = &[0, 0, 0x80, 0];

    fn servers() -> [SocketAddr; 3] {
        ["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"].map(|server| server.parse().unwrap())
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_failure_of_an_upstream_is_remembered_for_half_a_minute_at_most() {
        let (mut health, [server, ..], now) = (Health::default(), servers(), clock::now());
        for failures in 0..100 {
            health.heard(server, None, now);
            let rest = seconds(1 << failures.min(5)).min(LONGEST_REST);
            let rests = |at| health.of(server).rests(now + at).is_some();
            let before_its_end = rest - Duration::from_millis(1);
            assert!(rests(before_its_end) && !rests(rest), "after {failures}");
        }
        health.heard(server, Some(WELL), now);
        assert_eq!(health.of(server).rests(now), None);
    }

    #[test]
    fn whoever_answers_is_asked_before_all_who_failed_and_those_in_turn() {
        let (mut health, [a, b, c], now) = (Health::default(), servers(), clock::now());
        let order = |health: &Health, at| {
            let mut servers = servers().to_vec();
            health.order(&mut servers, None, now + at);
            servers
        };
        let milliseconds = Duration::from_millis;
        assert_eq!(order(&health, seconds(0)), [a, b, c]);
        health.heard(a, None, now);
        health.heard(b, None, now + milliseconds(100));
        assert_eq!(order(&health, milliseconds(200)), [c, a, b]);
        // As often: who failed longer ago.
        health.heard(c, None, now + milliseconds(300));
        health.heard(a, None, now + milliseconds(400));
        health.heard(b, None, now + milliseconds(350));
        assert_eq!(order(&health, milliseconds(500)), [c, b, a]);
        health.heard(a, Some(WELL), now + milliseconds(600));
        assert_eq!(order(&health, milliseconds(600)), [a, c, b]);
        let corp = Some(0);
        assert!(health.loops((a, corp)));
        assert_eq!(order(&health, milliseconds(600)), [a, c, b], "all others");
        assert!(health.standing(a).loops);
        let mut of_corp = servers().to_vec();
        health.order(&mut of_corp, corp, now + milliseconds(600));
        assert_eq!(of_corp, [c, b]);
        let a_for_all = (a, None);
        assert!(health.loops(a_for_all) && !health.loops(a_for_all));
        assert_eq!(order(&health, milliseconds(600)), [c, b]);
        assert!(health.passes(a_for_all) && !health.passes(a_for_all));
        assert_eq!(order(&health, milliseconds(600)), [a, c, b]);
    }

    #[test]
    fn upstreams_are_asked_for_circles_every_few_minutes_and_sooner_where_they_did_not_say() {
        let (mut health, [a, b, _], now) = (Health::default(), servers(), clock::now());
        let [a, b] = [a, b].map(|server| (server, None));
        assert!(health.is_to_be_probed(a, now) && health.is_to_be_probed(b, now));
        assert!(!health.is_to_be_probed(a, now + PROBE / 2));
        assert!(health.is_to_be_probed((a.0, Some(0)), now), "of a domain");
        assert!(health.is_to_be_probed(a, now + PROBE));
        health.kept_silent(b, now);
        assert!(!health.is_to_be_probed(b, now + PROBE_AGAIN / 2));
        assert!(health.is_to_be_probed(b, now + PROBE_AGAIN));
        // Who asks whom is another.
        health.loops(a);
        health.forgive();
        assert!(health.is_to_be_probed(a, now) && health.is_to_be_probed(b, now));
        assert!(health.loops(a));
    }

    #[test]
    fn the_time_is_shared_and_who_has_failed_holds_up_the_others_no_longer_than_is_fair() {
        let (mut health, [a, b, _], now) = (Health::default(), servers(), clock::now());
        let left = Duration::from_millis(900);
        assert_eq!(health.share(a, 3, left), left / 3);
        assert_eq!(health.share(a, 1, left), left);
        assert_eq!(health.share(a, 100, left), FAIR);
        assert_eq!(health.share(a, 3, FAIR / 2), FAIR / 2);
        health.heard(b, None, now);
        assert_eq!(health.share(b, 3, left), FAIR);
        assert_eq!(health.share(b, 1, left), left);
    }

    #[test]
    fn silence_says_something_only_after_a_fair_time_through_which_we_went_on() {
        let start = clock::now();
        let short = Duration::from_millis(1);
        assert!(is_fair(start, start + FAIR, start + FAIR + short));
        assert!(!is_fair(start, start + FAIR - short, start + FAIR));
        assert!(!is_fair(start, start + FAIR, start + seconds(2)));
    }
}
