//! **Pure.** The question to the catalog, and the request that puts it.
//!
//! | asked for | request | read |
//! | --- | --- | --- |
//! | service | `/v1/health/service/X` | instances |
//! | mesh endpoints | `/v1/health/connect/X` | instances |
//! | ingress gateways | `/v1/health/ingress/X` | instances |
//! | prepared query | `/v1/query/X/execute` | instances, TTL, datacenter |
//! | node | `/v1/catalog/node/X` | one host |
//! | who has an address | `/v1/catalog/nodes?filter=...`, then each service | names |
//! | the zone's servers | `/v1/health/service/consul` | servers |
//!
//! Never `passing`: Consul's DNS lists instances whose checks warn, and this has
//! to find the same ones. `stale`: any server may answer, as for DNS; but for what one says not
//! to exist, which the leader is to [confirm](Reader::Leader).
//! Names go in lower case, since some agents compare them with case.

use std::net::IpAddr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::reverse;

/// What stands behind the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask<'a> {
    Service {
        name: &'a str,
        tag: Option<&'a str>,
    },
    Connect {
        name: &'a str,
    },
    Ingress {
        name: &'a str,
    },
    Node {
        name: &'a str,
    },
    Query {
        name: &'a str,
    },
    /// Nodes with this address.
    Reverse {
        ip: IpAddr,
    },
    Servers,
}

impl Ask<'_> {
    /// Whether a list of instances answers it.
    pub(crate) fn is_listed(&self) -> bool {
        match self {
            Self::Service { .. } | Self::Connect { .. } | Self::Ingress { .. } | Self::Servers => {
                true
            }
            Self::Query { .. } | Self::Node { .. } | Self::Reverse { .. } => false,
        }
    }
}

/// Where it is asked for; `None` is the agent's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    pub(crate) datacenter: Option<&'a str>,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) partition: Option<&'a str>,
    pub(crate) peer: Option<&'a str>,
    pub(crate) sameness_group: Option<&'a str>,
}

/// Who may answer (Consul docs: Consistency Modes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Any server, whatever it knows by now.
    #[default]
    Any,
    /// The leader, once the others say that it is the leader still.
    Leader,
}

/// One question to the catalog, and the DNS names that its answer is told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question<'a> {
    pub(crate) ask: Ask<'a>,
    pub(crate) place: Place<'a>,
    pub(crate) reader: Reader,
    /// The domain of Consul's zone, as `consul`.
    pub(crate) domain: &'a str,
    /// The full name that was looked up, with its final dot.
    pub(crate) name: &'a str,
}

/// What a path segment and a query value carry as they are (RFC 3986, 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The request, as path and query, percent-encoded.
pub(crate) fn path(ask: &Ask<'_>, place: &Place<'_>, reader: Reader) -> String {
    let mode = match reader {
        Reader::Any => "stale",
        Reader::Leader => "consistent",
    };
    let segment = |name: &str| escaped(&name.to_lowercase());
    let mut path = match ask {
        Ask::Service { name, .. } => format!("/v1/health/service/{}?{mode}", segment(name)),
        Ask::Connect { name } => format!("/v1/health/connect/{}?{mode}", segment(name)),
        Ask::Ingress { name } => format!("/v1/health/ingress/{}?{mode}", segment(name)),
        Ask::Node { name } => format!("/v1/catalog/node/{}?{mode}", segment(name)),
        Ask::Query { name } => format!("/v1/query/{}/execute?{mode}", segment(name)),
        Ask::Reverse { ip } => reverse::path_of_nodes(*ip),
        Ask::Servers => format!("/v1/health/service/consul?{mode}"),
    };
    let tag = match ask {
        Ask::Service { tag, .. } => *tag,
        _ => None,
    };
    add(
        &mut path,
        [
            ("dc", place.datacenter),
            ("ns", place.namespace),
            ("partition", place.partition),
            ("peer", place.peer),
            ("sg", place.sameness_group),
            ("tag", tag),
        ],
    );
    path
}

/// Adds what there is to a query, each with `&` before.
pub(crate) fn add<'a>(
    query: &mut String,
    pairs: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
) {
    for (key, value) in pairs {
        if let Some(value) = value {
            query.push('&');
            query.push_str(key);
            query.push('=');
            query.push_str(&escaped(value));
        }
    }
}

pub(crate) fn escaped(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}
