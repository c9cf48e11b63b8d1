//! **Door.** [`HttpClient`]: requests to services by name, each to an endpoint of its own
//! choice, over connections that are kept.
//!
//! | failed | GET, HEAD, OPTIONS, TRACE, PUT, DELETE | POST, PATCH, others |
//! | --- | --- | --- |
//! | no connection | again, elsewhere | again, elsewhere: nothing was sent |
//! | no answer in time, connection lost | again, elsewhere | the error: it may have been done |
//! | 5xx but 501 | again, elsewhere; then that answer | that answer |
//! | anything else | that answer | that answer |
//!
//! Which methods may be repeated is RFC 9110's word (section 9.2.2). A body that is a
//! stream is sent once.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lru::LruCache;
use reqwest::{
    Body, Method, Request, RequestBuilder, Response, ResponseBuilderExt as _, StatusCode, Url,
};

use crate::{
    balance::Strategy,
    call::Attempts,
    consul::tls::{self, TlsSettings},
    error::{Error, ErrorKind},
    leased::Leased,
    name::{ConsulName, Domain},
    pool::{Lease, Policy},
    resolver::{Resolver, Service},
    retry::{Blame, CallError, Retry},
};

/// Services that a client has at hand: each is followed.
const MOST_SERVICES: NonZeroUsize = NonZeroUsize::new(256).expect("more than none");

/// Why a request came to nothing. An answer of any status is none of these. Of the URL it
/// tells scheme and host: path and query may be a secret.
pub type HttpError = CallError<reqwest::Error>;

/// Sends requests to services by name: `http://web/path`.
///
/// The host of a URL is a name as a [look-up](Resolver::lookup) takes it, its port and its
/// address come from Consul. `Host`, and with `https` the name in the certificate, stay the
/// service's. Cheap to clone; clones share connections.
///
/// ```no_run
/// use proconsul::{HttpClient, Resolver};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let http = HttpClient::new(&Resolver::from_env()?)?;
/// let answer = http.get("http://web/users/7").send().await?;
/// println!("{}", answer.status());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HttpClient(Arc<Inner>);

struct Inner {
    resolver: Resolver,
    settings: HttpClientBuilder,
    tls: rustls::ClientConfig,
    /// What builds requests and sends none.
    builder: reqwest::Client,
    /// By the host of the URL. A std mutex: held for one look, never across an await.
    services: Mutex<LruCache<Box<str>, Arc<Backend>>>,
}

/// A service and a client for each of its endpoints, which keeps its connections.
struct Backend {
    service: Service,
    clients: Mutex<HashMap<SocketAddr, reqwest::Client>>,
}

/// Settings of an [`HttpClient`], made by [`HttpClient::builder`].
#[derive(Clone, Debug)]
pub struct HttpClientBuilder {
    policy: Policy,
    retry: Retry,
    timeout: Duration,
    connect_timeout: Duration,
    ca_file: Option<PathBuf>,
}

impl HttpClientBuilder {
    /// Which endpoints are used, and how one is chosen. Default: round robin.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// How often a request is sent again. Default: [`Retry::http`].
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Time for one attempt, until the body has arrived. Default: 10 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Time for a connection to be made. Default: 1 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Root certificates for `https`, PEM. Default: the system's.
    #[must_use]
    pub fn ca_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(file.into());
        self
    }

    /// Makes the client. Reads the root certificates.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for certificates that cannot be read.
    pub fn build(self, resolver: &Resolver) -> Result<HttpClient, Error> {
        let settings = TlsSettings {
            ca_file: self.ca_file.clone(),
            ..TlsSettings::default()
        };
        let invalid = |message: String| Error::new(ErrorKind::Invalid, message);
        let tls = tls::client_config(&settings).map_err(|error| invalid(error.to_string()))?;
        let builder = client(&tls, &self).build();
        let builder = builder.map_err(|error| invalid(error.to_string()))?;
        Ok(HttpClient(Arc::new(Inner {
            resolver: resolver.clone(),
            settings: self,
            tls,
            builder,
            services: Mutex::new(LruCache::new(MOST_SERVICES)),
        })))
    }
}

fn client(tls: &rustls::ClientConfig, settings: &HttpClientBuilder) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .connect_timeout(settings.connect_timeout)
        .timeout(settings.timeout)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
}

