//! **Shell.** The connection to one endpoint, over HTTP/2. A task makes it when somebody wants
//! it, whose deadline does not cut that off, and follows the server's word on its own health.
//!
//! | it is | a call | the task |
//! | --- | --- | --- |
//! | wanted | waits | connects, within the endpoint's own limit |
//! | made | goes by it | follows the server's word |
//! | over: it failed or was lost | wants it again | waits until somebody does |
//!
//! One that failed counts once against its endpoint, however many waited for it, and also
//! where none of them does any more.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{error::Elapsed, sleep},
};
use tonic::{
    Code, Status,
    transport::{self, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tracing::debug;

use crate::{clock, pool::Pool, task::Owned};

/// A server that was lost is asked for its health again after so long.
const REWATCH: Duration = Duration::from_secs(1);

/// Who says nothing for so long, though asked, is gone.
pub(super) const SILENCE: Duration = Duration::from_secs(20);

/// Numbers of those who pass on a server's word.
static WORDS: AtomicU64 = AtomicU64::new(0);

/// The connection to one endpoint; its task ends with it.
pub(super) struct Connection {
    state: Arc<watch::Sender<State>>,
    _task: Owned,
}

struct State {
    phase: Phase,
    /// How often it could not be made, and why the last time.
    failures: u64,
    why: Option<Status>,
}

enum Phase {
    /// It is being made, and a call wants it or did; else only the server's word is wanted.
    Wanted {
        by_call: bool,
    },
    /// The how manieth it is.
    Made(u64, transport::Channel),
    Over,
    /// The task has ended, with its runtime.
    Ended,
}

impl Connection {
    /// Begins to make it, within a runtime.
    pub(super) fn new(endpoint: Endpoint, address: SocketAddr, pool: Weak<Pool>) -> Self {
        let state = Arc::new(watch::Sender::new(State {
            phase: Phase::Wanted { by_call: true },
            failures: 0,
            why: None,
        }));
        let number = WORDS.fetch_add(1, Ordering::Relaxed);
        let keeper = Keeper {
            state: Arc::clone(&state),
            endpoint,
            word: Word {
                pool,
                address,
                number,
            },
        };
        let task = async move { tokio::join!(keeper.connect(), keeper.follow()) };
        Self {
            state,
            _task: Owned(tokio::spawn(task).abort_handle()),
        }
    }

    /// Nobody makes it any more.
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Ended)
    }

    /// A call wants it: what comes of the attempt that is being made, or of a new one.
    pub(super) fn wanted(
        &self,
    ) -> impl Future<Output = Result<transport::Channel, Status>> + Send + use<> {
        wanted(&self.state, true)
    }
}

fn wanted(
    state: &watch::Sender<State>,
    by_call: bool,
) -> impl Future<Output = Result<transport::Channel, Status>> + Send + use<> {
    let mut before = 0;
    state.send_if_modified(|state| {
        before = state.failures;
        match &mut state.phase {
            Phase::Wanted { by_call: already } => *already |= by_call,
            Phase::Made(..) | Phase::Ended => {}
            Phase::Over => {
                state.phase = Phase::Wanted { by_call };
                return true;
            }
        }
        false
    });
    let mut heard = state.subscribe();
    async move {
        let is_known = |state: &State| state.failures > before || !state.is_wanted();
        let ended = || Status::unavailable("the connection ended with the runtime it was made in");
        let Ok(state) = heard.wait_for(is_known).await else {
            return Err(ended());
        };
        match &state.phase {
            Phase::Made(_, channel) => Ok(channel.clone()),
            _ => Err(state.why.clone().unwrap_or_else(ended)),
        }
    }
}

impl State {
    fn is_wanted(&self) -> bool {
        matches!(self.phase, Phase::Wanted { .. })
    }

    fn made(&self) -> Option<u64> {
        match self.phase {
            Phase::Made(number, _) => Some(number),
            _ => None,
        }
    }
}

/// Who makes a connection, and passes on its server's word.
struct Keeper {
    state: Arc<watch::Sender<State>>,
    endpoint: Endpoint,
    word: Word,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.state.send_modify(|state| state.phase = Phase::Ended);
    }
}

impl Keeper {
    /// Makes the connection as often as it is wanted.
    async fn connect(&self) {
        let mut heard = self.state.subscribe();
        for number in 0.. {
            // The sender is ours: it is there as long as this is.
            _ = heard.wait_for(State::is_wanted).await;
            let began = clock::now();
            let dial = Dial::new(self, number);
            match self.endpoint.connect_with_connector(dial).await {
                Ok(channel) => {
                    (self.state).send_modify(|state| state.phase = Phase::Made(number, channel))
                }
                Err(error) => self.failed(&error, began),
            }
        }
    }

    fn failed(&self, error: &transport::Error, began: std::time::Instant) {
        let address = self.word.address;
        let why = match is_late(error) {
            true => "none was made in time".to_owned(),
            false => reason(error),
        };
        let is_of_call = matches!(self.state.borrow().phase, Phase::Wanted { by_call: true });
        // Before anybody hears of it, and tries again.
        if is_of_call && let Some(pool) = self.word.pool.upgrade() {
            pool.unreached(address, clock::took(began));
        }
        self.state.send_modify(|state| {
            state.phase = Phase::Over;
            state.failures += 1;
            state.why = Some(Status::unavailable(format!(
                "no connection to {address}: {why}"
            )));
        });
    }

