//! **Word.** [`Check`]: how an agent finds out whether an instance is well (Consul docs:
//! Health checks).

use std::{collections::BTreeMap, fmt, time::Duration};

use serde_json::{Value, json};

use crate::endpoint::Health;

/// Time between two checks.
const INTERVAL: Duration = Duration::from_secs(10);

/// Time that a check may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Who is critical for so long is deregistered by the agent: the net under a process that
/// died without a word. Consul takes no less than a minute.
const DEREGISTER_AFTER: Duration = Duration::from_secs(60);

/// How an agent finds out whether an instance is well. Without scripts: agents seldom
/// allow them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    kind: Kind,
    name: Option<Box<str>>,
    interval: Duration,
    timeout: Duration,
    deregister_after: Option<Duration>,
    starts: Option<Health>,
}

#[derive(Clone, PartialEq, Eq)]
enum Kind {
    Http {
        url: Box<str>,
        method: Option<Box<str>>,
        headers: BTreeMap<Box<str>, Vec<Box<str>>>,
        any_certificate: bool,
    },
    Tcp(Box<str>),
    Grpc {
        target: Box<str>,
        tls: bool,
    },
    Ttl(Duration),
}

impl fmt::Debug for Kind {
    /// Without what may be secret: values of headers, and what stands in a URL beside its
    /// place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { url, headers, .. } => f
                .debug_struct("Http")
                .field("url", &bare(url))
                .field("headers", &headers.keys().collect::<Vec<_>>())
                .finish_non_exhaustive(),
            Self::Tcp(address) => f.debug_tuple("Tcp").field(address).finish(),
            Self::Grpc { target, tls } => f
                .debug_struct("Grpc")
                .field("target", target)
                .field("tls", tls)
                .finish(),
            Self::Ttl(ttl) => f.debug_tuple("Ttl").field(ttl).finish(),
        }
    }
}

/// A URL without user, password, query and fragment.
fn bare(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = host.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        None => url.to_owned(),
    }
}

