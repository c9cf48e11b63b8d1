//! **Word.** Every metric once: name, type, help, and where it is counted.
//! [`Metrics`] prints as Prometheus text (exposition format 0.0.4).
//!
//! | metric | counted |
//! | --- | --- |
//! | `proconsul_lookups_total{source,freshness,outcome}` | each look-up, by what its caller was given; `source` is `none` for an error |
//! | `proconsul_lookup_duration_seconds{source}` | look-ups that had to ask somebody; what is cached is not timed |
//! | `proconsul_source_errors_total{source,reason}` | each question that a source did not answer |
//! | `proconsul_fallbacks_total{from,to}` | each look-up that a lower rung answered |
//! | `proconsul_stale_served_total` | each stale answer |
//! | `proconsul_source_up{source}` | 1 while at least one address of it is asked |
//! | `proconsul_circuit_transitions_total{source}` | each circuit that opened or closed |
//! | `proconsul_protection_active`, `proconsul_protected_names` | while names are given though a source says that they are gone |
//! | `proconsul_membership_changes_total` | each set that is not what it was, its end and its coming back among them |
//! | `proconsul_cache_entries`, `proconsul_cache_bytes` | what the cache holds |
//! | `proconsul_snapshot_errors_total` | each snapshot that could not be read or written |
//! | `proconsul_breaker_open` | endpoints that failed, and rest or are tried |
//! | `proconsul_watches` | names followed by blocking queries |
//! | `proconsul_followed_empty` | those of them that have no endpoint |
//! | `proconsul_registrations_total`, `proconsul_reregistrations_total` | each time that a service was registered: for the first time, and again because the agent had forgotten it |
//! | `proconsul_cluster_leader` | 1 while Consul's servers have a leader, 0 while they have none; absent where nobody asked them, or nobody knows |
//! | `proconsul_dns_ignored_replies_total` | DNS replies that answered no question of ours |
//! | `proconsul_panics_total` | each panic that was caught, of the whole process: each is a defect, and ended one question or one piece of work |
//! | `proconsul_build_info{version}` | always 1 |
//!
//! A stub has more: `src/stub/tally.rs`, and `src/stub/forward/tally.rs` of upstreams.
//!
//! Names that are asked for are never labels: whoever asks must not decide how many
//! series there are.

use std::{
    fmt::{self, Write as _},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    endpoint::{Freshness, Outcome, Source},
    error::ErrorKind,
};

/// Sources by place, and `none` for an error.
const SOURCES: [&str; 5] = ["dns", "http", "snapshot", "static", "none"];
const NONE: usize = 4;

const FRESHNESS: [&str; 2] = ["fresh", "stale"];

/// What look-ups usually come to, as places in [`SOURCES`], [`FRESHNESS`] and [`OUTCOMES`]. Told
/// from the start: a counter that begins with its first event hides that one from `rate()`.
const USUAL: [(usize, usize, usize); 11] = [
    (0, 0, 0),
    (0, 1, 0),
    (1, 0, 0),
    (1, 1, 0),
    (2, 1, 0),
    (3, 0, 0),
    (NONE, 0, 1),
    (NONE, 0, 2),
    (NONE, 0, 3),
    (NONE, 0, 4),
    (NONE, 0, 5),
];

/// From whom look-ups usually fall to whom, as places in [`SOURCES`].
const FALLS: [(usize, usize); 4] = [(0, 1), (0, 3), (1, 0), (1, 3)];

/// What a caller was given.
const OUTCOMES: [&str; 6] = [
    "found",
    "not_found",
    "denied",
    "unavailable",
    "timeout",
    "invalid",
];

/// Why a source gave no answer.
const REASONS: [Outcome; 8] = [
    Outcome::Refused,
    Outcome::TimedOut,
    Outcome::Denied,
    Outcome::Failed,
    Outcome::Malformed,
    Outcome::Unreachable,
    Outcome::Throttled,
    Outcome::Late,
];

/// Upper bounds of the duration buckets, in seconds: a loopback agent answers in
/// the first, the default time limit is the last.
const BUCKETS: [(f64, &str); 10] = [
    (0.001, "0.001"),
    (0.0025, "0.0025"),
    (0.005, "0.005"),
    (0.01, "0.01"),
    (0.025, "0.025"),
    (0.05, "0.05"),
    (0.1, "0.1"),
    (0.25, "0.25"),
    (0.5, "0.5"),
    (1.0, "1"),
];

