//! Style: "`examples/`: each below 60 lines, its first line says what it shows, a
//! test runs it." They are run over the static catalog alone: no agent is asked.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The built example: `cargo test` puts it beside the directory of this test.
fn example(name: &str) -> PathBuf {
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

/// Standard output of an example over `examples/catalog.json`, as lines.
fn run(name: &str, arguments: &[&str]) -> Vec<String> {
    let output = Command::new(example(name))
        .args(arguments)
        .current_dir(ROOT)
        .env_clear()
        .env("PROCONSUL_DNS", "none")
        .env("CONSUL_HTTP_ADDR", "none")
        .env("PROCONSUL_CATALOG", "examples/catalog.json")
        .output()
        .expect("the example starts");
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("an example prints UTF-8");
    text.lines().map(str::to_owned).collect()
}

const WEB: [&str; 3] = [
    "10.20.0.11:8080",
    "10.20.0.12:8080",
    "[2001:db8:20::13]:8080",
];

#[test]
fn lookup_prints_every_instance() {
    assert_eq!(run("lookup", &["web"]), WEB);
    assert_eq!(run("lookup", &["v1.web"]), WEB[2..]);
}

#[test]
fn pick_follows_the_strategy() {
    let round: Vec<_> = WEB.iter().cycle().take(10).copied().collect();
    assert_eq!(run("pick", &["web", "round-robin"]), round);
    assert_eq!(run("pick", &["web", "first"]), [WEB[0]; 10]);
    let weighted = run("pick", &["web"]);
    assert_eq!(weighted.len(), 10);
    assert!(weighted.iter().all(|one| WEB.contains(&one.as_str())));
}

#[test]
fn stub_answers_the_question_put_to_it() {
    assert_eq!(
        run("stub", &["web.service.consul"]),
        ["web.service.consul SRV: response code 0, 3 answers"]
    );
    assert_eq!(
        run("stub", &["nosuch.service.consul"]),
        ["nosuch.service.consul SRV: response code 3, 0 answers"]
    );
}

#[test]
fn watch_prints_the_full_set_first() {
    let mut lines = run("watch", &["web", "1"]);
    assert_eq!(lines.pop().as_deref(), Some("3 now"));
    assert_eq!(lines, WEB.map(|endpoint| format!("+ {endpoint}")));
}

#[test]
fn every_example_is_short_says_what_it_shows_and_is_run_here() {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("{ROOT}/examples")).expect("examples/ is there") {
        let path = entry.expect("examples/ can be read").path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("an example can be read");
        let name = path.display();
        assert!(
            text.starts_with("//! "),
            "{name} does not say what it shows"
        );
        assert!(text.lines().count() < 60, "{name} has 60 lines or more");
        found.insert(path.file_stem().expect("it has a name").to_owned());
    }
    let run_here = ["lookup", "pick", "stub", "watch"];
    assert_eq!(found, run_here.map(Into::into).into());
}
