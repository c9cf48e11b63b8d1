//! **Word.** Why a text is not a name, and what to do about it.

use std::{error, fmt};

/// Why a text is not a name that DNS can carry to Consul.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameError {
    /// Escaped: no raw control byte reaches a terminal or a log.
    text: Box<str>,
    fault: Fault,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Empty,
    EmptyLabel,
    LongLabel(Box<str>),
    TooLong,
    Character { label: Box<str>, character: char },
    Dot { tag: Box<str>, service: Box<str> },
    Kindless,
    Bare(&'static str),
    Place,
    Hex(Box<str>),
    Reverse,
    Elsewhere,
    TagOfWhat,
}

impl NameError {
    pub(super) fn new(text: &str, fault: Fault) -> Self {
        // Long garbage is not worth repeating whole.
        let shown: String = text
            .chars()
            .take(300)
            .flat_map(char::escape_default)
            .collect();
        Self {
            text: shown.into(),
            fault,
        }
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, fault } = self;
        match fault {
            Fault::Empty => f.write_str("the name is empty: say a service, such as web"),
            Fault::EmptyLabel => write!(
                f,
                "name \"{text}\" has an empty label: two dots in a row, or one at the start"
            ),
            Fault::LongLabel(label) => write!(
                f,
                "label \"{label}\" of name \"{text}\" is longer than the 63 bytes that DNS can carry: look it up over HTTP or rename it"
            ),
            Fault::TooLong => write!(
                f,
                "name \"{text}\" is longer than the 255 bytes that DNS can carry: use a shorter tag or service"
            ),
            Fault::Character { label, character } => write!(
                f,
                "label \"{label}\" of name \"{text}\" holds {character:?}: Consul's DNS finds only letters, digits, - and _; rename the service or look it up over HTTP"
            ),
            Fault::Dot { tag, service } => write!(
                f,
                "service name \"{text}\" has a dot: DNS would read it as tag \"{tag}\" of service \"{service}\"; rename it or look it up over HTTP"
            ),
            Fault::Kindless => write!(
                f,
                "name \"{text}\" is in Consul's domain but has none of the labels service, connect, ingress, virtual, node, query, addr: write web.service before the domain"
            ),
            Fault::Bare(kind) => write!(f, "name \"{text}\" has nothing before its label {kind}"),
            Fault::Place => write!(
                f,
                "name \"{text}\" has a place that Consul does not read: a datacenter alone, or pairs such as x.dc, x.ns, x.peer, each once"
            ),
            Fault::Hex(label) => write!(
                f,
                "label \"{label}\" of name \"{text}\" is no address: 8 hex digits for IPv4, 32 for IPv6, and nothing before them"
            ),
            Fault::Reverse => write!(
                f,
                "name \"{text}\" is no whole reverse name: write the address itself, such as 10.0.0.1"
            ),
            Fault::Elsewhere => write!(
                f,
                "name \"{text}\" is not in Consul's domain: other names are not Consul's to answer"
            ),
            Fault::TagOfWhat => {
                write!(f, "tag \"{text}\" needs a service: only services have tags")
            }
        }
    }
}

impl error::Error for NameError {}
