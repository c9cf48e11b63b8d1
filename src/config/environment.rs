//! **Shell.** What the environment says of a resolver. Its variables have Consul's own names
//! where Consul's own tools have one (Consul docs: Consul CLI, environment variables), and
//! those of other systems where these name the agent otherwise.

// What comes from outside is read here: nothing that it says may end in a panic.
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

use std::{env, ffi::OsString, net::Ipv6Addr};

use super::ResolverBuilder;
use crate::{
    consul::{address::go_bool, tls::Verify},
    source::default_address::PREFIX,
};

/// Port of Consul's HTTP API, where only a host is known.
const HTTP_PORT: u16 = 8500;

impl ResolverBuilder {
    /// Reads the environment: `PROCONSUL_DNS`, `PROCONSUL_CATALOG`,
    /// `PROCONSUL_SNAPSHOT`, `PROCONSUL_DOMAIN`, `PROCONSUL_DEFAULT_<NAME>`, and of Consul's own `CONSUL_HTTP_ADDR`,
    /// `CONSUL_HTTP_TOKEN`, `CONSUL_HTTP_TOKEN_FILE`, `CONSUL_HTTP_SSL`,
    /// `CONSUL_HTTP_SSL_VERIFY`, `CONSUL_CACERT`, `CONSUL_CAPATH`,
    /// `CONSUL_CLIENT_CERT`, `CONSUL_CLIENT_KEY`, `CONSUL_TLS_SERVER_NAME`,
    /// `CONSUL_DATACENTER`, `CONSUL_NAMESPACE`, `CONSUL_PARTITION`. An empty
    /// variable counts as unset. What is set by other methods afterwards wins.
    ///
    /// Where `CONSUL_HTTP_ADDR` is not set, `CONSUL_URL` stands for it, else `CONSUL_HOST`
    /// with `CONSUL_PORT` (8500): many systems name the agent so. What container platforms
    /// put into `CONSUL_PORT` by themselves (`tcp://10.0.0.1:8500`) is no port, and counts
    /// as unset.
    pub fn environment(self) -> Self {
        let text = |value: OsString| value.to_string_lossy().into_owned();
        let defaults = env::vars_os().map(|(variable, value)| (text(variable), text(value)));
        self.read(|variable| {
            let value = text(env::var_os(variable)?);
            Some(value).filter(|value| !value.is_empty())
        })
        .read_defaults(defaults)
    }

    /// Takes the default addresses among all variables.
    fn read_defaults(mut self, variables: impl Iterator<Item = (String, String)>) -> Self {
        for (variable, value) in variables {
            if let Some(service) = variable.strip_prefix(PREFIX)
                && !value.is_empty()
            {
                self = self.default_told_as(&variable, service, &value);
            }
        }
        self
    }

