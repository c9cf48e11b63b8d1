//! **Word.** The grammar: labels to meaning.

use super::{
    ConsulName, Domain, LONGEST, Locality, NameError, Subject,
    error::Fault,
    target,
    text::{below, is_reverse},
};

/// Labels that name the kind of place before them.
pub(super) const PLACES: [&str; 6] = ["dc", "ns", "ap", "peer", "sg", "port"];

/// Labels that name the kind of thing before them: none can name a place, since a
/// name is read from the right.
const KINDS: [&str; 7] = [
    "service", "connect", "virtual", "ingress", "node", "query", "addr",
];

/// Longest label, in bytes (RFC 1035, section 2.3.4).
pub(super) const LONGEST_LABEL: usize = 63;

/// Why labels off the wire are no name of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAName {
    /// Somebody else's to answer.
    Elsewhere,
    /// In the zone, and certain not to exist.
    NoSuchName,
}

/// What a user typed.
pub(super) fn text(text: &str, domain: &Domain) -> Result<ConsulName, NameError> {
    let error = |fault| NameError::new(text, fault);
    let bare = text.strip_suffix('.').unwrap_or(text);
    if bare.is_empty() {
        return Err(error(Fault::Empty));
    }
    let (name, place) = match bare.split_once('@') {
        Some((name, place)) => (name, Some(place)),
        None => (bare, None),
    };
    if let Ok(address) = name.parse() {
        let reverse = ConsulName::new(Subject::Reverse(address), Locality::default());
        return place.map_or(Ok(reverse), |_| Err(error(Fault::Place)));
    }
    for label in name.split('.').chain(place) {
        check_label(text, label)?;
    }
    let lower = name.to_ascii_lowercase();
    let labels: Vec<&str> = lower.split('.').collect();
    let zone: Vec<&str> = domain.as_str().split('.').collect();

    let parsed = if let Some(rest) = labels.strip_suffix(&zone[..]) {
        full(rest, true).map_err(error)?
    } else if labels.last() == Some(&"arpa") {
        let address = target::unreverse(&labels).ok_or_else(|| error(Fault::Reverse))?;
        ConsulName::new(Subject::Reverse(address), Locality::default())
    } else if bare.len() < text.len() {
        // A final dot says that the name is whole as it stands.
        return Err(error(Fault::Elsewhere));
    } else {
        ConsulName::new(service(&labels).map_err(error)?, Locality::default())
    };
    match place {
        None => Ok(parsed),
        Some(_) if parsed.locality() != &Locality::default() => Err(error(Fault::Place)),
        Some(place) => match parsed.subject() {
            Subject::Address(_) | Subject::Reverse(_) | Subject::Apex => Err(error(Fault::Place)),
            _ => parsed.with_datacenter(place),
        },
    }
}

/// Labels off the wire, the root's left out.
pub(super) fn wire(labels: &[&[u8]], srv: bool, domain: &Domain) -> Result<ConsulName, NotAName> {
    let zone = domain.as_str().as_bytes().rsplit(|byte| *byte == b'.');
    if let Some(rest) = below(labels, zone) {
        let text = lower(rest).ok_or(NotAName::NoSuchName)?;
        return full(&parted(&text, rest), srv).map_err(|_| NotAName::NoSuchName);
    }
    if is_reverse(labels) {
        let text = lower(labels).ok_or(NotAName::NoSuchName)?;
        let address = target::unreverse(&parted(&text, labels)).ok_or(NotAName::NoSuchName)?;
        return Ok(ConsulName::new(
            Subject::Reverse(address),
            Locality::default(),
        ));
    }
    Err(NotAName::Elsewhere)
}

/// The labels in lower case, one behind the other.
fn lower(labels: &[&[u8]]) -> Option<String> {
    let mut lower = String::with_capacity(LONGEST);
    for label in labels {
        let text = std::str::from_utf8(label).ok()?;
        check_label(text, text).ok()?;
        lower.push_str(text);
    }
    lower.make_ascii_lowercase();
    Some(lower)
}

/// The same, each by itself.
fn parted<'a>(mut lower: &'a str, labels: &[&[u8]]) -> Vec<&'a str> {
    let take = |label: &&[u8]| {
        // As long as before: only ASCII changed, and nothing else got here.
        let (label, rest) = lower.split_at_checked(label.len()).unwrap_or_default();
        lower = rest;
        label
    };
    labels.iter().map(take).collect()
}

