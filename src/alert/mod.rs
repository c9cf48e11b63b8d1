//! **Door.** [`Alerts`]: what is wrong for long enough that somebody has to know, told when it
//! begins and when it is over. When that is, is [`judge`]'s to say.

mod judge;

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use self::judge::{Counted, Judge, WINDOW, Window};
use crate::{
    clock,
    endpoint::Source,
    error::Error,
    resolver::{Resolver, Service},
    task::{Owned, runtime},
};

/// Rules are looked at this often.
const LOOK: Duration = Duration::from_secs(1);

/// The servers are asked for their leader this often.
const ASK: Duration = Duration::from_secs(10);

/// So often the servers' leader may be asked for in vain before what was known is over.
const UNHEARD: u32 = 2;

/// Refusals that say something of our rights: one or two may be about an odd name.
const REFUSALS: u64 = 3;

/// Alerts that wait to be read; those that nobody reads are lost, what is raised stays.
const QUEUE: usize = 256;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// Worth a look.
    Info,
    /// Something is worse than it should be.
    Warning,
    /// Something does not work.
    Critical,
}

impl Severity {
    /// `info`, `warning`, `critical`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is to hold, and how bad it is where it does not.
///
/// Shares and averages are over the last 30 s, and say nothing of fewer than five calls.
#[derive(Clone, Debug)]
pub struct AlertRule {
    condition: Condition,
    severity: Severity,
    lasts: Duration,
}

#[derive(Clone, Debug)]
enum Condition {
    Down(Service),
    CallLatency(Service, Duration),
    CallErrors(Service, f64),
    LookupLatency(Duration),
    LookupErrors(f64),
    Stale(f64),
    Protection,
    Denied,
    SourceDown(Source),
    NoSource,
    NoLeader,
}

impl AlertRule {
    fn new(condition: Condition, severity: Severity) -> Self {
        Self {
            condition,
            severity,
            lasts: Duration::from_secs(5),
        }
    }

    /// A service has an endpoint to pick. Critical.
    pub fn service_down(service: &Service) -> Self {
        Self::new(Condition::Down(service.clone()), Severity::Critical)
    }

    /// Calls of a service ([`Service::call`], [`HttpClient`](crate::HttpClient), gRPC), their
    /// repeats included, take this long on average at most. Warning.
    pub fn latency_above(service: &Service, most: Duration) -> Self {
        Self::new(
            Condition::CallLatency(service.clone(), most),
            Severity::Warning,
        )
    }

    /// At most this share of the same calls, between 0 and 1, fails for good. Warning.
    pub fn error_rate_above(service: &Service, most: f64) -> Self {
        Self::new(
            Condition::CallErrors(service.clone(), most),
            Severity::Warning,
        )
    }

    /// Look-ups that have to ask take this long on average at most. Warning.
    pub fn lookup_latency_above(most: Duration) -> Self {
        Self::new(Condition::LookupLatency(most), Severity::Warning)
    }

    /// At most this share of the look-ups, between 0 and 1, gets no answer. Warning.
    pub fn lookup_error_rate_above(most: f64) -> Self {
        Self::new(Condition::LookupErrors(most), Severity::Warning)
    }

    /// At most this share of the look-ups, between 0 and 1, is answered by what was known
    /// before. Warning.
    pub fn stale_ratio_above(most: f64) -> Self {
        Self::new(Condition::Stale(most), Severity::Warning)
    }

    /// Nothing is given that a source says is gone ([`Protection`](crate::Protection)).
    /// Warning.
    pub fn protection() -> Self {
        Self::new(Condition::Protection, Severity::Warning)
    }

    /// Consul permits what it is asked: no more than two questions of the last 30 s were
    /// refused for want of rights. Warning.
    pub fn denied() -> Self {
        Self::new(Condition::Denied, Severity::Warning)
    }

    /// This source is asked: it is not left alone because none of its addresses answers. Holds
    /// where the source is not configured. Warning.
    pub fn source_down(source: Source) -> Self {
        Self::new(Condition::SourceDown(source), Severity::Warning)
    }

    /// A source answers. Critical.
    pub fn no_source() -> Self {
        Self::new(Condition::NoSource, Severity::Critical)
    }

    /// Consul's servers have a leader; they are asked every 10 s. Critical.
    pub fn no_leader() -> Self {
        Self::new(Condition::NoLeader, Severity::Critical)
    }

