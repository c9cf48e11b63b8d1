//! `proconsul kv`: settings in Consul's key-value store.

use std::{
    io::{self, IsTerminal as _, Read as _},
    process::ExitCode,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use proconsul::{Error, Kv, KvEntry};
use serde_json::{Value, json};

use crate::{
    args::{Form, KvCommand, Output, Sources, Stale},
    output, signals,
};

/// More of stdin is not read: an input may have no end, and Consul takes 512 KiB unless it is set
/// to take more.
const LONGEST: u64 = 8 << 20;

pub(crate) async fn run(command: KvCommand, form: &Output) -> ExitCode {
    let done = match &command {
        KvCommand::Get(one) => match store(&one.sources) {
            Ok(kv) => get(&kv, &one.key, form).await,
            Err(error) => Err(error),
        },
        KvCommand::List(one) => match store(&one.sources) {
            Ok(kv) => list(&kv, &one.key, form).await,
            Err(error) => Err(error),
        },
        KvCommand::Put(put) => match (store(&put.sources), value(&put.value)) {
            (Ok(kv), Ok(value)) => kv.put(&put.key, value).await.map(|()| ExitCode::SUCCESS),
            (Err(error), _) | (_, Err(error)) => Err(error),
        },
        KvCommand::Delete(one) => match store(&one.sources) {
            Ok(kv) => kv.delete(&one.key).await.map(|()| ExitCode::SUCCESS),
            Err(error) => Err(error),
        },
        KvCommand::Watch(one) => match store(&one.sources) {
            Ok(kv) => watch(&kv, &one.key, form).await,
            Err(error) => Err(error),
        },
    };
    done.unwrap_or_else(|error| output::failure(&error, form))
}

fn store(sources: &Sources) -> Result<Kv, Error> {
    Ok(sources.resolver(None, Stale::Yes)?.kv())
}

/// The text itself, or with `-` what comes on stdin.
fn value(text: &str) -> Result<Vec<u8>, Error> {
    if text != "-" {
        return Ok(text.as_bytes().to_vec());
    }
    let mut read = Vec::new();
    let failed = |error| Error::invalid_setting(format!("stdin cannot be read: {error}"));
    let mut some = io::stdin().take(LONGEST + 1);
    some.read_to_end(&mut read).map_err(failed)?;
    if read.len() as u64 > LONGEST {
        let why = "stdin has more than 8 MiB, and Consul takes 512 KiB unless kv_max_value_size of \
                   its limits says more: keep the value elsewhere, and here where it is";
        return Err(Error::invalid_setting(why));
    }
    Ok(read)
}

async fn get(kv: &Kv, key: &str, form: &Output) -> Result<ExitCode, Error> {
    let Some(entry) = kv.get(key).await? else {
        let message = format!("there is no key {key}");
        return Ok(output::nothing(&message, json!({ "key": key }), form));
    };
    Ok(match form.form() {
        Form::Json => output::object(&object(&entry)),
        Form::Table | Form::Short => raw(&entry.value),
    })
}

async fn list(kv: &Kv, prefix: &str, form: &Output) -> Result<ExitCode, Error> {
    let all = kv.list(prefix).await?;
    let told = json!({ "keys": all.iter().map(object).collect::<Value>() });
    if all.is_empty() {
        let message = format!("there is no key that begins with {prefix:?}");
        return Ok(output::nothing(&message, told, form));
    }
    Ok(match form.form() {
        Form::Json => output::object(&told),
        Form::Table | Form::Short => {
            let keys = all.iter().map(|entry| format!("{}\n", entry.key));
            output::data(&keys.collect::<String>())
        }
    })
}

/// A line for each value, until interrupted.
async fn watch(kv: &Kv, key: &str, form: &Output) -> Result<ExitCode, Error> {
    let stop = match signals::stop() {
        Ok(stop) => stop,
        Err(failed) => return Ok(failed),
    };
    let mut setting = kv.watch_with(key, |entry| Ok(entry.clone()))?;
    let mut before: Option<Option<KvEntry>> = None;
    let mut problem = None;
    let told = async {
        loop {
            let entry = setting.changed().await;
            let now = setting.problem().map(|error| error.to_string());
            if now != problem {
                if let Some(problem) = &now {
                    output::remark(form, &format!("proconsul: {problem}"));
                }
                problem = now;
            }
            let entry = entry.map(|entry| KvEntry::clone(&entry));
            // Before the first answer nothing is known.
            if problem.is_some() || before.as_ref() == Some(&entry) {
                continue;
            }
            let value = match (form.form(), &entry) {
                (Form::Json, Some(entry)) => Some(object(entry).to_string().into_bytes()),
                (Form::Json, None) => Some(
                    json!({ "key": key, "value": null })
                        .to_string()
                        .into_bytes(),
                ),
                (_, Some(entry)) => Some(entry.value.to_vec()),
                (_, None) => None,
            };
            let done = match value {
                Some(value) => {
                    let terminal = io::stdout().is_terminal();
                    output::aside(move || output::bytes(&value, terminal)).await
                }
                None => {
                    output::remark(form, &format!("there is no key {key}"));
                    Ok(())
                }
            };
            if let Err(ended) = done {
                return ended;
            }
            before = Some(entry);
        }
    };
    Ok(tokio::select! {
        ended = told => ended,
        () = stop => ExitCode::SUCCESS,
    })
}

fn raw(value: &[u8]) -> ExitCode {
    let done = output::bytes(value, io::stdout().is_terminal());
    done.err().unwrap_or(ExitCode::SUCCESS)
}

fn object(entry: &KvEntry) -> Value {
    let mut told = json!({
        "key": &*entry.key, "flags": entry.flags, "index": entry.index,
        "session": entry.session.as_deref(),
    });
    match entry.text() {
        Ok(text) => told["value"] = text.into(),
        Err(_) => told["base64"] = BASE64_STANDARD.encode(&entry.value).into(),
    }
    told
}
