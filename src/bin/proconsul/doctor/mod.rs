//! `proconsul doctor`: looks at the whole path, from the configuration to the name
//! servers of this machine, and says what is wrong and what mends it.

mod cluster;
mod doors;
mod machine;
mod service;

use std::process::ExitCode;

use proconsul::{ErrorKind, Resolver};
use serde_json::{Value, json};

use crate::{
    args::{self, Doctor, Form, OnlySource, Output, Stale},
    config::File,
    output,
};

/// The check that whoever runs the program can mend by its flags and files.
const CONFIGURATION: &str = "configuration";

/// The check of the file that last good answers are kept in. A look-up does without.
const SNAPSHOT: &str = "snapshot";

/// What a check came to, worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One check, as it is printed.
struct Finding {
    check: &'static str,
    verdict: Verdict,
    what: String,
    /// What mends it; empty where nothing is to be done.
    mend: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, check: &'static str, what: impl Into<String>) {
        self.add(check, Verdict::Ok, what, "");
    }

    fn warn(&mut self, check: &'static str, what: impl Into<String>, mend: &str) {
        self.add(check, Verdict::Warn, what, mend);
    }

    fn fail(&mut self, check: &'static str, what: impl Into<String>, mend: &str) {
        self.add(check, Verdict::Fail, what, mend);
    }

    fn add(&mut self, check: &'static str, verdict: Verdict, what: impl Into<String>, mend: &str) {
        let (what, mend) = (what.into(), mend.to_owned());
        self.0.push(Finding {
            check,
            verdict,
            what,
            mend,
        });
    }
}

pub(crate) async fn run(command: Doctor, form: &Output) -> ExitCode {
    let mut findings = Findings::default();
    let read = command.sources.file().and_then(|file| {
        let resolver = command.sources.builder(&file, None, Stale::No).build()?;
        Ok((file, resolver))
    });
    let (mut domain, mut listen) = ("consul".to_owned(), None);
    match read {
        Ok((file, resolver)) => {
            consul(&command, &file, &resolver, &mut findings).await;
            domain = resolver.domain().to_string();
            listen = file.serve.listen;
        }
        Err(error) => {
            let mend = "mend what is named there";
            findings.fail(CONFIGURATION, error.to_string(), mend);
        }
    }
    let flag = command.stub.map(|stub| vec![stub]);
    let stubs = flag.or(listen).unwrap_or_else(|| vec![args::LISTEN]);
    machine::look(&stubs, &domain, &mut findings);
    told(&findings, form)
}

/// The configuration's files, the doors, and what is behind them.
async fn consul(command: &Doctor, file: &File, resolver: &Resolver, findings: &mut Findings) {
    let nobody = match resolver.status().sources.is_empty() {
        true => resolver.lookup("consul").await.err(),
        false => None,
    };
    match (resolver.check().await, nobody) {
        (Err(error), _) => findings.fail(CONFIGURATION, error.to_string(), "mend the file"),
        // A static catalog is a source too.
        (Ok(()), Some(error)) if error.kind() == ErrorKind::Invalid => {
            findings.fail(CONFIGURATION, error.to_string(), "else nothing is found");
        }
        (Ok(()), _) => findings.ok(CONFIGURATION, "it is read, with all files it names"),
    }
    let only = Some(OnlySource::Snapshot);
    let remembered = command.sources.builder(file, only, Stale::Yes);
    if let Ok(resolver) = remembered.clone().build()
        && let Err(error) = resolver.check_snapshot().await
    {
        let mend = "name a file that serve may write, or remove what stands there; one of ours \
                    makes room by itself";
        findings.warn(SNAPSHOT, error.to_string(), mend);
    }
    doors::look(command, file, findings).await;
    cluster::look(resolver, findings).await;
    if let Some(name) = &command.name {
        service::look(resolver, remembered, name, findings).await;
    }
}

fn told(findings: &Findings, form: &Output) -> ExitCode {
    let worst = findings.0.iter().map(|finding| finding.verdict).max();
    match form.form() {
        Form::Json => _ = output::object(&object(findings)),
        Form::Table | Form::Short => _ = output::data(&lines(findings)),
    }
    let is_misset = |one: &Finding| one.check == CONFIGURATION && one.verdict == Verdict::Fail;
    match worst {
        Some(Verdict::Fail) if findings.0.iter().any(is_misset) => ExitCode::from(2),
        Some(Verdict::Fail) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn lines(findings: &Findings) -> String {
    let rows: Vec<Vec<String>> = findings
        .0
        .iter()
        .map(|finding| {
            let what = match &*finding.mend {
                "" => finding.what.clone(),
                mend => format!("{}: {mend}", finding.what),
            };
            vec![
                finding.verdict.as_str().to_owned(),
                finding.check.to_owned(),
                what,
            ]
        })
        .collect();
    output::columns(&rows)
}

fn object(findings: &Findings) -> Value {
    let one = |finding: &Finding| {
        json!({
            "check": finding.check,
            "verdict": finding.verdict.as_str(),
            "what": finding.what,
            "mend": if finding.mend.is_empty() { Value::Null } else { finding.mend.as_str().into() },
        })
    };
    json!({ "checks": findings.0.iter().map(one).collect::<Value>() })
}
