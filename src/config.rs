//! **Word.** Every knob once: what it does, its default, its range and why.
//! [`ResolverBuilder`] takes them in, its `finish` is the one place that refuses;
//! nobody checks them again.
//!
//! A value comes from the caller, else from the environment, which [`environment`]
//! reads, else it is the default.

mod environment;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::PathBuf,
    time::Duration,
};

use crate::{
    cache::Limits,
    consul::{address::HttpAddress, http::AgentSettings, tls::Verify, token::Token},
    error::{Error, ErrorKind},
    name::{Domain, Locality},
    protection::Protection,
    source::default_address::{self, Defaults},
};

/// Where Consul's DNS interface listens unless told otherwise.
const DNS: &str = "127.0.0.1:8600";

/// Port of Consul's DNS interface where an address has none.
const DNS_PORT: u16 = 8600;

/// Where Consul's HTTP API listens unless told otherwise.
const HTTP: &str = "http://127.0.0.1:8500";

/// Whole look-up. Clients of a name server give up after 1 s at the earliest, a
/// service's own caller waits longer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Less is no time to ask anybody; more is a program that hangs.
const TIMEOUT_RANGE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(60));

/// A day is what Unbound, BIND and Knot agree on; RFC 8767, section 5, says one to
/// three.
const KEEP_STALE: Duration = Duration::from_secs(86_400);

/// Longest that stale answers may be kept: a week (RFC 8767, section 4, as the cap
/// of a TTL).
const KEEP_STALE_MOST: Duration = Duration::from_secs(7 * 86_400);

/// Connections to the HTTP API that Consul allows a client (`http_max_conns_per_client`).
pub(crate) const CONNECTIONS: usize = 200;

/// There is more than one client on a machine.
const WATCHES: usize = 64;

/// How a resolver is set up.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) dns: Vec<SocketAddr>,
    pub(crate) http: AgentSettings,
    pub(crate) catalog: Option<PathBuf>,
    pub(crate) defaults: Defaults,
    /// Neither catalog nor default address may answer.
    pub(crate) must_be_found: bool,
    pub(crate) snapshot: Option<PathBuf>,
    pub(crate) protection: Protection,
    /// Blocking queries at once.
    pub(crate) watches: usize,
    pub(crate) domain: Domain,
    pub(crate) datacenter: Option<Box<str>>,
    pub(crate) namespace: Option<Box<str>>,
    pub(crate) partition: Option<Box<str>>,
    pub(crate) timeout: Duration,
    pub(crate) cache: Limits,
}

impl Config {
    /// Whether Consul shows the same to both.
    pub(crate) fn sees_as(&self, other: &Self) -> bool {
        self.http == other.http && self.dns == other.dns && self.home() == other.home()
    }

    /// Where names are that do not say it.
    pub(crate) fn home(&self) -> Locality {
        Locality {
            datacenter: self.datacenter.clone(),
            namespace: self.namespace.clone(),
            partition: self.partition.clone(),
            ..Locality::default()
        }
    }
}

/// Sets up a [`Resolver`](crate::Resolver). The first setting that is not valid is kept and told
/// by [`build`](Self::build).
#[derive(Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct ResolverBuilder {
    pub(crate) config: Config,
    /// `http` as given; read at the end, because TLS may be asked for later.
    http: String,
    ssl: bool,
    /// The variable that it is from.
    http_named: Option<&'static str>,
    /// What is wrong with a setting, by its name; setting it anew mends it. Each default address
    /// is a setting of its own.
    problems: BTreeMap<Cow<'static, str>, Error>,
}

impl fmt::Debug for ResolverBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResolverBuilder")
            .field("config", &self.config)
            .field("http", &self.shown_http())
            .field("ssl", &self.ssl)
            .field("problems", &self.problems)
            .finish()
    }
}

impl Default for ResolverBuilder {
    fn default() -> Self {
        let config = Config {
            dns: Vec::new(),
            http: AgentSettings::default(),
            catalog: None,
            defaults: Defaults::default(),
            must_be_found: false,
            snapshot: None,
            protection: Protection::default(),
            watches: WATCHES,
            domain: Domain::default(),
            datacenter: None,
            namespace: None,
            partition: None,
            timeout: TIMEOUT,
            cache: Limits {
                entries: NonZeroUsize::MAX,
                bytes: 16 << 20,
                floor: Duration::from_secs(1),
                cap: Duration::from_secs(86_400),
                negative: Duration::from_millis(500)..=Duration::from_secs(10),
                keep: KEEP_STALE,
            },
        };
        Self {
            config,
            http: HTTP.to_owned(),
            ssl: false,
            http_named: None,
            problems: BTreeMap::new(),
        }
        .dns(DNS)
    }
}

