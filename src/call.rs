//! **Door.** A call to a service: an endpoint is picked, what came of it is reported, and
//! what may be repeated is repeated elsewhere, within a budget.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{
    clock,
    endpoint::Endpoint,
    pool::{Feedback, Lease},
    resolver::Service,
    retry::{Blame, CallError, Retry},
};

/// Who was given less time than this has not failed: it is the caller's deadline that was
/// over. Half of what the call was given is enough, where that is no less than the first.
const FAIR: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(50));

/// Repeats that are free, and the most that are saved up, in thousandths.
const FREE: i64 = 10_000;

/// The repeats that a service may be asked for. Shared by all who call it.
#[derive(Debug)]
pub(crate) struct Budget(AtomicI64);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicI64::new(FREE))
    }
}

impl Budget {
    /// A call is made.
    fn deposit(&self, share: f64) {
        let earned = (share * 1_000.0) as i64;
        // A full one is only read.
        if self.0.load(Ordering::Relaxed) < FREE {
            self.0.fetch_add(earned, Ordering::Relaxed);
        }
    }

    /// Whether one may be repeated.
    fn withdraw(&self) -> bool {
        let less = |left: i64| (left >= 1_000).then(|| left - 1_000);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

/// The calls of a service that ended, their repeats counted as one. Shared by all who call
/// it: next to what a call costs that is nothing.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    all: AtomicU64,
    failed: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Calls {
    fn ended(&self, well: bool, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(took, Ordering::Relaxed);
        self.failed.fetch_add(u64::from(!well), Ordering::Relaxed);
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    /// All, those that failed for good, and the nanoseconds that they took.
    pub(crate) fn totals(&self) -> (u64, u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.all), load(&self.failed), load(&self.nanoseconds))
    }
}

impl Service {
    /// Calls an endpoint, and others where that fails: every error is taken for the
    /// endpoint's. See [`call_if`](Self::call_if).
    ///
    /// ```no_run
    /// use proconsul::{Resolver, Retry};
    /// use tokio::net::TcpStream;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let web = Resolver::from_env()?.service("web")?;
    /// let stream = web
    ///     .call(&Retry::http(), |endpoint| TcpStream::connect(endpoint.socket_addr()))
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the call that is in the air, and says nothing of its endpoint.
    pub async fn call<T, E, F>(
        &self,
        retry: &Retry,
        call: impl Fn(Endpoint) -> F,
    ) -> Result<T, CallError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        self.call_if(retry, call, |_| Blame::Endpoint).await
    }

    /// Calls an endpoint, and others where that fails and `blame` says that it may be
    /// repeated. What came of each attempt is [reported](Lease::report).
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    ///
    /// # Cancel safety
    ///
    /// As [`call`](Self::call).
    pub async fn call_if<T, E, F>(
        &self,
        retry: &Retry,
        call: impl Fn(Endpoint) -> F,
        blame: impl Fn(&E) -> Blame,
    ) -> Result<T, CallError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut attempts = Attempts::new(self, retry);
        loop {
            let lease = attempts.next().await?;
            let call = call(lease.endpoint().clone());
            let attempt = async {
                call.await.map_err(|error| {
                    let blame = blame(&error);
                    (error, blame)
                })
            };
            if let Some(end) = attempts.make(lease, attempt).await {
                return end.map(|(value, _)| value);
            }
        }
    }
}

/// The attempts of one call: [`next`](Self::next) says where, [`make`](Self::make) whether
/// that was the last.
pub(crate) struct Attempts<'a, E> {
    service: &'a Service,
    retry: &'a Retry,
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
    pause: Option<Duration>,
    called: Vec<SocketAddr>,
    began: Instant,
    deadline: Option<Instant>,
    last: Option<E>,
}

impl<'a, E> Attempts<'a, E> {
    pub(crate) fn new(service: &'a Service, retry: &'a Retry) -> Self {
        let now = clock::now();
        Self {
            service,
            retry,
            pauses: Box::new(retry.pauses()),
            pause: None,
            called: Vec::new(),
            began: now,
            deadline: retry
                .deadline
                .and_then(|deadline| now.checked_add(deadline)),
            last: None,
        }
    }