    /// Those that need to be told nothing: each source, any source, a leader, rights,
    /// protection, at most a tenth of the look-ups stale and a twentieth without an answer.
    pub fn usual() -> Vec<Self> {
        vec![
            Self::source_down(Source::Dns),
            Self::source_down(Source::Http),
            Self::denied(),
            Self::no_source(),
            Self::no_leader(),
            Self::protection(),
            Self::stale_ratio_above(0.1),
            Self::lookup_error_rate_above(0.05),
        ]
    }

    /// Another severity.
    #[must_use]
    pub fn severity(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    /// It is told when it has not held for so long, and again when it has held for so long.
    /// Default: 5 s; zero: at once.
    #[must_use]
    pub fn lasting(mut self, time: Duration) -> Self {
        self.lasts = time;
        self
    }
}

/// Something that does not hold, or holds again.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Alert {
    /// The rule: `service_down`, `latency`, `error_rate`, `lookup_latency`,
    /// `lookup_error_rate`, `stale_ratio`, `protection`, `denied`, `source_down`, `no_source`,
    /// `no_leader`.
    pub rule: &'static str,
    /// The service or the source that it is about; empty where it is about none.
    pub about: Box<str>,
    /// How bad it is.
    pub severity: Severity,
    /// True: it is so now; false: it is over.
    pub raised: bool,
    /// In words, with the figure that was seen.
    pub text: Box<str>,
}

impl fmt::Display for Alert {
    /// `critical service_down web.service.consul.: it has no endpoint to pick`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = if self.raised { "" } else { "over: " };
        write!(f, "{over}{} {}", self.severity, self.rule)?;
        if !self.about.is_empty() {
            write!(f, " {}", self.about)?;
        }
        write!(f, ": {}", self.text)
    }
}

/// Alerts as they come; made by [`Resolver::alerts`]. A [`Stream`] that does not end.
///
/// At most 256 wait to be read, later ones are lost; [`active`](Self::active) always tells
/// what is so now.
#[must_use = "alerts are told to whoever asks for the next one"]
pub struct Alerts {
    told: mpsc::Receiver<Alert>,
    active: Active,
    _task: Owned,
}

/// What is raised now. A std mutex: held for a look.
#[derive(Clone, Debug, Default)]
struct Active(Arc<Mutex<Vec<Alert>>>);

impl Active {
    fn all(&self) -> MutexGuard<'_, Vec<Alert>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, alert: &Alert) {
        let mut all = self.all();
        all.retain(|one| (one.rule, &one.about) != (alert.rule, &alert.about));
        if alert.raised {
            all.push(alert.clone());
        }
    }
}

impl Resolver {
    /// Looks at these rules once a second, for as long as the handle lives.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use proconsul::{AlertRule, Resolver};
    ///
    /// # async fn example() -> Result<(), proconsul::Error> {
    /// let resolver = Resolver::from_env()?;
    /// let web = resolver.service("web")?;
    /// let mut rules = AlertRule::usual();
    /// rules.push(AlertRule::service_down(&web));
    /// rules.push(AlertRule::latency_above(&web, Duration::from_millis(500)));
    /// let mut alerts = resolver.alerts(rules)?;
    /// loop {
    ///     println!("{}", alerts.next().await);
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) outside a tokio runtime.
    pub fn alerts(&self, rules: impl IntoIterator<Item = AlertRule>) -> Result<Alerts, Error> {
        let runtime = runtime("alerts are looked for")?;
        let (tell, told) = mpsc::channel(QUEUE);
        let active = Active::default();
        let watched: Vec<_> = rules.into_iter().map(Watched::new).collect();
        let task = runtime.spawn(look(self.clone(), watched, active.clone(), tell));
        Ok(Alerts {
            told,
            active,
            _task: Owned(task.abort_handle()),
        })
    }
}

impl Alerts {
    /// The next one.
    ///
    /// # Cancel safety
    ///
    /// Safe: none is lost.
    pub async fn next(&mut self) -> Alert {
        match self.told.recv().await {
            Some(alert) => alert,
            // Its runtime has ended.
            None => std::future::pending().await,
        }
    }

    /// What is raised now.
    pub fn active(&self) -> Vec<Alert> {
        self.active.all().clone()
    }
}

