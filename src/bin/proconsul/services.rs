//! `proconsul services [NAME]`: what is registered.

use std::{fmt::Write as _, process::ExitCode};

use proconsul::{CheckState, Instance, ServiceName};
use serde_json::{Value, json};

use crate::{
    args::{Form, Output, Services, Stale},
    output,
};

pub(crate) async fn run(command: Services, form: &Output) -> ExitCode {
    let resolver = match command.sources.resolver(None, Stale::Yes) {
        Ok(resolver) => resolver,
        Err(error) => return output::failure(&error, form),
    };
    match &command.name {
        None => match resolver.services().await {
            Ok(mut all) => {
                if let Some(tag) = &command.tag {
                    all.retain(|service| has_tag(&service.tags, tag));
                }
                services(&all, form)
            }
            Err(error) => output::failure(&error, form),
        },
        Some(name) => match resolver.instances(name).await {
            Ok(mut all) => {
                if let Some(tag) = &command.tag {
                    all.retain(|instance| has_tag(&instance.tags, tag));
                }
                instances(name, &all, form)
            }
            Err(error) => output::failure(&error, form),
        },
    }
}

pub(crate) fn has_tag(tags: &[Box<str>], tag: &str) -> bool {
    tags.iter().any(|own| own.eq_ignore_ascii_case(tag))
}

fn services(all: &[ServiceName], form: &Output) -> ExitCode {
    let one = |service: &ServiceName| json!({ "name": &*service.name, "tags": &service.tags });
    let told = json!({ "services": all.iter().map(one).collect::<Value>() });
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
            let mut rows = vec![vec![
                output::heading(form, "SERVICE"),
                output::heading(form, "TAGS"),
            ]];
            let row =
                |service: &ServiceName| vec![service.name.to_string(), service.tags.join(", ")];
            rows.extend(all.iter().map(row));
            output::data(&output::columns(&rows))
        }
    }
}

fn instances(name: &str, all: &[Instance], form: &Output) -> ExitCode {
    let check = |check: &CheckState| {
        json!({
            "id": &*check.id, "name": &*check.name, "health": check.health.as_str(),
            "output": &*check.output, "notes": &*check.notes, "of_node": check.of_node,
        })
    };
    let one = |instance: &Instance| {
        json!({
            "id": &*instance.id, "node": &*instance.node, "address": &*instance.address,
            "port": instance.port, "tags": &instance.tags, "meta": &instance.meta,
            "health": instance.health.as_str(),
            "checks": instance.checks.iter().map(check).collect::<Value>(),
        })
    };
    let told = json!({ "name": name, "instances": all.iter().map(one).collect::<Value>() });
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
            let mut rows = vec![heads.map(|head| output::heading(form, head)).to_vec()];
            rows.extend(all.iter().map(|instance| {
                let bad = instance.checks.iter();
                let bad = bad.filter(|check| check.health != proconsul::Health::Passing);
                let bad: Vec<_> = bad.map(reason).collect();
                vec![
                    instance.to_string(),
                    instance.id.to_string(),
                    instance.node.to_string(),
                    instance.health.as_str().to_owned(),
                    bad.join("; "),
                ]
            }));
            output::data(&output::columns(&rows))
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