impl HttpClient {
    /// A client with the defaults.
    ///
    /// # Errors
    ///
    /// As [`HttpClientBuilder::build`].
    pub fn new(resolver: &Resolver) -> Result<Self, Error> {
        Self::builder().build(resolver)
    }

    /// Other settings.
    pub fn builder() -> HttpClientBuilder {
        HttpClientBuilder {
            policy: Policy::new(Strategy::RoundRobin),
            retry: Retry::http(),
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            ca_file: None,
        }
    }

    /// A GET request.
    pub fn get(&self, url: &str) -> HttpRequest {
        self.request(Method::GET, url)
    }

    /// A POST request.
    pub fn post(&self, url: &str) -> HttpRequest {
        self.request(Method::POST, url)
    }

    /// A PUT request.
    pub fn put(&self, url: &str) -> HttpRequest {
        self.request(Method::PUT, url)
    }

    /// A PATCH request.
    pub fn patch(&self, url: &str) -> HttpRequest {
        self.request(Method::PATCH, url)
    }

    /// A DELETE request.
    pub fn delete(&self, url: &str) -> HttpRequest {
        self.request(Method::DELETE, url)
    }

    /// A request. What is wrong with the URL is told when it is sent.
    pub fn request(&self, method: Method, url: &str) -> HttpRequest {
        // Read here: reqwest makes a header of a user in it.
        let read = Url::parse(url).ok();
        let domain = self.0.resolver.domain();
        HttpRequest {
            client: self.clone(),
            refused: read.and_then(|url| service_of(&url, domain).err()),
            builder: self.0.builder.request(method, url),
        }
    }

    /// Sends a request that was made elsewhere.
    ///
    /// # Errors
    ///
    /// [`CallError::NoEndpoint`] where its URL names no service, where there is none of
    /// that name, or where it has no endpoint; else as [`HttpRequest::send`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the request that is in the air.
    pub async fn execute(&self, request: Request) -> Result<Response, HttpError> {
        let backend = self.backend(request.url()).map_err(CallError::NoEndpoint)?;
        let method = request.method().clone();
        let mut next = Some(request);
        let mut attempts = Attempts::new(&backend.service, &self.0.settings.retry);
        loop {
            let lease = match attempts.next().await {
                Ok(lease) => lease,
                Err(error) => return Failure::into_result(error),
            };
            let request = next.take().expect("what cannot be copied is sent once");
            next = request.try_clone();
            let client = self.client(&backend, &request, lease.socket_addr());
            let attempt = async {
                let sent = match client {
                    Ok(client) => client.execute(request).await,
                    Err(error) => Err(error),
                };
                let (failure, blame) = match sent {
                    Ok(answer) if is_good(answer.status()) => return Ok(answer),
                    Ok(answer) => (Failure::Answer(answer), broken(&method)),
                    Err(error) => {
                        let blame = blame(&error, &method);
                        (Failure::Error(discreet(error)), blame)
                    }
                };
                Err(match blame {
                    Blame::Endpoint | Blame::Unreached if next.is_none() => {
                        (failure, Blame::Unsafe)
                    }
                    blame => (failure, blame),
                })
            };
            match attempts.make(lease, attempt).await {
                Some(Ok((answer, lease))) if lease.is_counted() => {
                    return Ok(leased(answer, lease));
                }
                Some(Ok((answer, _))) => return Ok(answer),
                Some(Err(error)) => return Failure::into_result(error),
                None => {}
            }
        }
    }

    fn backend(&self, url: &Url) -> Result<Arc<Backend>, Error> {
        let host = service_of(url, self.0.resolver.domain())?;
        let mut services = lock(&self.0.services);
        if let Some(backend) = services.get(host) {
            return Ok(Arc::clone(backend));
        }
        let policy = self.0.settings.policy.clone();
        let backend = Arc::new(Backend {
            service: self.0.resolver.service_with(host, policy)?,
            clients: Mutex::default(),
        });
        services.put(host.into(), Arc::clone(&backend));
        Ok(backend)
    }

