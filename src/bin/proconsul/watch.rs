//! `proconsul watch NAME...`.

use std::process::ExitCode;

use proconsul::{Change, Endpoint, Error, Resolver, Service};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    args::{Form, Output, Stale, Watch},
    lookup, output, signals,
};

/// Changes that wait to be printed; those who have more wait themselves.
const QUEUE: usize = 64;

pub(crate) async fn run(command: Watch, form: &Output) -> ExitCode {
    let stop = match signals::stop() {
        Ok(stop) => stop,
        Err(failed) => return failed,
    };
    let (resolver, services) = match start(&command).await {
        Ok(started) => started,
        Err(error) => return output::failure(&error, form),
    };
    let (changes, told) = mpsc::channel(QUEUE);
    for service in services {
        let changes = changes.clone();
        tokio::spawn(async move {
            let mut news = service.changes();
            // Nobody listens any more when the program ends.
            while changes
                .send((service.clone(), news.next().await))
                .await
                .is_ok()
            {}
        });
    }
    let ended = tokio::select! {
        ended = print(&resolver, told, form) => ended,
        () = stop => ExitCode::SUCCESS,
    };
    output::saved(&resolver, form).await;
    ended
}

async fn start(command: &Watch) -> Result<(Resolver, Vec<Service>), Error> {
    let resolver = command.sources.resolver(None, Stale::Yes)?;
    resolver.check().await?;
    let mut services = Vec::new();
    for name in &command.names {
        let name = lookup::read_service(&resolver, name, command.tag.as_deref())?;
        services.push(resolver.service(&name)?);
    }
    Ok((resolver, services))
}

/// Prints until nobody reads.
async fn print(
    resolver: &Resolver,
    mut told: mpsc::Receiver<(Service, Change)>,
    form: &Output,
) -> ExitCode {
    while let Some((service, change)) = told.recv().await {
        let name = service.name().fqdn(resolver.domain());
        let text = match form.form() {
            Form::Json => format!("{}\n", object(&name, &service, &change)),
            Form::Table | Form::Short => {
                if change.is_empty() {
                    output::remark(form, &format!("{name} has no instance"));
                }
                lines(&name, &change)
            }
        };
        if let Err(ended) = output::aside(move || output::write(&text)).await {
            return ended;
        }
    }
    ExitCode::SUCCESS
}

fn lines(name: &str, change: &Change) -> String {
    let line = |sign: char| {
        move |endpoint: &Endpoint| {
            let (weight, health) = (endpoint.weight, endpoint.health);
            let health = health.map_or(String::new(), |health| format!(" {}", health.as_str()));
            format!("{sign} {name} {endpoint} weight {weight}{health}\n")
        }
    };
    let removed = change.removed.iter().map(line('-'));
    let added = change.added.iter().map(line('+'));
    let updated = change.updated.iter().map(line('~'));
    removed.chain(added).chain(updated).collect()
}

fn object(name: &str, service: &Service, change: &Change) -> Value {
    let all =
        |endpoints: &[Endpoint]| -> Value { endpoints.iter().map(output::endpoint).collect() };
    let mut told = match service.answer() {
        Some(answer) => output::head(&answer),
        None => json!({}),
    };
    told["name"] = name.into();
    told["added"] = all(&change.added);
    told["removed"] = all(&change.removed);
    told["updated"] = all(&change.updated);
    told["endpoints"] = all(&change.all);
    told
}
