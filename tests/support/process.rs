//! Other processes: signals to them, and the examples among them.

use std::{fs, path::PathBuf, process::Command};

/// Sends a signal by its name, as `TERM`, to a process that the test has started.
///
/// # Panics
/// Where there is no such process.
pub(crate) fn signal(id: u32, name: &str) {
    // Built in to every shell, and so needs no package.
    let sent = Command::new("sh")
        .args(["-c", r#"kill -s "$0" "$1""#, name, &id.to_string()])
        .status()
        .expect("there is a shell");
    assert!(sent.success(), "SIG{name} could not be sent to {id}");
}

/// The built example: `cargo test` puts it beside the directory of the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("a running program has a path");
    let profile = this.ancestors().nth(2).expect("target/<profile>/deps/test");
    let built = profile.join("examples").join(name);
    assert!(
        built.is_file(),
        "{} is not built: run `cargo build --examples` with the same profile and target first",
        built.display()
    );
    built
}

/// Bytes of memory that a process has in use.
pub(crate) fn memory(id: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    kilobytes.expect("what proc(5) says") * 1_024
}

/// What a process has open.
pub(crate) fn descriptors(id: u32) -> usize {
    let open = fs::read_dir(format!("/proc/{id}/fd")).expect("it runs");
    open.count()
}
