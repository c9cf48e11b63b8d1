//! **Word.** [`ConsulName`]: what a name asks for, text to meaning and back.
//!
//! A full name is read from the right: the domain is taken off, the first of the
//! kind labels found tells what is left of it and what is right of it (Consul
//! docs: Perform static DNS queries).
//!
//! | name, in the domain `consul` | asks for |
//! | --- | --- |
//! | `web.service[.LOCALITY].consul` | instances of the service `web` |
//! | `v2.web.service…`, `a.b.web.service…` | those with the tag `v2`; with the tag `a.b` |
//! | `_web._tcp.service…`, `_web._tcp…` | all instances (RFC 2782) |
//! | `_web._v2.service…`, `_web._v2…` | those with the tag `v2` |
//! | `web.connect…`, `web.ingress…` | mesh endpoints, ingress gateways of `web` |
//! | `web.virtual[.PEER]…` | the virtual address of `web` |
//! | `host1.node…`, `near.query…` | a node, a prepared query; both may hold dots |
//! | `0a000001.addr…` | the address 10.0.0.1 |
//! | `consul` | the zone itself |
//! | `1.0.0.10.in-addr.arpa`, `….ip6.arpa` | names of an address |
//!
//! `LOCALITY` is a datacenter, or pairs of `x.dc`, `x.ns`, `x.ap`, `x.peer`,
//! `x.sg`, `x.port`, or Enterprise's older `NAMESPACE.DATACENTER`.
//!
//! Users may also type the short forms `web`, `v2.web`, `_web._tcp`, each with
//! `@DATACENTER`, and a plain address in place of its reverse name. A full name
//! needs its domain: `web.service` is the tag `web` of a service `service`.
//!
//! Case never matters. Consul compares names in their escaped text form, so it
//! never finds one with a byte outside printable ASCII or one of `' @ ; ( ) " \`;
//! such a name is refused here.

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

mod error;
mod parse;
mod target;
mod text;

use std::{
    fmt,
    hash::{Hash, Hasher},
    net::IpAddr,
    str::FromStr,
    sync::Arc,
};

use compact_str::CompactString;

pub use self::error::NameError;
use self::{
    error::Fault,
    parse::{check_label, check_place},
};
pub(crate) use self::{
    parse::NotAName,
    target::{Target, classify_target, hex},
    text::{below, canonical, is_reverse, labels, text},
};

/// Longest name on the wire, in bytes (RFC 1035, section 2.3.4).
const LONGEST: usize = 255;

/// The domain that Consul answers for: `consul` by default, one label or more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Domain(Arc<str>);

impl Domain {
    /// Lower case, without a final dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Domain {
    fn default() -> Self {
        Self("consul".into())
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Domain {
    type Err = NameError;

    /// A final dot is allowed, case is not kept.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bare = text.strip_suffix('.').unwrap_or(text);
        if bare.is_empty() {
            return Err(NameError::new(text, Fault::Empty));
        }
        for label in bare.split('.') {
            check_label(text, label)?;
        }
        // Room for at least a short service name.
        if bare.len() > LONGEST - 64 - 2 {
            return Err(NameError::new(text, Fault::TooLong));
        }
        Ok(Self(bare.to_ascii_lowercase().into()))
    }
}

/// What a name asks for, without the domain it is asked in.
///
/// Cheap to clone. Equal, ordered and hashed by meaning: `V2.web@dc1`,
/// `_web._v2.service.dc1.consul` and `v2.web.service.dc1.dc.consul.` are one.
#[derive(Clone)]
pub struct ConsulName(Arc<Parts>);

struct Parts {
    /// The canonical name, lower case, without the domain; what is hashed.
    key: CompactString,
    subject: Subject,
    locality: Locality,
}

/// The thing that a name asks for. All texts are in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Subject {
    /// Instances of a service.
    Service {
        /// The service's name.
        service: Box<str>,
        /// Only instances with this tag.
        tag: Option<Box<str>>,
    },
    /// Mesh endpoints of a service: its sidecar proxies and native instances.
    Connect {
        /// The service's name.
        service: Box<str>,
    },
    /// Ingress gateways that expose a service.
    Ingress {
        /// The service's name.
        service: Box<str>,
    },
    /// The virtual address of a service.
    Virtual {
        /// The service's name.
        service: Box<str>,
        /// A named port of a multi-port service (Consul 2.0).
        port: Option<Box<str>>,
    },
    /// A node.
    Node(Box<str>),
    /// A prepared query, by name or id.
    Query(Box<str>),
    /// An address, written in the name itself.
    Address(IpAddr),
    /// The names of an address.
    Reverse(IpAddr),
    /// The zone itself.
    Apex,
}

/// Where a name asks to look. What is `None` is the agent's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Locality {
    /// Datacenter.
    pub datacenter: Option<Box<str>>,
    /// Namespace (Enterprise).
    pub namespace: Option<Box<str>>,
    /// Admin partition (Enterprise).
    pub partition: Option<Box<str>>,
    /// Peer that the service was imported from.
    pub peer: Option<Box<str>>,
    /// Sameness group (Enterprise).
    pub sameness_group: Option<Box<str>>,
    /// Named port of a multi-port service.
    pub port: Option<Box<str>>,
}

