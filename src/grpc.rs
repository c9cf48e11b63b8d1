//! **Door.** [`Channel`]: a gRPC channel to a service by name, for any generated client.
//!
//! | call | goes |
//! | --- | --- |
//! | to an endpoint that cannot be connected to | elsewhere: nothing was sent |
//! | whose connection is lost, or that is answered UNAVAILABLE | elsewhere, where the user says that it may be done twice |
//! | whose request is a stream that goes on | to one endpoint, once |
//! | where there is no endpoint | UNAVAILABLE at once, and why |
//!
//! The deadline that a call has (`grpc-timeout`) is that of all its attempts; servers are
//! told what is left of it.
//!
//! Each endpoint has one connection, over HTTP/2, made by the first call to it. Where its
//! server offers `grpc.health.v1.Health`, it is watched: who is not serving is called by
//! nobody.

use std::{
    collections::HashMap,
    error::Error,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use http_body_util::Full;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::{
    net::TcpStream,
    sync::OnceCell,
    time::{error::Elapsed, sleep},
};
use tonic::{
    Code, ConnectError, Status,
    body::Body,
    transport::{self, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tower_service::Service as _;
use tracing::debug;

use crate::{
    call::Attempts,
    clock,
    pool::Pool,
    resolver::Service,
    retry::{Blame, CallError, Retry},
    task::Owned,
};

/// A request up to this size is kept until it is answered, so that it can be sent again.
const MOST_KEPT: usize = 256 << 10;

/// A server that was lost is asked for its health again after so long.
const REWATCH: Duration = Duration::from_secs(1);

/// Who says nothing for so long, though asked, is gone.
const SILENCE: Duration = Duration::from_secs(20);

/// How long a call may take: gRPC's own header.
const TIMEOUT: &str = "grpc-timeout";

/// The status code UNAVAILABLE.
const UNAVAILABLE: &str = "14";

/// The gRPC channel of a service: give it to a generated client.
///
/// ```no_run
/// use proconsul::{Resolver, grpc::Channel};
/// use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let service = Resolver::from_env()?.service("orders")?;
/// let mut client = HealthClient::new(Channel::new(service));
/// client.check(HealthCheckRequest::default()).await?;
/// # Ok(())
/// # }
/// ```
///
/// Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Channel(Arc<Inner>);

type Configure = dyn Fn(Endpoint) -> Endpoint + Send + Sync;

struct Inner {
    service: Service,
    retry: Retry,
    repeatable: bool,
    scheme: &'static str,
    configure: Box<Configure>,
    /// A std mutex: held for one look, never across an await.
    connections: Mutex<HashMap<SocketAddr, Arc<Wanted>>>,
}

/// A connection, or why there is none.
type Wanted = OnceCell<Result<Connection, Status>>;

/// Settings of a [`Channel`], made by [`Channel::builder`].
pub struct Builder {
    retry: Retry,
    repeatable: bool,
    tls: bool,
    configure: Box<Configure>,
}

impl Builder {
    /// How often a call is made again. Default: [`Retry::default`], as gRPC clients have it,
    /// but 3 attempts with pauses of 25 ms and more, since another endpoint is asked.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Calls may be done twice: they are made again also where the connection was lost, or
    /// the answer was UNAVAILABLE. Default: no.
    #[must_use]
    pub fn repeatable(mut self, repeatable: bool) -> Self {
        self.repeatable = repeatable;
        self
    }

    /// Speaks TLS. What is trusted, and a certificate of one's own, is said by
    /// [`configure`](Self::configure), which has to set the TLS settings of the endpoint.
    #[must_use]
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// What else is to hold of each connection: keepalive, time limits, TLS. Pings
    /// (`http2_keep_alive_interval`) only as often as the servers allow. A local address is
    /// not taken.
    #[must_use]
    pub fn configure(
        mut self,
        configure: impl Fn(Endpoint) -> Endpoint + Send + Sync + 'static,
    ) -> Self {
        self.configure = Box::new(configure);
        self
    }

    /// Makes the channel. It connects to nobody yet.
    pub fn build(self, service: Service) -> Channel {
        Channel(Arc::new(Inner {
            service,
            retry: self.retry,
            repeatable: self.repeatable,
            scheme: if self.tls { "https" } else { "http" },
            configure: self.configure,
            connections: Mutex::default(),
        }))
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("retry", &self.retry)
            .field("repeatable", &self.repeatable)
            .finish_non_exhaustive()
    }
}

impl Channel {
    /// A channel with the defaults: a connection within 1 s, TLS included, which is given up where the
    /// other machine's kernel gives no sign of life for 20 s. No HTTP/2 pings: servers as
    /// they come allow one in five minutes, and end the connection of who sends more.
    pub fn new(service: Service) -> Self {
        Self::builder().build(service)
    }

    /// Other settings.
    pub fn builder() -> Builder {
        Builder {
            retry: Retry::http(),
            repeatable: false,
            tls: false,
            configure: Box::new(|endpoint| endpoint),
        }
    }

    async fn send(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let inner = &self.0;
        let (mut head, body) = request.into_parts();
        let mut body = Some(Sent::read(body));
        let mut attempts = Attempts::new(&inner.service, &inner.retry);
        if let Some(time) = head.headers.get(TIMEOUT).and_then(read_timeout) {
            attempts.limit(time);
        }
        // An answer that says so and that nothing follows is given as it is.
        let mut unavailable = None;
        loop {
            let lease = attempts.next().await.map_err(status)?;
            let (address, deadline) = (lease.socket_addr(), attempts.deadline());
            let attempt = async {
                let connected = inner.connection(address).await;
                let mut channel = connected.map_err(|error| (error, Blame::Unreached))?;
                let sent = body.take().expect("what cannot be copied is sent once");
                let (now, kept) = sent.send();
                body = kept;
                // The server is told what is left of the deadline, in each attempt less.
                if let Some(deadline) = deadline {
                    let left = deadline.saturating_duration_since(clock::now());
                    head.headers.insert(TIMEOUT, write_timeout(left));
                }
                let request = http::Request::from_parts(head.clone(), now);
                let answered = async {
                    std::future::poll_fn(|context| channel.poll_ready(context)).await?;
                    channel.call(request).await
                };
                let again = inner.repeatable && body.is_some();
                match answered.await {
                    Ok(answer) if !is_unavailable(&answer) => Ok(answer),
                    Ok(answer) => {
                        let error = Status::from_header_map(answer.headers());
                        let says = || Status::unavailable("the server said so");
                        let error = error.unwrap_or_else(says);
                        if again {
                            return Err((error, Blame::Endpoint));
                        }
                        unavailable = Some(answer);
                        Err((error, Blame::Unsafe))
                    }
                    Err(error) => {
                        let blame = match is_unsent(&error) {
                            true if body.is_some() => Blame::Unreached,
                            false if again => Blame::Endpoint,
                            _ => Blame::Unsafe,
                        };
                        Err((failed(error), blame))
                    }
                }
            };
            let end = attempts.make(lease, attempt).await;
            if let Some(answer) = unavailable {
                return Ok(answer);
            }
            if let Some(end) = end {
                return end.map_err(status);
            }
        }
    }
}

impl Inner {
    /// The connection to an endpoint, made where there is none. All who want it at the same
    /// time wait for one attempt, and share what comes of it.
    async fn connection(&self, address: SocketAddr) -> Result<transport::Channel, Status> {
        let wanted = {
            let mut connections = lock(&self.connections);
            if !connections.contains_key(&address) {
                // Those of endpoints that are gone are let go.
                self.service.pool().retain(&mut connections);
            }
            Arc::clone(connections.entry(address).or_default())
        };
        let made = wanted.get_or_init(|| self.connect(address)).await;
        match made {
            Ok(connection) => Ok(connection.channel.clone()),
            Err(error) => {
                let mut connections = lock(&self.connections);
                // The next call tries again, but for those who have begun to already.
                if (connections.get(&address)).is_some_and(|known| Arc::ptr_eq(known, &wanted)) {
                    connections.remove(&address);
                }
                Err(error.clone())
            }
        }
    }

    async fn connect(&self, address: SocketAddr) -> Result<Connection, Status> {
        let endpoint = Endpoint::from_shared(format!("{}://{address}", self.scheme))
            .map_err(failed)?
            .connect_timeout(Duration::from_secs(1))
            .tcp_keepalive(Some(SILENCE / 2))
            .tcp_keepalive_interval(Some(SILENCE / 4))
            .tcp_keepalive_retries(Some(2));
        let endpoint = match self.origin() {
            Some(origin) => endpoint.origin(origin),
            None => endpoint,
        };
        let endpoint = (self.configure)(endpoint);
        let dial = Dial::new(&endpoint);
        let made = endpoint.connect_with_connector(dial).await;
        let channel = made.map_err(failed)?;
        let watching = watch(channel.clone(), self.service.downgrade(), address);
        Ok(Connection {
            channel,
            _watching: Owned(tokio::spawn(watching).abort_handle()),
        })
    }

    /// The service's own name, which stays in `:authority`.
    fn origin(&self) -> Option<http::Uri> {
        let name = self.service.fqdn();
        let name = name.trim_end_matches('.');
        format!("{}://{name}", self.scheme).parse().ok()
    }
}

/// Connects, and again where a connection was lost. Calls that wait for one queue up in its
/// channel, which would make an attempt for each: those that waited for one that took all
/// its time share what came of it.
struct Dial {
    http: HttpConnector,
    /// The time for an attempt, TLS included: the endpoint sees to it.
    limit: Option<Duration>,
    began: Option<Instant>,
}

impl Dial {
    fn new(endpoint: &Endpoint) -> Self {
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
            limit: endpoint.get_connect_timeout(),
            began: None,
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

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let now = clock::now();
        let since = self.began.map(|began| now.saturating_duration_since(began));
        // They are told within a tenth of it.
        let has_just_failed =
            |limit: Duration| since.is_some_and(|since| limit <= since && since < limit * 11 / 10);
        if self.limit.is_some_and(has_just_failed) {
            return Box::pin(async { Err("the attempt before was in vain".into()) });
        }
        self.began = Some(now);
        let connecting = self.http.call(uri);
        Box::pin(async { Ok(connecting.await?) })
    }
}

/// A connection, which is made again by itself where it is lost, and the task that follows
/// its server's word.
struct Connection {
    channel: transport::Channel,
    _watching: Owned,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Follows what a server says of its own health, as often as it is connected to; ends where
/// it says nothing of the kind. A server without the service is taken for healthy.
async fn watch(channel: transport::Channel, pool: Weak<Pool>, address: SocketAddr) {
    let mut client = HealthClient::new(channel);
    // Whoever stops listening leaves nobody out.
    let word = Word { pool, address };
    loop {
        let lost = match client.watch(HealthCheckRequest::default()).await {
            Ok(answer) => word.follow(answer.into_inner()).await,
            Err(error) => Some(error),
        };
        // Calls find out how it is.
        word.tell(true);
        let again = [
            Code::Unavailable,
            Code::Unknown,
            Code::Internal,
            Code::Cancelled,
        ];
        if lost.is_some_and(|error| !again.contains(&error.code())) {
            return;
        }
        sleep(REWATCH).await;
        // An endpoint that has left is connected to by nobody.
        while !word.tell(true) {
            sleep(REWATCH).await;
        }
    }
}

/// What a server says of itself, as its pool is told.
struct Word {
    pool: Weak<Pool>,
    address: SocketAddr,
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
        pool.is_some_and(|pool| pool.set_serving(self.address, serves))
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        self.tell(true);
    }
}

/// How long a call may take, as its header says: up to eight digits and a unit.
fn read_timeout(value: &http::HeaderValue) -> Option<Duration> {
    let (digits, unit) = value
        .to_str()
        .ok()?
        .split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|one| one.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

fn write_timeout(left: Duration) -> http::HeaderValue {
    const MOST: u128 = 99_999_999;
    let text = match (left.as_micros(), left.as_millis()) {
        (micros, _) if micros <= MOST => format!("{micros}u"),
        (_, millis) if millis <= MOST => format!("{millis}m"),
        _ => format!("{}S", u128::from(left.as_secs()).min(MOST)),
    };
    http::HeaderValue::try_from(text).unwrap_or_else(|_| http::HeaderValue::from_static("0u"))
}

/// An answer without a message that says UNAVAILABLE.
fn is_unavailable(answer: &http::Response<Body>) -> bool {
    let code = answer.headers().get("grpc-status");
    code.is_some_and(|code| code.as_bytes() == UNAVAILABLE.as_bytes())
}

/// Whether a call failed before there was a connection to send it by.
fn is_unsent(error: &transport::Error) -> bool {
    is_late(error) || sources(error).any(|error| error.is::<ConnectError>())
}

/// Whether there was no connection in time.
fn is_late(error: &transport::Error) -> bool {
    let is_late = |error: &io::Error| error.get_ref().is_some_and(|inner| inner.is::<Elapsed>());
    sources(error).any(|error| error.downcast_ref().is_some_and(is_late))
}

fn sources(error: &dyn Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

fn failed(error: transport::Error) -> Status {
    match is_late(&error) {
        true => Status::unavailable("no connection was made in time"),
        false => Status::from_error(Box::new(error)),
    }
}

fn status(error: CallError<Status>) -> Status {
    match error {
        CallError::NoEndpoint(error) => Status::unavailable(error.to_string()),
        CallError::Failed { error, .. } => error,
        CallError::Deadline { .. } => Status::deadline_exceeded(error.to_string()),
    }
}

impl tower_service::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Which endpoint has room is known when one is picked.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("service", &self.0.service)
            .finish_non_exhaustive()
    }
}

/// The body of a request.
enum Sent {
    /// All of it: it can be sent again.
    Whole(Bytes),
    /// What there was at once, and what comes later.
    Stream(Bytes, Body),
}

impl Sent {
    /// Takes what is there without waiting: all of it, unless the request is a stream that
    /// goes on.
    fn read(mut body: Body) -> Self {
        let mut all = BytesMut::new();
        let mut context = Context::from_waker(std::task::Waker::noop());
        while all.len() < MOST_KEPT {
            match Pin::new(&mut body).poll_frame(&mut context) {
                Poll::Ready(None) => return Self::Whole(all.freeze()),
                // Requests have no trailers.
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        all.extend_from_slice(&data);
                    }
                }
                // It is told when it is sent.
                Poll::Ready(Some(Err(error))) => return Self::Stream(all.freeze(), failing(error)),
                Poll::Pending => break,
            }
        }
        Self::Stream(all.freeze(), body)
    }

    /// What is sent now, and what is left to be sent again.
    fn send(self) -> (Body, Option<Self>) {
        match self {
            Self::Whole(bytes) => (
                Body::new(Full::new(bytes.clone())),
                Some(Self::Whole(bytes)),
            ),
            Self::Stream(first, rest) => (Body::new(Resumed { first, rest }), None),
        }
    }
}

/// A body that fails.
fn failing(error: Status) -> Body {
    Body::new(Failing(Some(error)))
}

struct Failing(Option<Status>);

impl http_body::Body for Failing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(self.get_mut().0.take().map(Err))
    }
}

/// What was read of a body, and the rest.
struct Resumed {
    first: Bytes,
    rest: Body,
}

impl http_body::Body for Resumed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if !this.first.is_empty() {
            let first = std::mem::take(&mut this.first);
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let frame = ready!(Pin::new(&mut this.rest).poll_frame(context));
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_and_written_as_the_protocol_has_it() {
        let read = |text: &'static str| read_timeout(&http::HeaderValue::from_static(text));
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(read("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "m", "1", "1x", "-1m", "123456789m", "1.5S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        for time in [0, 250, 99_999_999, 100_000_000, u64::MAX] {
            let time = Duration::from_micros(time);
            let again = read_timeout(&write_timeout(time)).unwrap();
            assert!(again <= time, "{time:?} {again:?}");
        }
    }
}
