//! `proconsul doctor`: looks at the whole path, from the configuration to the name
//! servers of this machine, and says what is wrong and what mends it.

mod cluster;
mod service;

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use proconsul::{Answer, Error, Outcome, Resolver, Source};
use serde_json::{Value, json};

use crate::{
    args::{Doctor, Form, OnlySource, Output, Stale},
    config::File,
    output,
};

/// Consul's own service: where the catalog can be read, it is there.
const CANARY: &str = "consul";

/// A stub on this machine answers within this.
const STUB: Duration = Duration::from_millis(900);

/// Where systemd-resolved answers (systemd-resolved.service(8)).
const RESOLVED: &str = "127.0.0.53";

/// What a check came to, worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One check, as it is printed.
struct Finding {
    check: &'static str,
    verdict: Verdict,
    what: String,
    /// What mends it; empty where nothing is to be done.
    mend: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, check: &'static str, what: impl Into<String>) {
        self.add(check, Verdict::Ok, what, "");
    }

    fn warn(&mut self, check: &'static str, what: impl Into<String>, mend: &str) {
        self.add(check, Verdict::Warn, what, mend);
    }

    fn fail(&mut self, check: &'static str, what: impl Into<String>, mend: &str) {
        self.add(check, Verdict::Fail, what, mend);
    }

    fn add(&mut self, check: &'static str, verdict: Verdict, what: impl Into<String>, mend: &str) {
        let (what, mend) = (what.into(), mend.to_owned());
        self.0.push(Finding {
            check,
            verdict,
            what,
            mend,
        });
    }
}

pub(crate) async fn run(command: Doctor, form: &Output) -> ExitCode {
    let mut findings = Findings::default();
    let file = match command.sources.file() {
        Ok(file) => file,
        Err(error) => {
            findings.fail("configuration", error.to_string(), "mend the file");
            return told(&findings, form);
        }
    };
    let found = doors(&command, &file, &mut findings).await;
    agreement(&found, &mut findings);
    if let Ok(resolver) = command.sources.builder(&file, None, Stale::No).build() {
        cluster::look(&resolver, &mut findings).await;
        if let Some(name) = &command.name {
            let only = Some(OnlySource::Snapshot);
            let remembered = command.sources.builder(&file, only, Stale::Yes);
            service::look(&resolver, remembered, name, &mut findings).await;
        }
    }
    this_machine(Path::new("/etc/resolv.conf"), command.stub, &mut findings);
    stub(command.stub, &mut findings);
    told(&findings, form)
}