    /// Follows what the server says of its own health, as often as it is connected to. A
    /// server without the service is taken for healthy.
    async fn follow(&self) {
        let mut heard = self.state.subscribe();
        let mut mute = None;
        loop {
            let is_other = |state: &State| state.made().is_some_and(|made| Some(made) != mute);
            _ = heard.wait_for(is_other).await;
            let made = heard.borrow().made();
            if !self.hear().await {
                mute = made;
                continue;
            }
            self.pause().await;
            // An endpoint that has left is connected to by nobody.
            while wanted(&self.state, false).await.is_err() {
                self.pause().await;
            }
        }
    }

    /// Until the server says no more. False: it says nothing of the kind.
    async fn hear(&self) -> bool {
        let again = [
            Code::Unavailable,
            Code::Unknown,
            Code::Internal,
            Code::Cancelled,
        ];
        let mut was_lost = false;
        loop {
            let Ok(channel) = wanted(&self.state, false).await else {
                return true;
            };
            let mut client = HealthClient::new(channel);
            let lost = match client.watch(HealthCheckRequest::default()).await {
                Ok(answer) => self.word.follow(answer.into_inner()).await,
                Err(error) => Some(error),
            };
            // Calls find out how it is.
            self.word.tell(true);
            match lost {
                Some(error) if is_lost(&error) && !was_lost => was_lost = true,
                Some(error) => return again.contains(&error.code()),
                None => return true,
            }
        }
    }

    /// And until the endpoint is there.
    async fn pause(&self) {
        sleep(REWATCH).await;
        while !self.word.tell(true) {
            sleep(REWATCH).await;
        }
    }
}

/// What a server says of itself, as its pool is told.
struct Word {
    pool: Weak<Pool>,
    address: SocketAddr,
    /// Whose word it is: others may hear another from the same server.
    number: u64,
}

impl Word {
    /// Until the connection is lost, and why. Servers speak when they change: the pool is told
    /// again each second, for an endpoint that leaves and comes back begins anew.
    async fn follow(&self, mut said: tonic::Streaming<HealthCheckResponse>) -> Option<Status> {
        let mut serves = true;
        loop {
            tokio::select! {
                word = said.message() => match word {
                    Ok(Some(word)) => {
                        serves = word.status() == ServingStatus::Serving;
                        debug!(address = %self.address, serves, "the server told its health");
                    }
                    Ok(None) => return None,
                    Err(error) => return Some(error),
                },
                () = sleep(REWATCH) => {}
            }
            self.tell(serves);
        }
    }

    /// False: there is no such endpoint.
    fn tell(&self, serves: bool) -> bool {
        let pool = self.pool.upgrade();
        pool.is_some_and(|pool| pool.set_serving(self.address, self.number, serves))
    }
}

impl Drop for Word {
    /// Whoever stops listening leaves nobody out.
    fn drop(&mut self) {
        self.tell(true);
    }
}

/// Connects, once. tonic dials again by itself where a connection was lost, but only as long as
/// a call waits for it, and for each call anew: it is told that it was lost.
struct Dial {
    http: HttpConnector,
    address: SocketAddr,
    state: Weak<watch::Sender<State>>,
    number: u64,
    is_made: bool,
}

impl Dial {
    fn new(keeper: &Keeper, number: u64) -> Self {
        let endpoint = &keeper.endpoint;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(endpoint.get_tcp_nodelay());
        http.set_keepalive(endpoint.get_tcp_keepalive());
        http.set_keepalive_interval(endpoint.get_tcp_keepalive_interval());
        http.set_keepalive_retries(endpoint.get_tcp_keepalive_retries());
        // Keepalive asks only where nothing is on its way.
        #[cfg(target_os = "linux")]
        http.set_tcp_user_timeout(Some(SILENCE));
        Self {
            http,
            address: keeper.word.address,
            // Its owner holds the channel, which holds this.
            state: Arc::downgrade(&keeper.state),
            number,
            is_made: false,
        }
    }
}

impl tower_service::Service<http::Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.http.poll_ready(context).map_err(Into::into)
    }

    /// The URI has the name of the service, and Consul's word is where that is.
    fn call(&mut self, _: http::Uri) -> Self::Future {
        if std::mem::replace(&mut self.is_made, true) {
            if let Some(state) = self.state.upgrade() {
                state.send_if_modified(|state| {
                    let is_this = state.made() == Some(self.number);
                    if is_this {
                        state.phase = Phase::Over;
                    }
                    is_this
                });
            }
            return Box::pin(async { Err(Lost.into()) });
        }
        let uri = format!("http://{}", self.address).parse();
        match uri {
            Ok(uri) => {
                let connecting = self.http.call(uri);
                Box::pin(async { Ok(connecting.await?) })
            }
            Err(error) => Box::pin(async move { Err(http::Error::from(error).into()) }),
        }
    }
}

/// The connection had been lost before a call was sent.
#[derive(Debug)]
struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the server ended the connection before anything was sent")
    }
}

impl Error for Lost {}

/// Whether nothing was sent, for the connection had been lost before.
pub(super) fn is_lost(error: &(dyn Error + 'static)) -> bool {
    sources(error).any(|error| error.is::<Lost>())
}

/// Whether there was no connection in time.
fn is_late(error: &transport::Error) -> bool {
    let is_late = |error: &io::Error| error.get_ref().is_some_and(|inner| inner.is::<Elapsed>());
    sources(error).any(|error| error.downcast_ref().is_some_and(is_late))
}

/// The innermost cause, which says most.
fn reason(error: &transport::Error) -> String {
    let last = sources(error).last();
    last.map_or_else(|| error.to_string(), ToString::to_string)
}

/// What lies below an error.
pub(super) fn sources<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}
