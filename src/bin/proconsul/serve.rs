//! `proconsul serve`.

use std::process::ExitCode;

use crate::{
    args::{Output, Serve},
    output,
};

pub(crate) async fn run(command: Serve, form: &Output) -> ExitCode {
    let _ = (command, form);
    output::trouble("not yet")
}