fn told(findings: &Findings, form: &Output) -> ExitCode {
    let worst = findings.0.iter().map(|finding| finding.verdict).max();
    match form.form() {
        Form::Json => _ = output::object(&object(findings)),
        Form::Table | Form::Short => _ = output::data(&lines(findings)),
    }
    match worst {
        Some(Verdict::Fail) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

/// What each door says of Consul's own service.
#[derive(Default)]
struct Found {
    dns: Option<Answer>,
    http: Option<Answer>,
    /// DNS answers, and says that there is no such service.
    dns_is_blind: bool,
}

/// The configuration, and each source by itself.
async fn doors(command: &Doctor, file: &File, findings: &mut Findings) -> Found {
    let mut found = Found::default();
    match command.sources.builder(file, None, Stale::No).build() {
        Ok(resolver) => match resolver.check().await {
            Ok(()) => findings.ok("configuration", "it is read, with all files it names"),
            Err(error) => findings.fail("configuration", error.to_string(), "mend the file"),
        },
        Err(error) => {
            findings.fail(
                "configuration",
                error.to_string(),
                "mend what is named there",
            );
            return found;
        }
    }
    for (only, check) in [
        (OnlySource::Dns, "DNS door"),
        (OnlySource::Http, "HTTP door"),
    ] {
        let Ok(resolver) = command.sources.builder(file, Some(only), Stale::No).build() else {
            continue;
        };
        if resolver.status().sources.is_empty() {
            findings.warn(
                check,
                "it is turned off",
                "without it there is one way less to find a service",
            );
            continue;
        }
        match resolver.lookup(CANARY).await {
            Ok(answer) => {
                let by: Vec<_> = answer
                    .attempts()
                    .iter()
                    .map(|attempt| &*attempt.address)
                    .collect();
                let by = by.last().copied().unwrap_or_default();
                findings.ok(check, format!("answers: {by}"));
                match only {
                    OnlySource::Dns => found.dns = Some(answer),
                    _ => found.http = Some(answer),
                }
            }
            // An agent that does not show Consul's own service has said so.
            Err(error) if error.is_not_found() || says_nothing(&error) => {
                found.dns_is_blind |= only == OnlySource::Dns;
                let what = "answers, but does not see Consul's own service";
                let mend = "with ACLs in force: give the agent's dns or default token, and ours, service:read and node:read";
                findings.fail(check, what, mend);
            }
            Err(error) => door_failed(check, &error, &resolver, findings),
        }
    }
    found
}

/// Whether an agent answered, and showed nothing.
fn says_nothing(error: &Error) -> bool {
    let shows_nothing = |attempt: &proconsul::Attempt| attempt.detail.starts_with("shows nothing");
    error.is_denied() && error.attempts().iter().any(shows_nothing)
}

fn door_failed(check: &'static str, error: &Error, resolver: &Resolver, findings: &mut Findings) {
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

/// Whether both doors say the same, and how.
fn agreement(found: &Found, findings: &mut Findings) {
    if found.http.is_some() && found.dns_is_blind {
        let mend = "since 1.17 DNS has a token of its own: acl { tokens { dns = ... } }";
        findings.fail("ACL", "HTTP sees what DNS does not", mend);
    }
    let (Some(dns), Some(http)) = (&found.dns, &found.http) else {
        return;
    };
    let (by_dns, by_http) = (dns.endpoints().len(), http.endpoints().len());
    if by_dns == by_http {
        findings.ok("agreement", "DNS and HTTP give the same instances");
    } else {
        let what = format!("DNS gives {by_dns} instances, HTTP {by_http}");
        let mend = "they are set differently: only_passing, or tokens that may see different nodes";
        findings.warn("agreement", what, mend);
    }
    if dns.is_complete() {
        findings.ok("truncation", "answers are known to be whole");
    } else {
        let what = dns
            .warnings()
            .first()
            .map_or_else(String::new, ToString::to_string);
        findings.warn(
            "truncation",
            what,
            "keep the HTTP door open: it completes what DNS cuts",
        );
    }
    match dns.ttl().as_secs() {
        0 => findings.ok(
            "TTL",
            "0, Consul's default: names that are asked often are followed by events",
        ),
        seconds => findings.ok("TTL", format!("{seconds} s")),
    }
}

/// Where programs of this machine send their questions.
fn this_machine(file: &Path, stub: SocketAddr, findings: &mut Findings) {
    let check = "resolv.conf";
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            let what = format!("{}: {error}", file.display());
            return findings.warn(
                check,
                what,
                "programs that use the system's resolver have no name server",
            );
        }
    };
    let servers: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .map(str::trim)
        .collect();
    let ours = stub.ip().to_string();
    if servers.contains(&RESOLVED) {
        return resolved(findings);
    }
    match servers.as_slice() {
        [] => findings.warn(check, "it names no server", "name one"),
        [first, ..] if *first == ours && stub.port() == 53 => {
            findings.ok(check, "programs ask proconsul")
        }
        servers => {
            let what = format!(
                "programs ask {}, who need not know Consul's domain",
                servers.join(", ")
            );
            let mend = "let proconsul be that server, or let that server ask it for Consul's domain: packaging/ has drop-ins";
            findings.warn(check, what, mend);
        }
    }
}

/// systemd-resolved has to be told of Consul's domain.
fn resolved(findings: &mut Findings) {
    let directory = Path::new("/etc/systemd/resolved.conf.d");
    let files = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|file| file.path());
    let all = files.chain([directory.with_file_name("resolved.conf")]);
    let knows = |path: std::path::PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .any(|line| line.starts_with("Domains=") && line.contains("consul"))
    };
    if all.into_iter().any(knows) {
        findings.ok("resolv.conf", "systemd-resolved is told of Consul's domain");
    } else {
        let mend = "install packaging/resolved.conf as /etc/systemd/resolved.conf.d/proconsul.conf and restart systemd-resolved";
        findings.warn(
            "resolv.conf",
            "systemd-resolved does not know Consul's domain",
            mend,
        );
    }
}