    fn read(mut self, value: impl Fn(&str) -> Option<String>) -> Self {
        type Setter = fn(ResolverBuilder, &str) -> ResolverBuilder;
        let settings: [(&str, Setter); 17] = [
            ("PROCONSUL_DNS", |this, v| this.dns(v)),
            ("PROCONSUL_CATALOG", |this, v| this.catalog(v)),
            ("PROCONSUL_SNAPSHOT", |this, v| this.snapshot(v)),
            ("PROCONSUL_DOMAIN", |this, v| this.domain(v)),
            ("CONSUL_HTTP_ADDR", |this, v| this.http(v)),
            ("CONSUL_HTTP_TOKEN", |this, v| this.token(v)),
            ("CONSUL_HTTP_TOKEN_FILE", |this, v| this.token_file(v)),
            ("CONSUL_HTTP_SSL", Self::ssl_from),
            ("CONSUL_HTTP_SSL_VERIFY", Self::verify_from),
            ("CONSUL_CACERT", |this, v| this.ca_file(v)),
            ("CONSUL_CAPATH", |this, v| this.ca_path(v)),
            ("CONSUL_CLIENT_CERT", |this, v| this.cert_file(v)),
            ("CONSUL_CLIENT_KEY", |this, v| this.key_file(v)),
            ("CONSUL_TLS_SERVER_NAME", |this, v| this.tls_server_name(v)),
            ("CONSUL_DATACENTER", |this, v| this.datacenter(v)),
            ("CONSUL_NAMESPACE", |this, v| this.namespace(v)),
            ("CONSUL_PARTITION", |this, v| this.partition(v)),
        ];
        let (address, named) = match agent_of_systems(&value) {
            Some((address, named)) => (Some(address), named),
            None => (None, ""),
        };
        if let (None, Some(address)) = (value("CONSUL_HTTP_ADDR"), address) {
            self = self.http(&address);
            self.http_named = Some(named);
        }
        // What stands for the same is set whole or not at all: of a token and its file, and of
        // an authority's file and directory, one of a lower layer would win otherwise.
        let says = |one, other| value(one).or_else(|| value(other)).is_some();
        if says("CONSUL_HTTP_TOKEN", "CONSUL_HTTP_TOKEN_FILE") {
            self = self.no_token();
        }
        if says("CONSUL_CACERT", "CONSUL_CAPATH") {
            let tls = &mut self.config.http.tls;
            (tls.ca_file, tls.ca_dir) = (None, None);
        }
        for (variable, set) in settings {
            if let Some(value) = value(variable) {
                let before = self.problems.clone();
                self = set(self, &value);
                let mut all = self.problems.iter_mut();
                if let Some((_, problem)) = all.find(|(name, _)| !before.contains_key(*name)) {
                    *problem = problem.about(variable);
                }
            }
        }
        self
    }

    fn ssl_from(mut self, value: &str) -> Self {
        match go_bool(value) {
            Some(ssl) => self.ssl = ssl,
            None => self.refuse("ssl", format!("{value:?} is neither true nor false")),
        }
        self
    }

    fn verify_from(mut self, value: &str) -> Self {
        match Verify::parse(value) {
            Ok(verify) => self.config.http.tls.verify = verify,
            Err(error) => self.refuse("verify", error.to_string()),
        }
        self
    }
}