/// What was seen of the leader; 0: nothing.
const LEADERLESS: u8 = 1;
const LED: u8 = 2;

/// What is counted as it happens. Hits of the cache are counted by the cache,
/// under the lock that it takes anyway.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    lookups: [[[AtomicU64; 6]; 2]; 5],
    durations: [Histogram; 5],
    errors: [[AtomicU64; 8]; 2],
    fallbacks: [[AtomicU64; 5]; 5],
    membership_changes: AtomicU64,
    /// Whether the servers had one when they were asked last.
    leader: AtomicU8,
    /// For the first time, and again.
    registrations: [AtomicU64; 2],
    /// Replies about names that are not Consul's and answered no question of ours.
    pub(crate) ignored_replies: AtomicU64,
    /// Snapshots that could not be read or written.
    pub(crate) snapshot_errors: AtomicU64,
    /// That are open now. Counted by the endpoints themselves.
    pub(crate) breakers: Arc<AtomicU64>,
}

/// Times, by upper bounds.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; 10],
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        for ((bound, _), bucket) in BUCKETS.iter().zip(&self.buckets) {
            if seconds <= *bound {
                add(bucket);
            }
        }
        add(&self.count);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

fn place(source: Source) -> usize {
    match source {
        Source::Dns => 0,
        Source::Http => 1,
        Source::Snapshot => 2,
        Source::Static => 3,
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    /// A look-up gave a set.
    pub(crate) fn found(&self, source: Source, freshness: Freshness) {
        let stale = usize::from(freshness == Freshness::Stale);
        add(&self.lookups[place(source)][stale][0]);
    }

    /// A set is not what it was, there is none any more, or there is one where there was none.
    pub(crate) fn membership_changed(&self) {
        add(&self.membership_changes);
    }

    /// A stale set was given so often without a look-up each time.
    pub(crate) fn gave_stale(&self, source: Source, times: u32) {
        let given = &self.lookups[place(source)][1][0];
        given.fetch_add(u64::from(times), Ordering::Relaxed);
    }

    /// A look-up gave none.
    pub(crate) fn failed(&self, kind: ErrorKind) {
        let outcome = match kind {
            ErrorKind::NotFound => 1,
            ErrorKind::Denied => 2,
            ErrorKind::Unavailable | ErrorKind::Io => 3,
            ErrorKind::Timeout => 4,
            ErrorKind::Invalid => 5,
        };
        add(&self.lookups[NONE][0][outcome]);
    }

    /// A look-up that had to ask took so long, and this source answered it.
    pub(crate) fn took(&self, source: Option<Source>, time: Duration) {
        self.durations[source.map_or(NONE, place)].observe(time);
    }

    /// A question to a source ended so.
    pub(crate) fn attempted(&self, source: Source, outcome: Outcome) {
        let reason = REASONS.iter().position(|reason| *reason == outcome);
        if let (Some(reason), Some(errors)) = (reason, self.errors.get(place(source))) {
            add(&errors[reason]);
        }
    }

    /// Questions that were not permitted.
    pub(crate) fn denied(&self) -> u64 {
        let denied = REASONS.iter().position(|one| *one == Outcome::Denied);
        let counters = self.errors.iter().filter_map(|by| by.get(denied?));
        counters.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// A service was registered, `again` by us or for the first time.
    pub(crate) fn registered(&self, again: bool) {
        add(&self.registrations[usize::from(again)]);
    }

    /// Look-ups that were not given out of the cache, and those that nobody answered.
    pub(crate) fn lookups(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let all = self.lookups.iter().flatten().flatten().map(load);
        // Denied, unavailable, timed out.
        let bad = self.lookups.iter().flatten().flat_map(|by| &by[2..=4]);
        (all.sum(), bad.map(load).sum())
    }

    /// Look-ups that had to ask, and the nanoseconds that they took.
    pub(crate) fn durations(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let all = self.durations.iter();
        all.map(|one| (load(&one.count), load(&one.nanoseconds)))
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// The servers were asked for their leader. `None`: nobody has said for long.
    pub(crate) fn saw_leader(&self, there: Option<bool>) {
        let seen = there.map_or(0, |there| if there { LED } else { LEADERLESS });
        self.leader.store(seen, Ordering::Relaxed);
    }

    /// Stale answers given.
    pub(crate) fn stale(&self) -> u64 {
        let stale = self.lookups.iter().flat_map(|by| &by[1]);
        stale.map(|counter| counter.load(Ordering::Relaxed)).sum()
    }

    /// One source was asked first, and another answered.
    pub(crate) fn fell(&self, from: Source, to: Source) {
        add(&self.fallbacks[place(from)][place(to)]);
    }
}

/// What only the moment tells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gauges {
    /// Fresh sets given out of the cache, by source.
    pub(crate) hits: [u64; 4],
    /// Sources that are configured: whether they are asked, and how often their
    /// circuits opened or closed.
    pub(crate) sources: Vec<(Source, bool, u64)>,
    pub(crate) protected: usize,
    pub(crate) entries: usize,
    pub(crate) bytes: usize,
    pub(crate) watches: usize,
    /// Followed names without an endpoint.
    pub(crate) empty: usize,
    pub(crate) ignored_replies: u64,
    pub(crate) panics: u64,
}

/// The metrics of one resolver at one moment. Its `Display` is Prometheus text.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One value of one metric at one moment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sample<'a> {
    /// `proconsul_lookups_total`; of a histogram with `_bucket`, `_sum` or `_count`.
    pub name: &'a str,
    /// Keys and values.
    pub labels: Vec<(&'a str, &'a str)>,
    /// The value.
    pub value: f64,
    /// It only grows.
    pub is_counter: bool,
}

impl Metrics {
    /// Each value by itself, for who has another way to tell them.
    pub fn samples(&self) -> impl Iterator<Item = Sample<'_>> {
        let mut is_counter = false;
        self.0.lines().filter_map(move |line| {
            if let Some(head) = line.strip_prefix("# TYPE ") {
                is_counter = !head.ends_with("gauge");
            }
            let (metric, value) = line.rsplit_once(' ')?;
            let (name, labels) = metric.split_once('{').unwrap_or((metric, "}"));
            if name.starts_with('#') {
                return None;
            }
            let labels = labels.trim_end_matches('}').split(',');
            let labels = labels.filter_map(|label| label.split_once('='));
            Some(Sample {
                name,
                labels: labels
                    .map(|(key, value)| (key, value.trim_matches('"')))
                    .collect(),
                value: value.parse().ok()?,
                is_counter,
            })
        })
    }

    /// Hands all values to the recorder that this process has installed for the facade
    /// `metrics`: call it before each of its exports, or every few seconds. Without a
    /// recorder it does nothing. Histograms are told as counters, as Prometheus has them.
    #[cfg(feature = "metrics")]
    pub fn publish(&self) {
        for sample in self.samples() {
            let labels = sample.labels.iter();
            let labels =
                labels.map(|(key, value)| metrics::Label::new(key.to_string(), value.to_string()));
            let labels: Vec<_> = labels.collect();
            let name = sample.name.to_owned();
            if sample.is_counter && !name.ends_with("_sum") {
                metrics::counter!(name, labels).absolute(sample.value as u64);
            } else {
                metrics::gauge!(name, labels).set(sample.value);
            }
        }
    }

    pub(crate) fn new(counters: &Counters, gauges: &Gauges) -> Self {
        let mut text = Text::default();
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);

        text.head("lookups_total", "counter", "Look-ups, by what was given.");
        let mut stale = 0;
        for (at, source) in SOURCES.iter().enumerate() {
            for (is_stale, freshness) in FRESHNESS.iter().enumerate() {
                for (outcome, word) in OUTCOMES.iter().enumerate() {
                    let mut count = load(&counters.lookups[at][is_stale][outcome]);
                    if (is_stale, outcome) == (0, 0) {
                        count += gauges.hits.get(at).copied().unwrap_or_default();
                    }
                    stale += count * is_stale as u64;
                    if count > 0 || USUAL.contains(&(at, is_stale, outcome)) {
                        let labels = format!(
                            "{{source=\"{source}\",freshness=\"{freshness}\",outcome=\"{word}\"}}"
                        );
                        text.sample("lookups_total", &labels, count);
                    }
                }
            }
        }
        text.head("stale_served_total", "counter", "Stale answers given.");
        text.sample("stale_served_total", "", stale);

        let help = "Time of look-ups that had to ask a source.";
        text.head("lookup_duration_seconds", "histogram", help);
        for (source, durations) in SOURCES.iter().zip(&counters.durations) {
            let label = format!("source=\"{source}\"");
            text.histogram("lookup_duration_seconds", &label, durations, 0);
        }

        text.head(
            "source_up",
            "gauge",
            "1 while the source is asked, 0 while it is left alone.",
        );
        for (source, up, _) in &gauges.sources {
            let labels = format!("{{source=\"{source}\"}}");
            text.sample("source_up", &labels, u8::from(*up));
        }
        text.head(
            "circuit_transitions_total",
            "counter",
            "Circuits that opened or closed.",
        );
        for (source, _, transitions) in &gauges.sources {
            let labels = format!("{{source=\"{source}\"}}");
            text.sample("circuit_transitions_total", &labels, transitions);
        }
        text.head(
            "source_errors_total",
            "counter",
            "Questions that a source did not answer.",
        );
        for (source, errors) in SOURCES.iter().zip(&counters.errors) {
            for (reason, count) in REASONS.iter().zip(errors) {
                let labels = format!("{{source=\"{source}\",reason=\"{reason}\"}}");
                text.sample("source_errors_total", &labels, load(count));
            }
        }
        text.head(
            "fallbacks_total",
            "counter",
            "Look-ups that a lower rung answered.",
        );
        for (at, from) in SOURCES.iter().enumerate() {
            for (place, to) in SOURCES.iter().enumerate() {
                let count = load(&counters.fallbacks[at][place]);
                if count > 0 || FALLS.contains(&(at, place)) {
                    let labels = format!("{{from=\"{from}\",to=\"{to}\"}}");
                    text.sample("fallbacks_total", &labels, count);
                }
            }
        }
        let protected = gauges.protected;
        for (name, kind, help, value) in [
            (
                "protection_active",
                "gauge",
                "1 while names are given though a source says that they are gone.",
                u64::from(protected > 0),
            ),
            ("protected_names", "gauge", "Those names.", protected as u64),
            (
                "membership_changes_total",
                "counter",
                "Sets that were not what they had been, gone or there again.",
                load(&counters.membership_changes),
            ),
            (
                "followed_empty",
                "gauge",
                "Names that are followed and have no endpoint.",
                gauges.empty as u64,
            ),
            (
                "snapshot_errors_total",
                "counter",
                "Snapshots that could not be read or written.",
                load(&counters.snapshot_errors),
            ),
            (
                "registrations_total",
                "counter",
                "Services that were registered.",
                load(&counters.registrations[0]),
            ),
            (
                "reregistrations_total",
                "counter",
                "Services that an agent had forgotten, and was told of again.",
                load(&counters.registrations[1]),
            ),
            (
                "breaker_open",
                "gauge",
                "Endpoints that failed, and rest or are tried.",
                load(&counters.breakers),
            ),
            (
                "cache_entries",
                "gauge",
                "Names in the cache.",
                gauges.entries as u64,
            ),
            (
                "cache_bytes",
                "gauge",
                "Bytes that they use, reckoned.",
                gauges.bytes as u64,
            ),
            (
                "watches",
                "gauge",
                "Names followed by blocking queries.",
                gauges.watches as u64,
            ),
            (
                "dns_ignored_replies_total",
                "counter",
                "DNS replies that answered no question of ours.",
                gauges.ignored_replies + load(&counters.ignored_replies),
            ),
            (
                "panics_total",
                "counter",
                "Panics that were caught: each is a defect of proconsul.",
                gauges.panics,
            ),
        ] {
            text.head(name, kind, help);
            text.sample(name, "", value);
        }
        text.head(
            "cluster_leader",
            "gauge",
            "1 while Consul's servers have a leader, 0 while they have none.",
        );
        match counters.leader.load(Ordering::Relaxed) {
            LED => text.sample("cluster_leader", "", 1),
            LEADERLESS => text.sample("cluster_leader", "", 0),
            _ => {}
        }
        text.head("build_info", "gauge", "The version that runs.");
        let labels = concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
        text.sample("build_info", labels, 1);
        Self(text.0)
    }
}