    /// The client that has its connections to one endpoint.
    fn client(
        &self,
        backend: &Backend,
        request: &Request,
        address: SocketAddr,
    ) -> Result<reqwest::Client, reqwest::Error> {
        let mut clients = lock(&backend.clients);
        if let Some(client) = clients.get(&address) {
            return Ok(client.clone());
        }
        let host = request.url().host_str().unwrap_or_default();
        let made = client(&self.0.tls, &self.0.settings).resolve(host, address);
        let client = made.build()?;
        // Those of endpoints that are gone are let go.
        backend.service.pool().retain(&mut clients);
        clients.insert(address, client.clone());
        Ok(client)
    }
}

/// A request to a service, to be [sent](Self::send).
#[must_use = "a request does nothing until it is sent"]
pub struct HttpRequest {
    client: HttpClient,
    /// Its URL names no service.
    refused: Option<Error>,
    builder: RequestBuilder,
}

impl HttpRequest {
    /// Everything that reqwest knows of a request: headers, query, body, JSON.
    ///
    /// ```no_run
    /// # async fn example(http: proconsul::HttpClient) -> Result<(), proconsul::HttpError> {
    /// let made = http
    ///     .post("http://orders/new")
    ///     .with(|request| request.header("x-trace", "7").body("{}"))
    ///     .send()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with(self, more: impl FnOnce(RequestBuilder) -> RequestBuilder) -> Self {
        Self {
            builder: more(self.builder),
            ..self
        }
    }

    /// Sends it, and again to other endpoints where that fails and is safe.
    ///
    /// # Errors
    ///
    /// [`CallError::NoEndpoint`] where the URL names no service, where there is none of
    /// that name, or where it has no endpoint; [`CallError::Failed`] with the last
    /// attempt's error; [`CallError::Deadline`] where the [`Retry`] has one. An answer
    /// with an error's status is no error.
    ///
    /// What goes wrong while the body of an answer is read is reqwest's own error, and tells
    /// the whole URL: [`without_url`](reqwest::Error::without_url) takes it away before it is
    /// written down.
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the request that is in the air.
    pub async fn send(self) -> Result<Response, HttpError> {
        if let Some(error) = self.refused {
            return Err(CallError::NoEndpoint(error));
        }
        let request = self.builder.build();
        let request = request.map_err(|error| CallError::Failed {
            error: discreet(error),
            attempts: 0,
        })?;
        self.client.execute(request).await
    }
}

/// An answer whose call is in the air until its body has arrived.
fn leased(answer: Response, lease: Lease) -> Response {
    let url = answer.url().clone();
    let (head, body) = http::Response::<Body>::from(answer).into_parts();
    let named = http::response::Builder::new().url(url);
    let body = Body::wrap(Leased::new(body, lease));
    let mut answer = named.body(body).expect("what has a URL alone is one");
    *answer.status_mut() = head.status;
    *answer.version_mut() = head.version;
    *answer.headers_mut() = head.headers;
    answer.extensions_mut().extend(head.extensions);
    answer.into()
}

/// What an attempt came to that is no good answer.
enum Failure {
    Answer(Response),
    Error(reqwest::Error),
}

impl Failure {
    /// An answer is given rather than an error.
    fn into_result(error: CallError<Self>) -> Result<Response, HttpError> {
        Err(match error {
            CallError::NoEndpoint(error) => CallError::NoEndpoint(error),
            CallError::Failed {
                error: Self::Answer(answer),
                ..
            }
            | CallError::Deadline {
                last: Some(Self::Answer(answer)),
                ..
            } => return Ok(answer),
            CallError::Failed {
                error: Self::Error(error),
                attempts,
            } => CallError::Failed { error, attempts },
            CallError::Deadline { attempts, last } => {
                let last = last.and_then(|last| match last {
                    Self::Error(error) => Some(error),
                    Self::Answer(_) => None,
                });
                CallError::Deadline { attempts, last }
            }
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The service that a URL names.
fn service_of<'a>(url: &'a Url, domain: &Domain) -> Result<&'a str, Error> {
    let refuse = |why: &str| {
        // All else may be a secret: a user, a path, a query.
        let (scheme, host) = (url.scheme(), url.host_str().unwrap_or_default());
        let message = format!("{scheme}://{host} names no service: {why}");
        Error::new(ErrorKind::Invalid, message)
    };
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("only http and https are spoken"));
    }
    let host = url.host_str().ok_or_else(|| refuse("it has no host"))?;
    if let Some(port) = url.port() {
        let why = format!("the port comes from Consul: leave :{port} out");
        return Err(refuse(&why));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse(
            "what stands before an @ is a user: write another datacenter as \
             http://web.service.dc2.consul/, and a user as a header",
        ));
    }
    if literal(host).is_some() {
        return Err(refuse("an address is reached by any HTTP client"));
    }
    ConsulName::parse(host, domain).map_err(|error| refuse(&error.to_string()))?;
    Ok(host)
}

