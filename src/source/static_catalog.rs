//! **Pure.** The operator's own list of services, in the form in which Consul
//! reads service definitions (Consul docs: Define services):
//!
//! ```json
//! {"services": [{"name": "web", "id": "web-1", "address": "10.0.0.1", "port": 80}]}
//! ```
//!
//! or one `{"service": {...}}`, or both. It is written by hand and stands in when
//! all else fails, so it is read strictly: a mistake is refused with its entry
//! and field, before the day on which it matters. What Consul knows and this has
//! no use for (`check`, `connect`, ...) is passed over.
//!
//! | field | |
//! | --- | --- |
//! | `name` | needed |
//! | `id` | the name where there is none; each only once |
//! | `address` | needed: an IP address or a host name |
//! | `port` | 0 to 65535; 0 where there is none |
//! | `tags` | a list of texts |
//! | `meta` | texts by name |
//! | `weights` | `passing` from 1, `warning` from 0, to 65535; 1 where there is none |
//!
//! Keys are read in any case, as Consul reads them. Reading the file is
//! [`static_file`](crate::source::static_file)'s.

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

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    sync::Arc,
};

use serde_json::{Map, Value};

use crate::{
    consul::health::target::{Registered, addr_target, registered},
    found::{Facts, Found, Instance, TargetKind},
};

/// The services of one file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StaticCatalog {
    /// By name in lower case.
    services: BTreeMap<Box<str>, Listed>,
}

#[derive(Clone, Debug, PartialEq)]
struct Listed {
    /// As the first entry spells it.
    name: Box<str>,
    instances: Vec<Instance>,
}

impl StaticCatalog {
    /// Reads a whole file. Its targets are named in `domain`.
    pub(crate) fn parse(text: &str, domain: &str) -> Result<Self, StaticError> {
        let document: Value = serde_json::from_str(text).map_err(|error| StaticError::Syntax {
            line: error.line(),
            column: error.column(),
            why: without_place(&error),
        })?;
        let Value::Object(document) = document else {
            return Err(StaticError::Shape("the file is not a JSON object"));
        };
        let (services, service) = (member(&document, "services"), member(&document, "service"));
        let mut entries = Vec::new();
        match services {
            None if service.is_none() => {
                let why = "the file has neither \"services\" nor \"service\"";
                return Err(StaticError::Shape(why));
            }
            None | Some(Value::Null) => {}
            Some(Value::Array(services)) => entries.extend(services),
            Some(_) => return Err(StaticError::Shape("\"services\" is not a list")),
        }
        entries.extend(service.filter(|service| !service.is_null()));
        let mut catalog = Self::default();
        let mut ids = HashSet::new();
        for (at, entry) in entries.into_iter().enumerate() {
            let refused = |(field, why)| StaticError::Entry {
                number: at.saturating_add(1),
                field,
                why,
            };
            let (name, id, instance) = instance(entry, domain).map_err(refused)?;
            if !ids.insert(id) {
                let why = format!("\"{}\" is taken by an entry before", id.escape_debug());
                return Err(refused(("id", why.into())));
            }
            let key = name.to_lowercase().into_boxed_str();
            let listed = catalog.services.entry(key).or_insert_with(|| Listed {
                name: name.into(),
                instances: Vec::new(),
            });
            listed.instances.push(instance);
        }
        Ok(catalog)
    }

    /// The instances of a service, all or those with the tag. Case does not
    /// matter. `None` where there is none.
    pub(crate) fn find(&self, service: &str, tag: Option<&str>) -> Option<Found> {
        let listed = self.services.get(&*service.to_lowercase())?;
        let tagged = |instance: &&Instance| match tag {
            None => true,
            Some(tag) => tags(instance).any(|own| same(own, tag)),
        };
        let found: Vec<_> = listed.instances.iter().filter(tagged).cloned().collect();
        (!found.is_empty()).then_some(Found::Instances(found))
    }

    /// The names of all services and the tags of each, both in order.
    pub(crate) fn services(&self) -> impl Iterator<Item = (&str, BTreeSet<&str>)> {
        self.services.values().map(|listed| {
            let tags = listed.instances.iter().flat_map(tags).collect();
            (&*listed.name, tags)
        })
    }
}

fn tags(instance: &Instance) -> impl Iterator<Item = &str> {
    let facts = instance.facts.as_deref();
    facts
        .into_iter()
        .flat_map(|facts| facts.tags.iter().map(|tag| &**tag))
}

fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

