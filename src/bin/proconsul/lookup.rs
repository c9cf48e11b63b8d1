//! `proconsul lookup NAME [TYPE]`.

use std::process::ExitCode;

use proconsul::{Answer, ConsulName, Endpoint, Error, Record, Records, Resolver, Subject};
use serde_json::{Value, json};

use crate::{
    args::{Form, Lookup, Output},
    output,
};

/// What was asked for.
enum Looked {
    Endpoints(Answer),
    Records(Box<Records>),
}

pub(crate) async fn run(command: Lookup, form: &Output) -> ExitCode {
    match look_up(&command, form).await {
        Ok(Looked::Endpoints(answer)) => endpoints(&answer, form),
        Ok(Looked::Records(found)) => records(&command, &found, form),
        Err(error) => output::failure(&error, form),
    }
}

async fn look_up(command: &Lookup, form: &Output) -> Result<Looked, Error> {
    let resolver = command.sources.resolver(command.source, command.stale())?;
    resolver.check().await?;
    let name = read_name(&resolver, &command.name, command.tag.as_deref())?;
    match command.kind.as_deref().or_else(|| own_type(&name)) {
        Some(kind) => {
            let found = resolver.records(&name, kind).await;
            output::saved(&resolver, form).await;
            Ok(Looked::Records(Box::new(found?)))
        }
        None => {
            let found = resolver.lookup(&name).await;
            // That there is nothing any more is kept as well.
            output::saved(&resolver, form).await;
            Ok(Looked::Endpoints(found?))
        }
    }
}

/// What a name that has no endpoints is asked for.
pub(crate) fn own_type(name: &ConsulName) -> Option<&'static str> {
    match name.subject() {
        Subject::Reverse(_) => Some("PTR"),
        Subject::Apex => Some("NS"),
        _ => None,
    }
}

/// Reads a name that endpoints may stand behind, as [`read_name`] does.
pub(crate) fn read_service(
    resolver: &Resolver,
    text: &str,
    tag: Option<&str>,
) -> Result<ConsulName, Error> {
    let name = read_name(resolver, text, tag)?;
    match own_type(&name) {
        None => Ok(name),
        Some(kind) => Err(Error::invalid_setting(format!(
            "{text} has no endpoints, only records: ask proconsul lookup {text} {kind}"
        ))),
    }
}

/// Reads a name in the resolver's domain, with a tag given apart.
pub(crate) fn read_name(
    resolver: &Resolver,
    text: &str,
    tag: Option<&str>,
) -> Result<ConsulName, Error> {
    let name = ConsulName::parse(text, resolver.domain())?;
    match tag {
        Some(tag) => Ok(name.with_tag(tag)?),
        None => Ok(name),
    }
}

fn endpoints(answer: &Answer, form: &Output) -> ExitCode {
    let mut told = output::head(answer);
    told["endpoints"] = answer.endpoints().iter().map(output::endpoint).collect();
    told["attempts"] = output::attempts(answer.attempts());
    if answer.endpoints().is_empty() {
        let message = format!(
            "{} has no address: {}",
            answer.name(),
            answer.warnings().join("; ")
        );
        return output::nothing(&message, told, form);
    }
    match form.form() {
        Form::Json => output::object(&told),
        Form::Short => {
            let lines = answer
                .endpoints()
                .iter()
                .map(|endpoint| format!("{endpoint}\n"));
            output::warnings(answer, form);
            output::data(&lines.collect::<String>())
        }
        Form::Table => {
            let code = output::data(&table(answer.endpoints(), form));
            output::summary(answer, answer.endpoints().len(), "endpoint", form);
            code
        }
    }
}

fn table(endpoints: &[Endpoint], form: &Output) -> String {
    // What only the catalog knows has a column where it is known.
    let known = endpoints
        .iter()
        .any(|endpoint| endpoint.health.is_some() || endpoint.id.is_some());
    let mut head = vec!["ADDRESS", "PORT", "PRIO", "WEIGHT", "TARGET"];
    if known {
        head.extend(["NODE", "ID", "HEALTH", "TAGS"]);
    }
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for endpoint in endpoints {
        let mut row = vec![
            endpoint.address.to_string(),
            endpoint.port.to_string(),
            endpoint.priority.to_string(),
            endpoint.weight.to_string(),
            endpoint.target.to_string(),
        ];
        if known {
            let health = endpoint.health.map_or("", proconsul::Health::as_str);
            row.push(endpoint.node.as_deref().unwrap_or_default().to_owned());
            row.push(endpoint.id.as_deref().unwrap_or_default().to_owned());
            row.push(health.to_owned());
            row.push(endpoint.tags.as_deref().unwrap_or_default().join(","));
        }
        rows.push(row);
    }
    output::table(&rows, form)
}

fn records(command: &Lookup, found: &Records, form: &Output) -> ExitCode {
    if let Err(code) = some(&command.name, found, form) {
        return code;
    }
    match form.form() {
        Form::Json => output::object(&records_told(&command.name, found)),
        Form::Short => {
            let lines = found.answers().map(|record| format!("{}\n", record.data));
            output::data(&lines.collect::<String>())
        }
        Form::Table => {
            let code = output::data(&rows(found));
            if let Some(answer) = &found.answer {
                output::summary(answer, found.answers().count(), "answer", form);
            }
            code
        }
    }
}

/// Records as lines.
pub(crate) fn rows(found: &Records) -> String {
    let row = |record: &Record| {
        let (name, kind, data) = (&record.name, &record.kind, &record.data);
        [&**name, &record.ttl.to_string(), &**kind, &**data]
            .map(str::to_owned)
            .to_vec()
    };
    output::columns(&found.records.iter().map(row).collect::<Vec<_>>())
}

/// Whether there is any answer; where there is none that is told.
pub(crate) fn some(name: &str, found: &Records, form: &Output) -> Result<(), ExitCode> {
    if found.answers().next().is_some() {
        return Ok(());
    }
    let message = match &found.error {
        Some(error) => error.to_string(),
        None => format!("{name} has no record of that type ({})", found.code),
    };
    Err(output::nothing(&message, records_told(name, found), form))
}

/// Records as JSON.
pub(crate) fn records_told(name: &str, found: &Records) -> Value {
    let mut told = match &found.answer {
        Some(answer) => output::head(answer),
        None => json!({"name": name}),
    };
    told["code"] = (*found.code).into();
    told["records"] = found.records.iter().map(record).collect();
    told["attempts"] = output::attempts(found.attempts());
    told
}

fn record(record: &Record) -> Value {
    json!({
        "section": record.section.as_str(),
        "name": &*record.name,
        "type": &*record.kind,
        "ttl_s": record.ttl,
        "data": &*record.data,
    })
}