impl Check {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            name: None,
            interval: INTERVAL,
            timeout: TIMEOUT,
            deregister_after: Some(DEREGISTER_AFTER),
            starts: None,
        }
    }

    /// A request to that URL: passing with 2xx, warning with 429, else critical.
    pub fn http(url: impl Into<Box<str>>) -> Self {
        Self::new(Kind::Http {
            url: url.into(),
            method: None,
            headers: BTreeMap::new(),
            any_certificate: false,
        })
    }

    /// A connection to `host:port`: passing where it is made.
    pub fn tcp(address: impl Into<Box<str>>) -> Self {
        Self::new(Kind::Tcp(address.into()))
    }

    /// gRPC's own health checking at `host:port`, or `host:port/service`.
    pub fn grpc(target: impl Into<Box<str>>) -> Self {
        Self::new(Kind::Grpc {
            target: target.into(),
            tls: false,
        })
    }

    /// A word from this process, at least once in that time: it is sent three times as
    /// often while the [`Registration`](crate::Registration) lives.
    pub fn ttl(ttl: Duration) -> Self {
        Self::new(Kind::Ttl(ttl))
    }

    /// What it is called.
    #[must_use]
    pub fn name(mut self, name: impl Into<Box<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Time between two checks. Default: 10 s.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Time that it may take. Default: 5 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Who is critical for so long is deregistered; `None`: never. Default: one minute,
    /// which is Consul's least.
    #[must_use]
    pub fn deregister_after(mut self, after: Option<Duration>) -> Self {
        self.deregister_after = after;
        self
    }

    /// How it is until it was checked for the first time. Default: critical.
    #[must_use]
    pub fn starts(mut self, health: Health) -> Self {
        self.starts = Some(health);
        self
    }

    /// The method of an HTTP check. Default: GET.
    #[must_use]
    pub fn method(mut self, name: impl Into<Box<str>>) -> Self {
        if let Kind::Http { method, .. } = &mut self.kind {
            *method = Some(name.into());
        }
        self
    }

    /// One more header of an HTTP check.
    #[must_use]
    pub fn header(mut self, name: impl Into<Box<str>>, value: impl Into<Box<str>>) -> Self {
        if let Kind::Http { headers, .. } = &mut self.kind {
            headers.entry(name.into()).or_default().push(value.into());
        }
        self
    }

    /// An HTTP check takes any certificate.
    #[must_use]
    pub fn any_certificate(mut self) -> Self {
        if let Kind::Http {
            any_certificate, ..
        } = &mut self.kind
        {
            *any_certificate = true;
        }
        self
    }

    /// A gRPC check speaks TLS.
    #[must_use]
    pub fn tls(mut self) -> Self {
        if let Kind::Grpc { tls, .. } = &mut self.kind {
            *tls = true;
        }
        self
    }

    /// The time in which a word of ours is waited for.
    pub(super) fn heartbeat(&self) -> Option<Duration> {
        match self.kind {
            Kind::Ttl(ttl) => Some(ttl),
            Kind::Http { .. } | Kind::Tcp(_) | Kind::Grpc { .. } => None,
        }
    }

    /// Why Consul would not take it.
    pub(super) fn refused(&self) -> Option<&'static str> {
        if self.interval.is_zero() || self.heartbeat() == Some(Duration::ZERO) {
            return Some("its time is zero");
        }
        (self.starts == Some(Health::Unknown)).then_some("Consul knows no such health")
    }

    /// What is likely to be regretted.
    pub(super) fn lint(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.heartbeat().is_none() && self.timeout > self.interval {
            found.push(format!(
                "{self} may take {:?}, longer than the {:?} between two",
                self.timeout, self.interval
            ));
        }
        if (self.deregister_after).is_some_and(|after| after < DEREGISTER_AFTER) {
            found.push(format!(
                "{self}: Consul deregisters who is critical after a minute at the earliest"
            ));
        }
        found
    }

    /// What `/v1/agent/service/register` is told of it.
    pub(super) fn body(&self, id: &str) -> Value {
        let mut body = json!({ "CheckID": id, "Name": self.to_string() });
        match &self.kind {
            Kind::Http {
                url,
                method,
                headers,
                any_certificate,
            } => {
                body["HTTP"] = json!(url);
                if let Some(method) = method {
                    body["Method"] = json!(method);
                }
                if !headers.is_empty() {
                    body["Header"] = json!(headers);
                }
                if *any_certificate {
                    body["TLSSkipVerify"] = json!(true);
                }
            }
            Kind::Tcp(address) => body["TCP"] = json!(address),
            Kind::Grpc { target, tls } => {
                body["GRPC"] = json!(target);
                body["GRPCUseTLS"] = json!(tls);
            }
            Kind::Ttl(ttl) => body["TTL"] = json!(go(*ttl)),
        }
        if self.heartbeat().is_none() {
            body["Interval"] = json!(go(self.interval));
            body["Timeout"] = json!(go(self.timeout));
        }
        if let Some(after) = self.deregister_after {
            body["DeregisterCriticalServiceAfter"] = json!(go(after));
        }
        if let Some(health) = self.starts {
            body["Status"] = json!(health.as_str());
        }
        body
    }
}

/// A duration as Go's `time.ParseDuration` reads it.
fn go(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

impl fmt::Display for Check {
    /// Its name, or what it does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, &self.kind) {
            (Some(name), _) => f.write_str(name),
            (None, Kind::Http { url, .. }) => write!(f, "HTTP check of {}", bare(url)),
            (None, Kind::Tcp(address)) => write!(f, "TCP check of {address}"),
            (None, Kind::Grpc { target, .. }) => write!(f, "gRPC check of {target}"),
            (None, Kind::Ttl(ttl)) => write!(f, "heartbeat within {ttl:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registration::ServiceDefinition;

    #[test]
    fn what_is_secret_in_a_check_is_not_printed() {
        let check = Check::http("http://me:hush@10.0.0.7:80/health?token=hush#hush")
            .header("Authorization", "Bearer hush");
        let web = ServiceDefinition::new("web", 80).check(check.clone());
        let told = format!("{check} {check:?} {web:?} {:?}", web.lint());
        assert!(told.contains("http://10.0.0.7:80/health"), "{told}");
        assert!(
            told.contains("Authorization") && !told.contains("hush"),
            "{told}"
        );
        assert!(web.body().to_string().contains("Bearer hush"));
    }
}