impl Stream for Alerts {
    type Item = Alert;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Alert>> {
        self.get_mut().told.poll_recv(context)
    }
}

impl fmt::Debug for Alerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let active = self.active();
        f.debug_struct("Alerts")
            .field("active", &active)
            .finish_non_exhaustive()
    }
}

/// A rule, and what was seen of it.
struct Watched {
    rule: AlertRule,
    judge: Judge,
    window: Window,
}

impl Watched {
    fn new(rule: AlertRule) -> Self {
        Self {
            judge: Judge::new(rule.lasts),
            window: Window::default(),
            rule,
        }
    }

    fn name(&self) -> (&'static str, Box<str>) {
        let about = |service: &Service| service.fqdn().into();
        match &self.rule.condition {
            Condition::Down(service) => ("service_down", about(service)),
            Condition::CallLatency(service, _) => ("latency", about(service)),
            Condition::CallErrors(service, _) => ("error_rate", about(service)),
            Condition::LookupLatency(_) => ("lookup_latency", Box::default()),
            Condition::LookupErrors(_) => ("lookup_error_rate", Box::default()),
            Condition::Stale(_) => ("stale_ratio", Box::default()),
            Condition::Protection => ("protection", Box::default()),
            Condition::Denied => ("denied", Box::default()),
            Condition::SourceDown(source) => ("source_down", source.as_str().into()),
            Condition::NoSource => ("no_source", Box::default()),
            Condition::NoLeader => ("no_leader", Box::default()),
        }
    }

    /// Whether it is broken now, if that is known, and in words.
    fn see(&mut self, resolver: &Resolver, leader: Option<bool>, now: Instant) -> Seen {
        let now = now.into_std();
        let mut grown = |counted| self.window.take(counted, now);
        match &self.rule.condition {
            Condition::Down(service) => {
                let there = service.pool().there();
                let broken = there.map(|endpoints| endpoints == 0);
                let text = match broken {
                    Some(true) => service.pool().why_empty().to_string(),
                    _ => format!("{} endpoints", there.unwrap_or_default()),
                };
                Seen { broken, text }
            }
            Condition::CallLatency(service, most) => {
                mean("a call takes", grown(service.pool().calls.counted()), *most)
            }
            Condition::CallErrors(service, most) => {
                share("calls fail", grown(service.pool().calls.counted()), *most)
            }
            Condition::LookupLatency(most) => {
                mean("a look-up takes", grown(resolver.counters().asked()), *most)
            }
            Condition::LookupErrors(most) => {
                share("look-ups get no answer", grown(resolver.looked_up()), *most)
            }
            Condition::Stale(most) => {
                let stale = Counted {
                    bad: resolver.counters().stale(),
                    ..resolver.looked_up()
                };
                share(
                    "look-ups are answered by what was known before",
                    grown(stale),
                    *most,
                )
            }
            Condition::Protection => {
                let count = resolver.status().protected;
                Seen {
                    broken: Some(count > 0),
                    text: format!("{count} names are given though a source says they are gone"),
                }
            }
            Condition::Denied => {
                let denied = grown(resolver.counters().refused()).bad;
                Seen {
                    broken: Some(denied >= REFUSALS),
                    text: format!(
                        "{denied} questions of the last {WINDOW:?} were not permitted: give a \
                         token that may read service and node"
                    ),
                }
            }
            Condition::SourceDown(source) => {
                let sources = resolver.status().sources;
                let seen = sources.iter().find(|one| one.source == *source);
                let addresses = seen.iter().flat_map(|one| &one.addresses);
                let addresses: Vec<&str> = addresses.map(|(address, _)| &**address).collect();
                let addresses = addresses.join(", ");
                Seen {
                    broken: seen.map(|one| !one.up),
                    text: match seen {
                        Some(one) if one.up => format!("asked again at {addresses}"),
                        _ => format!("left alone until {addresses} answers a probe"),
                    },
                }
            }
            Condition::NoSource => {
                let status = resolver.status();
                let (answers, sources) = (status.has_source(), status.sources);
                let up = sources.iter().filter(|source| source.up).count();
                let mut text = format!("{up} of {} sources are asked", sources.len());
                if up > 0 && !answers {
                    text.push_str(", and the last question was not answered");
                }
                Seen {
                    broken: (!sources.is_empty()).then_some(!answers),
                    text,
                }
            }
            Condition::NoLeader => Seen {
                broken: Some(leader == Some(false)),
                text: match leader {
                    Some(true) => "the servers have a leader",
                    None => "nobody says any more whether the servers have a leader",
                    Some(false) => "the servers have no leader: nothing can be changed",
                }
                .to_owned(),
            },
        }
    }
}

