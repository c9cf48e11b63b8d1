//! Blocking queries whose index lies, stands still, runs away or never comes back: nothing
//! false is told, nobody is asked without end, and what was known stays (Consul docs:
//! Blocking Queries).
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proconsul::{Changes, Resolver};
use support::{
    PATIENCE,
    http::{Asked, ScriptedHttp, Step, entries, ok, reply},
    wait_for,
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

/// As long as each is watched, and questions that may be asked meanwhile: a few at once,
/// and then two a second.
const WATCHED: Duration = Duration::from_secs(3);
const MOST: usize = 12;

fn resolver(server: &ScriptedHttp) -> Resolver {
    let builder = Resolver::builder().dns("none").http(&server.url());
    builder.build().unwrap()
}

fn ports(all: &[proconsul::Endpoint]) -> Vec<u16> {
    all.iter().map(|one| one.port).collect()
}

/// The index that it waits at.
fn index(asked: &Asked) -> Option<&str> {
    let (_, query) = asked.what().split_once('?')?;
    query.split('&').find_map(|one| one.strip_prefix("index="))
}

/// The changes that are told within a time.
async fn told(changes: &mut Changes, time: Duration) -> usize {
    let end = Instant::now() + time;
    let mut count = 0;
    while tokio::time::timeout_at(end, changes.next()).await.is_ok() {
        count += 1;
    }
    count
}

/// Each answers at once, whatever it is asked to wait for.
type Script = fn(usize) -> Step;

const LOOPS: [(&str, Script); 15] = [
    ("an index that stands still", |_| with("7")),
    ("an index that runs and brings nothing", |at| {
        with(&at.to_string())
    }),
    ("an index that falls", |at| with(&(9_000 - at).to_string())),
    ("an index that jumps", |at| {
        with(["5", "900", "7", "18446744073709551615"][at % 4])
    }),
    ("an index of zero", |_| with("0")),
    ("an index below zero", |_| with("-1")),
    ("an index of text", |_| with("soon")),
    ("an empty index", |_| with("")),
    ("an index of 2^63", |_| with("9223372036854775808")),
    ("the highest index", |_| with("18446744073709551615")),
    ("an index of 2^64", |_| with("18446744073709551616")),
    ("no index", |_| ok("", &entries("web", &[80]))),
    ("a failure after the first", |at| {
        then(at, "500 Internal Server Error", "")
    }),
    ("a throttle after the first", |at| {
        then(at, "429 Too Many Requests", "Retry-After: 0\r\n")
    }),
    ("a refusal after the first", |at| {
        then(at, "403 Forbidden", "")
    }),
];

fn with(index: &str) -> Step {
    ok(
        &format!("X-Consul-Index: {index}\r\n"),
        &entries("web", &[80]),
    )
}

fn then(at: usize, status: &str, headers: &str) -> Step {
    match at {
        0 => with("7"),
        _ => reply(status, headers, "no"),
    }
}

async fn is_not_a_loop(name: &'static str, script: Script) {
    let count = Mutex::new(0);
    let server = ScriptedHttp::of_web(move |_| {
        let mut count = count.lock().unwrap();
        *count += 1;
        vec![script(*count - 1)]
    });
    let resolver = resolver(&server);
    let service = resolver.service("web").unwrap();
    let mut changes = service.changes();
    assert_eq!(told(&mut changes, WATCHED).await, 1, "{name}: changes");
    let asked = server.times("web");
    assert!(asked <= MOST, "{name}: asked {asked} times");
    assert_eq!(ports(&service.endpoints()), [80], "{name}");
    let answer = resolver.lookup("web").await;
    assert_eq!(ports(answer.unwrap().endpoints()), [80], "{name}");
}

#[tokio::test]
async fn nothing_that_an_index_says_makes_a_loop_or_a_change() {
    let mut all: JoinSet<_> = LOOPS
        .into_iter()
        .map(|(name, script)| is_not_a_loop(name, script))
        .collect();
    while let Some(one) = all.join_next().await {
        one.unwrap();
    }
}

#[tokio::test]
async fn changes_without_end_are_told_and_do_not_keep_the_agent_busy() {
    let server = ScriptedHttp::of_web(|asked| {
        let at = u16::try_from(asked.number).unwrap();
        let headers = format!("X-Consul-Index: {at}\r\n");
        vec![ok(&headers, &entries("web", &[1_000 + at]))]
    });
    let service = resolver(&server).service("web").unwrap();
    let mut changes = service.changes();
    let start = Instant::now();
    let count = told(&mut changes, WATCHED).await;
    let asked = server.times("web");
    let most = 30 + 12 * usize::try_from(start.elapsed().as_secs() + 1).unwrap();
    assert!(count > 20 && asked <= most, "{count} told, {asked} asked");
    let last = 1_000 + u16::try_from(server.asked().len()).unwrap();
    assert!(
        ports(&service.endpoints())[0].abs_diff(last) < 10,
        "not the newest"
    );
}

#[tokio::test]
async fn an_index_that_falls_is_believed_when_that_does_not_pass() {
    let first = AtomicBool::new(true);
    let server = ScriptedHttp::of_web(move |asked| match index(asked) {
        None if first.swap(false, Ordering::SeqCst) => {
            vec![ok("X-Consul-Index: 900\r\n", &entries("web", &[80]))]
        }
        // The servers were set up anew, or one of them has to catch up: nobody can tell.
        Some("900") | None => vec![ok("X-Consul-Index: 20\r\n", &entries("web", &[81]))],
        Some(_) => vec![Step::Hang],
    });
    let service = resolver(&server).service("web").unwrap();
    wait_for("what is known", async || {
        (ports(&service.endpoints()) == [80]).then_some(())
    })
    .await;
    let fell = Instant::now();
    wait_for("what came with the lower index", async || {
        (ports(&service.endpoints()) == [81]).then_some(())
    })
    .await;
    let held = fell.elapsed();
    assert!(held > Duration::from_secs(2), "after {held:?}");
    let seen = wait_for("the query that waits at it", async || {
        let asked = server.asked();
        let about: Vec<_> = asked.iter().filter(|one| one.is_about("web")).collect();
        let indexes: Vec<_> = about
            .iter()
            .map(|one| index(one).map(str::to_owned))
            .collect();
        (indexes.last()? == &Some("20".to_owned())).then_some(indexes)
    })
    .await;
    // It began anew, and asked a few times whether that had passed.
    assert_eq!(seen[1].as_deref(), Some("900"), "{seen:?}");
    let anew = &seen[2..seen.len() - 1];
    assert!(anew.iter().all(Option::is_none), "{seen:?}");
    assert!((5..20).contains(&anew.len()), "{seen:?}");
}

#[tokio::test]
async fn who_follows_a_name_anew_knows_how_far_was_told_of_it() {
    let behind = Arc::new(AtomicBool::new(false));
    let is_behind = Arc::clone(&behind);
    let server = ScriptedHttp::of_web(move |asked| match index(asked) {
        // It reads its log again, in which the service is not yet.
        _ if is_behind.load(Ordering::SeqCst) => vec![ok("X-Consul-Index: 20\r\n", "[]")],
        None => vec![ok("X-Consul-Index: 900\r\n", &entries("web", &[80]))],
        Some(_) => vec![Step::Hang],
    });
    let resolver = resolver(&server);
    let service = resolver.service("web").unwrap();
    timeout(PATIENCE, service.ready()).await.unwrap();
    drop(service);
    wait_for("the end of the query", async || {
        let metrics = resolver.metrics().to_string();
        metrics.contains("proconsul_watches 0").then_some(())
    })
    .await;
    behind.store(true, Ordering::SeqCst);
    let service = resolver.service("web").unwrap();
    let mut changes = service.changes();
    let first = timeout(PATIENCE, changes.next()).await.unwrap();
    assert_eq!(ports(&first.all), [80]);
    assert_eq!(told(&mut changes, Duration::from_secs(2)).await, 0);
    // That does not pass: the servers' data are others.
    let gone = timeout(PATIENCE, changes.next()).await.unwrap();
    assert_eq!(ports(&gone.removed), [80]);
}

/// Lets time pass, in which the agent is felt each second: nobody stands still.
async fn pass(server: &ScriptedHttp, time: Duration) {
    const STEP: Duration = Duration::from_millis(1_500);
    let pulses = || server.asked().iter().filter(|one| one.is_pulse()).count();
    for _ in 0..time.as_millis().div_ceil(STEP.as_millis()) {
        let before = pulses();
        tokio::time::pause();
        tokio::time::advance(STEP).await;
        tokio::time::resume();
        wait_for("the pulse", async || (pulses() > before).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_query_that_never_comes_back_is_given_up_and_asked_anew() {
    let hangs = Arc::new(Mutex::new(true));
    let stuck = Arc::clone(&hangs);
    let server = ScriptedHttp::of_web(move |asked| match index(asked) {
        Some(_) if *stuck.lock().unwrap() => vec![Step::Hang],
        Some(_) => vec![Step::Pause(PATIENCE)],
        None => vec![ok("X-Consul-Index: 7\r\n", &entries("web", &[80]))],
    });
    let resolver = resolver(&server);
    let service = resolver.service("web").unwrap();
    let waits = async || {
        let asked = server.asked();
        asked.iter().filter(|one| index(one).is_some()).count()
    };
    wait_for("the query that waits", async || {
        (waits().await == 1).then_some(())
    })
    .await;
    *hangs.lock().unwrap() = false;
    // It may take 55 s and a sixteenth of that; nobody waits for it longer than that and 5 s.
    pass(&server, Duration::from_secs(50)).await;
    assert_eq!(waits().await, 1, "it is not given up before");
    pass(&server, Duration::from_secs(14)).await;
    wait_for("the query that is asked anew", async || {
        (waits().await >= 2).then_some(())
    })
    .await;
    assert_eq!(ports(&service.endpoints()), [80]);
    let answer = timeout(PATIENCE, resolver.lookup("web")).await.unwrap();
    assert_eq!(ports(answer.unwrap().endpoints()), [80]);
}
