//! `proconsul services [NAME]`: what is registered.

use std::{fmt::Write as _, process::ExitCode};

use proconsul::{CheckState, Error, Instance, ServiceName, Source};
use serde_json::{Value, json};

use crate::{
    args::{Form, Output, Services, Stale},
    output,
};

pub(crate) async fn run(command: Services, form: &Output) -> ExitCode {
    match look(&command, form).await {
        Ok(code) => code,
        Err(error) => output::failure(&error, form),
    }
}

async fn look(command: &Services, form: &Output) -> Result<ExitCode, Error> {
    let resolver = command.sources.resolver(None, Stale::Yes)?;
    resolver.check().await?;
    let sources = resolver.status().sources;
    let is_off = sources.iter().all(|asked| asked.source != Source::Http);
    let wanted = |tags: &[Box<str>]| command.tag.as_ref().is_none_or(|tag| has_tag(tags, tag));
    Ok(match &command.name {
        None => {
            let (asked, written) = (resolver.services().await, resolver.static_services());
            let (mut all, source) = or_written(is_off, asked, written, form).await?;
            all.retain(|service| wanted(&service.tags));
            services(&all, source, form)
        }
        Some(name) => {
            let (asked, written) = (
                resolver.instances(name).await,
                resolver.static_instances(name),
            );
            let (mut all, source) = or_written(is_off, asked, written, form).await?;
            all.retain(|instance| wanted(&instance.tags));
            instances(name, &all, source, form)
        }
    })
}

/// What an agent told; where none is asked, or none says anything, what is written down.
async fn or_written<T>(
    is_off: bool,
    asked: Result<Vec<T>, Error>,
    written: impl Future<Output = Result<Option<Vec<T>>, Error>>,
    form: &Output,
) -> Result<(Vec<T>, Source), Error> {
    let error = match asked {
        Ok(all) => return Ok((all, Source::Http)),
        Err(error) => error,
    };
    // One that says no has said something.
    if !is_off && !error.is_unavailable() {
        return Err(error);
    }
    match written.await? {
        // What does not stand there an agent may know, where there is one.
        Some(written) if is_off || !written.is_empty() => {
            output::remark(
                form,
                &format!("warning: {error}: this is the static catalog"),
            );
            Ok((written, Source::Static))
        }
        _ => Err(error),
    }
}

pub(crate) fn has_tag(tags: &[Box<str>], tag: &str) -> bool {
    tags.iter().any(|own| own.eq_ignore_ascii_case(tag))
}

fn services(all: &[ServiceName], source: Source, form: &Output) -> ExitCode {
    let one = |service: &ServiceName| json!({ "name": &*service.name, "tags": &service.tags });
    let told = json!({
        "source": source.as_str(),
        "services": all.iter().map(one).collect::<Value>(),
    });
    if all.is_empty() {
        return output::nothing("the catalog has no such service", told, form);
    }
    match form.form() {
        Form::Json => output::object(&told),
        Form::Short => output::data(&all.iter().fold(String::new(), |mut text, service| {
            let _ = writeln!(text, "{}", service.name);
            text
        })),
        Form::Table => {
            let mut rows = vec![vec!["SERVICE".to_owned(), "TAGS".to_owned()]];
            let row =
                |service: &ServiceName| vec![service.name.to_string(), service.tags.join(", ")];
            rows.extend(all.iter().map(row));
            output::data(&output::table(&rows, form))
        }
    }
}

fn instances(name: &str, all: &[Instance], source: Source, form: &Output) -> ExitCode {
    let is_registered = source == Source::Http;
    let check = |check: &CheckState| {
        json!({
            "id": &*check.id, "name": &*check.name, "health": check.health.as_str(),
            "output": &*check.output, "notes": &*check.notes, "of_node": check.of_node,
        })
    };
    let one = |instance: &Instance| {
        json!({
            "id": &*instance.id, "address": &*instance.address, "port": instance.port,
            "tags": &instance.tags, "meta": &instance.meta,
            // What is written down tells none of these.
            "node": is_registered.then_some(&*instance.node),
            "health": is_registered.then_some(instance.health.as_str()),
            "checks": is_registered.then(|| instance.checks.iter().map(check).collect::<Value>()),
        })
    };
    let told = json!({
        "name": name, "source": source.as_str(),
        "instances": all.iter().map(one).collect::<Value>(),
    });
    if all.is_empty() {
        let message = format!("the catalog has no instance of {name}");
        return output::nothing(&message, told, form);
    }
    match form.form() {
        Form::Json => output::object(&told),
        Form::Short => output::data(&all.iter().fold(String::new(), |mut text, instance| {
            let _ = writeln!(text, "{instance}");
            text
        })),
        Form::Table => {
            let heads = [
                "INSTANCE",
                "ID",
                "NODE",
                "HEALTH",
                "CHECKS THAT DO NOT PASS",
            ];
            let mut rows = vec![heads.map(str::to_owned).to_vec()];
            let health = |instance: &Instance| match is_registered {
                true => instance.health.as_str().to_owned(),
                false => String::new(),
            };
            rows.extend(all.iter().map(|instance| {
                let bad = instance.checks.iter();
                let bad = bad.filter(|check| check.health != proconsul::Health::Passing);
                let bad: Vec<_> = bad.map(reason).collect();
                vec![
                    instance.to_string(),
                    instance.id.to_string(),
                    instance.node.to_string(),
                    health(instance),
                    bad.join("; "),
                ]
            }));
            output::data(&output::table(&rows, form))
        }
    }
}

/// As many characters of what a check says stand in a line.
const MOST: usize = 200;

/// `disk critical: 91 % full`, in one line.
pub(crate) fn reason(check: &CheckState) -> String {
    let said = [&check.output, &check.notes];
    let line = said
        .into_iter()
        .flat_map(|text| text.lines())
        .map(str::trim);
    let line = line
        .into_iter()
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    let (name, health) = (&check.name, check.health.as_str());
    match line.char_indices().nth(MOST) {
        None if line.is_empty() => format!("{name} {health}"),
        None => format!("{name} {health}: {line}"),
        Some((at, _)) => format!("{name} {health}: {}...", &line[..at]),
    }
}
