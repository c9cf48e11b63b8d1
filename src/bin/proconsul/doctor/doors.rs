//! The two doors to an agent, each by itself: whether they answer, what they may be seen
//! through, who can listen there, and whether both say the same.

use std::{collections::BTreeSet, net::IpAddr};

use proconsul::{Answer, Error, Outcome, Resolver, ResolverBuilder, Source};

use super::Findings;
use crate::{
    args::{Doctor, OnlySource, Stale},
    config::File,
};

/// Consul's own service: where the catalog can be read, it is there. The domain follows, since
/// the word alone may mean that.
const CANARY: &str = "consul.service";

/// So many endpoints are named in a line.
const MOST: usize = 3;

/// What a door says of Consul's own service.
enum Seen {
    It(Answer),
    /// The agent answers, and does not show it.
    Nothing,
    /// Nobody answers.
    Silence,
    /// It is turned off.
    Off,
}

pub(super) async fn look(command: &Doctor, file: &File, findings: &mut Findings) {
    let open = |only| {
        let builder = command.sources.builder(file, Some(only), Stale::No);
        // It is in no namespace and in no partition but the first.
        builder.namespace("").partition("")
    };
    let (dns, http) = (open(OnlySource::Dns), open(OnlySource::Http));
    let by_dns = door("DNS door", dns, findings).await;
    let by_http = door("HTTP door", http.clone(), findings).await;
    tls(&http, &by_http, findings);
    rights(&by_dns, &by_http, findings);
    if let (Seen::It(dns), Seen::It(http)) = (&by_dns, &by_http) {
        agreement(dns, http, findings);
    }
    if let Seen::It(dns) = &by_dns {
        shape(dns, findings);
    }
}

async fn door(check: &'static str, builder: ResolverBuilder, findings: &mut Findings) -> Seen {
    let resolver = match builder.build() {
        Ok(resolver) => resolver,
        Err(error) => {
            findings.fail(check, error.to_string(), "mend what is named there");
            return Seen::Silence;
        }
    };
    if resolver.status().sources.is_empty() {
        let mend = "without it there is one way less to find a service";
        findings.warn(check, "it is turned off", mend);
        return Seen::Off;
    }
    let canary = format!("{CANARY}.{}", resolver.domain());
    match resolver.lookup(canary).await {
        Ok(answer) => {
            let by = answer.attempts().last().map(|attempt| &*attempt.address);
            findings.ok(check, format!("answers: {}", by.unwrap_or_default()));
            Seen::It(answer)
        }
        // An agent that does not show Consul's own service has said so.
        Err(error) if error.is_not_found() || says_nothing(&error) => {
            let what = "answers, but does not see Consul's own service";
            let mend = "with ACLs in force: give the agent's dns or default token, and ours, service:read and node:read";
            findings.fail(check, what, mend);
            Seen::Nothing
        }
        Err(error) => {
            failed(check, &error, &resolver, findings);
            match error.is_denied() {
                true => Seen::Nothing,
                false => Seen::Silence,
            }
        }
    }
}

/// Whether an agent answered, and showed nothing.
fn says_nothing(error: &Error) -> bool {
    let shows_nothing = |attempt: &proconsul::Attempt| attempt.detail.starts_with("shows nothing");
    error.is_denied() && error.attempts().iter().any(shows_nothing)
}

fn failed(check: &'static str, error: &Error, resolver: &Resolver, findings: &mut Findings) {
    let steps: Vec<_> = error
        .attempts()
        .iter()
        .map(|attempt| {
            let detail = if attempt.detail.is_empty() {
                String::new()
            } else {
                format!(" ({})", attempt.detail)
            };
            format!("{} {}{detail}", attempt.address, attempt.outcome)
        })
        .collect();
    let outcomes = || error.attempts().iter().map(|attempt| attempt.outcome);
    let has = |outcome| outcomes().any(|one| one == outcome);
    let mend = if has(Outcome::Denied) {
        "give a token that may read services and nodes: CONSUL_HTTP_TOKEN_FILE or --token-file"
    } else if has(Outcome::Refused) {
        "nothing listens there: start the agent, or say where it is (--dns, --http); `ports { dns = 8600 }` opens its DNS"
    } else if has(Outcome::TimedOut) {
        "it is silent: look at the agent, at its leader, and at what stands between (firewall, another network namespace)"
    } else if has(Outcome::Unreachable) {
        "no connection: check the address, and for https the authority (--ca-file) and the name (--tls-server-name)"
    } else {
        "look at the agent's log"
    };
    let source = resolver
        .status()
        .sources
        .first()
        .map_or(Source::Dns, |status| status.source);
    let what = match &*steps {
        [] => format!("{source}: {error}"),
        steps => steps.join("; "),
    };
    findings.fail(check, what, mend);
}