impl Locality {
    /// Whether it is a place in this cluster, which the HTTP API is asked about by its name.
    pub(crate) fn is_a_place(&self) -> bool {
        self.peer.is_none() && self.sameness_group.is_none() && self.port.is_none()
    }

    /// Whether it names no other place than this one.
    pub(crate) fn is_within(&self, home: &Self) -> bool {
        let own = |asked: &Option<Box<str>>, own: &Option<Box<str>>| match (asked, own) {
            (None, _) => true,
            (Some(asked), Some(own)) => asked.eq_ignore_ascii_case(own),
            (Some(_), None) => false,
        };
        own(&self.datacenter, &home.datacenter)
            && own(&self.namespace, &home.namespace)
            && own(&self.partition, &home.partition)
            && self.is_a_place()
    }
}

impl ConsulName {
    /// Reads what a user typed: a short form or a full name in `domain`.
    ///
    /// # Errors
    ///
    /// When the text is no name, or one that DNS cannot carry to Consul.
    pub fn parse(text: &str, domain: &Domain) -> Result<Self, NameError> {
        let name = parse::text(text, domain)?;
        if name.fits(domain) {
            Ok(name)
        } else {
            Err(NameError::new(text, Fault::TooLong))
        }
    }

    /// Reads a name off the wire: its labels without the root. `srv` says that
    /// the question's type is SRV, which alone may leave out the label `service`.
    pub(crate) fn from_labels(
        labels: &[&[u8]],
        srv: bool,
        domain: &Domain,
    ) -> Result<Self, NotAName> {
        let name = parse::wire(labels, srv, domain)?;
        // The full form of a short one may be longer than the wire carries.
        if name.fits(domain) {
            Ok(name)
        } else {
            Err(NotAName::NoSuchName)
        }
    }

    /// All instances of the service `name`.
    ///
    /// # Errors
    ///
    /// When DNS cannot carry that name; a dot in it above all.
    pub fn service(name: &str) -> Result<Self, NameError> {
        if let Some((tag, service)) = name.rsplit_once('.') {
            let fault = Fault::Dot {
                tag: tag.into(),
                service: service.into(),
            };
            return Err(NameError::new(name, fault));
        }
        check_label(name, name)?;
        let service = name.to_ascii_lowercase().into();
        Ok(Self::new(
            Subject::Service { service, tag: None },
            Locality::default(),
        ))
    }

    /// The zone itself.
    pub(crate) fn apex() -> Self {
        Self::new(Subject::Apex, Locality::default())
    }

    /// The same service, only instances with `tag`; it may hold dots.
    ///
    /// # Errors
    ///
    /// When this is no service or DNS cannot carry the tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, NameError> {
        let Subject::Service { service, .. } = self.subject() else {
            return Err(NameError::new(tag, Fault::TagOfWhat));
        };
        for label in tag.split('.') {
            check_label(tag, label)?;
        }
        let tag = Some(tag.to_ascii_lowercase().into());
        let subject = Subject::Service {
            service: service.clone(),
            tag,
        };
        Ok(Self::new(subject, self.locality().clone()))
    }

    /// The same name in `datacenter`.
    ///
    /// # Errors
    ///
    /// When that is not a label.
    pub fn with_datacenter(&self, datacenter: &str) -> Result<Self, NameError> {
        check_place(datacenter)?;
        let datacenter = Some(datacenter.to_ascii_lowercase().into());
        let locality = Locality {
            datacenter,
            ..self.locality().clone()
        };
        Ok(Self::new(self.subject().clone(), locality))
    }

    /// The same name, with the places it leaves open filled in. Names that have
    /// no place (addresses, the zone itself), that come from a peer or from a
    /// sameness group stay as they are.
    ///
    /// # Errors
    ///
    /// When one of the places is not a label.
    pub(crate) fn with_defaults(
        &self,
        datacenter: Option<&str>,
        namespace: Option<&str>,
        partition: Option<&str>,
    ) -> Result<Self, NameError> {
        let placeless = matches!(
            self.subject(),
            Subject::Address(_) | Subject::Reverse(_) | Subject::Apex | Subject::Virtual { .. }
        );
        let locality = self.locality();
        if placeless || locality.peer.is_some() || locality.sameness_group.is_some() {
            return Ok(self.clone());
        }
        let fill = |own: &Option<Box<str>>, default: Option<&str>| match (own, default) {
            (None, Some(default)) => {
                check_place(default)?;
                Ok(Some(default.to_ascii_lowercase().into()))
            }
            (own, _) => Ok(own.clone()),
        };
        // A prepared query knows no place but a datacenter.
        let is_query = matches!(self.subject(), Subject::Query(_));
        let filled = Locality {
            datacenter: fill(&locality.datacenter, datacenter)?,
            namespace: fill(&locality.namespace, namespace.filter(|_| !is_query))?,
            partition: fill(&locality.partition, partition.filter(|_| !is_query))?,
            ..locality.clone()
        };
        Ok(if filled == *locality {
            self.clone()
        } else {
            Self::new(self.subject().clone(), filled)
        })
    }

    /// The thing asked for.
    pub fn subject(&self) -> &Subject {
        &self.0.subject
    }

    /// Where it is asked for.
    pub fn locality(&self) -> &Locality {
        &self.0.locality
    }

    /// The canonical name without the domain. Equal for equal names, and for no
    /// others.
    pub(crate) fn key(&self) -> &str {
        &self.0.key
    }

    /// The absolute name in `domain`, with its final dot:
    /// `v2.web.service.dc1.consul.`
    pub fn fqdn(&self, domain: &Domain) -> String {
        match (self.subject(), &*self.0.key) {
            (Subject::Reverse(_), key) => [key, "."].concat(),
            (_, "") => [domain.as_str(), "."].concat(),
            (_, key) => [key, ".", domain.as_str(), "."].concat(),
        }
    }

    /// Whether its absolute name is short enough for the wire.
    pub(crate) fn fits(&self, domain: &Domain) -> bool {
        // The text has one byte less than the wire: the root's.
        self.0.key.len().saturating_add(domain.as_str().len()) <= LONGEST - 3
    }

    fn new(subject: Subject, locality: Locality) -> Self {
        let mut key = CompactString::default();
        // Into a string all can be written.
        _ = subject.write(&mut key);
        let place = locality.labels(matches!(subject, Subject::Virtual { .. }));
        if !place.is_empty() && !matches!(subject, Subject::Address(_)) {
            key.push('.');
            key.push_str(&place);
        }
        Self(Arc::new(Parts {
            key,
            subject,
            locality,
        }))
    }
}