/// What a look saw.
struct Seen {
    broken: Option<bool>,
    text: String,
}

fn mean(what: &str, grown: Counted, most: Duration) -> Seen {
    let mean = grown.mean();
    Seen {
        // Without calls none is slow.
        broken: Some(mean.is_some_and(|mean| mean > most)),
        text: match mean {
            Some(mean) => format!("{what} {mean:.1?} on average, {most:?} are wished"),
            None => "too few to say".to_owned(),
        },
    }
}

fn share(what: &str, grown: Counted, most: f64) -> Seen {
    let share = grown.share();
    Seen {
        broken: Some(share.is_some_and(|share| share > most)),
        text: match share {
            Some(share) => format!("{:.1} % of {} {what}", share * 100.0, grown.all),
            None => "too few to say".to_owned(),
        },
    }
}

/// Looks at all rules once a second, for ever.
async fn look(
    resolver: Resolver,
    mut watched: Vec<Watched>,
    active: Active,
    tell: mpsc::Sender<Alert>,
) {
    let asks = watched
        .iter()
        .any(|one| matches!(one.rule.condition, Condition::NoLeader));
    let is_of_sources =
        |condition: &Condition| matches!(condition, Condition::NoSource | Condition::SourceDown(_));
    let sources = watched.iter().any(|one| is_of_sources(&one.rule.condition));
    let (mut leader, mut asked, mut unheard) = (None, None::<Instant>, 0_u32);
    let mut looking = None::<Owned>;
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Instant::from_std(clock::monotonic());
        if asks && asked.is_none_or(|asked| now.saturating_duration_since(asked) >= ASK) {
            asked = Some(now);
            // An agent that does not answer, or not soon, says nothing of the servers; what it
            // said before is soon over.
            let told = timeout(LOOK, resolver.has_leader()).await;
            let told = told.ok().and_then(Result::ok);
            unheard = told.map_or(unheard + 1, |_| 0);
            if told.is_some() || unheard > UNHEARD {
                leader = told;
                resolver.counters().saw_leader(told);
            }
        }
        let is_looking = (looking.as_ref()).is_some_and(|looking| !looking.0.is_finished());
        // Where nobody asks, nobody probes either, and what is well again is not found so.
        let has_to = || {
            let all = resolver.status().sources;
            resolver.is_unheard() || all.iter().any(|source| !source.up)
        };
        if sources && !is_looking && has_to() {
            looking = Some(Owned(tokio::spawn(resolver.look_around()).abort_handle()));
        }
        for one in &mut watched {
            let Seen { broken, text } = one.see(&resolver, leader, now);
            let Some(raised) = one.judge.judge(broken, now.into_std()) else {
                continue;
            };
            let (rule, about) = one.name();
            let alert = Alert {
                rule,
                about,
                severity: one.rule.severity,
                raised,
                text: text.into(),
            };
            active.take(&alert);
            // Where nobody reads, what is raised is told by `active`.
            _ = tell.try_send(alert);
        }
    }
}

impl crate::call::Calls {
    fn counted(&self) -> Counted {
        let (all, bad, nanoseconds) = self.totals();
        Counted {
            all,
            bad,
            nanoseconds,
        }
    }
}

impl crate::metrics::Counters {
    /// Questions that were not permitted.
    fn refused(&self) -> Counted {
        Counted {
            bad: self.denied(),
            ..Counted::default()
        }
    }

    /// Look-ups that had to ask.
    fn asked(&self) -> Counted {
        let (all, nanoseconds) = self.durations();
        Counted {
            all,
            bad: 0,
            nanoseconds,
        }
    }
}

impl Resolver {
    /// All look-ups, and those without an answer.
    fn looked_up(&self) -> Counted {
        let hits = self.status().hits;
        let (all, bad) = self.counters().lookups();
        Counted {
            all: all + hits,
            bad,
            nanoseconds: 0,
        }
    }
}
