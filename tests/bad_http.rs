//! An agent's HTTP API that lies, stalls, floods or sends elsewhere: the reply is refused
//! with its cause, what was known before is given meanwhile, and the token goes nowhere else.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use proconsul::{Answer, ErrorKind, Freshness, Outcome, Reason, Resolver, ResolverBuilder};
use support::{
    PATIENCE, closed_port,
    http::{ScriptedHttp, Step, entries, ok, reply, say, status},
    wait_for,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

/// What nobody but the agent may be told.
const CANARY: &str = "c0ffee11-dead-4bad-beef-0000000canary";

/// Longer than a set holds here, and than the clock of hits may be behind on a slow machine.
const EXPIRED: Duration = Duration::from_millis(150);

fn builder(http: &str) -> ResolverBuilder {
    Resolver::builder()
        .dns("none")
        .http(http)
        .token(CANARY)
        .ttl_floor(Duration::from_millis(20))
}

fn ports(answer: &Answer) -> Vec<u16> {
    answer.endpoints().iter().map(|one| one.port).collect()
}

fn is_fresh(answer: &Answer) -> bool {
    answer.freshness() == Freshness::Fresh
}

/// One reply that is not to be believed.
struct Bad {
    name: &'static str,
    steps: Vec<Step>,
    /// What may come of it, where it depends on the machine's speed.
    outcomes: &'static [Outcome],
}

fn bad(name: &'static str, steps: Vec<Step>, outcomes: &'static [Outcome]) -> Bad {
    Bad {
        name,
        steps,
        outcomes,
    }
}

const AT_ONCE: Duration = Duration::ZERO;
const SLOWLY: Duration = Duration::from_millis(100);

const HEAD: &str = "HTTP/1.1 200 OK\r\n";

/// Bodies that do not end, heads that do not end, lengths that lie.
fn bad_transfers() -> Vec<Bad> {
    use Outcome::{Malformed, TimedOut, Unreachable};
    let chunked = || say(format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n"));
    let mut chunk = b"100000\r\n".to_vec();
    chunk.resize(chunk.len() + (1 << 20), b' ');
    chunk.extend_from_slice(b"\r\n");
    let many: String = (0..10_000).map(|at| format!("X-{at}: x\r\n")).collect();
    let wide = format!("X: {}\r\n", "x".repeat(1 << 20));
    let good = entries("web", &[81]);
    let lying = |length: usize| say(format!("{HEAD}Content-Length: {length}\r\n\r\n{good}"));
    let slow = |bytes: &str| Step::Endless(bytes.into(), SLOWLY);
    vec![
        bad(
            "chunks without end",
            vec![chunked(), Step::Endless(chunk, AT_ONCE)],
            &[Malformed, TimedOut],
        ),
        bad(
            "ten gigabytes that are announced",
            vec![say(format!("{HEAD}Content-Length: 10000000000\r\n\r\n"))],
            &[Malformed],
        ),
        bad(
            "a body of a byte at a time",
            vec![
                say(format!("{HEAD}Content-Length: 9999\r\n\r\n")),
                slow(" "),
            ],
            &[TimedOut],
        ),
        bad(
            "chunks of a byte at a time",
            vec![chunked(), slow("1\r\n \r\n")],
            &[TimedOut],
        ),
        bad(
            "a head of a byte at a time",
            vec![say("HTTP/1.1 200 OK\r\nX: "), slow("x")],
            &[TimedOut],
        ),
        bad(
            "a header without end",
            vec![
                say("HTTP/1.1 200 OK\r\nX: "),
                Step::Endless(vec![b'x'; 1 << 16], AT_ONCE),
            ],
            &[Unreachable],
        ),
        bad(
            "ten thousand headers",
            vec![reply("200 OK", &many, &good)],
            &[Unreachable],
        ),
        bad(
            "a header of a megabyte",
            vec![reply("200 OK", &wide, &good)],
            &[Unreachable],
        ),
        bad(
            "interim replies without end",
            vec![Step::Endless(
                b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(),
                Duration::from_millis(1),
            )],
            &[TimedOut, Unreachable],
        ),
        bad(
            "a change of protocol that nobody asked for",
            vec![say(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n[]",
            )],
            &[Outcome::Failed, Unreachable],
        ),
        bad("silence", vec![Step::Hang], &[TimedOut]),
        bad("nothing at all", vec![Step::Close], &[Unreachable]),
        bad(
            "less than was said",
            vec![lying(good.len() + 1), Step::Close],
            &[Unreachable],
        ),
        bad(
            "less than was said, and then silence",
            vec![lying(good.len() + 1), Step::Hang],
            &[TimedOut],
        ),
        bad(
            "more than was said",
            vec![lying(good.len() - 1), Step::Close],
            &[Malformed],
        ),
        bad(
            "two lengths",
            vec![reply("200 OK", "Content-Length: 2\r\n", &good)],
            &[Unreachable],
        ),
        bad(
            "a length below nothing",
            vec![say(format!("{HEAD}Content-Length: -1\r\n\r\n{good}"))],
            &[Unreachable],
        ),
        bad(
            "a chunk longer than any number",
            vec![chunked(), say("fffffffffffffffff\r\n[]")],
            &[Unreachable],
        ),
        bad(
            "a chunk whose length is none",
            vec![chunked(), say("hush\r\n[]\r\n")],
            &[Unreachable],
        ),
        bad(
            "an end without its last chunk",
            vec![chunked(), say("2\r\n[]\r\n"), Step::Close],
            &[Unreachable],
        ),
        bad(
            "what is said to be packed and is not",
            vec![reply("200 OK", "Content-Encoding: gzip\r\n", &good)],
            &[Unreachable],
        ),
        bad(
            "another protocol",
            vec![say("SSH-2.0-OpenSSH_9.2\r\n\r\n"), Step::Close],
            &[Unreachable],
        ),
        bad(
            "TLS where HTTP was asked",
            vec![say(b"\x15\x03\x01\x00\x02\x02\x16".to_vec()), Step::Close],
            &[Unreachable],
        ),
        bad(
            "HTTP/0.9",
            vec![say(good.clone()), Step::Close],
            &[Unreachable],
        ),
    ]
}

/// Whole replies that say something else than what was asked.
fn bad_contents() -> Vec<Bad> {
    use Outcome::{Denied, Failed, Malformed, Throttled};
    let mut bodies: Vec<(&'static str, Vec<u8>)> = vec![
        ("a byte-order mark", "\u{feff}[]".into()),
        ("bytes that are no text", b"[\xff\xfe]".to_vec()),
        ("a web page", "<html>Welcome to the café</html>".into()),
        ("an empty body", Vec::new()),
        ("an object", "{}".into()),
        ("a text", "\"web\"".into()),
        ("half a list", entries("web", &[81])[..80].into()),
        ("a list and more", "[] []".into()),
        ("depth", "[".repeat(10_000).into()),
        ("entries of nothing", "[null,{},7]".into()),
        ("another service", entries("api", &[81]).into()),
    ];
    let ported = |port: &str| entries("web", &[81]).replace(":81}", &format!(":{port}}}"));
    for (name, port) in [
        ("a port below all", "-1"),
        ("a port above all", "70000"),
        ("a port that is text", "\"80\""),
        ("half a port", "80.5"),
        ("a port that is no number at all", "1e309"),
    ] {
        bodies.push((name, ported(port).into()));
    }
    let whole = |body: Vec<u8>| {
        let length = body.len();
        let head = format!("{HEAD}Content-Length: {length}\r\n\r\n");
        vec![say([head.into_bytes(), body].concat())]
    };
    let mut all: Vec<_> = (bodies.into_iter())
        .map(|(name, body)| bad(name, whole(body), &[Malformed]))
        .collect();
    for (name, line, outcomes) in [
        ("204", "204 No Content", &[Malformed] as &[_]),
        ("400", "400 Bad Request", &[Failed]),
        ("401", "401 Unauthorized", &[Denied]),
        ("403", "403 Forbidden", &[Denied]),
        ("404", "404 Not Found", &[Failed]),
        ("405", "405 Method Not Allowed", &[Failed]),
        ("429", "429 Too Many Requests", &[Throttled]),
        ("500", "500 Internal Server Error", &[Failed]),
        ("502", "502 Bad Gateway", &[Failed]),
        ("503", "503 Service Unavailable", &[Throttled]),
    ] {
        let said = match name {
            "204" => say(format!("HTTP/1.1 {line}\r\n\r\n")),
            "403" => status(line, "ACL not found"),
            "500" => status(line, "rpc error making call: No cluster leader"),
            _ => status(line, "no"),
        };
        all.push(bad(name, vec![said], outcomes));
    }
    all
}

/// Known first; then only the bad reply; then well again.
async fn is_withstood(bad: Bad) {
    let Bad {
        name,
        steps,
        outcomes,
    } = bad;
    let now: Arc<Mutex<Option<Vec<Step>>>> = Arc::default();
    let says = Arc::clone(&now);
    let server = ScriptedHttp::of_web(move |_| {
        let bad = says.lock().unwrap().clone();
        bad.unwrap_or_else(|| vec![ok("X-Consul-Index: 7\r\n", &entries("web", &[80]))])
    });
    // Where something else than silence is to be heard, a slow machine has time for it.
    let limit = match outcomes.contains(&Outcome::TimedOut) {
        true => Duration::from_secs(1),
        false => Duration::from_secs(10),
    };
    let resolver = builder(&server.url()).timeout(limit).build().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while resolver.lookup("web").await.is_err() {
        assert!(Instant::now() < deadline, "{name}: not well before");
    }

    *now.lock().unwrap() = Some(steps);
    sleep(EXPIRED).await;
    let start = Instant::now();
    let error = resolver.lookup("web").require_fresh().await.unwrap_err();
    let took = start.elapsed();
    assert!(took < limit + Duration::from_secs(2), "{name}: {error}");
    let last = error.attempts().last();
    let last = last.unwrap_or_else(|| panic!("{name}: {error}"));
    assert!(outcomes.contains(&last.outcome), "{name}: {last:?}");
    assert!(!error.is_not_found(), "{name}: {error}");
    for text in [format!("{error}"), format!("{error:?}")] {
        assert!(!text.contains("canary"), "{name}: {text}");
    }
    let stale = resolver.lookup("web").await;
    let stale = stale.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(
        (ports(&stale), stale.freshness()),
        (vec![80], Freshness::Stale),
        "{name}"
    );

    *now.lock().unwrap() = None;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = resolver.lookup("web").await.unwrap();
        assert_eq!(ports(&answer), [80], "{name}");
        if is_fresh(&answer) {
            return;
        }
        assert!(Instant::now() < deadline, "{name}: not well again");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn all_are_withstood(all: Vec<Bad>) {
    let mut waiting: JoinSet<_> = all.into_iter().map(is_withstood).collect();
    while let Some(withstood) = waiting.join_next().await {
        withstood.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_cannot_be_had_costs_its_time_and_nothing_that_was_known() {
    let floods =
        |bad: &Bad| matches!(bad.steps.last(), Some(Step::Endless(_, pause)) if *pause < SLOWLY);
    let (floods, others): (Vec<_>, Vec<_>) = bad_transfers().into_iter().partition(floods);
    all_are_withstood(others).await;
    // Each of these keeps the machine busy.
    for flood in floods {
        is_withstood(flood).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_cannot_be_meant_is_refused_and_what_was_known_is_given() {
    all_are_withstood(bad_contents()).await;
}

#[tokio::test]
async fn interim_replies_before_the_answer_are_passed_over() {
    let server = ScriptedHttp::of_web(|_| {
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".repeat(5);
        vec![say(interim), ok("", &entries("web", &[80]))]
    });
    let resolver = builder(&server.url()).build().unwrap();
    assert_eq!(ports(&resolver.lookup("web").await.unwrap()), [80]);
}

#[tokio::test]
async fn what_comes_behind_a_reply_is_no_answer_to_the_next_request() {
    // In the same segment, and a moment later while nobody asks.
    for later in [false, true] {
        let server = ScriptedHttp::of_web(move |asked| {
            let own = u16::try_from(asked.number).unwrap();
            let whole = |port| {
                let body = entries("web", &[port]);
                let length = body.len();
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")
            };
            let (first, extra) = (whole(1_000 + own), whole(9_999));
            match later {
                false => vec![say(first + &extra)],
                true => vec![say(first), Step::Pause(SLOWLY), say(extra)],
            }
        });
        let resolver = builder(&server.url()).build().unwrap();
        for _ in 0..3 {
            // Over another connection, where this one is out of step.
            let answer = resolver.lookup("web").await.unwrap();
            assert_ne!(ports(&answer), [9_999]);
            sleep(5 * SLOWLY).await;
        }
        assert!(server.connections() > 1);
    }
}

#[tokio::test]
async fn no_redirect_is_followed_and_no_stranger_is_shown_the_token() {
    let stranger = ScriptedHttp::of_web(|_| vec![ok("", &entries("web", &[81]))]);
    let elsewhere = stranger.address();
    for code in [301, 302, 303, 307, 308] {
        for location in [
            format!("http://{elsewhere}/v1/health/service/web"),
            format!("https://{elsewhere}/"),
            format!("//{elsewhere}/v1/health/service/web"),
            "/v1/health/service/web?again".to_owned(),
            format!("http://user@{elsewhere}/"),
            "unix:///run/x".to_owned(),
            String::new(),
        ] {
            let head = format!("{code} Elsewhere");
            let headers = format!("Location: {location}\r\n");
            let server = ScriptedHttp::of_web(move |_| vec![reply(&head, &headers, "")]);
            let resolver = builder(&server.url()).build().unwrap();
            let error = resolver.lookup("web").await.unwrap_err();
            assert!(error.is_unavailable(), "{code} {location}: {error}");
            let last = error.attempts().last().unwrap();
            assert_eq!(last.outcome, Outcome::Failed, "{code} {location}");
            assert_eq!(server.times("web"), 1, "{code} {location}");
        }
    }
    assert_eq!(stranger.connections(), 0);
}

#[tokio::test]
async fn the_token_is_in_its_header_and_nowhere_else() {
    let server = ScriptedHttp::of_web(|_| vec![ok("", &entries("web", &[80]))]);
    let resolver = builder(&server.url()).build().unwrap();
    for name in ["web", "v2.web", "web@dc2", "near.query.consul"] {
        // Some are not found: what counts is what was asked.
        _ = resolver.lookup(name).await;
    }
    _ = resolver.kv().put("a", "1").await;
    _ = resolver.services().await;
    let all = server.asked();
    assert!(all.len() > 5);
    for asked in all {
        assert_eq!(asked.header("x-consul-token"), Some(CANARY));
        assert_eq!(asked.head.matches(CANARY).count(), 1, "{}", asked.head);
        let body = String::from_utf8_lossy(&asked.body);
        assert!(!body.contains("canary"), "{body}");
    }
}

#[tokio::test]
async fn no_name_steps_out_of_its_path_or_adds_a_header() {
    let server = ScriptedHttp::of_web(|_| vec![ok("", &entries("web", &[80]))]);
    let resolver = builder(&server.url()).build().unwrap();
    let mut sent = 0;
    for name in [
        "a/b",
        "a/../../kv/secret",
        "..",
        "%2e%2e",
        "a%2f..%2fkv",
        "a?index=1",
        "a#b",
        "a&dc=dc2",
        "a\r\nX-Evil: 1",
        "a\nX-Evil: 1",
        "a\0b",
        "a b",
        "a\\b",
        "bücher",
        "a/b.node.consul",
        "a?b.query.consul",
    ] {
        let before = server.asked().len();
        _ = resolver.lookup(name).await;
        for asked in &server.asked()[before..] {
            if asked.what() == "GET /v1/agent/self" || asked.is_about("consul?") {
                continue;
            }
            sent += 1;
            assert_eq!(asked.header("x-evil"), None, "{name:?}: {}", asked.head);
            let path = asked.what().strip_prefix("GET ").unwrap();
            let (path, query) = path.split_once('?').unwrap();
            let parts: Vec<_> = path.split('/').collect();
            let shape = match parts.as_slice() {
                ["", "v1", "health", "service", last] => last,
                ["", "v1", "catalog", "node", last] => last,
                ["", "v1", "query", last, "execute"] => last,
                _ => panic!("{name:?}: {path}"),
            };
            assert!(!shape.contains(['#', '\\', ' ']), "{name:?}: {path}");
            assert!(*shape != ".." && *shape != "%2e%2e", "{name:?}: {path}");
            assert!(query == "stale", "{name:?}: {query}");
        }
    }
    assert!(sent > 0);
}

#[tokio::test]
async fn an_answer_from_another_place_than_was_asked_is_refused() {
    let server = ScriptedHttp::of_web(|_| vec![ok("", &entries("web", &[80]))]);
    // All that it has is in dc1 and says nothing of a namespace or a partition.
    for (what, resolver, name) in [
        ("datacenter", builder(&server.url()), "web@dc2"),
        ("namespace", builder(&server.url()).namespace("team"), "web"),
        ("partition", builder(&server.url()).partition("blue"), "web"),
    ] {
        let error = resolver.build().unwrap().lookup(name).await.unwrap_err();
        let last = error.attempts().last().unwrap();
        assert_eq!(last.outcome, Outcome::Malformed, "{what}: {error}");
        assert!(last.detail.contains(what), "{what}: {error}");
    }
    let resolver = builder(&server.url()).build().unwrap();
    assert_eq!(ports(&resolver.lookup("web@dc1").await.unwrap()), [80]);
}

#[tokio::test]
async fn who_has_lost_its_leader_or_our_rights_is_believed_where_it_gives_and_not_where_it_takes() {
    for (headers, reason) in [
        (
            "X-Consul-KnownLeader: false\r\nX-Consul-LastContact: 1000000000000\r\n",
            Reason::NoLeader,
        ),
        (
            "X-Consul-Results-Filtered-By-ACLs: true\r\n",
            Reason::Denied,
        ),
    ] {
        let given: Arc<Mutex<&[u16]>> = Arc::new(Mutex::new(&[80, 81]));
        let gives = Arc::clone(&given);
        let server = ScriptedHttp::of_web(move |_| {
            let body = entries("web", *gives.lock().unwrap());
            vec![ok(headers, &body)]
        });
        let resolver = builder(&server.url()).build().unwrap();
        let answer = resolver.lookup("web").await.unwrap();
        assert_eq!((ports(&answer), is_fresh(&answer)), (vec![80, 81], true));
        assert!(!answer.warnings().is_empty(), "{headers}");
        *given.lock().unwrap() = &[];
        sleep(EXPIRED).await;
        let error = resolver.lookup("web").require_fresh().await.unwrap_err();
        assert!(!error.is_not_found(), "{error}");
        let held = resolver.lookup("web").await.unwrap();
        assert_eq!(ports(&held), [80, 81]);
        if reason == Reason::NoLeader {
            assert_eq!(held.protected(), Some(reason));
        }
    }
}

#[tokio::test]
async fn rights_that_are_gone_for_a_few_names_keep_nobody_waiting_for_the_next() {
    let is_revoked = Arc::new(AtomicBool::new(false));
    let revoked = Arc::clone(&is_revoked);
    // Slower than a look-up of what is stale goes on without waiting, and faster than it waits.
    let server = ScriptedHttp::start(move |asked| match revoked.load(Ordering::SeqCst) {
        true => vec![
            Step::Pause(Duration::from_millis(40)),
            status("403 Forbidden", "Permission denied"),
        ],
        false => vec![ok("", &entries(asked.service(), &[80]))],
    });
    let resolver = builder(&server.url()).build().unwrap();
    let names = ["one", "two", "three", "four", "five"];
    for name in names {
        assert!(is_fresh(&resolver.lookup(name).await.unwrap()));
    }
    is_revoked.store(true, Ordering::SeqCst);
    sleep(EXPIRED).await;
    let mut waited = Vec::new();
    for name in names {
        let answer = resolver.lookup(name).await.unwrap();
        assert_eq!((ports(&answer), is_fresh(&answer)), (vec![80], false));
        waited.push((answer.attempts().iter()).any(|one| one.outcome == Outcome::Denied));
    }
    assert_eq!(waited, [true, true, true, false, false]);
    // One that is found again ends that.
    is_revoked.store(false, Ordering::SeqCst);
    wait_for("the rights", async || {
        let answer = resolver.lookup("one").await.unwrap();
        is_fresh(&answer).then_some(())
    })
    .await;
    assert!(is_fresh(
        &resolver.lookup("five").max_age(EXPIRED).await.unwrap()
    ));
}

#[tokio::test]
async fn one_agent_that_lags_behind_does_not_cost_the_rights_that_another_knows_of() {
    let behind = ScriptedHttp::of_web(|_| vec![status("403 Forbidden", "ACL not found")]);
    let well = ScriptedHttp::of_web(|_| vec![ok("", &entries("web", &[80]))]);
    let both = format!("{},{}", behind.url(), well.url());
    let resolver = builder(&both).build().unwrap();
    let answer = resolver.lookup("web").await.unwrap();
    assert_eq!((ports(&answer), is_fresh(&answer)), (vec![80], true));
    assert_eq!(answer.attempts()[0].outcome, Outcome::Denied);
}

#[tokio::test]
async fn proxies_of_the_environment_are_not_asked() {
    let proxy = ScriptedHttp::of_web(|_| vec![ok("", &entries("web", &[81]))]);
    let agent = ScriptedHttp::of_web(|_| vec![ok("", &entries("web", &[80]))]);
    let closed = format!("http://{}", closed_port());
    for http in [agent.url(), closed, "http://agent.invalid:8500".to_owned()] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proconsul"));
        command
            .env_clear()
            .args([
                "lookup", "web", "-o", "short", "--dns", "none", "--http", &http,
            ])
            .env("CONSUL_HTTP_TOKEN", CANARY);
        for name in ["http_proxy", "https_proxy", "all_proxy"] {
            command.env(name, proxy.url());
            command.env(name.to_uppercase(), proxy.url());
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said == "10.0.0.1:80\n", http == agent.url(), "{output:?}");
    }
    assert_eq!(proxy.connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_names_are_asked_for_connections_are_left_to_others() {
    let pause = Duration::from_millis(20);
    let agent = ScriptedHttp::start(move |asked| {
        let found = entries(asked.service(), &[80]);
        vec![Step::Pause(pause), ok("", &found)]
    });
    let resolver = builder(&agent.url()).timeout(PATIENCE).build().unwrap();
    let mut waiting: JoinSet<_> = (0..600)
        .map(|at| {
            let resolver = resolver.clone();
            async move { resolver.lookup(format!("n{at}")).await.map(drop) }
        })
        .collect();
    while let Some(found) = waiting.join_next().await {
        found.unwrap().expect("a question waits for its turn");
    }
    // Consul lets a client have 200.
    let connections = agent.connections();
    assert!(connections < 150, "{connections} connections");
}

#[tokio::test]
async fn what_is_known_is_gone_only_where_the_leader_says_so_too() {
    let flag = || Arc::new(AtomicBool::new(true));
    let (any, leader, is_led) = (flag(), flag(), flag());
    let (any_has_it, leader_has_it) = (Arc::clone(&any), Arc::clone(&leader));
    let there_is_one = Arc::clone(&is_led);
    // Behind the agent is a server that reads its log again, and the leader.
    let server = ScriptedHttp::of_web(move |asked| {
        let has_it = match asked.what().contains("consistent") {
            true if !there_is_one.load(Ordering::SeqCst) => {
                return vec![status("500 Internal Server Error", "No cluster leader")];
            }
            true => &leader_has_it,
            false => &any_has_it,
        };
        let body = match has_it.load(Ordering::SeqCst) {
            true => entries("web", &[80]),
            false => "[]".to_owned(),
        };
        vec![ok("", &body)]
    });
    let resolver = Resolver::builder()
        .dns("none")
        .http(&server.url())
        .ttl_floor(Duration::ZERO)
        .watches(0)
        .build()
        .unwrap();
    assert_eq!(resolver.lookup("web").await.unwrap().endpoints().len(), 1);
    any.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        let known = resolver.lookup("web").require_fresh().await.unwrap();
        assert_eq!(
            (known.endpoints().len(), known.freshness()),
            (1, Freshness::Fresh)
        );
    }
    // While nobody can say so it is held.
    leader.store(false, Ordering::SeqCst);
    is_led.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        let held = resolver.lookup("web").await.unwrap();
        assert_eq!(held.freshness(), Freshness::Stale);
    }
    assert_eq!(resolver.protected()[0].1, Reason::Unconfirmed);
    is_led.store(true, Ordering::SeqCst);
    wait_for("its end", async || {
        let gone = resolver.lookup("web").await.err()?;
        gone.is_not_found().then_some(())
    })
    .await;
}

#[tokio::test]
async fn while_a_server_is_behind_a_new_name_is_missing_only_where_the_leader_says_so_too() {
    // The server behind the agent was started anew: it tells an older state of what is followed,
    // and knows nothing of the rest yet.
    let is_behind = Arc::new(AtomicBool::new(false));
    let behind = Arc::clone(&is_behind);
    let is_silent = Arc::new(AtomicBool::new(false));
    let silent = Arc::clone(&is_silent);
    let server = ScriptedHttp::start(move |asked| {
        let what = asked.what();
        if what.contains("consistent") && silent.load(Ordering::SeqCst) {
            return vec![Step::Hang];
        }
        let index = match behind.load(Ordering::SeqCst) {
            true => 50,
            false => 100,
        };
        let index = format!("X-Consul-Index: {index}\r\nX-Consul-KnownLeader: true\r\n");
        let is_there = what.contains("/web?") || what.contains("/consul?");
        let body = match is_there || what.contains("consistent") {
            true => entries(asked.service(), &[80]),
            false => "[]".to_owned(),
        };
        // A change is slow to come, and so is a leader that was just elected.
        let slow = what.contains("index=") || what.contains("consistent");
        let pause = Duration::from_millis(if slow { 200 } else { 0 });
        vec![Step::Pause(pause), ok(&index, &body)]
    });
    let resolver = builder(&server.url()).build().unwrap();
    let service = resolver.service("web").unwrap();
    service.ready().await;
    let missing = resolver.lookup("new").await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    is_behind.store(true, Ordering::SeqCst);
    let mut number = 0;
    wait_for("the leader's word", async || {
        number += 1;
        resolver.lookup(format!("new{number}")).await.ok()
    })
    .await;
    // Where the leader says nothing, whoever asks next hears what it says then.
    is_silent.store(true, Ordering::SeqCst);
    let missing = resolver.lookup("newest").await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    is_silent.store(false, Ordering::SeqCst);
    wait_for("the leader's word of the same name", async || {
        resolver.lookup("newest").await.ok()
    })
    .await;
}

#[tokio::test]
async fn where_nobody_leads_a_new_name_is_there_as_soon_as_any_server_knows_it() {
    // One server was started anew and reads its log still, the other one knows all there is.
    let nobody_leads = Arc::new(AtomicBool::new(false));
    let server = |knows: bool| {
        let nobody_leads = Arc::clone(&nobody_leads);
        ScriptedHttp::start(move |asked| {
            let what = asked.what();
            let lost = nobody_leads.load(Ordering::SeqCst);
            if lost && what.contains("consistent") {
                return vec![Step::Hang];
            }
            let index = if lost { 50 } else { 100 };
            let index = format!(
                "X-Consul-Index: {index}\r\nX-Consul-KnownLeader: {}\r\n",
                !lost
            );
            let is_new = what.contains("/new") && lost && knows;
            let is_there = is_new || what.contains("/web?") || what.contains("/consul?");
            let body = match is_there {
                true => entries(asked.service(), &[80]),
                false => "[]".to_owned(),
            };
            // Slow enough not to be asked beside the other one and be heard first.
            let pause = match is_new {
                true => 60,
                false if what.contains("index=") => 200,
                false => 0,
            };
            vec![Step::Pause(Duration::from_millis(pause)), ok(&index, &body)]
        })
    };
    let both = [server(false), server(true)];
    let addresses = both.each_ref().map(ScriptedHttp::url).join(",");
    let resolver = builder(&addresses).build().unwrap();
    let service = resolver.service("web").unwrap();
    service.ready().await;
    let missing = resolver.lookup("new").await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    nobody_leads.store(true, Ordering::SeqCst);
    let mut number = 0;
    wait_for("the other server's word", async || {
        number += 1;
        resolver.lookup(format!("new{number}")).await.ok()
    })
    .await;
    let missing = resolver.lookup("nosuch").await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
}

/// Time of a look-up that is silent in the tests below.
const BRIEFLY: Duration = Duration::from_millis(200);

/// An agent that never answers what `slow` is in, and all else at once.
fn silent_about_slow() -> ScriptedHttp {
    ScriptedHttp::start(|asked| match asked.what() {
        what if what.contains("slow") => vec![Step::Hang],
        what if what.contains("/service/") => vec![ok("", &entries(asked.service(), &[80]))],
        _ => vec![status("403 Forbidden", "Permission denied")],
    })
}

#[tokio::test]
async fn a_prepared_query_that_is_slow_shuts_nobody_out() {
    let server = silent_about_slow();
    let resolver = builder(&server.url()).timeout(BRIEFLY).build().unwrap();
    for _ in 0..5 {
        let error = resolver.lookup("slow.query.consul").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    }
    assert!(resolver.status().sources[0].up);
}

#[tokio::test]
async fn a_name_that_is_slow_is_no_probe_of_whom_it_shut_out() {
    let server = silent_about_slow();
    let resolver = builder(&server.url()).timeout(BRIEFLY).build().unwrap();
    let is_up = || resolver.status().sources[0].up;
    wait_for("silence", async || {
        resolver.lookup("slow").await.unwrap_err();
        (!is_up()).then_some(())
    })
    .await;
    assert_eq!(server.times("consul"), 0);
    // Nobody looks anything else up.
    wait_for("a probe that is answered", async || {
        resolver.lookup("slow").await.unwrap_err();
        is_up().then_some(())
    })
    .await;
    assert_eq!(server.times("consul"), 1);
}

#[tokio::test]
async fn a_name_that_is_slow_after_an_idle_time_lets_others_be_found() {
    let server = silent_about_slow();
    let resolver = builder(&server.url()).timeout(BRIEFLY).build().unwrap();
    wait_for("silence", async || {
        resolver.lookup("slow").await.unwrap_err();
        (!resolver.status().sources[0].up).then_some(())
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    let (slow, web, api) = tokio::join!(
        resolver.lookup("slow"),
        resolver.lookup("web"),
        resolver.lookup("api")
    );
    assert_eq!(slow.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(is_fresh(&web.unwrap()) && is_fresh(&api.unwrap()));
    assert!(resolver.status().sources[0].up);
}

#[tokio::test]
async fn nobody_waits_beyond_the_limit_while_it_is_weighed_that_a_name_is_gone() {
    let gone = Arc::new(Mutex::new(false));
    let is_gone = Arc::clone(&gone);
    let server = ScriptedHttp::start(move |asked| match *is_gone.lock().unwrap() {
        false => vec![ok("", &entries("web", &[80]))],
        true if asked.is_about("web") => vec![Step::Pause(BRIEFLY * 3 / 5), ok("", "[]")],
        true if asked.is_about("consul") => vec![Step::Pause(BRIEFLY / 2), ok("", "[]")],
        true => vec![Step::Hang],
    });
    let resolver = builder(&server.url()).timeout(BRIEFLY).build().unwrap();
    wait_for("the set", async || resolver.lookup("web").await.ok()).await;
    *gone.lock().unwrap() = true;
    sleep(EXPIRED).await;
    let start = Instant::now();
    let error = resolver.lookup("web").require_fresh().await.unwrap_err();
    let took = start.elapsed();
    assert!(took < BRIEFLY * 3 / 2, "{took:?}: {error}");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    // What was weighed meanwhile is there for the next.
    wait_for("the end of it", async || {
        let error = resolver.lookup("web").await.err()?;
        error.is_not_found().then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_the_catalog_leaves_out_of_a_set_is_not_brought_back() {
    let all = Arc::new(AtomicBool::new(true));
    let has_all = Arc::clone(&all);
    let server = ScriptedHttp::of_web(move |_| {
        let body = match has_all.load(Ordering::SeqCst) {
            true => entries("web", &Vec::from_iter(80..=100)),
            // One is registered anew at a port that there is not, another is gone.
            false => entries("web", &Vec::from_iter(79..=98)).replace(":79}", ":70000}"),
        };
        vec![ok("", &body)]
    });
    let resolver = builder(&server.url()).build().unwrap();
    assert_eq!(resolver.lookup("web").await.unwrap().endpoints().len(), 21);
    all.store(false, Ordering::SeqCst);
    wait_for("the others' end", async || {
        let web = resolver.lookup("web").require_fresh().await.ok()?;
        (web.endpoints().len() == 19 && !web.is_complete()).then_some(())
    })
    .await;
}
