//! **Shell.** One request to one address of an agent: connection, TLS, token,
//! deadline, size. Which address is asked next is the caller's decision, what
//! the reply means is [`health`](crate::consul::health)'s.
//!
//! The only file that names reqwest. It is held short: no proxy of the
//! environment, no redirect (the token would go along), no body above
//! [`BODY_LIMIT`] after it is unpacked, no headers above [`HEAD_LIMIT`], no global TLS
//! provider.
//!
//! Nothing is read or connected before the first request. Token and certificates
//! are read again when their files change; while they cannot be read, what was
//! good before stays in use.

pub(crate) mod reading;
#[cfg(test)]
mod tests;
mod token_file;
mod trouble;

use std::{
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use reqwest::{
    StatusCode, Url,
    header::{HOST, HeaderValue, LOCATION, RETRY_AFTER},
};

use self::{
    reading::{Body, Made},
    token_file::TokenFile,
    trouble::line,
};
use crate::{
    consul::{
        address::HttpAddress,
        tls::{self, TlsSettings},
        token::Token,
    },
    error::Error,
    process::Process,
    stamp::Stamp,
};

pub(crate) use self::trouble::Trouble;

/// The largest body taken, unpacked: far above the 5 MB of 5,000 instances.
pub(crate) const BODY_LIMIT: usize = 64 << 20;

/// The most that the names and values of a reply's headers may be: Consul's are below 1 kB.
const HEAD_LIMIT: usize = 16 << 10;

/// A body of which nothing comes for so long has stopped.
const STALL: Duration = Duration::from_secs(2);

/// A connection that nobody uses is kept for so long: after a burst the agent, which counts
/// them, is to have them back.
const IDLE: Duration = Duration::from_secs(10);

/// As much of an error's text as is looked at.
const TEXT_LIMIT: usize = 4 << 10;

/// A server that has not heard of its leader for so long may not know what is true by now. The
/// leader tells each about once a second.
pub(crate) const LAST_CONTACT: Duration = Duration::from_secs(5);

/// Where an agent is, and how it is spoken to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct AgentSettings {
    pub(crate) addresses: Vec<HttpAddress>,
    pub(crate) token: Option<Token>,
    /// Wins over the token when it holds anything.
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) tls: TlsSettings,
}

/// The HTTP API of one agent, or of several that stand for each other.
pub(crate) struct Agent {
    process: Process,
    lines: Box<[Arc<Line>]>,
    token: Option<Token>,
    token_file: Option<Arc<TokenFile>>,
    tls: Arc<TlsSettings>,
}

/// What is done with a path.
#[derive(Clone, Debug)]
pub(crate) enum Verb {
    Get,
    Put(Vec<u8>),
    Post(Vec<u8>),
    Delete,
}

/// What an agent answered, and what was made of its body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reply<B = Vec<u8>> {
    pub(crate) head: Head,
    pub(crate) body: B,
    /// Length of the body, unpacked.
    pub(crate) received: usize,
}

/// What it said before its body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// 2xx, or 404.
    pub(crate) status: u16,
    /// `X-Consul-Index`.
    pub(crate) index: Option<u64>,
    /// `X-Consul-Knownleader`.
    pub(crate) known_leader: Option<bool>,
    /// `X-Consul-Lastcontact`: how long the server has not heard of the leader.
    pub(crate) last_contact: Option<Duration>,
    /// `X-Consul-Results-Filtered-By-ACLs`: something was left out.
    pub(crate) filtered_by_acls: bool,
    /// `X-Consul-Translate-Addresses`: addresses may be those for other datacenters.
    pub(crate) translate_addresses: bool,
    /// The agent's clock, since 1970.
    pub(crate) date: Option<Duration>,
}

impl Head {
    /// Whether the server that answered hears of its leader, as far as it says.
    pub(crate) fn is_led(&self) -> bool {
        unconfirmed(self.known_leader, self.last_contact).is_none()
    }
}

/// Why what a server tells may be of before. What it says is used: no other may be there.
pub(crate) fn unconfirmed(
    known_leader: Option<bool>,
    contact: Option<Duration>,
) -> Option<&'static str> {
    if known_leader == Some(false) {
        return Some("the server that told it knows no leader: newer changes may be missing");
    }
    let late = contact.is_some_and(|contact| contact >= LAST_CONTACT);
    late.then_some("the server that told it lags behind its leader: newer changes may be missing")
}