/// The agent as systems name it that do not know Consul's own variable, and the variable.
fn agent_of_systems(value: impl Fn(&str) -> Option<String>) -> Option<(String, &'static str)> {
    if let Some(url) = value("CONSUL_URL") {
        return Some((url, "CONSUL_URL"));
    }
    let host = value("CONSUL_HOST")?;
    let port: Option<u16> = value("CONSUL_PORT").and_then(|port| port.trim().parse().ok());
    let host = match host.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]"),
        Err(_) => host,
    };
    let named = host.contains("://") || host.trim_end_matches(']').contains("]:");
    let address = match named || (host.matches(':').count() == 1) {
        true => host,
        false => format!("{host}:{}", port.unwrap_or(HTTP_PORT)),
    };
    Some((address, "CONSUL_HOST"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consul::http::AgentSettings;

    fn problem(builder: ResolverBuilder) -> String {
        builder.finish().unwrap_err().to_string()
    }

    #[test]
    fn the_agent_is_found_as_systems_name_it() {
        let read = |variables: &[(&str, &str)]| {
            let builder = ResolverBuilder::default().read(|name| {
                let found = variables.iter().find(|(variable, _)| *variable == name);
                found.map(|(_, value)| (*value).to_owned())
            });
            let config = builder.finish().map_err(|error| error.to_string())?;
            Ok::<_, String>(config.http.addresses[0].to_string())
        };
        for (variables, address) in [
            (&[("CONSUL_HOST", "consul")][..], "http://consul:8500"),
            (
                &[("CONSUL_HOST", "consul"), ("CONSUL_PORT", "85")],
                "http://consul:85",
            ),
            (
                &[("CONSUL_HOST", "::1"), ("CONSUL_PORT", "85")],
                "http://[::1]:85",
            ),
            (
                &[("CONSUL_HOST", "consul:99"), ("CONSUL_PORT", "85")],
                "http://consul:99",
            ),
            (
                &[
                    ("CONSUL_HOST", "consul"),
                    ("CONSUL_PORT", "tcp://10.0.0.1:8500"),
                ],
                "http://consul:8500",
            ),
            (
                &[("CONSUL_PORT", "tcp://10.0.0.1:8500")],
                "http://127.0.0.1:8500",
            ),
            (
                &[("CONSUL_URL", "https://consul:8501"), ("CONSUL_HOST", "x")],
                "https://consul:8501",
            ),
            (
                &[("CONSUL_URL", "http://a:1"), ("CONSUL_HTTP_ADDR", "b:2")],
                "http://b:2",
            ),
        ] {
            assert_eq!(read(variables).as_deref(), Ok(address), "{variables:?}");
        }
        let told = read(&[("CONSUL_URL", "ftp://a")]).unwrap_err();
        assert!(told.contains("CONSUL_URL"), "{told}");
    }

    #[test]
    fn a_bad_variable_is_named_in_the_error() {
        let with = |name: &'static str, value: &'static str| {
            problem(ResolverBuilder::default().read(|asked| (asked == name).then(|| value.into())))
        };
        assert!(with("PROCONSUL_DNS", "nowhere").starts_with("PROCONSUL_DNS: "));
        assert!(with("CONSUL_HTTP_SSL_VERIFY", "maybe").starts_with("CONSUL_HTTP_SSL_VERIFY: "));
        assert!(with("CONSUL_CLIENT_CERT", "cert.pem").contains("needs its key"));
        assert!(!with("CONSUL_HTTP_TOKEN", "secret\u{7f}token").contains("secret"));
    }

    #[test]
    fn what_the_environment_says_of_a_pair_takes_the_place_of_the_whole_pair() {
        let lower = || {
            let builder = ResolverBuilder::default()
                .token("lower")
                .token_file("lower");
            builder.ca_file("lower").ca_path("lower")
        };
        let read = |variable: &str| {
            let value = |asked: &str| (asked == variable).then(|| "env".to_owned());
            let AgentSettings {
                token,
                token_file,
                tls,
                ..
            } = lower().read(value).finish().unwrap().http;
            let token = token.map(|token| token.secret().to_owned());
            let files = [token_file, tls.ca_file, tls.ca_dir];
            let [token_file, ca_file, ca_dir] =
                files.map(|file| file.map(|file| file.display().to_string()));
            [token, token_file, ca_file, ca_dir].map(Option::unwrap_or_default)
        };
        for (variable, [token, token_file, ca_file, ca_dir]) in [
            ("CONSUL_DATACENTER", ["lower", "lower", "lower", "lower"]),
            ("CONSUL_HTTP_TOKEN", ["env", "", "lower", "lower"]),
            ("CONSUL_HTTP_TOKEN_FILE", ["", "env", "lower", "lower"]),
            ("CONSUL_CACERT", ["lower", "lower", "env", ""]),
            ("CONSUL_CAPATH", ["lower", "lower", "", "env"]),
        ] {
            assert_eq!(
                read(variable),
                [token, token_file, ca_file, ca_dir],
                "{variable}"
            );
        }
    }

    #[test]
    fn each_variable_of_a_default_address_stands_for_itself() {
        let variables = [
            ("PROCONSUL_DEFAULT_A", "nowhere"),
            ("PROCONSUL_DEFAULT_B", "10.0.0.1:80"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let builder = ResolverBuilder::default().default_address("b", "nowhere");
        let told = problem(builder.read_defaults(variables.into_iter()));
        assert!(told.starts_with("PROCONSUL_DEFAULT_A: "), "{told}");
    }

    #[test]
    fn what_is_set_afterwards_mends_a_bad_variable() {
        let bad = |asked: &str| (asked == "PROCONSUL_DNS").then(|| "nowhere".to_owned());
        let mended = ResolverBuilder::default().read(bad).dns("127.0.0.1");
        assert!(mended.finish().is_ok());
    }
}