    /// The endpoint for the next attempt, after a pause where there was one before.
    pub(crate) async fn next(&mut self) -> Result<Lease, CallError<E>> {
        if self.deadline.is_some_and(|then| then <= clock::now()) {
            return Err(self.late());
        }
        let picked = async {
            match self.pause.take() {
                Some(pause) => sleep(pause).await,
                None => self.service.pool().budget.deposit(self.retry.budget),
            }
            // Another one than before, if there is any.
            let other = match self.called.as_slice() {
                [] => None,
                called => self.service.pool().pick_other(called),
            };
            match other {
                Some(other) => Ok(other),
                None => self.service.pick().await,
            }
        };
        let Some(lease) = in_time(self.deadline, picked).await else {
            return Err(self.late());
        };
        let lease = match (lease, self.last.take()) {
            (Ok(lease), last) => {
                self.last = last;
                lease
            }
            // There is nobody left to ask: what was said before is all there is.
            (Err(_), Some(error)) => {
                self.ended(false);
                let attempts = self.called.len();
                return Err(CallError::Failed { error, attempts });
            }
            (Err(error), None) => {
                self.ended(false);
                return Err(CallError::NoEndpoint(error));
            }
        };
        self.called.push(lease.socket_addr());
        Ok(lease)
    }

    /// It ends then, if not before.
    #[cfg(feature = "grpc")]
    pub(crate) fn limit(&mut self, time: Duration) {
        let then = clock::now().checked_add(time);
        self.deadline = self.deadline.into_iter().chain(then).min();
    }