impl Agent {
    /// Looks at the settings, and at nothing else.
    pub(crate) fn new(settings: AgentSettings) -> Result<Self, Trouble> {
        let config = |error: tls::TlsError| Trouble::Config(error.to_string().into());
        settings.tls.check().map_err(config)?;
        let server_name = settings.tls.server_name.as_deref();
        let lines = settings.addresses.into_iter();
        let lines = lines.map(|address| Line::new(address, server_name).map(Arc::new));
        Ok(Self {
            process: Process::own(),
            lines: lines.collect::<Result<_, _>>()?,
            token: settings.token,
            token_file: settings
                .token_file
                .map(|path| Arc::new(TokenFile::new(path))),
            tls: Arc::new(settings.tls),
        })
    }

    /// The addresses, in the order in which they were given.
    pub(crate) fn addresses(&self) -> impl ExactSizeIterator<Item = &HttpAddress> {
        self.lines.iter().map(|line| &line.address)
    }

    /// Asks one of the [`addresses`](Self::addresses); see [`send`](Self::send).
    pub(crate) async fn get(
        &self,
        address: &HttpAddress,
        path_and_query: &str,
        limit: Duration,
    ) -> Result<Reply, Trouble> {
        self.send(address, Verb::Get, path_and_query, limit).await
    }

    /// The same for a body that may be long: `begin` is told what the reply says before it, and
    /// gives what is made of it as it comes, which is part of the exchange and its time.
    ///
    /// Cancel-safe: a dropped request closes its connection.
    pub(crate) async fn get_into<B: Made>(
        &self,
        address: &HttpAddress,
        path_and_query: &str,
        limit: Duration,
        begin: impl FnOnce(&Head) -> B,
    ) -> Result<Reply<B>, Trouble> {
        let exchange = self.exchange(address, Verb::Get, path_and_query, begin);
        within(limit, exchange).await
    }

    /// Sends one request to one of the [`addresses`](Self::addresses). `path_and_query` is
    /// percent-encoded and begins with `/`; the whole exchange, connecting
    /// included, takes no longer than `limit`.
    ///
    /// Cancel-safe: a dropped request closes its connection. Whether it was carried out is
    /// not known then.
    pub(crate) async fn send(
        &self,
        address: &HttpAddress,
        verb: Verb,
        path_and_query: &str,
        limit: Duration,
    ) -> Result<Reply, Trouble> {
        let exchange = self.exchange(address, verb, path_and_query, |_| Vec::new());
        within(limit, exchange).await
    }

    /// Reads the files that there are: token, certificates, key. Asks nobody.
    pub(crate) async fn check(&self) -> Result<(), Trouble> {
        self.token().await?;
        if self.tls.files().next().is_some() {
            let tls = Arc::clone(&self.tls);
            let config = |error: tls::TlsError| Trouble::Config(error.to_string().into());
            blocking(move || tls::client_config(&tls).map(drop).map_err(config)).await?;
        }
        Ok(())
    }

    async fn exchange<B: Made>(
        &self,
        address: &HttpAddress,
        verb: Verb,
        path: &str,
        begin: impl FnOnce(&Head) -> B,
    ) -> Result<Reply<B>, Trouble> {
        let forked = |error: Error| Trouble::Config(error.to_string().into());
        self.process.check().map_err(forked)?;
        let line = self.lines.iter().find(|line| line.address == *address);
        let line = line.ok_or_else(|| Trouble::Config("not an address of this agent".into()))?;
        let url = line.url(path)?;
        let token = self.token().await?;
        let client = self.client(line).await?;
        let mut request = match verb {
            Verb::Get => client.get(url),
            Verb::Put(body) => client.put(url).body(body),
            Verb::Post(body) => client.post(url).body(body),
            Verb::Delete => client.delete(url),
        };
        if let Some(host) = &line.host_header {
            request = request.header(HOST, &**host);
        }
        if let Some(token) = &token {
            request = request.header("X-Consul-Token", sensitive(token)?);
        }
        let response = request
            .send()
            .await
            .map_err(|error| Trouble::caused_by(&error))?;
        heard(response, token.as_ref(), begin).await
    }

    async fn token(&self) -> Result<Option<Token>, Trouble> {
        let Some(file) = self.token_file.clone() else {
            return Ok(self.token.clone());
        };
        let token = blocking(move || file.current().map_err(Trouble::Config)).await?;
        Ok(token.or_else(|| self.token.clone()))
    }

