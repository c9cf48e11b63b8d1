use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
};

use super::*;
use crate::consul::{address::HttpAddress, health::ask::Place, http::AgentSettings};

const ENTRY: &str = r#"{"Node":{"Node":"n","Address":"10.0.0.1","Datacenter":"dc1"},"Service":{"Service":"web","Port":80}}"#;

/// An address where each request gets this answer; with none, silence.
fn listening(answer: Option<String>) -> String {
    listening_after(Duration::ZERO, answer)
}

/// The same, after a while.
fn listening_after(pause: Duration, answer: Option<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let answer = answer.clone();
            thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                thread::sleep(pause);
                match answer {
                    Some(answer) => drop(stream.write_all(answer.as_bytes())),
                    None => thread::sleep(Duration::from_secs(20)),
                }
            });
        }
    });
    address.to_string()
}

fn answering(head: &str, body: &str) -> String {
    let length = body.len();
    listening(Some(format!(
        "HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )))
}

fn refusing() -> String {
    // Bound for as long as the test runs, so that nobody else takes the port, and
    // not listening.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    address.to_string()
}

fn rung(addresses: &[String]) -> (Agent, Circuits) {
    let parse = |text: &String| HttpAddress::parse(text, false).unwrap();
    let agent = Agent::new(AgentSettings {
        addresses: addresses.iter().map(parse).collect(),
        ..AgentSettings::default()
    });
    let agent = agent.unwrap();
    let circuits = Circuits::new(Source::Http, agent.addresses().map(ToString::to_string));
    (agent, circuits)
}

async fn ask_rung(agent: &Agent, circuits: &Circuits) -> (Result<Told, Miss>, Vec<Attempt>) {
    let web = Ask::Service {
        name: "web",
        tag: None,
    };
    put(agent, circuits, web, Duration::from_secs(2)).await
}

async fn asked_for(
    what: Ask<'_>,
    addresses: &[String],
    limit: Duration,
) -> (Result<Told, Miss>, Vec<Attempt>) {
    let (agent, circuits) = rung(addresses);
    put(&agent, &circuits, what, limit).await
}

async fn put(
    agent: &Agent,
    circuits: &Circuits,
    what: Ask<'_>,
    limit: Duration,
) -> (Result<Told, Miss>, Vec<Attempt>) {
    let question = Question {
        ask: what,
        place: Place::default(),
        reader: ask::Reader::Any,
        domain: "consul",
        name: "web.service.consul.",
    };
    let now = || tokio::time::Instant::now().into_std();
    let asker = Asker {
        mode: crate::circuit::Mode::Ask,
        home: true,
    };
    ask(agent, &question, circuits, asker, now() + limit, now).await
}

async fn asked(addresses: &[String]) -> (Result<Told, Miss>, Vec<Attempt>) {
    let web = Ask::Service {
        name: "web",
        tag: None,
    };
    // On a busy machine one that is well may be slow, and the next asked beside it.
    let mut told = asked_for(web, addresses, Duration::from_secs(20)).await;
    for _ in 0..20 {
        if outcomes(&told.1).first() != Some(&Outcome::Late) {
            break;
        }
        told = asked_for(web, addresses, Duration::from_secs(20)).await;
    }
    told
}

fn outcomes(attempts: &[Attempt]) -> Vec<Outcome> {
    attempts.iter().map(|attempt| attempt.outcome).collect()
}

#[tokio::test]
async fn the_next_address_is_asked_when_one_fails() {
    let list = format!("[{ENTRY}]");
    let good = answering("200 OK\r\nX-Consul-Knownleader: true", &list);
    let failing = [
        (refusing(), Outcome::Refused),
        (answering("500 X", "No cluster leader"), Outcome::Failed),
        (answering("503 X", ""), Outcome::Throttled),
        (answering("429 X", ""), Outcome::Throttled),
        (answering("403 X", "ACL not found"), Outcome::Denied),
        (answering("401 X", ""), Outcome::Denied),
        (
            answering("302 X\r\nLocation: http://elsewhere.test/", ""),
            Outcome::Failed,
        ),
        (answering("200 OK", "<html>"), Outcome::Malformed),
        (listening(Some(String::new())), Outcome::Unreachable),
    ];
    for (bad, outcome) in failing {
        let (told, attempts) = asked(&[bad, good.clone()]).await;
        let told = told.unwrap();
        assert_eq!(outcomes(&attempts), [outcome, Outcome::Answered]);
        assert_eq!(told.known_leader, Some(true));
        assert!(!attempts[0].detail.is_empty());
        let last = &attempts[1];
        assert_eq!((last.received, last.count), (list.len(), 1));
        assert_eq!(
            &*last.address,
            format!("http://{good}/v1/health/service/web?stale")
        );
    }
}

#[tokio::test]
async fn a_silent_address_has_the_next_beside_it_and_may_still_be_heard() {
    let body = format!("[{ENTRY}]");
    let good = answering("200 OK", &body);
    let web = Ask::Service {
        name: "web",
        tag: None,
    };
    let addresses = [listening(None), good];
    let (told, attempts) = asked_for(web, &addresses, Duration::from_secs(2)).await;
    assert!(told.is_ok());
    assert_eq!(outcomes(&attempts), [Outcome::Late, Outcome::Answered]);

    // Slower than its share would be, were one asked after the other; and who knows nothing
    // of it is quicker.
    let slow = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}");
    for (time, other, outcome) in [
        (1_200, listening(None), Outcome::Late),
        (200, answering("404 Not Found", ""), Outcome::Failed),
        (200, answering("200 OK", "[]"), Outcome::NotFound),
    ] {
        let mut tries = 0;
        let (told, attempts) = loop {
            let slow = listening_after(Duration::from_millis(time), Some(slow.clone()));
            let both = [slow, other.clone()];
            let (told, attempts) = asked_for(web, &both, Duration::from_secs(2)).await;
            tries += 1;
            // On a busy machine the other one may be the slower.
            if tries == 20 || outcomes(&attempts).first() == Some(&outcome) {
                break (told, attempts);
            }
        };
        assert!(told.is_ok(), "{outcome:?}");
        assert_eq!(outcomes(&attempts), [outcome, Outcome::Answered]);
    }
    // Where nobody knows more, that is soon told.
    let nothing = [listening(None), answering("200 OK", "[]")];
    let (told, attempts) = asked_for(web, &nothing, Duration::from_secs(20)).await;
    assert!(matches!(told, Err(Miss::NotFound { .. })));
    assert_eq!(outcomes(&attempts), [Outcome::Late, Outcome::NotFound]);

    let waited = [listening(None), listening(None)];
    let (told, attempts) = asked_for(web, &waited[1..], Duration::from_millis(300)).await;
    assert!(told.is_err());
    assert_eq!(outcomes(&attempts), [Outcome::TimedOut]);

    let (told, attempts) = asked_for(web, &addresses, Duration::ZERO).await;
    assert!(matches!(
        told,
        Err(Miss::Failed {
            outcome: Outcome::TimedOut,
            ..
        })
    ));
    assert!(attempts.is_empty());
}

#[tokio::test]
async fn who_was_asked_after_the_one_that_answered_is_not_slow() {
    let body = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[{ENTRY}]");
    let slow = || listening_after(Duration::from_millis(300), Some(body.clone()));
    let addresses = [slow(), slow(), slow()];
    let (agent, circuits) = rung(&addresses);
    for _ in 0..5 {
        let (told, attempts) = ask_rung(&agent, &circuits).await;
        assert!(told.is_ok());
        // Two at a time.
        assert_eq!(outcomes(&attempts), [Outcome::Late, Outcome::Answered]);
    }
    let left_alone = |state: &(&str, Option<Instant>)| state.1.is_some();
    assert!(!circuits.states().iter().any(left_alone));
}

#[tokio::test]
async fn an_answer_that_says_no_is_final() {
    let critical =
        r#"[{"Node":{"Node":"n"},"Service":{"Service":"web"},"Checks":[{"Status":"critical"}]}]"#;
    let no = |unhealthy, confirmed| Miss::NotFound {
        unhealthy,
        confirmed,
        index: None,
    };
    let denied = |text: &str| Miss::Denied(text.into());
    let failed = |detail: &str| Miss::Failed {
        outcome: Outcome::Failed,
        detail: detail.into(),
    };
    let filtered = "200 OK\r\nX-Consul-Results-Filtered-By-ACLs: true";
    let leaderless = "200 OK\r\nX-Consul-Knownleader: false";
    let namespaces =
        "Bad request: Invalid query parameter: \"ns\" - Namespaces are a Consul Enterprise feature";
    let cases = [
        ("200 OK", "[]", Outcome::NotFound, no(0, true)),
        ("200 OK", critical, Outcome::NotFound, no(1, true)),
        (leaderless, "[]", Outcome::NotFound, no(0, false)),
        (
            filtered,
            "[]",
            Outcome::Denied,
            denied("the token may not see what there is"),
        ),
        (filtered, critical, Outcome::NotFound, no(1, true)),
        (
            "500 X",
            "No path to datacenter",
            Outcome::NotFound,
            no(0, true),
        ),
        (
            "400 X",
            namespaces,
            Outcome::Failed,
            failed(&format!("status 400: {namespaces}")),
        ),
        ("405 X", "", Outcome::Failed, failed("status 405")),
        (
            "404 X",
            "",
            Outcome::Failed,
            failed("status 404: the agent does not know this request"),
        ),
    ];
    let good = answering("200 OK", &format!("[{ENTRY}]"));
    for (head, body, outcome, miss) in cases {
        let (told, attempts) = asked(&[answering(head, body), good.clone()]).await;
        assert_eq!(
            (told, outcomes(&attempts)),
            (Err(miss), vec![outcome]),
            "{head}"
        );
    }
    let query = Ask::Query { name: "x" };
    let limit = Duration::from_secs(20);
    let (told, _) = asked_for(query, &[answering("404 X", "Query not found")], limit).await;
    assert_eq!(told, Err(no(0, true)));
}

#[tokio::test]
async fn an_answer_with_something_left_out_is_partial() {
    let bad = ENTRY.replace("10.0.0.1", "0.0.0.0");
    let skipped = answering("200 OK", &format!("[{ENTRY},{bad}]"));
    let filtered = answering(
        "200 OK\r\nX-Consul-Results-Filtered-By-ACLs: true",
        &format!("[{ENTRY}]"),
    );
    for address in [skipped, filtered] {
        let (told, attempts) = asked(&[address]).await;
        assert!(told.is_ok());
        assert_eq!(outcomes(&attempts), [Outcome::Partial]);
        assert!(!attempts[0].detail.is_empty());
    }
}

#[tokio::test]
async fn of_many_failures_the_most_telling_is_given() {
    let addresses = [
        refusing(),
        answering("500 X", "No cluster leader"),
        refusing(),
    ];
    let (told, attempts) = asked(&addresses).await;
    let miss = Miss::Failed {
        outcome: Outcome::Failed,
        detail: "status 500: No cluster leader".into(),
    };
    assert_eq!(told, Err(miss));
    assert_eq!(attempts.len(), 3);
}

#[tokio::test]
async fn who_is_refused_by_one_is_told_so_unless_another_knows_more() {
    let refused = || answering("403 X", "ACL not found");
    let miss = Err(Miss::Denied("not permitted: ACL not found".into()));
    for others in [
        vec![],
        vec![refused()],
        // It may be the one that lost its data.
        vec![answering("200 OK", "[]")],
        vec![answering("500 X", "No cluster leader"), refusing()],
    ] {
        let addresses: Vec<_> = [refused()].into_iter().chain(others).collect();
        let (told, attempts) = asked(&addresses).await;
        assert_eq!((told, attempts.len()), (miss.clone(), addresses.len()));
    }
}
