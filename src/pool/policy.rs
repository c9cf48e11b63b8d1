//! **Word.** [`Policy`]: which endpoints of a service are used, and how one of them is
//! chosen.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    balance::Strategy,
    consul::instances::Instance,
    endpoint::{Endpoint, Health},
};

/// What an endpoint has to be: all that is asked for. Where several are registered at one
/// address and port, one of them has to be all that. Only Consul's HTTP API tells tags,
/// metadata and health; what it told of an instance is remembered while DNS answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    tags: Vec<Box<str>>,
    meta: Vec<(Box<str>, Box<str>)>,
    passing: bool,
}

impl Filter {
    /// Anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// It has this tag, whatever its case.
    #[must_use]
    pub fn tag(mut self, tag: &str) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// Its metadata has this value by this key.
    #[must_use]
    pub fn meta(mut self, key: &str, value: &str) -> Self {
        self.meta.push((key.into(), value.into()));
        self
    }

    /// Its metadata `type` is this one: what `SERVICE_TYPE` sets.
    #[must_use]
    pub fn of_type(self, kind: &str) -> Self {
        self.meta("type", kind)
    }

    /// All its checks pass: none that warn.
    #[must_use]
    pub fn passing(mut self) -> Self {
        self.passing = true;
        self
    }

    /// Whether an endpoint is so.
    pub fn matches(&self, endpoint: &Endpoint) -> bool {
        let tags = endpoint.tags.as_deref().unwrap_or_default();
        let mut others = endpoint.others.iter();
        self.takes(tags, endpoint.meta.as_deref(), endpoint.health)
            || others.any(|one| self.takes(&one.tags, Some(&one.meta), one.health))
    }

    /// Whether a registered instance is so.
    pub fn matches_instance(&self, instance: &Instance) -> bool {
        self.takes(&instance.tags, Some(&instance.meta), Some(instance.health))
    }

    fn takes(
        &self,
        tags: &[Box<str>],
        meta: Option<&BTreeMap<Box<str>, Box<str>>>,
        health: Option<Health>,
    ) -> bool {
        let has_tag = |tag: &str| tags.iter().any(|own| own.eq_ignore_ascii_case(tag));
        let has = |(key, value): &(Box<str>, Box<str>)| {
            meta.and_then(|meta| meta.get(key)) == Some(value)
        };
        self.tags.iter().all(|tag| has_tag(tag))
            && self.meta.iter().all(has)
            && (!self.passing || health == Some(Health::Passing))
    }
}

/// When an endpoint that fails is left alone, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Breaker {
    pub(crate) failures: u32,
    pub(crate) rest: Duration,
    pub(crate) share: f64,
}

impl Default for Breaker {
    /// 5 failures in a row, 60 s, at most half of a set.
    fn default() -> Self {
        Self {
            failures: 5,
            rest: Duration::from_secs(60),
            share: 0.5,
        }
    }
}

impl Breaker {
    /// Failures in a row that open it; 0 never. Default: 5.
    #[must_use]
    pub fn failures(mut self, failures: u32) -> Self {
        self.failures = failures;
        self
    }

    /// How long nothing is sent there. Then one call at a time tries it, and the first
    /// that succeeds closes it. Default: 60 s.
    #[must_use]
    pub fn rest(mut self, rest: Duration) -> Self {
        self.rest = rest;
        self
    }

    /// At most this part of a set rests at once, between 0 and 1: what fails everywhere
    /// is not the endpoints' fault. Default: 0.5.
    #[must_use]
    pub fn share(mut self, share: f64) -> Self {
        self.share = if share.is_nan() {
            0.0
        } else {
            share.clamp(0.0, 1.0)
        };
        self
    }
}

/// Which endpoints of a service are used, and how one of them is chosen.
///
/// ```
/// use proconsul::{Filter, Policy, Strategy};
///
/// // Healthy ones of one provider; of a model if there is one, else any.
/// let policy = Policy::new(Strategy::LeastLoaded)
///     .require(Filter::new().meta("provider", "openai").passing())
///     .prefer(Filter::new().meta("model", "gpt-4"));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    pub(crate) strategy: Strategy,
    pub(crate) require: Filter,
    pub(crate) prefer: Vec<Filter>,
    pub(crate) datacenters: Vec<Box<str>>,
    pub(crate) breaker: Breaker,
    pub(crate) slow_start: Duration,
}

impl Policy {
    /// All endpoints, chosen by a strategy.
    pub fn new(strategy: Strategy) -> Self {
        Self {
            strategy,
            ..Self::default()
        }
    }

    /// Only endpoints that are so. Default: all.
    #[must_use]
    pub fn require(mut self, filter: Filter) -> Self {
        self.require = filter;
        self
    }

    /// Those that are so while any of them can be used, else what is preferred next, else
    /// all that are [required](Self::require).
    #[must_use]
    pub fn prefer(mut self, filter: Filter) -> Self {
        self.prefer.push(filter);
        self
    }

    /// Where none of the own datacenter can be used, those of this one; several are tried
    /// in turn. Each is followed by a query of its own.
    #[must_use]
    pub fn or_datacenter(mut self, datacenter: &str) -> Self {
        self.datacenters.push(datacenter.into());
        self
    }

    /// When an endpoint that fails is left alone.
    #[must_use]
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.breaker = breaker;
        self
    }

    /// An endpoint that is new, or that rested, is given a share that grows over this time
    /// from nothing to its own. Where all are new, that which began first has its own at once,
    /// and those that begin together share evenly. Default: zero, its own at once.
    #[must_use]
    pub fn slow_start(mut self, time: Duration) -> Self {
        self.slow_start = time;
        self
    }
}