impl ResolverBuilder {
    /// Consul's DNS interface: one or more `address:port`, separated by commas
    /// and asked in that order, or `none`. A port may be left out. Default:
    /// `127.0.0.1:8600`.
    pub fn dns(mut self, servers: &str) -> Self {
        match dns_servers(servers) {
            Ok(servers) => {
                self.config.dns = servers;
                self.problems.remove("dns");
            }
            Err(message) => self.refuse("dns", message),
        }
        self
    }

    /// Consul's HTTP API: one or more of `host:port`, `http://…`, `https://…`,
    /// `unix://path`, separated by commas and asked in that order, or `none`.
    /// Default: `http://127.0.0.1:8500`.
    pub fn http(mut self, addresses: &str) -> Self {
        addresses.clone_into(&mut self.http);
        self.http_named = None;
        self
    }

    /// The ACL token sent to the HTTP API. It never appears in a log, an error or
    /// a `Debug`. Default: none.
    pub fn token(mut self, token: &str) -> Self {
        match Token::parse(token) {
            Ok(token) => {
                self.config.http.token = token;
                self.problems.remove("token");
            }
            Err(error) => self.refuse("token", format!("the ACL token is not valid: {error}")),
        }
        self
    }

    /// A file that holds the ACL token; read again when it changes. It wins over
    /// [`token`](Self::token) where it holds anything. Default: none.
    pub fn token_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.config.http.token_file = Some(file.into());
        self
    }

    /// Takes a token and a file of one back, such as those from the environment.
    pub fn no_token(mut self) -> Self {
        self.config.http.token = None;
        self.config.http.token_file = None;
        self.problems.remove("token");
        self
    }

    /// Whether there is a token, or a file of one.
    pub fn has_token(&self) -> bool {
        self.config.http.token.is_some() || self.config.http.token_file.is_some()
    }

    /// Whether an agent that is asked over HTTPS has to prove who it is. Default: yes;
    /// `CONSUL_HTTP_SSL_VERIFY` turns it off.
    pub fn verifies_agent(&self) -> bool {
        self.config.http.tls.verify == Verify::On
    }

    /// PEM file of the authorities that may vouch for the agent. Default: the
    /// system's.
    pub fn ca_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.config.http.tls.ca_file = Some(file.into());
        self
    }

    /// Directory of such files. Default: none.
    pub fn ca_path(mut self, directory: impl Into<PathBuf>) -> Self {
        self.config.http.tls.ca_dir = Some(directory.into());
        self
    }

    /// PEM file of our own certificate, for an agent that asks for one. Goes with
    /// [`key_file`](Self::key_file).
    pub fn cert_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.config.http.tls.cert_file = Some(file.into());
        self
    }

    /// PEM file of our own private key. Goes with [`cert_file`](Self::cert_file).
    pub fn key_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.config.http.tls.key_file = Some(file.into());
        self
    }

    /// The name that the agent's certificate must bear, where that is not the
    /// host it is reached by.
    pub fn tls_server_name(mut self, name: &str) -> Self {
        // Consul's own tools cut off a port.
        let name = name.rsplit_once(':').map_or(name, |(name, _)| name);
        self.config.http.tls.server_name = Some(name.into());
        self
    }

    /// Static catalog in the form of Consul's own service definitions (JSON), the
    /// last source asked. Default: none.
    pub fn catalog(mut self, file: impl Into<PathBuf>) -> Self {
        self.config.catalog = Some(file.into());
        self
    }

    /// Takes a static catalog back, such as one from the environment.
    pub fn no_catalog(mut self) -> Self {
        self.config.catalog = None;
        self
    }

    /// The address of a service that is given when nobody knows better: `host:port`
    /// or a URL, which says its port unless it is of `http` or `https`. The last source of
    /// all, after the static catalog. From the environment it is
    /// `PROCONSUL_DEFAULT_<NAME>`, the name in upper case with `-` and `.` as `_`.
    /// Default: none.
    pub fn default_address(self, service: &str, address: &str) -> Self {
        let told_as = format!("the default address of {service}");
        self.default_told_as(&told_as, service, address)
    }

    fn default_told_as(mut self, told_as: &str, service: &str, address: &str) -> Self {
        let setting = format!("default address {}", default_address::variable(service));
        self.problems.remove(&*setting);
        if let Err(why) = self.config.defaults.set(service, address) {
            self.refuse(setting, format!("{told_as}: {why}"));
        }
        self
    }

    /// What a source says of a service must come from Consul: the static catalog and
    /// default addresses are not asked, and a look-up that Consul cannot answer
    /// fails. Default: they are.
    pub fn must_be_found(mut self, must: bool) -> Self {
        self.config.must_be_found = must;
        self
    }

    /// A file where the last good answers are kept across restarts; private to its
    /// owner. A process that starts while everything is down answers from it.
    /// Default: none.
    pub fn snapshot(mut self, file: impl Into<PathBuf>) -> Self {
        self.config.snapshot = Some(file.into());
        self
    }

    /// Takes a snapshot back, such as one from the environment.
    pub fn no_snapshot(mut self) -> Self {
        self.config.snapshot = None;
        self
    }

    /// How long a set may be given after a source last confirmed it, while no source
    /// answers: RFC 8767. A [`Service`](crate::Service) has no endpoint from then on. Default
    /// one day, at most a week; 0 gives nothing stale.
    pub fn keep_stale(mut self, keep: Duration) -> Self {
        self.problems.remove("keep_stale");
        if keep > KEEP_STALE_MOST {
            let message = format!("stale answers kept for {keep:?}: a week is the most");
            self.refuse("keep_stale", message);
        }
        self.config.cache.keep = keep;
        self
    }

    /// Names that may be followed by blocking queries at once: those with a
    /// [`Service`](crate::Service) handle, and those that are asked often. Each holds
    /// one connection to the HTTP API, of which Consul allows a client 200; names
    /// above it are polled. Default 64, at most 180 and a quarter of the descriptors that the
    /// process may have (`ulimit -n`); 0 follows none.
    pub fn watches(mut self, most: usize) -> Self {
        self.problems.remove("watches");
        if most > 180 {
            self.refuse(
                "watches",
                format!("{most} watches: Consul allows 200 connections"),
            );
        }
        self.config.watches = most;
        self
    }

    /// What is done when a source says that a service which was there is gone.
    /// Default: [`Protection::Evidence`].
    pub fn protection(mut self, protection: Protection) -> Self {
        self.config.protection = protection;
        self
    }

    /// The domain that Consul answers for (its setting `domain`). Default:
    /// `consul`.
    pub fn domain(mut self, domain: &str) -> Self {
        match domain.parse() {
            Ok(domain) => {
                self.config.domain = domain;
                self.problems.remove("domain");
            }
            Err(error) => self.refuse("domain", format!("the domain is not valid: {error}")),
        }
        self
    }

    /// Datacenter of names that do not say one. Default: the agent's own.
    pub fn datacenter(mut self, datacenter: &str) -> Self {
        self.config.datacenter = Some(datacenter.into());
        self
    }

    /// Namespace (Consul Enterprise) of names that do not say one. Default, and what an
    /// empty text means: the agent's own.
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.config.namespace = (!namespace.is_empty()).then(|| namespace.into());
        self
    }

    /// Admin partition (Consul Enterprise) of names that do not say one. Default, and
    /// what an empty text means: the agent's own.
    pub fn partition(mut self, partition: &str) -> Self {
        self.config.partition = (!partition.is_empty()).then(|| partition.into());
        self
    }

    /// Limit of a whole look-up, over all sources. Default 1 s, range 10 ms to
    /// 60 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        let (least, most) = TIMEOUT_RANGE;
        self.problems.remove("timeout");
        if timeout < least || timeout > most {
            self.refuse(
                "timeout",
                format!("a time limit of {timeout:?} is not within {least:?} and {most:?}"),
            );
        }
        self.config.timeout = timeout;
        self
    }

    /// Least time that an answer is kept, whatever its TTL. Consul's TTL is 0
    /// unless configured, and then each look-up would go to Consul; within the
    /// floor a service that vanished may still be given out. Default 1 s; 0 keeps
    /// nothing that has no TTL; at most 1 h.
    pub fn ttl_floor(mut self, floor: Duration) -> Self {
        self.problems.remove("ttl_floor");
        if floor > Duration::from_secs(3600) {
            self.refuse(
                "ttl_floor",
                format!("a TTL floor of {floor:?} is above one hour"),
            );
        }
        self.config.cache.floor = floor;
        self
    }

    /// Most time that an answer is kept, whatever its TTL. Default and maximum:
    /// one day.
    pub fn ttl_cap(mut self, cap: Duration) -> Self {
        self.problems.remove("ttl_cap");
        if cap.is_zero() || cap > Duration::from_secs(86_400) {
            self.refuse(
                "ttl_cap",
                format!("a TTL cap of {cap:?} is not within 1 s and one day"),
            );
        }
        self.config.cache.cap = cap;
        self
    }

    /// Bytes that the cache may use, reckoned. Default 16 MiB, at least 64 KiB.
    /// What was not used for longest goes first; names that do not exist have a sixteenth
    /// of it beside, and push out no set; a set larger than half of
    /// it is not kept.
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.problems.remove("cache_bytes");
        if bytes < 64 << 10 {
            self.refuse(
                "cache_bytes",
                format!("a cache of {bytes} bytes is below 64 KiB"),
            );
        }
        self.config.cache.bytes = bytes;
        self
    }

    /// Names that the cache may hold; names that do not exist count apart. Default: as
    /// many as fit its bytes.
    pub fn cache_entries(mut self, entries: NonZeroUsize) -> Self {
        self.config.cache.entries = entries;
        self
    }

    /// The settings, checked.
    pub(crate) fn finish(mut self) -> Result<Config, Error> {
        if let Some((_, problem)) = self.problems.pop_first() {
            return Err(problem);
        }
        let addresses = http_addresses(&self.http, self.ssl);
        self.config.http.addresses = match self.http_named {
            Some(variable) => addresses.map_err(|error| error.about(variable))?,
            None => addresses?,
        };
        self.config
            .http
            .tls
            .check()
            .map_err(|error| Error::invalid(error.to_string(), error))?;
        let Limits { floor, cap, .. } = self.config.cache;
        if floor > cap {
            let message = format!("the TTL floor of {floor:?} is above the cap of {cap:?}");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        Ok(self.config)
    }

    /// An address with a password or a token is refused by `build`, and is not printed before.
    fn shown_http(&self) -> &str {
        match self.http.contains(['@', '?']) {
            true => "..",
            false => &self.http,
        }
    }

    fn refuse(&mut self, setting: impl Into<Cow<'static, str>>, message: String) {
        let problem = Error::new(ErrorKind::Invalid, message);
        self.problems.insert(setting.into(), problem);
    }
}

