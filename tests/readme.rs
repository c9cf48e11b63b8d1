//! Style: "README's opening is cut from `lib.rs` and a test compares them; every
//! command and snippet in it is run by a test."
//!
//! In a `console` block a command follows `$ ` and its output, stdout before
//! stderr, follows the command. In a `sh` block each line is a command. Exit
//! status is 0, unless `# exit status N` ends the line.

use std::process::Command;

const README: &str = include_str!("../README.md");
const LIBRARY: &str = include_str!("../src/lib.rs");

/// Commands that are not run here, because they ask an agent, go on until they are
/// stopped, or are no command of ours.
const NOT_RUN_HERE: [&str; 22] = [
    "scripts/test",
    "scripts/bench",
    "scripts/bench --events",
    "scripts/bench --stub",
    "scripts/withstand",
    "scripts/withstand matrix 2 17",
    "proconsul lookup web",
    "proconsul lookup v2.web@dc2",
    "proconsul lookup web SRV",
    "proconsul pick web",
    "proconsul explain web",
    "proconsul doctor ai_chat",
    "proconsul services",
    "proconsul services web",
    "proconsul kv get web/limits",
    "proconsul register web --port 8080 -- ./web",
    "proconsul register web --port 8080 --check-http http://127.0.0.1:8080/health -- ./web",
    "scripts/bench --register",
    "proconsul watch web api",
    "proconsul explain big1500",
    "proconsul serve",
    "dig @127.0.0.1 -p 8653 web.service.consul SRV",
];

/// Nothing listens there, as on a machine without Consul.
const CLOSED: &str = "127.0.0.1:1";

/// A command as the README shows it.
#[derive(Debug)]
struct Shown {
    command: String,
    status: i32,
    /// Nothing where the README shows nothing.
    output: String,
}

/// The documentation of `lib.rs`, without its comment marks.
fn library_page() -> String {
    LIBRARY
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect()
}

/// What stands in the fenced blocks of `text` that open with `info`.
fn blocks(text: &str, info: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(opened) = line.strip_prefix("```") else {
            continue;
        };
        let inside: String = lines
            .by_ref()
            .take_while(|line| *line != "```")
            .map(|line| format!("{line}\n"))
            .collect();
        if opened == info {
            blocks.push(inside);
        }
    }
    blocks
}

fn shown() -> Vec<Shown> {
    let command = |line: &str| {
        let (command, remark) = line.split_once('#').unwrap_or((line, ""));
        let status = remark.trim().strip_prefix("exit status ");
        Shown {
            command: command.trim().to_owned(),
            status: status.map_or(0, |status| status.parse().expect("a number")),
            output: String::new(),
        }
    };
    let mut all: Vec<Shown> = Vec::new();
    for block in blocks(README, "sh") {
        all.extend(block.lines().map(command));
    }
    for block in blocks(README, "console") {
        assert!(block.starts_with("$ "), "no command before {block:?}");
        for line in block.lines() {
            match line.strip_prefix("$ ") {
                Some(line) => all.push(command(line)),
                None => {
                    let last = all.last_mut().expect("a command comes first");
                    last.output.push_str(line);
                    last.output.push('\n');
                }
            }
        }
    }
    all
}

#[test]
fn the_opening_is_that_of_the_library() {
    let page = library_page();
    let opening = page.split("\n# ").next().expect("a page has a beginning");
    let readme = README
        .strip_prefix("# proconsul\n\n")
        .expect("the title comes first");
    let ours = readme.split("\n## ").next().expect("it has a beginning");
    assert_eq!(ours, opening);
}

#[test]
fn the_snippets_are_the_librarys_compiled_examples() {
    let shown = |example: &String| -> Vec<String> {
        let lines = example.lines();
        let seen = lines.filter(|line| *line != "#" && !line.starts_with("# "));
        seen.map(str::to_owned).collect()
    };
    let examples: Vec<_> = blocks(&library_page(), "no_run")
        .iter()
        .map(shown)
        .collect();
    let snippets = blocks(README, "rust");
    let snippets = snippets.iter().map(|snippet| snippet.trim().lines());
    let snippets: Vec<Vec<_>> = snippets.map(Iterator::collect).collect();
    assert_eq!(snippets, examples);
}

#[test]
fn the_commands_that_need_no_agent_do_what_the_readme_says() {
    let mut run = 0;
    for shown in shown() {
        if NOT_RUN_HERE.contains(&shown.command.as_str()) {
            continue;
        }
        let words = shown
            .command
            .strip_prefix("cargo run -- ")
            .or_else(|| shown.command.strip_prefix("proconsul "))
            .unwrap_or_else(|| {
                let command = &shown.command;
                panic!("`{command}` is no command of ours: list it in NOT_RUN_HERE")
            });
        assert!(
            words.contains("--catalog"),
            "`{}` asks an agent: list it in NOT_RUN_HERE",
            shown.command
        );
        let output = Command::new(env!("CARGO_BIN_EXE_proconsul"))
            .args(words.split_whitespace())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env_clear()
            .env("PROCONSUL_DNS", CLOSED)
            .env("CONSUL_HTTP_ADDR", CLOSED)
            .output()
            .expect("the program starts");
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8(printed).expect("it prints UTF-8");
        assert_eq!(
            output.status.code(),
            Some(shown.status),
            "`{}` printed:\n{printed}",
            shown.command
        );
        if !shown.output.is_empty() {
            assert_eq!(printed, shown.output, "`{}`", shown.command);
        }
        run += 1;
    }
    assert!(run >= 5, "only {run} commands were found in the README");
}

#[test]
fn no_command_is_listed_that_the_readme_no_longer_has() {
    let shown = shown();
    for listed in NOT_RUN_HERE {
        let there = shown.iter().any(|shown| shown.command == listed);
        assert!(there, "`{listed}` is not in the README");
    }
}
