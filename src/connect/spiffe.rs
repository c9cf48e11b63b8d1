//! **Word.** [`SpiffeId`]: who a service is in Connect's certificates (Consul docs: Connect
//! certificate authority; SPIFFE-ID, section 2).
//!
//! `spiffe://<trust domain>[/ap/<partition>]/ns/<namespace>/dc/<datacenter>/svc/<service>`

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

use std::{fmt, str::FromStr};

/// The identity of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SpiffeId {
    /// Whose word it is: `<uuid of the cluster>.consul`.
    pub trust_domain: Box<str>,
    /// Consul Enterprise.
    pub partition: Option<Box<str>>,
    /// `default` without Consul Enterprise.
    pub namespace: Box<str>,
    /// Where it is registered.
    pub datacenter: Box<str>,
    /// Its name.
    pub service: Box<str>,
}

/// The text names no service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpiffeIdError;

impl fmt::Display for SpiffeIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "not the identity of a service: spiffe://<domain>/ns/<ns>/dc/<dc>/svc/<service>",
        )
    }
}

impl std::error::Error for SpiffeIdError {}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let rest = text.strip_prefix("spiffe://").ok_or(SpiffeIdError)?;
        let mut parts = rest.split('/');
        let trust_domain = parts.next().unwrap_or_default();
        let parts: Vec<_> = parts.collect();
        let (partition, parts) = match parts.as_slice() {
            ["ap", partition, rest @ ..] => (Some(*partition), rest),
            rest => (None, rest),
        };
        let ["ns", namespace, "dc", datacenter, "svc", service] = parts else {
            return Err(SpiffeIdError);
        };
        // A query, a fragment or an escape would be another name for the same.
        let is_plain = |part: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            !part.is_empty() && part.bytes().all(plain)
        };
        let all = [trust_domain, namespace, datacenter, service];
        if !all.into_iter().chain(partition).all(is_plain) {
            return Err(SpiffeIdError);
        }
        Ok(Self {
            trust_domain: trust_domain.to_ascii_lowercase().into(),
            partition: partition.map(Into::into),
            namespace: (*namespace).into(),
            datacenter: (*datacenter).into(),
            service: (*service).into(),
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}", self.trust_domain)?;
        if let Some(partition) = &self.partition {
            write!(f, "/ap/{partition}")?;
        }
        let (namespace, datacenter) = (&self.namespace, &self.datacenter);
        write!(f, "/ns/{namespace}/dc/{datacenter}/svc/{}", self.service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_and_printed_the_same() {
        for text in [
            "spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc/web",
            "spiffe://a.consul/ap/p1/ns/n1/dc/dc1/svc/web",
        ] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!((&*id.service, id.to_string()), ("web", text.to_owned()));
        }
    }

    #[test]
    fn anything_else_is_nobody() {
        for text in [
            "",
            "https://a/ns/default/dc/dc1/svc/web",
            "spiffe://a/ns/default/dc/dc1/svc/",
            "spiffe:///ns/default/dc/dc1/svc/web",
            "spiffe://a/ns/default/dc/dc1/svc/web/more",
            "spiffe://a/ns/default/dc/dc1/svc/web?x=1",
            "spiffe://a/ns/default/dc/dc1/svc/we%62",
            "spiffe://a/agent/client/dc/dc1/id/node",
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(SpiffeIdError), "{text}");
        }
    }
}
