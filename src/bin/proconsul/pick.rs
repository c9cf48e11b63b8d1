//! `proconsul pick NAME`.

use std::process::ExitCode;

use proconsul::{Answer, Endpoint, Error, Picker};

use crate::{
    args::{Form, Output, Pick, Stale},
    lookup, output,
};

pub(crate) async fn run(command: Pick, form: &Output) -> ExitCode {
    let (answer, mut picker) = match look_up(&command, form).await {
        Ok(found) => found,
        Err(error) => return output::failure(&error, form),
    };
    let picked: Vec<Endpoint> = (0..command.count)
        .map_while(|_| picker.pick().cloned())
        .collect();
    let mut told = output::head(&answer);
    told["endpoints"] = picked.iter().map(output::endpoint).collect();
    told["attempts"] = output::attempts(answer.attempts());
    if picked.is_empty() {
        let message = format!(
            "no instance of {} has an address and a port that can be connected to",
            answer.name()
        );
        return output::nothing(&message, told, form);
    }
    match form.form() {
        Form::Json => output::object(&told),
        Form::Short | Form::Table => {
            output::warnings(&answer, form);
            output::data(
                &picked
                    .iter()
                    .map(|endpoint| format!("{endpoint}\n"))
                    .collect::<String>(),
            )
        }
    }
}

async fn look_up(command: &Pick, form: &Output) -> Result<(Answer, Picker), Error> {
    let resolver = command.sources.resolver(None, Stale::Yes)?;
    resolver.check().await?;
    let name = lookup::read_service(&resolver, &command.name, None)?;
    let found = resolver.lookup(&name).await;
    output::saved(&resolver, form).await;
    let answer = found?;
    let picker = resolver.picker(&answer, command.strategy);
    Ok((answer, picker))
}