type Refusal = (&'static str, Box<str>);

fn instance<'a>(entry: &'a Value, domain: &str) -> Result<(&'a str, &'a str, Instance), Refusal> {
    let Value::Object(entry) = entry else {
        return Err(("", wrong("an object", entry)));
    };
    let name = text(entry, "name")?.ok_or_else(|| missing("name"))?;
    let id = text(entry, "id")?.unwrap_or(name);
    let address = text(entry, "address")?.ok_or_else(|| missing("address"))?;
    let (target, kind, addresses) = match registered(address).map_err(|why| ("address", why))? {
        Registered::Ip(ip) => {
            let target = addr_target(ip, None, domain);
            (Arc::from(target), TargetKind::Address, vec![ip])
        }
        Registered::Host(host) => (Arc::from(host), TargetKind::Host, Vec::new()),
    };
    let instance = Instance {
        other: None,
        target,
        kind,
        glued: kind != TargetKind::Host,
        addresses,
        port: number(entry, "port", "port", 0)?.unwrap_or(0),
        priority: 1,
        weight: weight(entry)?,
        node: None,
        text: None,
        facts: Some(Box::new(Facts {
            id: Some(id.into()),
            tags: tag_list(entry)?,
            meta: metadata(entry)?,
            health: None,
            others: Vec::new(),
        })),
    };
    Ok((name, id, instance))
}

fn missing(field: &'static str) -> Refusal {
    (field, "is missing".into())
}

fn tag_list(entry: &Map<String, Value>) -> Result<Box<[Box<str>]>, Refusal> {
    let tags = match member(entry, "tags") {
        None | Some(Value::Null) => return Ok(Box::default()),
        Some(Value::Array(tags)) => tags,
        Some(other) => return Err(("tags", wrong("a list of texts", other))),
    };
    let texts = tags.iter().map(|tag| match tag {
        Value::String(tag) => Ok(tag.as_str().into()),
        other => Err(("tags", wrong("a list of texts", other))),
    });
    texts.collect()
}

fn metadata(entry: &Map<String, Value>) -> Result<BTreeMap<Box<str>, Box<str>>, Refusal> {
    let meta = match member(entry, "meta") {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(meta)) => meta,
        Some(other) => return Err(("meta", wrong("an object of texts", other))),
    };
    let pairs = meta.iter().map(|(key, value)| match value {
        Value::String(value) => Ok((key.as_str().into(), value.as_str().into())),
        other => Err(("meta", wrong("an object of texts", other))),
    });
    pairs.collect()
}

/// The weight of an instance that passes: nobody checks these.
fn weight(entry: &Map<String, Value>) -> Result<u16, Refusal> {
    let weights = match member(entry, "weights") {
        None | Some(Value::Null) => return Ok(1),
        Some(Value::Object(weights)) => weights,
        Some(other) => return Err(("weights", wrong("an object", other))),
    };
    number(weights, "warning", "weights.warning", 0)?;
    Ok(number(weights, "passing", "weights.passing", 1)?.unwrap_or(1))
}

fn text<'a>(entry: &'a Map<String, Value>, key: &'static str) -> Result<Option<&'a str>, Refusal> {
    match member(entry, key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err((key, wrong("a text", other))),
    }
}

fn number(
    entry: &Map<String, Value>,
    key: &str,
    field: &'static str,
    least: u16,
) -> Result<Option<u16>, Refusal> {
    let value = match member(entry, key) {
        None | Some(Value::Null) => return Ok(None),
        Some(value @ Value::Number(_)) => value,
        Some(other) => return Err((field, wrong("a number", other))),
    };
    let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
    match number.filter(|number| *number >= least) {
        Some(number) => Ok(Some(number)),
        None => {
            let why = format!("{value} is not a whole number from {least} to 65535");
            Err((field, why.into()))
        }
    }
}

/// A member by its key in any case; the exact one first.
fn member<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let folded = || object.iter().find(|(own, _)| own.eq_ignore_ascii_case(key));
    object.get(key).or_else(|| folded().map(|(_, value)| value))
}

fn wrong(expected: &str, found: &Value) -> Box<str> {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    format!("is {found} where {expected} belongs").into()
}

/// The error without "at line 1 column 2", which is told before it.
fn without_place(error: &serde_json::Error) -> Box<str> {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&place).unwrap_or(&text).into()
}

/// What is wrong with the text of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StaticError {
    Syntax {
        line: usize,
        column: usize,
        why: Box<str>,
    },
    Shape(&'static str),
    /// `services` first, in its order and from 1, then `service`.
    Entry {
        number: usize,
        field: &'static str,
        why: Box<str>,
    },
}

impl fmt::Display for StaticError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { line, column, why } => write!(f, "line {line}, column {column}: {why}"),
            Self::Shape(why) => f.write_str(why),
            Self::Entry {
                number,
                field: "",
                why,
            } => write!(f, "entry {number} {why}"),
            Self::Entry { number, field, why } => write!(f, "entry {number}, {field}: {why}"),
        }
    }
}

impl std::error::Error for StaticError {}

#[cfg(test)]
mod tests;