/// Whether `proconsul serve` answers here: a question that needs no Consul.
fn stub(address: SocketAddr, findings: &mut Findings) {
    let asked = || -> std::io::Result<bool> {
        let own = if address.is_ipv4() {
            "127.0.0.1:0"
        } else {
            "[::1]:0"
        };
        let socket = UdpSocket::bind(own)?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(STUB))?;
        // 7f000001.addr.consul A
        let mut question = b"\x70\x63\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
        question.extend(b"\x087f000001\x04addr\x06consul\x00\x00\x01\x00\x01");
        socket.send(&question)?;
        let mut reply = [0; 512];
        let length = socket.recv(&mut reply)?;
        Ok(length > 12 && reply[..2] == question[..2] && reply[7] == 1)
    };
    match asked() {
        Ok(true) => findings.ok("stub", format!("answers on {address}")),
        Ok(false) => {
            let what = format!("{address} answers, but not for consul");
            findings.warn(
                "stub",
                what,
                "another program has that port, or its domain is another one",
            );
        }
        Err(_) => {
            let what = format!("nothing answers on {address}");
            findings.warn(
                "stub",
                what,
                "for programs that only speak DNS: proconsul serve",
            );
        }
    }
}

fn lines(findings: &Findings) -> String {
    let rows: Vec<Vec<String>> = findings
        .0
        .iter()
        .map(|finding| {
            let what = match &*finding.mend {
                "" => finding.what.clone(),
                mend => format!("{}: {mend}", finding.what),
            };
            vec![
                finding.verdict.as_str().to_owned(),
                finding.check.to_owned(),
                what,
            ]
        })
        .collect();
    output::columns(&rows)
}

fn object(findings: &Findings) -> Value {
    let one = |finding: &Finding| {
        json!({
            "check": finding.check,
            "verdict": finding.verdict.as_str(),
            "what": finding.what,
            "mend": if finding.mend.is_empty() { Value::Null } else { finding.mend.as_str().into() },
        })
    };
    json!({ "checks": findings.0.iter().map(one).collect::<Value>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_judged_by_whom_programs_ask() {
        let file = std::env::temp_dir().join(format!("proconsul-doctor-{}", std::process::id()));
        let verdict = |text: &str, stub: &str| {
            fs::write(&file, text).unwrap();
            let mut findings = Findings::default();
            this_machine(&file, stub.parse().unwrap(), &mut findings);
            findings.0[0].verdict
        };
        assert_eq!(
            verdict("nameserver 127.0.0.1\n", "127.0.0.1:53"),
            Verdict::Ok
        );
        assert_eq!(
            verdict("nameserver 127.0.0.1\n", "127.0.0.1:8653"),
            Verdict::Warn
        );
        assert_eq!(
            verdict("nameserver 10.0.0.1\n", "127.0.0.1:53"),
            Verdict::Warn
        );
        assert_eq!(verdict("search example\n", "127.0.0.1:53"), Verdict::Warn);
        fs::remove_file(&file).unwrap();
        let mut findings = Findings::default();
        this_machine(&file, "127.0.0.1:53".parse().unwrap(), &mut findings);
        assert_eq!(findings.0[0].verdict, Verdict::Warn);
    }
}
