//! **Shell.** What a stub has answered. Each thread of the fast lane writes its own
//! numbers and shares them with nobody; who asks for the sum reads all.
//!
//! | metric | counted |
//! | --- | --- |
//! | `proconsul_dns_queries_total{transport,rcode}` | each question that was answered |
//! | `proconsul_dns_query_duration_seconds` | the same; what is known takes microseconds and counts in the lowest bucket |
//! | `proconsul_dns_remembered_total` | those that were answered from memory |
//! | `proconsul_dns_malformed_total{reason}` | packets that are no question: `formerr` was answered so by us, `dropped` not at all |
//! | `proconsul_dns_shed_total` | datagrams that nobody had time for |
//! | `proconsul_dns_turned_away_total` | questions for names that nothing is known of, above what may be asked for a second |
//! | `proconsul_dns_shortcuts`, `proconsul_dns_shortcut_bytes` | replies kept, and their bytes |
//!
//! Upstreams have metrics of their own: `forward/tally.rs`.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::forward::{Forwarder, Lasting};
use crate::{
    clock,
    endpoint::Transport,
    metrics::{Histogram, Text},
    records::wire,
};

/// Response codes that fit a header, and the one of EDNS that we answer (RFC 6895, section 2.3).
const CODES: [&str; 17] = [
    "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET",
    "NXRRSET", "NOTAUTH", "NOTZONE", "11", "12", "13", "14", "15", "BADVERS",
];

const FORMERR: usize = 1;

/// What those are told that nobody has time for.
const SERVFAIL: usize = 2;

/// Told from the start: a counter that begins with its first event hides that one from `rate()`.
const USUAL: [usize; 7] = [0, FORMERR, SERVFAIL, 3, 4, 5, 16];

const TRANSPORTS: [&str; 2] = ["udp", "tcp"];

type ByCode = [AtomicU64; CODES.len()];

/// Written by one thread. Aligned so that two threads never write one line of the
/// processor's cache.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Tally {
    /// Replies from memory, by response code.
    gave: ByCode,
    /// Datagrams that nobody had time for, and were told so.
    shed: AtomicU64,
    names: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    /// A reply went out. `flags`: the fourth byte of its header.
    pub(crate) fn gave(&self, flags: u8) {
        count(&self.gave[usize::from(flags & 0x0F)]);
    }

    /// Nobody had time for a datagram, and that was told.
    pub(crate) fn shed(&self) {
        count(&self.shed);
    }

    /// Replies kept, and their bytes.
    pub(crate) fn holds(&self, (names, bytes): (usize, usize)) {
        let wide = |number| u64::try_from(number).unwrap_or(u64::MAX);
        self.names.store(wide(names), Ordering::Relaxed);
        self.bytes.store(wide(bytes), Ordering::Relaxed);
    }
}

/// There is one writer: nothing is lost between the two.
fn count(counter: &AtomicU64) {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before.wrapping_add(1), Ordering::Relaxed);
}

/// All that a stub counts.
#[derive(Debug)]
pub(super) struct Counted {
    since: Instant,
    lanes: Mutex<Vec<Arc<Tally>>>,
    /// By transport: answers that took more than a look into memory, and those from
    /// memory that go through no thread of the fast lane.
    slow: [ByCode; 2],
    remembered: [ByCode; 2],
    durations: Histogram,
    malformed: AtomicU64,
    dropped: AtomicU64,
    shed: AtomicU64,
    turned_away: AtomicU64,
    /// Of other names, and who is asked for them now.
    pub(super) lasting: Arc<Lasting>,
    forwarder: Mutex<Weak<Forwarder>>,
}

impl Counted {
    pub(super) fn new(since: Instant) -> Self {
        Self {
            since,
            lanes: Mutex::default(),
            slow: Default::default(),
            remembered: Default::default(),
            durations: Histogram::default(),
            malformed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            shed: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            lasting: Arc::new(Lasting::new(since)),
            forwarder: Mutex::default(),
        }
    }

