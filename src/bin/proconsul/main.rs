//! The program `proconsul`: parses the command line, calls the library, prints.

mod admin;
mod alerts;
mod args;
mod config;
mod doctor;
mod explain;
mod generate;
mod help;
mod kv;
mod lookup;
mod output;
mod page;
mod pick;
mod privileges;
mod register;
mod serve;
mod services;
mod signals;
mod stderr;
mod systemd;
mod watch;
mod words;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, error::ErrorKind};
use mimalloc::MiMalloc;

use crate::args::{Cli, Command, ConfigCommand, KvCommand};

/// A name that nobody knows costs the stub a seventh less than with the system's.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let words = words::own();
    let cli = match read(&words) {
        Ok(cli) => cli,
        Err(error) => return unread(&error, &words),
    };
    if matches!(cli.command, Command::Serve(_)) {
        privileges::gain_none();
    }
    output::start_log(&cli.output, told_by(&cli.command));
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let why = format!("the runtime cannot start: {error}");
            return output::refused(&why, &cli.output);
        }
    };
    let code = runtime.block_on(async {
        match cli.command {
            Command::Lookup(command) => lookup::run(command, &cli.output).await,
            Command::Pick(command) => pick::run(command, &cli.output).await,
            Command::Explain(command) => explain::run(command, &cli.output).await,
            Command::Watch(command) => watch::run(command, &cli.output).await,
            Command::Serve(command) => serve::run(command, &cli.output).await,
            Command::Services(command) => services::run(command, &cli.output).await,
            Command::Kv(command) => kv::run(command, &cli.output).await,
            Command::Completions(command) => generate::completions(&command),
            Command::Man(command) => generate::man(&command, &cli.output),
            Command::Register(command) => register::run(command, &cli.output).await,
            Command::Doctor(command) => doctor::run(command, &cli.output).await,
            Command::Config(ConfigCommand::Check(command)) => {
                config::check(command, &cli.output).await
            }
        }
    });
    // A host name that the system's resolver still works on must not hold us up.
    runtime.shutdown_background();
    code
}

fn read(words: &[String]) -> Result<Cli, clap::Error> {
    let mut command = Cli::command().color(words::wants_color(words));
    let cli = Cli::from_arg_matches(&command.try_get_matches_from_mut(std::env::args_os())?)?;
    if cli.output.contradicts_itself() {
        let why = "--json, --short and --output ask for two forms: give one of them";
        return Err(command.error(ErrorKind::ArgumentConflict, why));
    }
    Ok(cli)
}

/// A command line that means nothing, or asks for help. Whoever reads JSON is told in JSON too.
fn unread(error: &clap::Error, words: &[String]) -> ExitCode {
    if error.use_stderr() && words::wants_json(words) {
        let text = error.to_string();
        // Its first paragraph; usage and where to find help follow.
        let (why, _) = text.split_once("\n\n").unwrap_or((&text, ""));
        let why: Vec<&str> = why
            .trim_start_matches("error:")
            .split_whitespace()
            .collect();
        let error = proconsul::Error::invalid_setting(why.join(" "));
        output::object(&output::failed(&error));
    }
    // Nobody is left to tell that it cannot be printed.
    _ = error.print();
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// The events that a command tells unless it is told otherwise. Where it goes on, nobody else
/// tells the library's warnings; where it runs once, they are told with what they are about.
fn told_by(command: &Command) -> &'static str {
    match command {
        Command::Serve(_) | Command::Watch(_) | Command::Kv(KvCommand::Watch(_)) => {
            "error,proconsul=warn"
        }
        // What is odd about a registration, and how far it is, it says itself.
        Command::Register(_) => {
            "error,proconsul=warn,proconsul::registration=error,proconsul::registration::keeper=warn"
        }
        _ => "error",
    }
}