    /// When an attempt is cut off.
    #[cfg(feature = "grpc")]
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Waits for what an attempt needs, whose maker reports what comes of it: nothing is said
    /// of the endpoint here. An error that is `None`: to be made elsewhere.
    #[cfg(feature = "grpc")]
    pub(crate) async fn reach<T>(
        &mut self,
        needed: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Option<CallError<E>>> {
        match in_time(self.deadline, needed).await {
            None => Err(Some(self.late())),
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(self.failed(error, Blame::Unreached)),
        }
    }

    /// Makes an attempt and reports what came of it. Some: the call is over. What it gave is
    /// in the air as long as the lease is held.
    pub(crate) async fn make<T>(
        &mut self,
        lease: Lease,
        attempt: impl Future<Output = Result<T, (E, Blame)>>,
    ) -> Option<Result<(T, Lease), CallError<E>>> {
        let start = clock::now();
        let given = in_time(self.deadline, attempt).await;
        self.judge(lease, start, given)
    }

    /// Reports what came of an attempt; `None`: nothing in time. Some: as [`make`](Self::make).
    pub(crate) fn judge<T>(
        &mut self,
        mut lease: Lease,
        start: Instant,
        given: Option<Result<T, (E, Blame)>>,
    ) -> Option<Result<(T, Lease), CallError<E>>> {
        let took = clock::took(start);
        let Some(given) = given else {
            if took >= self.fair() {
                lease.report(Feedback::Failure, took);
            }
            return Some(Err(self.late()));
        };
        let (error, blame) = match given {
            Ok(value) => {
                lease.tell(Feedback::Success, Some(took));
                self.ended(true);
                return Some(Ok((value, lease)));
            }
            Err(failed) => failed,
        };
        match blame {
            // It may never have left: nothing is known of the endpoint.
            Blame::Question => drop(lease),
            Blame::Endpoint | Blame::Unreached | Blame::Unsafe => {
                lease.report(Feedback::Failure, took);
            }
        }
        self.failed(error, blame).map(Err)
    }

    /// Who was given less time than this has not failed.
    fn fair(&self) -> Duration {
        let all = |then: Instant| then.saturating_duration_since(self.began);
        let (least, enough) = FAIR;
        (self.deadline).map_or(enough, |then| (all(then) / 2).clamp(least, enough))
    }

    fn ended(&self, well: bool) {
        let took = clock::took(self.began);
        self.service.pool().calls.ended(well, took);
    }

    /// An attempt failed. Some: it was the last.
    fn failed(&mut self, error: E, blame: Blame) -> Option<CallError<E>> {
        // The last attempt takes nothing from the budget.
        self.pause = self.pauses.next().filter(|_| match blame {
            Blame::Endpoint => self.service.pool().budget.withdraw(),
            Blame::Unreached => true,
            Blame::Question | Blame::Unsafe => false,
        });
        // Who could not be reached costs no time while there are others.
        if blame == Blame::Unreached && self.called.len() < self.service.pool().choices() {
            self.pause = self.pause.map(|_| Duration::ZERO);
        }
        if self.pause.is_some() {
            self.last = Some(error);
            return None;
        }
        // A question that is wrong is no failure of the service.
        self.ended(blame == Blame::Question);
        let attempts = self.called.len();
        Some(CallError::Failed { error, attempts })
    }

    fn late(&mut self) -> CallError<E> {
        self.ended(false);
        CallError::Deadline {
            attempts: self.called.len(),
            last: self.last.take(),
        }
    }
}

/// `None`: the deadline was over.
pub(crate) async fn in_time<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = T>,
) -> Option<T> {
    match deadline {
        None => Some(work.await),
        Some(deadline) => clock::timeout_at(deadline, work).await.ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::{
        balance::Strategy,
        pool::{Breaker, Policy},
        resolver::Resolver,
    };

    fn service(policy: Policy) -> Service {
        let resolver = Resolver::builder().dns("none").http("none");
        let resolver = resolver.default_address("web", "127.0.0.1:1").build();
        resolver.unwrap().service_with("web", policy).unwrap()
    }

    #[tokio::test]
    async fn only_a_call_that_is_made_again_takes_from_the_budget() {
        let service = service(Policy::default());
        let retry = Retry::http().attempts(2).budget(0.0);
        let retry = retry.backoff(Duration::ZERO, Duration::ZERO);
        let made = AtomicUsize::new(0);
        for _ in 0..15 {
            let failed = service.call(&retry, async |_| {
                made.fetch_add(1, Ordering::Relaxed);
                Err::<(), _>("no")
            });
            failed.await.unwrap_err();
        }
        assert_eq!(made.into_inner(), 15 + 10);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_given_hardly_any_time_has_not_failed() {
        let service = service(Policy::default());
        let retry = |millis| Retry::http().deadline(Duration::from_millis(millis));
        let failures = || service.standings()[0].failures;
        drop(service.pick().await.unwrap());
        let hang = async |_| std::future::pending::<Result<(), &str>>().await;
        let late = service.call(&retry(0), hang).await.unwrap_err();
        assert!(matches!(late, CallError::Deadline { attempts: 0, .. }));
        assert_eq!(failures(), 0);
        // The first takes nearly all, the second has what is left.
        let made = AtomicUsize::new(0);
        let slow = async |_| match made.fetch_add(1, Ordering::Relaxed) {
            0 => {
                sleep(Duration::from_millis(900)).await;
                Err::<(), _>("no")
            }
            _ => std::future::pending().await,
        };
        service.call(&retry(960), slow).await.unwrap_err();
        assert_eq!((made.into_inner(), failures()), (2, 1));
        // All that a short deadline of one's own allows is enough.
        service.call(&retry(20), hang).await.unwrap_err();
        assert_eq!(failures(), 2);
    }

    #[cfg(feature = "grpc")]
    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_a_call_brings_is_as_fair_as_one_that_is_set() {
        // Of what is left to a call that others made wait, nobody can be judged.
        for (brought, failures) in [(40, 1), (8, 0)] {
            let service = service(Policy::default());
            let retry = Retry::http();
            let mut attempts = Attempts::new(&service, &retry);
            attempts.limit(Duration::from_millis(brought));
            let lease = attempts.next().await.unwrap();
            let hang = std::future::pending::<Result<(), (&str, Blame)>>();
            let late = attempts.make(lease, hang).await.unwrap().unwrap_err();
            assert!(matches!(late, CallError::Deadline { attempts: 1, .. }));
            assert_eq!(service.standings()[0].failures, failures, "{brought}");
        }
    }

    #[tokio::test]
    async fn a_question_that_is_wrong_says_nothing_of_who_was_asked() {
        let service = service(Policy::default());
        let retry = Retry::none();
        for (blame, failures) in [(Blame::Unsafe, 1), (Blame::Question, 1), (Blame::Unsafe, 2)] {
            let call = service.call_if(&retry, async |_| Err::<(), _>("no"), |_| blame);
            call.await.unwrap_err();
            assert_eq!(service.standings()[0].failures, failures, "{blame:?}");
        }
    }

    #[tokio::test]
    async fn where_nobody_is_left_to_ask_the_error_that_there_was_is_told() {
        let breaker = Breaker::default().failures(1).share(1.0);
        let service = service(Policy::new(Strategy::First).breaker(breaker));
        let retry = Retry::http();
        let failed = service.call(&retry, async |_| Err::<(), _>("no"));
        let failed = failed.await.unwrap_err();
        assert!(
            matches!(
                failed,
                CallError::Failed {
                    error: "no",
                    attempts: 1
                }
            ),
            "{failed:?}"
        );
    }
}