impl fmt::Display for Subject {
    /// The labels left of the locality.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f)
    }
}

impl Subject {
    fn write(&self, f: &mut impl fmt::Write) -> fmt::Result {
        match self {
            // These are asked for most, and formatting takes its time.
            Self::Service { service, tag: None } => {
                f.write_str(service)?;
                f.write_str(".service")
            }
            // Two labels that both begin with an underscore are read after RFC
            // 2782, so that is how such a tag and service have to be written.
            Self::Service {
                service,
                tag: Some(tag),
            } if service.starts_with('_') && tag.starts_with('_') && !tag.contains('.') => {
                write!(f, "_{service}._{tag}.service")
            }
            Self::Service {
                service,
                tag: Some(tag),
            } => write!(f, "{tag}.{service}.service"),
            Self::Connect { service } => write!(f, "{service}.connect"),
            Self::Ingress { service } => write!(f, "{service}.ingress"),
            Self::Virtual {
                service,
                port: None,
            } => write!(f, "{service}.virtual"),
            Self::Virtual {
                service,
                port: Some(port),
            } => write!(f, "{port}.{service}.virtual"),
            Self::Node(node) => write!(f, "{node}.node"),
            Self::Query(query) => write!(f, "{query}.query"),
            Self::Address(address) => write!(f, "{}.addr", hex(*address)),
            Self::Reverse(address) => f.write_str(&target::reverse(*address)),
            Self::Apex => Ok(()),
        }
    }
}

impl Locality {
    /// As few labels as every version of Consul understands: a lone datacenter
    /// (a lone peer for a virtual address), `NAMESPACE.DATACENTER`, else pairs.
    fn labels(&self, is_virtual: bool) -> String {
        let pairs: Vec<(&str, &'static str)> = [
            (&self.port, "port"),
            (&self.namespace, "ns"),
            (&self.partition, "ap"),
            (&self.peer, "peer"),
            (&self.sameness_group, "sg"),
            (&self.datacenter, "dc"),
        ]
        .into_iter()
        .filter_map(|(value, word)| value.as_deref().map(|value| (value, word)))
        .collect();
        match pairs[..] {
            [] => String::new(),
            [(peer, "peer")] if is_virtual => peer.to_owned(),
            [(datacenter, "dc")] if !is_virtual => datacenter.to_owned(),
            [(namespace, "ns"), (datacenter, "dc")]
                if !is_virtual && !parse::PLACES.contains(&datacenter) =>
            {
                format!("{namespace}.{datacenter}")
            }
            _ => {
                let labels: Vec<_> = pairs
                    .iter()
                    .map(|(value, word)| format!("{value}.{word}"))
                    .collect();
                labels.join(".")
            }
        }
    }
}

impl FromStr for ConsulName {
    type Err = NameError;

    /// Reads it in the default domain, `consul`.
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text, &Domain::default())
    }
}

impl fmt::Display for ConsulName {
    /// The absolute name in the default domain, `consul`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fqdn(&Domain::default()))
    }
}

impl fmt::Debug for ConsulName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConsulName({})", self.0.key)
    }
}

impl PartialEq for ConsulName {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.key == other.0.key
    }
}

impl Eq for ConsulName {}

impl Hash for ConsulName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

impl PartialOrd for ConsulName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ConsulName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

#[cfg(test)]
mod tests;