    /// From now on others are asked by this one.
    pub(super) fn forwards_by(&self, forwarder: Option<&Arc<Forwarder>>) {
        let mut known = self
            .forwarder
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *known = forwarder.map_or_else(Weak::new, Arc::downgrade);
    }

    /// Numbers for one more thread.
    #[cfg(target_os = "linux")]
    pub(super) fn lane(&self) -> Arc<Tally> {
        let tally = Arc::new(Tally::default());
        self.lanes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&tally));
        tally
    }

    /// A reply that was made.
    pub(super) fn answered(&self, reply: &[u8], transport: Transport, took: Duration) {
        if let Some(counter) = code(reply).and_then(|code| of(&self.slow, code, transport)) {
            counter.fetch_add(1, Ordering::Relaxed);
            self.durations.observe(took);
        }
    }

    /// A packet was refused as it stood: nobody was asked, whose word the reply could be.
    pub(super) fn judged(&self, refusal: &[u8]) {
        if low(refusal) == Some(FORMERR) {
            self.malformed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A reply that was remembered. For who holds the memory of those: nobody else writes.
    pub(super) fn remembered(&self, reply: &[u8], transport: Transport) {
        if let Some(counter) = low(reply).and_then(|code| of(&self.remembered, code, transport)) {
            count(counter);
        }
    }

    /// A packet that got no reply.
    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// A datagram that nobody had time for, and was told so.
    pub(super) fn shed(&self) {
        self.shed.fetch_add(1, Ordering::Relaxed);
    }

    /// Somebody asked for one name too many that nothing is known of.
    pub(super) fn turned_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    fn sum(&self) -> Sum {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut sum = Sum {
            malformed: load(&self.malformed),
            dropped: load(&self.dropped),
            shed: load(&self.shed),
            turned_away: load(&self.turned_away),
            ..Sum::default()
        };
        for transport in 0..TRANSPORTS.len() {
            for code in 0..CODES.len() {
                let fast = load(&self.remembered[transport][code]);
                sum.remembered += fast;
                sum.queries[transport][code] += fast + load(&self.slow[transport][code]);
            }
        }
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        for tally in lanes.iter() {
            for (code, gave) in tally.gave.iter().enumerate() {
                sum.queries[0][code] += load(gave);
                sum.remembered += load(gave);
            }
            sum.shed += load(&tally.shed);
            sum.names += load(&tally.names);
            sum.bytes += load(&tally.bytes);
        }
        sum.queries[0][SERVFAIL] += sum.shed;
        sum
    }
}

fn of(counters: &[ByCode; 2], code: usize, transport: Transport) -> Option<&AtomicU64> {
    counters[usize::from(transport != Transport::Udp)].get(code)
}

/// The response code in the header of a reply.
fn low(reply: &[u8]) -> Option<usize> {
    Some(usize::from(reply.get(3)? & 0x0F))
}

/// The whole response code, whose upper bits are in the OPT record (RFC 6891, section 6.1.3). A
/// reply with a record to tell has none of those codes, and is not looked through.
fn code(reply: &[u8]) -> Option<usize> {
    let low = low(reply)?;
    let records = reply.get(6..10)?;
    let upper = || reply.get(wire::shape(reply)?.size_at? + 2);
    let upper = (records == [0; 4]).then(upper).flatten();
    let whole = low | usize::from(upper.copied().unwrap_or_default()) << 4;
    Some(if whole < CODES.len() { whole } else { low })
}

#[derive(Default)]
struct Sum {
    queries: [[u64; CODES.len()]; 2],
    remembered: u64,
    shed: u64,
    turned_away: u64,
    malformed: u64,
    dropped: u64,
    names: u64,
    bytes: u64,
}

/// What a stub has answered so far: a handle that is cheap to clone. Its `Display` is
/// Prometheus text.
#[derive(Clone, Debug)]
pub struct Traffic(pub(super) Arc<Counted>);

impl Traffic {
    /// Questions answered, over UDP and TCP.
    pub fn queries(&self) -> u64 {
        self.0.sum().queries.iter().flatten().sum()
    }

    /// Time since the stub was made.
    pub fn uptime(&self) -> Duration {
        clock::now().saturating_duration_since(self.0.since)
    }

    /// Those of them that were answered from memory.
    pub fn remembered(&self) -> u64 {
        self.0.sum().remembered
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = self.0.sum();
        let mut text = Text::default();
        text.head("dns_queries_total", "counter", "Questions answered.");
        for (transport, codes) in TRANSPORTS.iter().zip(sum.queries) {
            for (at, (code, count)) in CODES.iter().zip(codes).enumerate() {
                if count > 0 || USUAL.contains(&at) {
                    let labels = format!("{{transport=\"{transport}\",rcode=\"{code}\"}}");
                    text.sample("dns_queries_total", &labels, count);
                }
            }
        }
        let help = "Time until a question was answered.";
        text.head("dns_query_duration_seconds", "histogram", help);
        text.histogram(
            "dns_query_duration_seconds",
            "",
            &self.0.durations,
            sum.remembered,
        );
        let help = "Packets that are no question.";
        text.head("dns_malformed_total", "counter", help);
        let labels = "{reason=\"formerr\"}";
        text.sample("dns_malformed_total", labels, sum.malformed);
        text.sample("dns_malformed_total", "{reason=\"dropped\"}", sum.dropped);
        for (name, kind, help, value) in [
            (
                "dns_remembered_total",
                "counter",
                "Questions answered from memory.",
                sum.remembered,
            ),
            (
                "dns_shed_total",
                "counter",
                "Datagrams that nobody had time for.",
                sum.shed,
            ),
            (
                "dns_turned_away_total",
                "counter",
                "Questions for names that nothing is known of, above what may be asked for a second.",
                sum.turned_away,
            ),
            ("dns_shortcuts", "gauge", "Replies kept encoded.", sum.names),
            (
                "dns_shortcut_bytes",
                "gauge",
                "Bytes that they use, reckoned.",
                sum.bytes,
            ),
        ] {
            text.head(name, kind, help);
            text.sample(name, "", value);
        }
        let forwarder = self.0.forwarder.lock();
        let forwarder = forwarder.unwrap_or_else(PoisonError::into_inner).upgrade();
        let standings = forwarder.map(|forwarder| forwarder.standings());
        let tally = &self.0.lasting.tally;
        tally.write(&standings.unwrap_or_default(), &mut text);
        f.write_str(&text.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(counted: Counted) -> String {
        Traffic(Arc::new(counted)).to_string()
    }

    #[test]
    fn what_is_usual_is_told_before_it_happens() {
        let text = told(Counted::new(clock::now()));
        let queries = text.matches("\nproconsul_dns_queries_total{").count();
        assert_eq!(queries, TRANSPORTS.len() * USUAL.len(), "{text}");
        assert!(text.contains("{transport=\"tcp\",rcode=\"BADVERS\"} 0\n"));
    }

    #[test]
    fn a_code_is_read_whole_and_malformed_is_only_what_was_judged_so() {
        let counted = Counted::new(clock::now());
        // The root A, and an OPT record with the upper bits 1.
        let badvers = b"\0\0\x80\0\0\x01\0\0\0\0\0\x01\0\0\x01\0\x01\0\0\x29\x04\xd0\x01\0\0\0\0\0";
        let formerr = b"\0\0\x80\x01\0\0\0\0\0\0\0\0";
        counted.judged(badvers);
        counted.answered(badvers, Transport::Udp, Duration::ZERO);
        // An upstream's word, then ours.
        counted.answered(formerr, Transport::Udp, Duration::ZERO);
        counted.judged(formerr);
        counted.answered(formerr, Transport::Udp, Duration::ZERO);
        let text = told(counted);
        for line in [
            "proconsul_dns_queries_total{transport=\"udp\",rcode=\"BADVERS\"} 1",
            "proconsul_dns_queries_total{transport=\"udp\",rcode=\"NOERROR\"} 0",
            "proconsul_dns_queries_total{transport=\"udp\",rcode=\"FORMERR\"} 2",
            "proconsul_dns_malformed_total{reason=\"formerr\"} 1",
        ] {
            assert!(text.lines().any(|own| own == line), "{line}\n{text}");
        }
    }
}
