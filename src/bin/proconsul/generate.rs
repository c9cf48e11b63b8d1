//! `proconsul completions` and `proconsul man`: made from the command line's own description.

use std::{io, path::Path, process::ExitCode};

use clap::CommandFactory as _;
use proconsul::Error;

use crate::{
    args::{Cli, Completions, Man, Output},
    output,
};

pub(crate) fn completions(command: &Completions) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(command.shell, &mut Cli::command(), "proconsul", &mut text);
    output::data(&String::from_utf8_lossy(&text))
}

pub(crate) fn man(command: &Man, form: &Output) -> ExitCode {
    if let Some(directory) = &command.dir {
        return all(directory, form);
    }
    let mut whole = Cli::command();
    whole.build();
    let page = match &command.command {
        None => Some(whole),
        Some(name) => whole.find_subcommand(name).cloned(),
    };
    let Some(page) = page else {
        let name = command.command.as_deref().unwrap_or_default();
        let why = format!("there is no command {name}: see proconsul --help");
        return output::failure(&Error::invalid_setting(why), form);
    };
    let mut text = Vec::new();
    match clap_mangen::Man::new(page).render(&mut text) {
        Ok(()) => output::data(&String::from_utf8_lossy(&text)),
        Err(error) => output::refused(&format!("the page cannot be made: {error}"), form),
    }
}

fn all(directory: &Path, form: &Output) -> ExitCode {
    let made = || -> io::Result<()> {
        std::fs::create_dir_all(directory)?;
        clap_mangen::generate_to(Cli::command(), directory)
    };
    match made() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output::refused(&format!("{}: {error}", directory.display()), form),
    }
}
