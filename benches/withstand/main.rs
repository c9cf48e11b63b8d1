//! What faults and load cost, row by row, as a table: `scripts/withstand`.
//!
//! ```sh
//! scripts/withstand matrix            all rows of the fault matrix
//! scripts/withstand matrix 2 17       these
//! scripts/withstand load [WHAT...]    flood connections reloads churn many
//! scripts/withstand soak              ten minutes, or WITHSTAND_SOAK_MINUTES
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports"
)]

#[path = "../../tests/field/mod.rs"]
mod field;
mod host;
mod load;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::{env, fs, path::Path, pin::Pin, time::Duration};

use field::{
    rows::{agent, http, rights, servers, services, stub, upstreams, weather},
    setting as number,
    verdict::{HEAD, Verdict},
};
use load::Report;
use support::Weather;
use tokio::task::LocalSet;

/// How long a fault lasts, in seconds, unless its row says something else.
const LASTS: u64 = 5;

type Trial = Pin<Box<dyn Future<Output = Report>>>;

/// May be played more than once.
type Row = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Vec<Verdict>>>>>;

fn main() {
    let words: Vec<_> = env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let Some((what, rest)) = words.split_first() else {
        eprintln!("what? matrix [ROW...], load [WHAT...], soak");
        std::process::exit(2);
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let passed = match what.as_str() {
        "matrix" => runtime.block_on(matrix(rest)),
        "load" => runtime.block_on(under_load(rest)),
        "soak" => {
            let report = runtime.block_on(load::soak());
            told("soak.md", &[report])
        }
        _ => {
            eprintln!("{what}? matrix [ROW...], load [WHAT...], soak");
            std::process::exit(2);
        }
    };
    // A row that fails is a finding, and the command says so.
    std::process::exit(i32::from(!passed));
}

fn one<F: Future<Output = Verdict> + 'static>(row: impl Fn() -> F + 'static) -> Row {
    Box::new(move || {
        let row = row();
        Box::pin(async { vec![row.await] })
    })
}

fn maybe<F: Future<Output = Option<Verdict>> + 'static>(row: impl Fn() -> F + 'static) -> Row {
    Box::new(move || {
        let row = row();
        Box::pin(async { row.await.into_iter().collect() })
    })
}

fn several<F: Future<Output = Vec<Verdict>> + 'static>(row: impl Fn() -> F + 'static) -> Row {
    Box::new(move || Box::pin(row()))
}

fn all() -> Vec<(&'static [u8], Row)> {
    let lasts = Duration::from_secs(number("SECONDS", LASTS));
    let rounds = number("ROUNDS", 2);
    let long = Duration::from_secs(number("RANDOM_SECONDS", 120));
    let seed = number("SEED", 1);
    let ms = Duration::from_millis;
    vec![
        (&[1], one(move || agent::the_agent_is_killed(lasts))),
        (&[2, 3], one(move || agent::the_agent_hangs(lasts * 12))),
        (&[4], one(move || servers::the_leader_is_killed(lasts))),
        (&[5], one(move || servers::two_servers_are_killed(lasts))),
        (&[6], one(move || servers::all_servers_are_killed(lasts))),
        (&[7, 12], one(move || servers::all_is_killed(lasts))),
        (&[12], one(move || servers::all_is_silent(lasts))),
        (&[8], one(move || weather::dns_is_refused(lasts))),
        (&[9], one(move || weather::dns_is_silent(lasts))),
        (
            &[10],
            one(move || http::http_is_away(lasts, Weather::refused())),
        ),
        (
            &[10],
            one(move || http::http_is_away(lasts, Weather::silent())),
        ),
        (
            &[11],
            one(move || weather::dns_over_tcp_is_away(lasts, false)),
        ),
        (
            &[11],
            one(move || weather::dns_over_tcp_is_away(lasts, true)),
        ),
        (&[13], one(move || weather::all_is_slow(lasts, ms(100)))),
        (&[13], one(move || weather::all_is_slow(lasts, ms(400)))),
        (&[13], one(move || weather::all_is_slow(lasts, ms(2_000)))),
        (
            &[14],
            one(move || weather::datagrams_are_lost(lasts * 2, 0.05)),
        ),
        (
            &[14],
            one(move || weather::datagrams_are_lost(lasts * 2, 0.3)),
        ),
        (
            &[14],
            one(move || weather::datagrams_are_lost(lasts * 2, 0.6)),
        ),
        (&[15], one(move || agent::the_agent_flaps(lasts, ms(1_000)))),
        (&[15], one(move || agent::the_agent_flaps(lasts, ms(50)))),
        (&[16], one(move || agent::the_agent_forgets_all(lasts))),
        (&[17], one(move || rights::the_token_is_revoked(lasts))),
        (&[18], one(move || rights::the_token_is_rotated(lasts))),
        (
            &[19],
            one(move || servers::the_servers_lose_their_data(lasts)),
        ),
        (
            &[20],
            one(move || servers::an_old_snapshot_is_restored(lasts)),
        ),
        (
            &[20],
            one(move || servers::a_snapshot_without_many_is_restored(lasts)),
        ),
        (&[21], one(move || services::a_service_is_taken_down(lasts))),
        (
            &[22],
            one(move || services::all_instances_are_critical(lasts)),
        ),
        (
            &[23],
            one(move || rights::the_certificate_is_not_good(lasts)),
        ),
        (&[24], one(move || http::http_redirects(lasts))),
        (&[25], one(move || http::http_is_throttled(lasts, 429))),
        (&[25], one(move || http::http_is_throttled(lasts, 503))),
        (
            &[28],
            one(move || servers::the_servers_are_out_of_sight(lasts)),
        ),
        (&[29], one(move || weather::answers_are_lost(lasts))),
        (
            &[30, 31, 32],
            several(move || upstreams::upstreams_fail(lasts)),
        ),
        (
            &[33],
            one(move || stub::the_stub_is_killed_without_consul(lasts)),
        ),
        (&[34], one(move || stub::the_stub_is_paused(lasts))),
        (&[35], maybe(move || stub::the_disk_is_full(lasts))),
        (&[36], one(move || stub::descriptors_run_out(lasts))),
        (&[37], maybe(move || stub::the_clock_jumps(lasts))),
        (
            &[38],
            one(move || servers::all_restart_in_turn(lasts, rounds)),
        ),
        (&[39], one(move || weather::anything_may_fail(long, seed))),
    ]
}

