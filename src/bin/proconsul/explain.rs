//! `proconsul explain NAME`.

use std::process::ExitCode;

use proconsul::{Answer, Attempt, ConsulName, Error, Freshness, Records, Resolver, Subject};

use crate::{
    args::{Explain, Form, Output, Stale},
    lookup, output,
};

/// What was found, in the form that the name has.
enum Found {
    Endpoints(Answer),
    Records(Box<Records>),
}

impl Found {
    fn attempts(&self) -> &[Attempt] {
        match self {
            Self::Endpoints(answer) => answer.attempts(),
            Self::Records(records) => records.attempts(),
        }
    }
}

pub(crate) async fn run(command: Explain, form: &Output) -> ExitCode {
    let (resolver, name, result) = match look_up(&command).await {
        Ok(done) => done,
        Err(error) => return output::failure(&error, form),
    };
    output::snapshot_problem(&resolver, form);
    if form.form() == Form::Json {
        return match &result {
            Ok(Found::Endpoints(answer)) => output::object(&output::explained(answer)),
            Ok(Found::Records(found)) => match lookup::some(&command.name, found, form) {
                Ok(()) => output::object(&lookup::records_told(&command.name, found)),
                Err(code) => code,
            },
            Err(error) => output::failure(error, form),
        };
    }
    let (read, fqdn) = (meaning(&name), name.fqdn(resolver.domain()));
    let mut text = format!("{} means {read}\nasked for {fqdn}\n", command.name);
    let attempts = match &result {
        Ok(found) => found.attempts(),
        Err(error) => error.attempts(),
    };
    if attempts.is_empty() {
        text.push_str("nobody had to be asked\n");
    }
    text.push_str(&steps(attempts));
    if resolver.ignored_replies() > 0 {
        let counted = output::counted(
            usize::try_from(resolver.ignored_replies()).unwrap_or(usize::MAX),
            "DNS message",
        );
        text.push_str(&format!(
            "ignored: {counted} that answered no question of ours\n"
        ));
    }
    match &result {
        Ok(Found::Endpoints(answer)) => {
            let counted = output::counted(answer.endpoints().len(), "endpoint");
            text.push_str(&worth(&counted, Some(answer)));
            output::data(&text)
        }
        Ok(Found::Records(records)) => {
            let counted = output::counted(records.answers().count(), "answer");
            text.push_str(&worth(&counted, records.answer.as_ref()));
            text.push_str(&lookup::rows(records));
            let code = output::data(&text);
            lookup::some(&command.name, records, form)
                .err()
                .unwrap_or(code)
        }
        Err(error) => {
            output::data(&text);
            output::failure(error, form)
        }
    }
}

/// What an answer is worth. None had to be had for what is written in the name.
fn worth(counted: &str, answer: Option<&Answer>) -> String {
    let Some(answer) = answer else {
        return format!("answer: {counted}\n");
    };
    let whole = if answer.is_complete() {
        "complete"
    } else {
        "NOT COMPLETE"
    };
    let (source, fresh) = (answer.source(), answer.freshness());
    let mut text = format!("answer: {counted} from {source}, {fresh}, {whole}\n");
    if let Some(reason) = answer.protected() {
        text.push_str(&format!("protected: {reason}\n"));
    }
    if answer.freshness() == Freshness::Stale {
        let age = answer.age().as_secs_f64();
        text.push_str(&format!("age: {age:.1} s since a source gave it\n"));
    }
    for warning in answer.warnings() {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
}

/// The name in words.
fn meaning(name: &ConsulName) -> String {
    let what = match name.subject() {
        Subject::Service { service, tag: None } => format!("the service {service}"),
        Subject::Service {
            service,
            tag: Some(tag),
        } => {
            format!("instances of the service {service} with the tag {tag}")
        }
        Subject::Connect { service } => format!("mesh endpoints of the service {service}"),
        Subject::Ingress { service } => format!("ingress gateways of the service {service}"),
        Subject::Virtual { service, .. } => format!("the virtual address of {service}"),
        Subject::Node(node) => format!("the node {node}"),
        Subject::Query(query) => format!("the prepared query {query}"),
        Subject::Address(address) => format!("the address {address}, which is in the name"),
        Subject::Reverse(address) => format!("the names of the address {address}"),
        _ => "Consul's zone itself".to_owned(),
    };
    match &name.locality().datacenter {
        Some(datacenter) => format!("{what} in the datacenter {datacenter}"),
        None => what,
    }
}

async fn look_up(command: &Explain) -> Result<(Resolver, ConsulName, Result<Found, Error>), Error> {
    let resolver = command.sources.resolver(None, Stale::Yes)?;
    resolver.check().await?;
    let name = lookup::read_name(&resolver, &command.name, None)?;
    let result = match lookup::own_type(&name) {
        None => resolver.lookup(&name).await.map(Found::Endpoints),
        Some(kind) => {
            let found = resolver.records(&name, kind).await;
            found.map(|found| Found::Records(Box::new(found)))
        }
    };
    Ok((resolver, name, result))
}

fn steps(attempts: &[Attempt]) -> String {
    let row = |(at, attempt): (usize, &Attempt)| {
        vec![
            format!("{}.", at + 1),
            attempt.source.to_string(),
            attempt.address.to_string(),
            attempt.transport.to_string(),
            attempt.outcome.to_string(),
            format!("{:.1} ms", attempt.elapsed.as_secs_f64() * 1e3),
            output::counted(attempt.received, "byte"),
            output::counted(attempt.count, "record"),
            attempt.detail.to_string(),
        ]
    };
    output::columns(&attempts.iter().enumerate().map(row).collect::<Vec<_>>())
}