fn dns_servers(text: &str) -> Result<Vec<SocketAddr>, String> {
    if text.trim().eq_ignore_ascii_case("none") {
        return Ok(Vec::new());
    }
    let one =
        |text: &str| {
            let text = text.trim();
            let bare = || text.trim_matches(['[', ']']).parse::<IpAddr>();
            let address: Option<SocketAddr> = text.parse().ok();
            let address = address.or_else(|| bare().ok().map(|ip| SocketAddr::new(ip, DNS_PORT)));
            address.filter(|address| address.port() != 0).ok_or_else(|| {
            format!(
                "{text:?} is not the address of a DNS interface: write it as 127.0.0.1:8600 or \
                 [::1]:8600, several separated by commas, or none"
            )
        })
        };
    text.split(',').map(one).collect()
}

fn http_addresses(text: &str, ssl: bool) -> Result<Vec<HttpAddress>, Error> {
    if text.trim().eq_ignore_ascii_case("none") {
        return Ok(Vec::new());
    }
    let one = |text| {
        HttpAddress::parse(text, ssl).map_err(|error| {
            Error::invalid(
                format!("the address of Consul's HTTP API is not valid: {error}"),
                error,
            )
        })
    };
    text.split(',').map(one).collect()
}

impl fmt::Display for ResolverBuilder {
    /// Where this resolver would look.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dns: Vec<_> = self.config.dns.iter().map(ToString::to_string).collect();
        write!(f, "dns {}, http {}", dns.join(","), self.shown_http())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(builder: ResolverBuilder) -> String {
        builder.finish().unwrap_err().to_string()
    }