/// The address that stands in place of a name: of IPv6 in brackets (RFC 3986, section 3.2.2).
fn literal(host: &str) -> Option<IpAddr> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    bare.unwrap_or(host).parse().ok()
}

/// An answer that says nothing against its endpoint.
fn is_good(status: StatusCode) -> bool {
    !status.is_server_error() || status == StatusCode::NOT_IMPLEMENTED
}

fn broken(method: &Method) -> Blame {
    // RFC 9110, section 9.2.2.
    if method.is_idempotent() {
        Blame::Endpoint
    } else {
        Blame::Unsafe
    }
}

/// The same without a path and a query, which may be a secret.
fn discreet(mut error: reqwest::Error) -> reqwest::Error {
    if let Some(url) = error.url_mut() {
        url.set_path("");
        url.set_query(None);
        url.set_fragment(None);
    }
    error
}

fn blame(error: &reqwest::Error, method: &Method) -> Blame {
    if error.is_builder() {
        Blame::Question
    } else if error.is_connect() {
        Blame::Unreached
    } else {
        broken(method)
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = &self.0.settings;
        f.debug_struct("HttpClient")
            .field("settings", settings)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for HttpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may hold secrets.
        f.debug_struct("HttpRequest").finish_non_exhaustive()
    }
}

/// Resolves names in Consul's domain, and single labels, for reqwest clients that are
/// there already: see [`Resolver::reqwest_dns`].
#[derive(Clone, Debug)]
struct ReqwestDns(Resolver);

impl Resolver {
    /// For existing clients: names in Consul's domain, and names of one label, are found
    /// with this resolver, their port too where the URL has none; others are the system's.
    ///
    /// The order of the addresses is a fresh draw by weight each time, but reqwest asks
    /// only for a new connection: requests stick to the instance that it was made to.
    /// [`HttpClient`] balances each request.
    ///
    /// ```no_run
    /// # fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let resolver = proconsul::Resolver::from_env()?;
    /// let client = reqwest::Client::builder()
    ///     .dns_resolver(resolver.reqwest_dns())
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn reqwest_dns(&self) -> Arc<dyn reqwest::dns::Resolve> {
        Arc::new(ReqwestDns(self.clone()))
    }

    /// Addresses to connect to, in the order in which they are tried: a fresh draw by
    /// weight each time. Port 0: nobody says which.
    pub(crate) async fn addresses(
        &self,
        host: &str,
    ) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
        if let Some(address) = literal(host) {
            return Ok(vec![SocketAddr::new(address, 0)]);
        }
        if !self.is_ours(host) {
            return Ok(tokio::net::lookup_host((host, 0)).await?.collect());
        }
        let answer = self.lookup(host).await?;
        let mut picker = self.picker(&answer, Strategy::Weighted);
        let first = picker.pick().map(|first| first.socket_addr());
        let others = answer.endpoints().iter().map(|one| one.socket_addr());
        // Those without a port are for who brings one.
        let others =
            others.filter(|one| (one.port() != 0 || first.is_none()) && Some(*one) != first);
        Ok(first.into_iter().chain(others).collect())
    }

    fn is_ours(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let domain = self.domain().as_str();
        let below = host
            .strip_suffix(domain)
            .is_some_and(|rest| rest.ends_with('.'));
        below || (!host.contains('.') && host != "localhost")
    }
}

impl reqwest::dns::Resolve for ReqwestDns {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let resolver = self.0.clone();
        Box::pin(async move {
            let all = resolver.addresses(name.as_str()).await?;
            Ok(Box::new(all.into_iter()) as reqwest::dns::Addrs)
        })
    }
}
