//! **Word.** [`ServiceDefinition`]: what a service says of itself to its agent (Consul docs:
//! Services), and what is likely to be wrong with it.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use serde_json::{Value, json};

use super::check::Check;
use crate::error::{Error, ErrorKind};

/// One instance of a service, as its agent is told of it.
///
/// ```
/// use proconsul::{Check, ServiceDefinition};
///
/// let web = ServiceDefinition::new("web", 8080)
///     .address("10.0.0.7")
///     .tag("v2")
///     .meta("version", "2.1.0")
///     .extra_port("metrics", 9090)
///     .check(Check::http("http://10.0.0.7:8080/health/ready"));
/// assert_eq!(web.id(), "web-10.0.0.7-8080");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceDefinition {
    name: Box<str>,
    id: Option<Box<str>>,
    address: Option<Box<str>>,
    port: u16,
    tags: Vec<Box<str>>,
    meta: BTreeMap<Box<str>, Box<str>>,
    weights: Option<(u16, u16)>,
    checks: Vec<Check>,
    connect_native: bool,
}

impl ServiceDefinition {
    /// A service and its port. Without an [`address`](Self::address) it is at its agent's.
    pub fn new(name: impl Into<Box<str>>, port: u16) -> Self {
        Self {
            name: name.into(),
            id: None,
            address: None,
            port,
            tags: Vec::new(),
            meta: BTreeMap::new(),
            weights: None,
            checks: Vec::new(),
            connect_native: false,
        }
    }

