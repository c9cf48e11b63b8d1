//! **Pure.** What is told of a look-up that gave nothing: one line that says what
//! was tried and what to do next.

use std::fmt;

use crate::{
    endpoint::{Attempt, Outcome, Source},
    error::{Error, ErrorKind},
    name::{ConsulName, Domain, Subject},
    protection::Reason,
};

/// There is nothing, as Consul says; or, where that is not asked, what there is `instead`.
pub(super) fn not_found(
    name: &ConsulName,
    domain: &Domain,
    instead: Option<&'static str>,
    attempts: Vec<Attempt>,
) -> Error {
    let message = NotFound {
        name: name.clone(),
        domain: domain.clone(),
        instead,
        says: attempts.last().map(|last| last.source),
    };
    Error::told(ErrorKind::NotFound, message, attempts)
}

/// That there is nothing behind a name, and who says so; `None`: the cache.
struct NotFound {
    name: ConsulName,
    domain: Domain,
    instead: Option<&'static str>,
    says: Option<Source>,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const RIGHTS: &str =
            "and with ACLs in force that the agent's token may read service and node";
        write!(f, "{}: ", self.name.fqdn(&self.domain))?;
        if let Some(instead) = self.instead {
            return write!(
                f,
                "it is not in {instead}, and no Consul agent is asked; check the name, write it \
                 down there, or say where an agent is (--dns, --http)"
            );
        }
        let (check, rights) = match self.name.subject() {
            Subject::Service {
                service,
                tag: Some(tag),
            } => {
                write!(f, "no healthy instance of {service} has the tag {tag}")?;
                ("check the tag", Some(RIGHTS))
            }
            Subject::Service { service, .. } => {
                write!(
                    f,
                    "there is no service {service}, or none of its instances is healthy"
                )?;
                ("check the name", Some(RIGHTS))
            }
            Subject::Reverse(address) => {
                write!(f, "no node and no service has the address {address}")?;
                ("Consul looks only in its own datacenter", None)
            }
            _ => {
                f.write_str("there is no such name")?;
                ("check the name", None)
            }
        };
        let whose = self.says.map_or("the cache", Source::as_str);
        write!(f, " (says {whose}); ")?;
        match rights {
            // What an operator wrote down asks for no token.
            _ if self.says == Some(Source::Static) => f.write_str("check the name"),
            Some(rights) => write!(f, "{check}, {rights}"),
            None => f.write_str(check),
        }
    }
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