async fn matrix(wanted: &[String]) -> bool {
    let all = all();
    let is_row = |word: &String| {
        let number = word.parse().ok();
        number.is_some_and(|number| all.iter().any(|(numbers, _)| numbers.contains(&number)))
    };
    if let Some(odd) = wanted.iter().find(|word| !is_row(word)) {
        eprintln!("{odd}? that is no row of the matrix; 26 and 27 are `load churn many`");
        return false;
    }
    let wanted: Vec<u8> = wanted.iter().filter_map(|row| row.parse().ok()).collect();
    let ttl: u64 = number("TTL", 0);
    let head = format!("Consul's DNS gives a TTL of {ttl} s.\n\n{HEAD}");
    println!("{head}");
    let mut report = vec![head];
    let (mut passed, mut rows) = (0, 0);
    // What panics in a row is that row's alone.
    let tasks = LocalSet::new();
    for (numbers, row) in all {
        if !wanted.is_empty() && !numbers.iter().any(|number| wanted.contains(number)) {
            continue;
        }
        let playing = tasks.spawn_local(async move { host::undisturbed(&row).await });
        let lines: Vec<_> = match tasks.run_until(playing).await {
            Ok(verdicts) if verdicts.is_empty() => vec![(
                false,
                format!("| {numbers:?} | not run: this machine lacks what it needs |"),
            )],
            Ok(verdicts) => (verdicts.iter())
                .map(|verdict| (verdict.passed(), verdict.to_string()))
                .collect(),
            Err(ended) => vec![(false, format!("| {numbers:?} | **no**: {ended} |"))],
        };
        for (is_passed, line) in lines {
            rows += 1;
            passed += u32::from(is_passed);
            println!("{line}");
            report.push(line);
        }
        // Each time: what was played stays, however this ends.
        let text = format!("{}\n\n{passed} of {rows} passed.", report.join("\n"));
        write(&format!("matrix-ttl-{ttl}.md"), &text);
    }
    println!("\n{passed} of {rows} passed.");
    passed == rows
}

async fn under_load(wanted: &[String]) -> bool {
    let mut reports = Vec::new();
    let is_wanted = |what: &str| wanted.is_empty() || wanted.iter().any(|word| word == what);
    let all: [(&str, Trial); 5] = [
        ("flood", Box::pin(load::flood())),
        ("connections", Box::pin(load::connections())),
        ("reloads", Box::pin(load::reloads())),
        ("churn", Box::pin(load::churn())),
        ("many", Box::pin(load::many())),
    ];
    for (what, run) in all {
        if is_wanted(what) {
            host::calm().await;
            let report = run.await;
            eprintln!("{report}");
            reports.push(report);
        }
    }
    told("load.md", &reports)
}

fn told(file: &str, reports: &[Report]) -> bool {
    let mut text = vec![format!("{}\n\n{}", load::machine(), load::HEAD)];
    text.extend(reports.iter().map(ToString::to_string));
    let text = text.join("\n");
    println!("{text}");
    write(file, &text);
    reports.iter().all(Report::passed)
}

/// The report, beside what cargo builds.
fn write(name: &str, text: &str) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("withstand");
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join(name);
    fs::write(&file, format!("{text}\n")).unwrap();
    eprintln!("report: {}", file.display());
}