    /// What the environment says: `SERVICE_NAME` and `SERVICE_PORT`, and, where they are
    /// set, `SERVICE_ADDRESS` (or `SERVICE_HOST`), `SERVICE_TAGS` (separated by commas) and
    /// `SERVICE_TYPE` (kept as the metadata `type`). An empty variable counts as unset.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] where name or port are missing, or the port is none.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variables(|variable| std::env::var(variable).ok())
    }

    /// The same with the variables that are given.
    ///
    /// # Errors
    ///
    /// As [`from_env`](Self::from_env).
    pub fn from_variables(value: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let value = |variable: &str| {
            let value = value(variable)?;
            let value = value.trim();
            (!value.is_empty()).then(|| value.to_owned())
        };
        let invalid = |message: String| Error::new(ErrorKind::Invalid, message);
        let name = value("SERVICE_NAME").ok_or_else(|| {
            invalid("SERVICE_NAME is not set: it is the name to be registered by".into())
        })?;
        let port = value("SERVICE_PORT").ok_or_else(|| {
            invalid(format!(
                "SERVICE_PORT is not set: the port that {name} listens on"
            ))
        })?;
        let port = port.parse().map_err(|_| {
            invalid(format!(
                "SERVICE_PORT: {port:?} is no port: write 1 to 65535"
            ))
        })?;
        let mut read = Self::new(name, port);
        if let Some(address) = value("SERVICE_ADDRESS").or_else(|| value("SERVICE_HOST")) {
            read = read.address(address);
        }
        let tags = value("SERVICE_TAGS").unwrap_or_default();
        for tag in tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
            read = read.tag(tag);
        }
        if let Some(kind) = value("SERVICE_TYPE") {
            read = read.meta("type", kind);
        }
        Ok(read)
    }

    /// Its id, unique at its agent. Default: name, address and port, with `-` between.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<Box<str>>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The address that clients connect to. Default: its agent's.
    #[must_use]
    pub fn address(mut self, address: impl Into<Box<str>>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// One more tag.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<Box<str>>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// One more metadata: keys of letters, digits, `-` and `_`.
    #[must_use]
    pub fn meta(mut self, key: impl Into<Box<str>>, value: impl Into<Box<str>>) -> Self {
        self.meta.insert(key.into(), value.into());
        self
    }

    /// One more port that it listens on, kept as the metadata `<name>_port`.
    #[must_use]
    pub fn extra_port(self, name: &str, port: u16) -> Self {
        self.meta(format!("{name}_port"), port.to_string())
    }

    /// Its share of the calls while its checks pass, and while one warns (RFC 2782).
    /// Default: 1 and 1.
    #[must_use]
    pub fn weights(mut self, passing: u16, warning: u16) -> Self {
        self.weights = Some((passing, warning));
        self
    }

    /// One more check. Without any it passes for ever.
    #[must_use]
    pub fn check(mut self, check: Check) -> Self {
        self.checks.push(check);
        self
    }

    /// It speaks mTLS with Connect's certificates by itself, without a proxy.
    #[must_use]
    pub fn connect_native(mut self) -> Self {
        self.connect_native = true;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id: the one given, else name, address and port.
    pub fn id(&self) -> String {
        match (&self.id, &self.address) {
            (Some(id), _) => id.to_string(),
            (None, Some(address)) => format!("{}-{address}-{}", self.name, self.port),
            (None, None) => format!("{}-{}", self.name, self.port),
        }
    }

    /// Its checks that wait for a word of ours: id and time to live.
    pub(crate) fn heartbeats(&self) -> impl Iterator<Item = (String, Duration)> {
        let checks = self.checks.iter().enumerate();
        checks.filter_map(|(at, check)| Some((self.check_id(at), check.heartbeat()?)))
    }

    /// As Consul numbers them.
    fn check_id(&self, at: usize) -> String {
        match self.checks.len() {
            1 => format!("service:{}", self.id()),
            _ => format!("service:{}:{}", self.id(), at + 1),
        }
    }

    /// Whether an instance with that address and port is this one.
    pub(crate) fn is_at(&self, address: &str, port: u64) -> bool {
        self.address.as_deref().unwrap_or_default() == address && u64::from(self.port) == port
    }

    /// The body of `/v1/agent/service/register`.
    pub(crate) fn body(&self) -> Value {
        let checks = self.checks.iter().enumerate();
        let checks: Vec<_> = checks
            .map(|(at, check)| check.body(&self.check_id(at)))
            .collect();
        let mut body = json!({
            "ID": self.id(),
            "Name": self.name,
            "Port": self.port,
            "Tags": self.tags,
            "Meta": self.meta,
            "Checks": checks,
        });
        if let Some(address) = &self.address {
            body["Address"] = json!(address);
        }
        if let Some((passing, warning)) = self.weights {
            body["Weights"] = json!({ "Passing": passing, "Warning": warning });
        }
        if self.connect_native {
            body["Connect"] = json!({ "Native": true });
        }
        body
    }

    /// Whether Consul would take it. [`lint`](Self::lint) tells what is likely to be regretted.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for the first thing that it would not take.
    pub fn validate(&self) -> Result<(), Error> {
        let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
        if self.name.trim().is_empty() {
            return invalid("a service needs a name to be registered by".into());
        }
        if self.id().trim().is_empty() {
            return invalid(format!("the id of {} is empty", self.name));
        }
        let is_plain = |key: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            !key.is_empty() && key.len() <= 128 && key.bytes().all(plain)
        };
        if let Some(key) = self.meta.keys().find(|key| !is_plain(key)) {
            return invalid(format!(
                "the metadata {key:?} of {}: a key has 1 to 128 letters, digits, - and _",
                self.name
            ));
        }
        if let Some((key, _)) = self.meta.iter().find(|(_, value)| value.len() > 512) {
            return invalid(format!(
                "the metadata {key} of {} has more than the 512 bytes that Consul takes",
                self.name
            ));
        }
        if self.meta.len() > 64 {
            return invalid(format!("{} has more than 64 metadata", self.name));
        }
        for check in &self.checks {
            if let Some(why) = check.refused() {
                return invalid(format!("{check} of {}: {why}", self.name));
            }
        }
        Ok(())
    }

    /// What Consul takes and its users are likely to regret, each with what mends it.
    pub fn lint(&self) -> Vec<String> {
        let mut found = Vec::new();
        let name = &self.name;
        if !is_label(name) {
            found.push(format!(
                "DNS cannot carry the name {name:?}: use letters, digits and -, at most 63"
            ));
        }
        for tag in self.tags.iter().filter(|tag| !is_label(tag)) {
            found.push(format!(
                "DNS cannot carry the tag {tag:?}: it is found over HTTP only"
            ));
        }
        if self.port == 0 {
            found.push("port 0: clients do not know where to connect".into());
        }
        let ip: Option<IpAddr> = self.address.as_ref().and_then(|text| text.parse().ok());
        if ip.is_some_and(|ip| ip.is_unspecified()) {
            found.push(format!(
                "{} is where one listens, not where one is reached: give an address of this machine",
                self.address.as_deref().unwrap_or_default()
            ));
        } else if ip.is_some_and(|ip| ip.is_loopback())
            || self.address.as_deref() == Some("localhost")
        {
            found.push(format!(
                "{} is reached from this machine alone",
                self.address.as_deref().unwrap_or_default()
            ));
        }
        if self.checks.is_empty() {
            found.push("no check: it passes for ever, also when it is dead".into());
        }
        found.extend(self.checks.iter().flat_map(Check::lint));
        found
    }
}

