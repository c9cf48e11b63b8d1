//! One service that somebody misses: is it registered, under that name, and well?

use proconsul::{CheckState, Health, Instance, Locality, Resolver, ResolverBuilder, Subject};

use super::Findings;
use crate::{lookup, output, services};

/// Names this near are likely to be meant.
const NEAR: f64 = 0.8;

/// What Consul calls the check that is maintenance.
const MAINTENANCE: [&str; 2] = ["_service_maintenance", "_node_maintenance"];

/// `remembered`: a resolver that has the snapshot alone.
pub(super) async fn look(
    resolver: &Resolver,
    remembered: ResolverBuilder,
    name: &str,
    findings: &mut Findings,
) {
    by_look_up(resolver, name, findings).await;
    let Ok(parsed) = proconsul::ConsulName::parse(name, resolver.domain()) else {
        return;
    };
    let Subject::Service { service, tag } = parsed.subject() else {
        return;
    };
    // The catalog of another datacenter is not this agent's to list.
    if *parsed.locality() != Locality::default() {
        return;
    }
    let instances = match resolver.instances(service).await {
        Ok(instances) => instances,
        Err(error) => {
            let mend = "the HTTP door shows why a service is missing: open it";
            return findings.warn("registration", error.to_string(), mend);
        }
    };
    if instances.is_empty() {
        return missing(resolver, remembered, service, findings).await;
    }
    let counted = output::counted(instances.len(), "instance");
    findings.ok("registration", format!("{counted} of {service}"));
    if let Some(tag) = tag {
        tagged(&instances, tag, findings);
    }
    health(&instances, findings);
    lint(&instances, findings);
}

async fn by_look_up(resolver: &Resolver, name: &str, findings: &mut Findings) {
    match resolver.lookup(name).await {
        Ok(answer) => {
            let count = answer.endpoints().len();
            let what = format!("{name}: {}", output::counted(count, "endpoint"));
            if count == 0 {
                let mend = match records_of(resolver, name) {
                    Some(_) => "it has records only: proconsul lookup prints them",
                    None => "nobody can connect to it: proconsul explain tells why",
                };
                findings.warn("name", what, mend);
            } else if answer.endpoints().iter().any(|endpoint| endpoint.port == 0) {
                findings.warn("name", what, "an instance has port 0: register its port");
            } else {
                findings.ok("name", what);
            }
        }
        Err(error) => {
            let mend = "proconsul explain tells every step";
            findings.fail("name", error.to_string(), mend);
        }
    }
}

/// The type of the records that a name has in place of endpoints.
fn records_of(resolver: &Resolver, name: &str) -> Option<&'static str> {
    let name = lookup::read_name(resolver, name, None).ok()?;
    lookup::own_type(&name)
}

/// Nothing of that name is registered: is another name meant, or was it there before?
async fn missing(
    resolver: &Resolver,
    remembered: ResolverBuilder,
    service: &str,
    findings: &mut Findings,
) {
    let names = resolver.services().await.unwrap_or_default();
    let likeness = |name: &str| strsim::jaro_winkler(&plain(name), &plain(service));
    let near = names
        .iter()
        .map(|one| (likeness(&one.name), &one.name))
        .filter(|(likeness, _)| *likeness >= NEAR)
        .max_by(|one, other| one.0.total_cmp(&other.0));
    let what = match near {
        Some((_, near)) => format!("no service {service} is registered; did you mean {near}?"),
        None => format!("no service {service} is registered"),
    };
    let mend = "register it (proconsul register), and check that the process which does so runs";
    findings.fail("registration", what, mend);
    let Ok(remembered) = remembered.build() else {
        return;
    };
    if let Ok(before) = remembered.lookup(service).await {
        let minutes = before.age().as_secs() / 60;
        let what = format!("{service} was there {minutes} min ago");
        let mend = "it deregistered itself, its node left, or its checks were critical for longer \
                    than deregister_critical_service_after: look at its log of that time";
        findings.warn("deregistered", what, mend);
    }
}

/// Spelling that people mix up.
fn plain(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}

fn tagged(instances: &[Instance], tag: &str, findings: &mut Findings) {
    let has = |instance: &Instance| services::has_tag(&instance.tags, tag);
    let with = instances.iter().filter(|instance| has(instance)).count();
    if with > 0 {
        return findings.ok(
            "tag",
            format!("{} has it", output::counted(with, "instance")),
        );
    }
    let mut tags: Vec<_> = instances.iter().flat_map(|one| one.tags.iter()).collect();
    tags.sort_unstable();
    tags.dedup();
    let tags: Vec<&str> = tags.into_iter().map(|tag| &**tag).collect();
    let what = format!(
        "no instance is tagged {tag}; there are: {}",
        tags.join(", ")
    );
    findings.fail("tag", what, "register it with the tag, or ask for another");
}

fn health(instances: &[Instance], findings: &mut Findings) {
    let bad: Vec<_> = instances
        .iter()
        .filter(|one| one.health != Health::Passing)
        .collect();
    if bad.is_empty() {
        return findings.ok("checks", "all pass");
    }
    let critical = bad
        .iter()
        .filter(|one| one.health == Health::Critical)
        .count();
    let why = |instance: &&Instance| {
        let failing = instance
            .checks
            .iter()
            .filter(|check| check.health != Health::Passing);
        let failing: Vec<_> = failing.map(services::reason).collect();
        format!("{} ({instance}): {}", instance.id, failing.join(", "))
    };
    let shown: Vec<_> = bad.iter().take(3).map(why).collect();
    let what = format!(
        "{} of {} not passing: {}{}",
        bad.len(),
        output::counted(instances.len(), "instance"),
        shown.join("; "),
        if bad.len() > shown.len() { "; ..." } else { "" },
    );
    let is_maintenance = |check: &CheckState| MAINTENANCE.iter().any(|id| check.id.starts_with(id));
    let mend = if bad.iter().all(|one| one.checks.iter().any(is_maintenance)) {
        "they are in maintenance: consul maint -disable, or the registration's maintenance(None)"
    } else {
        "see that the agent reaches what it checks, from where it runs, within the check's timeout"
    };
    if critical == instances.len() {
        findings.fail("checks", what, mend);
    } else {
        findings.warn("checks", what, mend);
    }
}

/// What is registered in a way that clients stumble over.
fn lint(instances: &[Instance], findings: &mut Findings) {
    for instance in instances {
        let own: Vec<_> = instance
            .checks
            .iter()
            .filter(|check| !check.of_node)
            .collect();
        let loopback = instance.address.parse::<std::net::IpAddr>();
        let (what, mend) = if instance.port == 0 {
            ("has port 0", "register its port")
        } else if loopback.is_ok_and(|ip| ip.is_unspecified()) {
            (
                "has an address where one listens",
                "register the address where clients reach it",
            )
        } else if own.is_empty() {
            (
                "has no check of its own",
                "give it one: else it is given when it is dead",
            )
        } else {
            continue;
        };
        let what = format!("{} ({instance}) {what}", instance.id);
        return findings.warn("lint", what, mend);
    }
}