    #[test]
    fn an_address_without_a_port_gets_consuls_own() {
        let read = |text| dns_servers(text).unwrap();
        assert_eq!(read("10.0.0.1"), ["10.0.0.1:8600".parse().unwrap()]);
        assert_eq!(read("::1"), ["[::1]:8600".parse().unwrap()]);
        assert_eq!(read("[::1]:53, 10.0.0.1:54").len(), 2);
        assert_eq!(read("none"), []);
        for bad in [
            "",
            "consul",
            "10.0.0.1:0",
            "10.0.0.1:8600,",
            "10.0.0.1:99999",
        ] {
            assert!(
                dns_servers(bad).unwrap_err().contains("127.0.0.1:8600"),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_not_clamped() {
        let new = ResolverBuilder::default;
        assert!(problem(new().timeout(Duration::ZERO)).contains("time limit"));
        assert!(problem(new().ttl_floor(Duration::from_secs(7200))).contains("floor"));
        assert!(problem(new().ttl_cap(Duration::ZERO)).contains("cap"));
        assert!(problem(new().cache_bytes(10)).contains("64 KiB"));
        let crossed = new()
            .ttl_floor(Duration::from_secs(60))
            .ttl_cap(Duration::from_secs(5));
        assert!(problem(crossed).contains("above the cap"));
    }

    #[test]
    fn a_bad_default_address_is_mended_by_none_of_another_service() {
        let bad = || ResolverBuilder::default().default_address("pay-api", "nowhere");
        let told = problem(bad().default_address("web", "10.0.0.1:80"));
        assert!(told.contains("the default address of pay-api"), "{told}");
        // A later layer says it by the variable's name.
        let mended = bad().default_address("PAY_API", "10.0.0.1:80");
        assert!(mended.finish().is_ok());
    }

    #[test]
    fn debug_does_not_tell_the_token() {
        let builder = ResolverBuilder::default().token("canary-token");
        assert!(!format!("{builder:?}").contains("canary"));
    }
}