/// Whether it is a label that a host name may have (RFC 1123, section 2.1).
fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(plain)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Health;

    fn from(variables: &[(&str, &str)]) -> Result<ServiceDefinition, Error> {
        ServiceDefinition::from_variables(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_says_what_is_registered() {
        let read = from(&[
            ("SERVICE_NAME", " ai-chat "),
            ("SERVICE_PORT", "8080"),
            ("SERVICE_HOST", "10.0.0.7"),
            ("SERVICE_TAGS", "v2, http,,"),
            ("SERVICE_TYPE", "ai"),
        ]);
        let wanted = ServiceDefinition::new("ai-chat", 8080)
            .address("10.0.0.7")
            .tag("v2")
            .tag("http")
            .meta("type", "ai");
        assert_eq!(read.unwrap(), wanted);
        let both = from(&[
            ("SERVICE_NAME", "web"),
            ("SERVICE_PORT", "80"),
            ("SERVICE_HOST", "10.0.0.7"),
            ("SERVICE_ADDRESS", "10.0.0.8"),
        ]);
        assert_eq!(both.unwrap().id(), "web-10.0.0.8-80");
        for (variables, named) in [
            (&[][..], "SERVICE_NAME"),
            (&[("SERVICE_NAME", "web")], "SERVICE_PORT"),
            (
                &[("SERVICE_NAME", "web"), ("SERVICE_PORT", "")],
                "SERVICE_PORT",
            ),
            (
                &[("SERVICE_NAME", "web"), ("SERVICE_PORT", "70000")],
                "70000",
            ),
        ] {
            let told = from(variables).unwrap_err().to_string();
            assert!(told.contains(named), "{told}");
        }
    }

    #[test]
    fn what_is_likely_to_be_regretted_is_told() {
        let bad = ServiceDefinition::new("my_web", 0)
            .address("127.0.0.1")
            .tag("a b");
        let told = bad.lint().join("\n");
        for word in ["my_web", "a b", "port 0", "127.0.0.1", "no check"] {
            assert!(told.contains(word), "{word}: {told}");
        }
        let slow = Check::tcp("10.0.0.1:80")
            .interval(Duration::from_secs(1))
            .deregister_after(Some(Duration::from_secs(5)));
        let told = ServiceDefinition::new("web", 80).check(slow).lint();
        assert_eq!(told.len(), 2, "{told:?}");
        let anywhere = ServiceDefinition::new("web", 80).address("0.0.0.0");
        assert!(anywhere.lint()[0].contains("0.0.0.0"));
        let good = ServiceDefinition::new("web", 80).address("10.0.0.7");
        let good = good.check(Check::http("http://10.0.0.7/health"));
        assert_eq!((good.lint(), good.validate().is_ok()), (Vec::new(), true));
    }

    #[test]
    fn what_consul_would_refuse_is_refused_at_once() {
        let refused =
            |definition: ServiceDefinition| definition.validate().unwrap_err().to_string();
        assert!(refused(ServiceDefinition::new(" ", 80)).contains("name"));
        let web = || ServiceDefinition::new("web", 80);
        assert!(refused(web().meta("a key", "")).contains("a key"));
        assert!(refused(web().meta("key", "x".repeat(513))).contains("512"));
        assert!(refused(web().check(Check::ttl(Duration::ZERO))).contains("zero"));
        let unknown = Check::tcp("a:1").starts(Health::Unknown);
        assert!(refused(web().check(unknown)).contains("no such health"));
    }
}