/// Text in the making. Writing to a `String` cannot fail.
#[derive(Default)]
pub(crate) struct Text(pub(crate) String);

impl Text {
    pub(crate) fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP proconsul_{name} {help}");
        let _ = writeln!(self.0, "# TYPE proconsul_{name} {kind}");
    }

    pub(crate) fn sample(&mut self, name: &str, labels: &str, value: impl fmt::Display) {
        let _ = writeln!(self.0, "proconsul_{name}{labels} {value}");
    }

    /// A histogram under one label, or under none. `quick`: so many more that took next
    /// to no time.
    pub(crate) fn histogram(&mut self, name: &str, label: &str, times: &Histogram, quick: u64) {
        let load = |counter: &AtomicU64| quick + counter.load(Ordering::Relaxed);
        let comma = if label.is_empty() { "" } else { "," };
        let bucket = format!("{name}_bucket");
        for ((_, bound), counter) in BUCKETS.iter().zip(&times.buckets) {
            let labels = format!("{{{label}{comma}le=\"{bound}\"}}");
            self.sample(&bucket, &labels, load(counter));
        }
        let labels = format!("{{{label}{comma}le=\"+Inf\"}}");
        self.sample(&bucket, &labels, load(&times.count));
        let labels = match label {
            "" => String::new(),
            label => format!("{{{label}}}"),
        };
        let nanoseconds = times.nanoseconds.load(Ordering::Relaxed);
        let sum = Duration::from_nanos(nanoseconds).as_secs_f64();
        self.sample(&format!("{name}_sum"), &labels, sum);
        self.sample(&format!("{name}_count"), &labels, load(&times.count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_has_a_sample_before_anything_is_counted_and_no_more_than_can_come() {
        let metrics = Metrics::new(&Counters::default(), &Gauges::default());
        let count = |name: &str| metrics.samples().filter(|one| one.name == name).count();
        assert_eq!(count("proconsul_lookups_total"), USUAL.len());
        assert_eq!(count("proconsul_fallbacks_total"), FALLS.len());
        let timed = count("proconsul_lookup_duration_seconds_count");
        assert_eq!(timed, SOURCES.len());
        let counters = |one: &Sample<'_>| one.is_counter && one.value != 0.0;
        assert!(!metrics.samples().any(|one| counters(&one)), "{metrics}");
    }

    #[test]
    fn what_is_counted_is_printed_once_and_under_its_own_name() {
        let counters = Counters::default();
        counters.found(Source::Http, Freshness::Stale);
        counters.failed(ErrorKind::NotFound);
        counters.took(Some(Source::Dns), Duration::from_millis(2));
        counters.attempted(Source::Dns, Outcome::Refused);
        counters.fell(Source::Dns, Source::Http);
        let gauges = Gauges {
            hits: [5, 0, 0, 0],
            sources: vec![(Source::Dns, false, 3)],
            protected: 2,
            ..Gauges::default()
        };
        let text = Metrics::new(&counters, &gauges).to_string();
        let metrics = Metrics::new(&counters, &gauges);
        let sample = metrics
            .samples()
            .find(|one| one.name == "proconsul_lookups_total");
        let wanted = Sample {
            name: "proconsul_lookups_total",
            labels: vec![
                ("source", "dns"),
                ("freshness", "fresh"),
                ("outcome", "found"),
            ],
            value: 5.0,
            is_counter: true,
        };
        assert_eq!(sample, Some(wanted));
        assert!(
            metrics
                .samples()
                .any(|one| one.name == "proconsul_source_up" && !one.is_counter)
        );
        for line in [
            "proconsul_lookups_total{source=\"dns\",freshness=\"fresh\",outcome=\"found\"} 5",
            "proconsul_lookups_total{source=\"http\",freshness=\"stale\",outcome=\"found\"} 1",
            "proconsul_lookups_total{source=\"none\",freshness=\"fresh\",outcome=\"not_found\"} 1",
            "proconsul_stale_served_total 1",
            "proconsul_lookup_duration_seconds_bucket{source=\"dns\",le=\"0.001\"} 0",
            "proconsul_lookup_duration_seconds_bucket{source=\"dns\",le=\"0.0025\"} 1",
            "proconsul_lookup_duration_seconds_bucket{source=\"dns\",le=\"+Inf\"} 1",
            "proconsul_source_up{source=\"dns\"} 0",
            "proconsul_circuit_transitions_total{source=\"dns\"} 3",
            "proconsul_source_errors_total{source=\"dns\",reason=\"refused\"} 1",
            "proconsul_fallbacks_total{from=\"dns\",to=\"http\"} 1",
            "proconsul_protection_active 1",
            "proconsul_protected_names 2",
        ] {
            let times = text.lines().filter(|own| *own == line).count();
            assert_eq!(times, 1, "{line}\n{text}");
        }
        let heads = text.lines().filter(|line| line.starts_with("# TYPE"));
        let mut names: Vec<_> = heads.collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
