//! **Door.** [`Channel`]: a gRPC channel to a service by name, for any generated client.
//!
//! | call | goes |
//! | --- | --- |
//! | to an endpoint that cannot be connected to | elsewhere, as long as its deadline allows: nothing was sent |
//! | whose connection is lost, or that is answered UNAVAILABLE | elsewhere, where the user says that it may be done twice |
//! | whose request is a stream that goes on | to one endpoint, once |
//! | where there is no endpoint | UNAVAILABLE at once, and why |
//!
//! The deadline that a call has (`grpc-timeout`) is that of all its attempts; servers are
//! told what is left of it.
//!
//! Each endpoint has one connection, over HTTP/2, made when a call wants it, which goes on
//! though that call may not wait so long. Where its server offers `grpc.health.v1.Health`, it
//! is watched: who is not serving is called by nobody.

mod connection;
mod sent;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tonic::{
    Status, TimeoutExpired,
    body::Body,
    transport::{self, Endpoint},
};
use tower_service::Service as _;

use self::{
    connection::{Connection, SILENCE, is_lost, sources},
    sent::Sent,
};
use crate::{
    call::{Attempts, in_time},
    clock,
    leased::Leased,
    resolver::Service,
    retry::{Blame, CallError, Retry},
};

/// Timers count milliseconds: what comes to nothing so short a time before the deadline does
/// so because of it, by the clock of the server or of the connection.
const TICK: Duration = Duration::from_millis(2);

/// How long a call may take: gRPC's own header.
const TIMEOUT: &str = "grpc-timeout";

/// Status codes.
const CANCELLED: &str = "1";
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
    connections: Mutex<HashMap<SocketAddr, Connection>>,
}

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
    /// [`configure`](Self::configure), which has to set the TLS settings of the endpoint. The
    /// name in the certificate has to be the service's full one, `orders.service.consul`, as
    /// in `:authority`, unless these settings have a `domain_name`.
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
        let sent = Sent::read(body);
        let mut attempts = Attempts::new(&inner.service, &inner.retry);
        if let Some(time) = head.headers.get(TIMEOUT).and_then(read_timeout) {
            attempts.limit(time);
        }
        loop {
            let lease = attempts.next().await.map_err(status)?;
            let (address, deadline) = (lease.socket_addr(), attempts.deadline());
            // An answer that says UNAVAILABLE and that nothing follows is given as it is.
            let mut unavailable = None;
            let mut was_lost = false;
            let end = loop {
                let channel = match attempts.reach(inner.connection(address)).await {
                    Ok(channel) => channel,
                    Err(end) => break end.map(Err),
                };
                // The server is told what is left of the deadline, in each attempt less.
                if let Some(deadline) = deadline {
                    head.headers.insert(TIMEOUT, write_timeout(left(deadline)));
                }
                let request = http::Request::from_parts(head.clone(), sent.body());
                let mut is_lost_again = false;
                let attempt = async {
                    let again = inner.repeatable && sent.is_whole();
                    match ask(channel, request, deadline).await {
                        Ok(answer) if !says(&answer, UNAVAILABLE) => Ok(answer),
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
                            is_lost_again = is_lost(&error);
                            let blame = match (is_lost_again, again) {
                                (true, _) => Blame::Unreached,
                                (false, true) => Blame::Endpoint,
                                (false, false) => Blame::Unsafe,
                            };
                            Err((failed(error), blame))
                        }
                    }
                };
                let start = clock::now();
                let given = in_time(deadline, attempt).await;
                // Whoever ends each connection at once has failed.
                if is_lost_again && !std::mem::replace(&mut was_lost, true) {
                    continue;
                }
                break attempts.judge(lease, start, given);
            };
            if let Some(answer) = unavailable {
                return Ok(answer);
            }
            if let Some(end) = end {
                let (answer, lease) = end.map_err(status)?;
                return Ok(match lease.is_counted() {
                    true => answer.map(|body| Body::new(Leased::new(body, lease))),
                    false => answer,
                });
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
            match connections.get(&address) {
                Some(connection) if !connection.is_ended() => connection.wanted(),
                _ => {
                    // Those of endpoints that are gone are let go.
                    self.service.pool().retain(&mut connections);
                    let endpoint = self.endpoint(address).map_err(failed)?;
                    let made = Connection::new(endpoint, address, self.service.downgrade());
                    let wanted = made.wanted();
                    connections.insert(address, made);
                    wanted
                }
            }
        };
        wanted.await
    }

    fn endpoint(&self, address: SocketAddr) -> Result<Endpoint, transport::Error> {
        let origin = self.origin();
        // The certificate is to be that of the URI's name, unless the user's TLS settings have
        // another. Where it leads to is the connection's own knowledge.
        let uri = match &origin {
            Some(origin) => origin.to_string(),
            None => format!("{}://{address}", self.scheme),
        };
        let endpoint = Endpoint::from_shared(uri)?
            .connect_timeout(Duration::from_secs(1))
            .tcp_keepalive(Some(SILENCE / 2))
            .tcp_keepalive_interval(Some(SILENCE / 4))
            .tcp_keepalive_retries(Some(2));
        let endpoint = match origin {
            Some(origin) => endpoint.origin(origin),
            None => endpoint,
        };
        Ok((self.configure)(endpoint))
    }

    /// The service's own name, which stays in `:authority`.
    fn origin(&self) -> Option<http::Uri> {
        let name = self.service.fqdn();
        let name = name.trim_end_matches('.');
        format!("{}://{name}", self.scheme).parse().ok()
    }
}

/// Sends a request by a connection. What is cut off by the deadline never comes: whoever waits
/// sees it to its end.
async fn ask(
    mut channel: transport::Channel,
    request: http::Request<Body>,
    deadline: Option<Instant>,
) -> Result<http::Response<Body>, transport::Error> {
    let ready = std::future::poll_fn(|context| channel.poll_ready(context)).await;
    let answered = match ready {
        Ok(()) => channel.call(request).await,
        Err(error) => Err(error),
    };
    if deadline.is_some_and(|deadline| left(deadline) < TICK) && is_cut(&answered) {
        std::future::pending::<()>().await;
    }
    answered
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(clock::now())
}

/// Whether an answer without a message has this status.
fn says(answer: &http::Response<Body>, code: &str) -> bool {
    let said = answer.headers().get("grpc-status");
    said.is_some_and(|said| said.as_bytes() == code.as_bytes())
}

/// Whether it may be that time ran out.
fn is_cut(answered: &Result<http::Response<Body>, transport::Error>) -> bool {
    match answered {
        Ok(answer) => says(answer, CANCELLED),
        Err(_) => true,
    }
}

fn failed(error: transport::Error) -> Status {
    // A limit that the user has set for each attempt.
    if sources(&error).any(|error| error.is::<TimeoutExpired>()) {
        return Status::deadline_exceeded("no answer within the time limit of an attempt");
    }
    Status::from_error(Box::new(error))
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
