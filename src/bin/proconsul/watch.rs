//! `proconsul watch NAME...`.

use std::process::ExitCode;

use proconsul::{Answer, Change, Endpoint, Error, Freshness, Reason, Resolver, Service, Source};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    args::{Form, Output, Stale, Watch},
    lookup, output, signals,
};

/// What is told of a service.
enum Told {
    Change(Change),
    /// No source answers, or one does again.
    Problem(Option<Error>),
}

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
            let (mut news, mut problems) = (service.changes(), service.problems());
            loop {
                let told = tokio::select! {
                    biased;
                    problem = problems.next() => Told::Problem(problem),
                    change = news.next() => Told::Change(change),
                };
                // Nobody listens any more when the program ends.
                if changes.send((service.clone(), told)).await.is_err() {
                    return;
                }
            }
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
    mut told: mpsc::Receiver<(Service, Told)>,
    form: &Output,
) -> ExitCode {
    while let Some((service, told)) = told.recv().await {
        let name = service.name().fqdn(resolver.domain());
        let change = match told {
            Told::Change(change) => change,
            Told::Problem(problem) => {
                let line = match &problem {
                    Some(error) => format!("proconsul: {error}"),
                    None => format!("proconsul: {name} is answered again"),
                };
                output::remark(form, &line);
                continue;
            }
        };
        if let Some(answer) = service.answer()
            && let Some(why) = why_stale(&service, &answer)
        {
            let age = answer.age().as_secs_f64();
            output::remark(form, &format!("warning: {name} is {age:.1} s old: {why}"));
        }
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

/// Why what is shown is not what a source says now; a set that is just being asked for anew is
/// no more than that.
fn why_stale(service: &Service, answer: &Answer) -> Option<&'static str> {
    let silent = answer.source() == Source::Snapshot || service.problem().is_some();
    let silence = silent.then_some("no source answered");
    let why = answer.protected().map(Reason::as_str).or(silence);
    why.filter(|_| answer.freshness() == Freshness::Stale)
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
