//! **Pure.** What is told of a look-up that gave nothing: one line that says what
//! was tried and what to do next.

use crate::{
    endpoint::{Attempt, Outcome, Source},
    error::{Error, ErrorKind},
    name::{ConsulName, Domain, Subject},
    protection::Reason,
};

/// Consul says that there is nothing.
pub(super) fn not_found(name: &ConsulName, domain: &Domain, attempts: Vec<Attempt>) -> Error {
    let fqdn = name.fqdn(domain);
    let (what, next) = match name.subject() {
        Subject::Service {
            service,
            tag: Some(tag),
        } => (
            ["no healthy instance of ", service, " has the tag ", tag].concat(),
            "check the tag, and with ACLs in force that the agent's token may read service and node",
        ),
        Subject::Service { service, .. } => (
            [
                "there is no service ",
                service,
                ", or none of its instances is healthy",
            ]
            .concat(),
            "check the name, and with ACLs in force that the agent's token may read service and node",
        ),
        Subject::Reverse(address) => (
            format!("no node and no service has the address {address}"),
            "Consul looks only in its own datacenter",
        ),
        _ => ("there is no such name".to_owned(), "check the name"),
    };
    let asked_consul = attempts
        .last()
        .is_none_or(|last| last.source != Source::Static);
    let next = if asked_consul { next } else { "check the name" };
    let whose = attempts
        .last()
        .map_or("the cache", |last| last.source.as_str());
    let message = [&fqdn, ": ", &what, " (says ", whose, "); ", next].concat();
    Error::with_attempts(ErrorKind::NotFound, message, attempts)
}

/// Nothing is seen there, not even what is always there.
pub(super) fn mark_unseen(attempt: Option<&mut Attempt>) {
    if let Some(attempt) = attempt {
        attempt.outcome = Outcome::Denied;
        attempt.detail = "shows nothing, not even Consul's own service: with ACLs in force the \
                          agent's dns or default token, or ours, may not read services and nodes"
            .into();
    }
}

/// A source says that it is gone, and that is not believed.
pub(super) fn held(fqdn: &str, reason: Reason, attempts: Vec<Attempt>) -> Error {
    // Who sees nothing of Consul's own service has lost the right to see.
    let kind = match reason {
        Reason::Denied | Reason::NoCanary => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    let message = format!(
        "{fqdn}: {reason}; that is not believed: check the agent's servers and the token's rights"
    );
    Error::with_attempts(kind, message, attempts)
}

/// Something newer did not come in time.
pub(super) fn late(name: &ConsulName, domain: &Domain) -> Error {
    let message = format!("{}: no source answered in time", name.fqdn(domain));
    Error::new(ErrorKind::Timeout, message)
}

/// What is told when the last rung has given nothing.
pub(super) fn failed(kind: ErrorKind, fqdn: &str, attempts: Vec<Attempt>) -> Error {
    let tried = match attempts.as_slice() {
        [] => "there is no source that could know it".to_owned(),
        all => {
            let steps: Vec<_> = all.iter().map(ToString::to_string).collect();
            steps.join("; ")
        }
    };
    let next = match kind {
        ErrorKind::Denied => {
            "give a token that may read service and node (CONSUL_HTTP_TOKEN_FILE, --token-file)"
        }
        _ => {
            "start a Consul agent here, say where one is (--dns, --http), or give a static catalog \
             (--catalog)"
        }
    };
    let message = match kind {
        ErrorKind::Denied => format!("{fqdn}: not permitted: {tried}; {next}"),
        _ => format!("{fqdn}: no source answered: {tried}; {next}"),
    };
    Error::with_attempts(kind, message, attempts)
}