    async fn client(&self, line: &Arc<Line>) -> Result<reqwest::Client, Trouble> {
        let files = line.address.is_tls() && self.tls.files().next().is_some();
        if !files && let Some(made) = line.made() {
            return Ok(made.client);
        }
        let (line, tls) = (Arc::clone(line), Arc::clone(&self.tls));
        blocking(move || line.client(&tls)).await
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("addresses", &self.addresses().collect::<Vec<_>>())
            .field("token", &self.token)
            .field("token_file", &self.token_file)
            .field("tls", &self.tls)
            .finish()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(Trouble::Config("the runtime is shutting down".into())),
    }
}

fn sensitive(token: &Token) -> Result<HeaderValue, Trouble> {
    let mut value = HeaderValue::from_str(token.secret())
        .map_err(|_| Trouble::Config("the token is no header value".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// One address and the connections to it.
struct Line {
    address: HttpAddress,
    /// Scheme, host, port and prefix of each URL. The host is the TLS server
    /// name where there is one; [`Pinned`] leads it to the address.
    base: Box<str>,
    host: Box<str>,
    /// The address's own host, where the URL has another.
    host_header: Option<Box<str>>,
    /// Made at first use. A std mutex: nobody awaits while holding it.
    made: Mutex<Option<Client>>,
}

#[derive(Clone)]
struct Client {
    client: reqwest::Client,
    /// The certificates it was made from.
    stamps: Vec<Option<Stamp>>,
}

impl Line {
    fn new(address: HttpAddress, server_name: Option<&str>) -> Result<Self, Trouble> {
        let (base, host, host_header) = match (&address, server_name) {
            (HttpAddress::Unix(_), _) => ("http://localhost".into(), "localhost".into(), None),
            (
                HttpAddress::Tcp {
                    tls: true,
                    host,
                    port,
                    prefix,
                },
                Some(name),
            ) => {
                let name = cut_server_name(name)?;
                if name != *host && name.parse::<IpAddr>().is_ok() {
                    let why = "an IP address as the TLS server name has to be the address's own";
                    return Err(Trouble::Config(why.into()));
                }
                let base = format!("https://{}:{port}{prefix}", bracketed(&name));
                let header = format!("{}:{port}", bracketed(host));
                (base.into(), name, Some(header.into()))
            }
            (HttpAddress::Tcp { host, .. }, _) => (address.to_string().into(), host.clone(), None),
        };
        Ok(Self {
            address,
            base,
            host,
            host_header,
            made: Mutex::default(),
        })
    }

    /// The URL of a request: just this host and path, however a browser would
    /// read them (`0x7f.1`, `/a/%2e%2e/b`).
    fn url(&self, path_and_query: &str) -> Result<Url, Trouble> {
        let refused = |why: &str| Trouble::Config(why.into());
        let whole = format!("{}{path_and_query}", self.base);
        let url = Url::parse(&whole).map_err(|error| refused(&error.to_string()))?;
        let is_ip = self.host.parse::<IpAddr>().is_ok();
        if !is_ip && url.host_str() != Some(&*self.host) {
            return Err(refused("the host is read as another one in a URL"));
        }
        let path = path_and_query.split('?').next().unwrap_or_default();
        let prefix = match &self.address {
            HttpAddress::Tcp { prefix, .. } => prefix,
            HttpAddress::Unix(_) => "",
        };
        let same = url.path().strip_prefix(prefix) == Some(path) && path.starts_with('/');
        match same {
            true => Ok(url),
            false => Err(refused("the name is no path of a request")),
        }
    }

    fn made(&self) -> Option<Client> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.clone()
    }

    /// The client, made anew when a certificate's file changed. Blocks.
    fn client(&self, tls: &TlsSettings) -> Result<reqwest::Client, Trouble> {
        let stamp = |path| std::fs::metadata(path).ok().as_ref().map(Stamp::of);
        let stamps: Vec<_> = match self.address.is_tls() {
            true => tls.files().map(stamp).collect(),
            false => Vec::new(),
        };
        let held = self.made();
        if let Some(made) = &held
            && made.stamps == stamps
        {
            return Ok(made.client.clone());
        }
        let client = match (self.build(tls), held) {
            (Ok(client), _) => client,
            (Err(trouble), None) => return Err(trouble),
            (Err(trouble), Some(made)) => {
                tracing::warn!("{trouble}; the certificates read before stay in use");
                made.client
            }
        };
        let made = Client {
            client: client.clone(),
            stamps,
        };
        *self.made.lock().unwrap_or_else(PoisonError::into_inner) = Some(made);
        Ok(client)
    }

    fn build(&self, tls: &TlsSettings) -> Result<reqwest::Client, Trouble> {
        let config = match self.address.is_tls() {
            true => tls::client_config(tls),
            false => tls::unused(),
        };
        let config = config.map_err(|error| Trouble::Config(error.to_string().into()))?;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .gzip(true)
            .referer(false)
            .pool_idle_timeout(IDLE)
            .user_agent(concat!("proconsul/", env!("CARGO_PKG_VERSION")));
        if let (Some(_), HttpAddress::Tcp { host, .. }) = (&self.host_header, &self.address) {
            builder = builder.dns_resolver(Pinned(host.clone()));
        }
        if let Some(path) = self.address.socket() {
            #[cfg(unix)]
            {
                builder = builder.unix_socket(path);
            }
            #[cfg(not(unix))]
            return Err(Trouble::Config(
                format!("{}: this system has no unix sockets", path.display()).into(),
            ));
        }
        builder.build().map_err(|error| Trouble::caused_by(&error))
    }
}

/// The name without the port that Consul's tools let stand in it.
fn cut_server_name(name: &str) -> Result<Box<str>, Trouble> {
    match HttpAddress::parse(name, true) {
        Ok(HttpAddress::Tcp { host, .. }) if !name.contains('/') => Ok(host),
        _ => Err(Trouble::Config(
            "the TLS server name is not a host name".into(),
        )),
    }
}

fn bracketed(host: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

/// Leads every name to one host, so that a URL can carry the TLS server name.
struct Pinned(Box<str>);

impl reqwest::dns::Resolve for Pinned {
    fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let host = self.0.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((&*host, 0)).await?;
            let found: Vec<_> = found.collect();
            Ok(Box::new(found.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

/// The exchange, which is held once: an `async fn` would hold it twice.
fn within<T>(
    limit: Duration,
    exchange: impl Future<Output = Result<T, Trouble>>,
) -> impl Future<Output = Result<T, Trouble>> {
    let limited = tokio::time::timeout(limit, exchange);
    limited.map(|told| told.unwrap_or(Err(Trouble::TimedOut)))
}

async fn heard<B: Made>(
    mut response: reqwest::Response,
    token: Option<&Token>,
    begin: impl FnOnce(&Head) -> B,
) -> Result<Reply<B>, Trouble> {
    let status = response.status();
    let headers = response.headers().iter();
    let length: usize = headers
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if length > HEAD_LIMIT {
        return Err(Trouble::TooLarge);
    }
    if status.is_success() || status == StatusCode::NOT_FOUND {
        // A HeaderMap compares names without case.
        let header = |name: &str| response.headers().get(name)?.to_str().ok();
        let head = reading::head(status.as_u16(), header);
        let announced = response.content_length();
        let mut body = Body::new(begin(&head), BODY_LIMIT, announced)?;
        while let Some(more) = chunk(&mut response).await? {
            body.add(&more)?;
        }
        return Ok(body.ends(head));
    }
    if status.is_redirection() {
        return Err(Trouble::Redirected(location(&response, token)));
    }
    let after = response.headers().get(RETRY_AFTER);
    let after = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let after = after.map(Duration::from_secs);
    let mut text = Vec::new();
    // Of an error whose text does not come the status is enough.
    while let Ok(Some(more)) = chunk(&mut response).await {
        text.extend_from_slice(&more);
        if text.len() >= TEXT_LIMIT {
            break;
        }
    }
    Err(reading::refusal(status.as_u16(), &text, token, after))
}

async fn chunk(
    response: &mut reqwest::Response,
) -> Result<Option<impl std::ops::Deref<Target = [u8]> + use<>>, Trouble> {
    match tokio::time::timeout(STALL, response.chunk()).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(error)) => Err(Trouble::caused_by(&error)),
        Err(_) => Err(Trouble::TimedOut),
    }
}

fn location(response: &reqwest::Response, token: Option<&Token>) -> Box<str> {
    let location = response.headers().get(LOCATION);
    let target = location
        .and_then(|value| value.to_str().ok())
        .and_then(|text| response.url().join(text).ok());
    match target.as_ref().and_then(Url::host_str) {
        Some(host) => line(host, token),
        None => "an unreadable address".into(),
    }
}
