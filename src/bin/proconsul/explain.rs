//! `proconsul explain NAME`.

use std::process::ExitCode;

use proconsul::{Answer, Attempt, ConsulName, Error};
use serde_json::json;

use crate::{
    args::{Explain, Form, Output},
    lookup, output,
};

pub(crate) async fn run(command: Explain, form: &Output) -> ExitCode {
    let (name, fqdn, result) = match look_up(&command).await {
        Ok(done) => done,
        Err(error) => return output::failure(&error, form),
    };
    if form.form() == Form::Json {
        return match &result {
            Ok(answer) => {
                let mut told = output::head(answer);
                told["count"] = answer.endpoints().len().into();
                told["warnings"] = json!(answer.warnings());
                told["attempts"] = output::attempts(answer.attempts());
                output::object(&told)
            }
            Err(error) => output::failure(error, form),
        };
    }
    let mut text = format!(
        "{} is read as {:?}\nasked for {fqdn}\n",
        command.name,
        name.subject()
    );
    let attempts = match &result {
        Ok(answer) => answer.attempts(),
        Err(error) => error.attempts(),
    };
    if attempts.is_empty() {
        text.push_str("nobody had to be asked\n");
    }
    text.push_str(&steps(attempts));
    match &result {
        Ok(answer) => {
            let whole = if answer.is_complete() {
                "complete"
            } else {
                "NOT COMPLETE"
            };
            let (count, source) = (answer.endpoints().len(), answer.source());
            text.push_str(&format!(
                "answer: {count} endpoints from {source}, {}, {whole}\n",
                answer.freshness()
            ));
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

async fn look_up(command: &Explain) -> Result<(ConsulName, String, Result<Answer, Error>), Error> {
    let resolver = command.sources.resolver(None)?;
    resolver.check().await?;
    let name = lookup::read_name(&resolver, &command.name, None)?;
    let fqdn = name.fqdn(resolver.domain());
    let result = resolver.lookup(&name).await;
    Ok((name, fqdn, result))
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
            format!("{} bytes", attempt.received),
            format!("{} records", attempt.count),
            attempt.detail.to_string(),
        ]
    };
    output::columns(&attempts.iter().enumerate().map(row).collect::<Vec<_>>())
}