/// Who else can read what is said to the HTTP API, or say something in its place.
fn tls(http: &ResolverBuilder, seen: &Seen, findings: &mut Findings) {
    let check = "TLS";
    let status = http.clone().build().map(|resolver| resolver.status());
    let sources = status.map(|status| status.sources).unwrap_or_default();
    let addresses = sources.iter().flat_map(|source| &source.addresses);
    let addresses: Vec<&str> = addresses.map(|(address, _)| &**address).collect();
    let is_https = |address: &&str| address.starts_with("https://");
    let open = |address: &&str| !is_https(address) && !stays_here(address);
    if let Some(address) = addresses.iter().copied().find(open) {
        let what = format!("{address} is asked without it: whoever is in between reads and writes");
        let mend = "open the agent's HTTPS (ports { https = 8501 }) and say https://, or ask the agent of this machine";
        return match http.has_token() {
            true => findings.fail(check, format!("{what}, the token too"), mend),
            false => findings.warn(check, what, mend),
        };
    }
    let encrypted = addresses.iter().copied().find(is_https);
    match encrypted {
        Some(address) if !http.verifies_agent() => {
            let what = format!("{address} need not prove who it is: anybody may be the agent");
            let mend =
                "give the authority (--ca-file, CONSUL_CACERT) and unset CONSUL_HTTP_SSL_VERIFY";
            findings.fail(check, what, mend);
        }
        Some(address) => match seen {
            Seen::It(_) | Seen::Nothing => {
                findings.ok(check, format!("{address} proves who it is"));
            }
            Seen::Silence | Seen::Off => {
                let what = format!("{address} has not proved yet who it is");
                findings.warn(check, what, "open the HTTP door");
            }
        },
        None if addresses.is_empty() => findings.ok(check, "none is needed: HTTP is not asked"),
        None => findings.ok(check, "none is needed: HTTP does not leave this machine"),
    }
}

/// Whether what is said to an address is heard on this machine alone.
fn stays_here(address: &str) -> bool {
    if address.starts_with("unix://") {
        return true;
    }
    let rest = address.strip_prefix("http://").unwrap_or(address);
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let ip: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    host.eq_ignore_ascii_case("localhost")
        || ip.is_some_and(|ip| ip.is_loopback() || ip.is_unspecified())
}

/// Whether both doors may see what is there.
fn rights(dns: &Seen, http: &Seen, findings: &mut Findings) {
    let check = "ACL";
    match (dns, http) {
        (Seen::Nothing, Seen::It(_)) => {
            let mend = "since 1.17 DNS has a token of its own: acl { tokens { dns = ... } }";
            findings.fail(check, "HTTP sees what DNS does not", mend);
        }
        (Seen::It(_), Seen::Nothing) => {
            let mend = "give our token service:read and node:read; packaging/acl has the policies";
            findings.fail(check, "DNS sees what HTTP does not", mend);
        }
        (Seen::Nothing, _) | (_, Seen::Nothing) => {
            let mend = "give the tokens service:read and node:read; packaging/acl has the policies";
            findings.fail(check, "Consul's own service is not seen", mend);
        }
        (Seen::It(_), Seen::It(_)) => findings.ok(check, "DNS and HTTP see Consul's own service"),
        (Seen::It(_), _) => findings.ok(check, "DNS sees Consul's own service"),
        (_, Seen::It(_)) => findings.ok(check, "HTTP sees Consul's own service"),
        (_, _) => findings.warn(check, "nobody says what may be seen", "open a door"),
    }
}

/// Whether both doors say the same.
fn agreement(dns: &Answer, http: &Answer, findings: &mut Findings) {
    let set = |answer: &Answer| -> BTreeSet<String> {
        answer.endpoints().iter().map(ToString::to_string).collect()
    };
    let (by_dns, by_http) = (set(dns), set(http));
    let only_dns: Vec<&String> = by_dns.difference(&by_http).collect();
    let only_http: Vec<&String> = by_http.difference(&by_dns).collect();
    let mut differ = Vec::new();
    for (door, only) in [("DNS", &only_dns), ("HTTP", &only_http)] {
        let more = if only.len() > MOST { ", ..." } else { "" };
        let named: Vec<&str> = only.iter().take(MOST).map(|one| one.as_str()).collect();
        if !named.is_empty() {
            differ.push(format!("only {door} gives {}{more}", named.join(", ")));
        }
    }
    let is_cut = only_dns.is_empty() && !dns.is_complete();
    match differ.is_empty() {
        true => findings.ok("agreement", "DNS and HTTP give the same instances"),
        // The next line tells of it.
        false if is_cut => findings.ok("agreement", "HTTP gives all that DNS gives"),
        false => {
            let mend =
                "they are set differently: only_passing, or tokens that may see different nodes";
            findings.warn("agreement", differ.join("; "), mend);
        }
    }
}

/// Whether DNS gives all, and for how long.
fn shape(dns: &Answer, findings: &mut Findings) {
    if dns.is_complete() {
        findings.ok("truncation", "answers are known to be whole");
    } else {
        let warning = dns.warnings().first();
        let what = warning.map_or_else(String::new, ToString::to_string);
        let mend = "keep the HTTP door open: it completes what DNS cuts";
        findings.warn("truncation", what, mend);
    }
    match dns.ttl().as_secs() {
        0 => findings.ok(
            "TTL",
            "0, Consul's default: names that are asked often are followed by events",
        ),
        seconds => findings.ok("TTL", format!("{seconds} s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn what_others_may_read_is_told_and_is_worst_with_a_token() {
        let verdict = |http: &str, token: &str| {
            let builder = Resolver::builder().http(http).token(token);
            let mut findings = Findings::default();
            tls(&builder, &Seen::Nothing, &mut findings);
            findings.0[0].verdict
        };
        for here in [
            "none",
            "unix:///run/consul.sock",
            "127.0.0.1:8500",
            "http://[::1]:8500/consul",
            "LocalHost:8500",
            "https://10.0.0.1:8501,127.0.0.1:8500",
        ] {
            assert_eq!(verdict(here, "t"), Verdict::Ok, "{here}");
        }
        for open in [
            "10.0.0.1:8500",
            "127.0.0.1,https://a.example,http://b.example",
        ] {
            assert_eq!(verdict(open, ""), Verdict::Warn, "{open}");
            assert_eq!(verdict(open, "t"), Verdict::Fail, "{open}");
        }
    }
}