/// A name in the domain, which has been taken off. Lower case.
fn full(labels: &[&str], srv: bool) -> Result<ConsulName, Fault> {
    if labels.is_empty() {
        return Ok(ConsulName::new(Subject::Apex, Locality::default()));
    }
    let mut left = labels;
    while let Some((label, parts)) = left.split_last() {
        let through = std::mem::replace(&mut left, parts);
        let right = labels.get(through.len()..).unwrap_or_default();
        let nonempty = |kind| {
            if parts.is_empty() {
                Err(Fault::Bare(kind))
            } else {
                Ok(())
            }
        };
        let last = || parts.last().copied().unwrap_or_default();
        let subject = match *label {
            "service" => {
                nonempty("service")?;
                service(parts)?
            }
            "connect" => {
                nonempty("connect")?;
                Subject::Connect {
                    service: last().into(),
                }
            }
            "ingress" => {
                nonempty("ingress")?;
                Subject::Ingress {
                    service: last().into(),
                }
            }
            "virtual" => match parts {
                [service] => Subject::Virtual {
                    service: (*service).into(),
                    port: None,
                },
                [port, service] => Subject::Virtual {
                    service: (*service).into(),
                    port: Some((*port).into()),
                },
                _ => return Err(Fault::Bare("virtual")),
            },
            "node" => {
                nonempty("node")?;
                Subject::Node(parts.join(".").into())
            }
            "query" => {
                nonempty("query")?;
                Subject::Query(query(parts))
            }
            "addr" => {
                let address = match parts {
                    [digits] => target::unhex(digits),
                    _ => None,
                };
                let address = address.ok_or_else(|| Fault::Hex(parts.join(".").into()))?;
                // Whatever stands right of it is not read.
                return Ok(ConsulName::new(
                    Subject::Address(address),
                    Locality::default(),
                ));
            }
            // An SRV question may leave out the label `service`.
            underscored if srv && underscored.starts_with('_') => {
                let subject = service(through)?;
                return Ok(ConsulName::new(subject, place(right, false)?));
            }
            _ => continue,
        };
        let is_query = matches!(subject, Subject::Query(_));
        if is_query && !matches!(right, [] | [_] | [_, "dc"]) {
            return Err(Fault::Place);
        }
        let locality = place(right, matches!(subject, Subject::Virtual { .. }))?;
        return Ok(ConsulName::new(subject, locality));
    }
    Err(Fault::Kindless)
}

/// `web`, `v2.web`, `_web._tcp`, `_web._v2`.
fn service(parts: &[&str]) -> Result<Subject, Fault> {
    let subject = |service: &str, tag: Option<String>| Subject::Service {
        service: service.into(),
        tag: tag.map(Into::into),
    };
    match parts {
        [service, protocol] if service.starts_with('_') && protocol.starts_with('_') => {
            let (service, tag) = (&service[1..], &protocol[1..]);
            if service.is_empty() {
                return Err(Fault::EmptyLabel);
            }
            // No protocol at all filters as little as `tcp` does.
            let filters = !matches!(tag, "" | "tcp");
            Ok(subject(service, filters.then(|| tag.to_owned())))
        }
        [service] => Ok(subject(service, None)),
        [tag @ .., service] => Ok(subject(service, Some(tag.join(".")))),
        [] => Err(Fault::Empty),
    }
}

/// `near`, `near.by`, `_near._tcp`.
fn query(parts: &[&str]) -> Box<str> {
    match parts {
        [name, protocol]
            if name.len() > 1 && name.starts_with('_') && protocol.starts_with('_') =>
        {
            name[1..].into()
        }
        _ => parts.join(".").into(),
    }
}

fn place(labels: &[&str], is_virtual: bool) -> Result<Locality, Fault> {
    // An SRV question would read it as a service that left out its label.
    if labels.iter().any(|label| label.starts_with('_')) {
        return Err(Fault::Place);
    }
    let mut locality = Locality::default();
    match labels {
        [] => {}
        [peer] if is_virtual => locality.peer = Some((*peer).into()),
        [datacenter] => locality.datacenter = Some((*datacenter).into()),
        [namespace, datacenter] if !PLACES.contains(datacenter) => {
            locality.namespace = Some((*namespace).into());
            locality.datacenter = Some((*datacenter).into());
        }
        _ => {
            let (pairs, odd) = labels.as_chunks::<2>();
            if !odd.is_empty() || pairs.len() > 3 {
                return Err(Fault::Place);
            }
            for [value, word] in pairs {
                let slot = match *word {
                    "dc" => &mut locality.datacenter,
                    "ns" => &mut locality.namespace,
                    "ap" => &mut locality.partition,
                    "peer" => &mut locality.peer,
                    "sg" => &mut locality.sameness_group,
                    "port" => &mut locality.port,
                    _ => return Err(Fault::Place),
                };
                if slot.replace((*value).into()).is_some() {
                    return Err(Fault::Place);
                }
            }
            if locality.datacenter.is_some() && locality.peer.is_some() {
                return Err(Fault::Place);
            }
        }
    }
    Ok(locality)
}

/// Whether Consul's DNS could find a name with this label. `text` is the whole
/// name, for the error.
pub(super) fn check_label(text: &str, label: &str) -> Result<(), NameError> {
    let escaped = |label: &str| label.escape_default().to_string().into();
    let fault = if label.is_empty() {
        Fault::EmptyLabel
    } else if let Some(character) = label.chars().find(|c| !is_plain(*c)) {
        Fault::Character {
            label: escaped(label),
            character,
        }
    } else if label.len() > LONGEST_LABEL {
        Fault::LongLabel(escaped(label))
    } else {
        return Ok(());
    };
    Err(NameError::new(text, fault))
}

/// Whether a label can name a datacenter, a namespace or a partition.
pub(super) fn check_place(label: &str) -> Result<(), NameError> {
    check_label(label, label)?;
    let is_kind = KINDS.iter().any(|kind| label.eq_ignore_ascii_case(kind));
    if is_kind || label.starts_with('_') {
        Err(NameError::new(label, Fault::Place))
    } else {
        Ok(())
    }
}

/// Whether Consul compares it as it is, and text shows it so.
pub(super) fn is_plain(character: char) -> bool {
    character.is_ascii_graphic()
        && !matches!(character, '.' | '\'' | '@' | ';' | '(' | ')' | '"' | '\\')
}
