//! `proconsul explain NAME`.

use std::process::ExitCode;

use proconsul::{Answer, Attempt, ConsulName, Error, Freshness, Resolver, Subject};

use crate::{
    args::{Explain, Form, Output, Stale},
    lookup, output,
};

pub(crate) async fn run(command: Explain, form: &Output) -> ExitCode {
    let (resolver, name, result) = match look_up(&command).await {
        Ok(done) => done,
        Err(error) => return output::failure(&error, form),
    };
    output::snapshot_problem(&resolver, form);
    if form.form() == Form::Json {
        return match &result {
            Ok(_) => output::object(&output::explained(&result)),
            Err(error) => output::failure(error, form),
        };
    }
    let (read, fqdn) = (meaning(&name), name.fqdn(resolver.domain()));
    let mut text = format!("{} means {read}\nasked for {fqdn}\n", command.name);
    let attempts = match &result {
        Ok(answer) => answer.attempts(),
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
        Ok(answer) => {
            let whole = if answer.is_complete() {
                "complete"
            } else {
                "NOT COMPLETE"
            };
            let counted = output::counted(answer.endpoints().len(), "endpoint");
            let (source, fresh) = (answer.source(), answer.freshness());
            text.push_str(&format!(
                "answer: {counted} from {source}, {fresh}, {whole}\n"
            ));
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
            output::data(&text)
        }
        Err(error) => {
            output::data(&text);
            output::failure(error, form)
        }
    }
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

async fn look_up(
    command: &Explain,
) -> Result<(Resolver, ConsulName, Result<Answer, Error>), Error> {
    let resolver = command.sources.resolver(None, Stale::Yes)?;
    resolver.check().await?;
    let name = lookup::read_name(&resolver, &command.name, None)?;
    let result = resolver.lookup(&name).await;
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
