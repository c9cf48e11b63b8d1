//! The other side is written by hand: a real agent can't be made to do this.

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use super::*;

const SOON: Duration = Duration::from_secs(20);

/// Answers each request on each connection with the same bytes, or closes after
/// them. Its threads end with the test.
struct Peer {
    address: SocketAddr,
    /// What it was asked, head by head.
    asked: mpsc::Receiver<String>,
    connections: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Then {
    Stay,
    Close,
    Silence,
}

fn peer(answer: impl Into<Vec<u8>>, then: Then) -> Peer {
    peer_of(answer, then, |stream| stream)
}

fn peer_of<S: Read + Write>(
    answer: impl Into<Vec<u8>>,
    then: Then,
    accept: impl Fn(std::net::TcpStream) -> S + Send + Sync + 'static,
) -> Peer {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let (answer, count) = (Arc::new(answer.into()), Arc::clone(&connections));
    let (tell, asked) = mpsc::channel();
    let accept = Arc::new(accept);
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            count.fetch_add(1, Ordering::SeqCst);
            let (answer, tell) = (Arc::clone(&answer), tell.clone());
            let accept = Arc::clone(&accept);
            thread::spawn(move || {
                converse(accept(stream), &answer, then, &tell);
            });
        }
    });
    Peer {
        address,
        asked,
        connections,
    }
}

fn converse(mut stream: impl Read + Write, answer: &[u8], then: Then, tell: &mpsc::Sender<String>) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        let _ = tell.send(String::from_utf8(head).unwrap().to_lowercase());
        if stream
            .write_all(answer)
            .and_then(|()| stream.flush())
            .is_err()
        {
            return;
        }
        match then {
            Then::Stay => {}
            Then::Close => return,
            Then::Silence => thread::sleep(SOON),
        }
    }
}

fn reply(head: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn agent_at(url: &str, change: impl FnOnce(&mut AgentSettings)) -> Agent {
    let mut settings = AgentSettings {
        addresses: vec![HttpAddress::parse(url, false).unwrap()],
        ..AgentSettings::default()
    };
    change(&mut settings);
    Agent::new(settings).unwrap()
}

fn agent(peer: &Peer) -> Agent {
    agent_at(&format!("http://{}", peer.address), |settings| {
        settings.token = Token::parse("hush-1").unwrap();
    })
}

async fn ask_within(agent: &Agent, limit: Duration) -> Result<Reply, Trouble> {
    let address = agent.addresses().next().unwrap().clone();
    agent.get(&address, "/v1/x?stale", limit).await
}

async fn ask(agent: &Agent) -> Result<Reply, Trouble> {
    ask_within(agent, SOON).await
}

#[tokio::test]
async fn a_reply_is_read_with_its_headers_in_any_case() {
    let peer = peer(
        reply(
            "200 OK\r\nx-consul-index: 1560\r\nX-Consul-KnownLeader: true\r\nX-CONSUL-LASTCONTACT: 25\
             \r\nX-Consul-Results-Filtered-By-ACLs: true\r\nX-Consul-Translate-Addresses: true",
            "[]",
        ),
        Then::Stay,
    );
    let agent = agent(&peer);
    let expected = Head {
        status: 200,
        index: Some(1560),
        known_leader: Some(true),
        last_contact: Some(Duration::from_millis(25)),
        filtered_by_acls: true,
        translate_addresses: true,
        date: None,
    };
    let told = ask(&agent).await.unwrap();
    assert_eq!((told.head, told.received), (expected, 2));
    assert_eq!(told.body, b"[]");
    let asked = peer.asked.recv().unwrap();
    assert!(asked.starts_with("get /v1/x?stale http/1.1\r\n"), "{asked}");
    assert!(asked.contains("x-consul-token: hush-1\r\n"), "{asked}");
    assert!(asked.contains("accept-encoding: gzip\r\n"), "{asked}");
}

#[tokio::test]
async fn headers_that_are_no_numbers_say_nothing() {
    let peer = peer(
        reply(
            "200 OK\r\nX-Consul-Index: x\r\nX-Consul-Knownleader: 7\r\nX-Consul-Lastcontact: -1",
            "",
        ),
        Then::Stay,
    );
    let expected = Head {
        status: 200,
        ..Head::default()
    };
    assert_eq!(ask(&agent(&peer)).await.unwrap().head, expected);
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let peer = peer(reply("200 OK", "[]"), Then::Stay);
    let agent = agent(&peer);
    for _ in 0..5 {
        ask(&agent).await.unwrap();
    }
    assert_eq!(peer.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_prefix_goes_before_the_path() {
    let peer = peer(reply("200 OK", "[]"), Then::Stay);
    let agent = agent_at(&format!("http://{}/a/b/", peer.address), |_| {});
    ask(&agent).await.unwrap();
    let asked = peer.asked.recv().unwrap();
    assert!(asked.starts_with("get /a/b/v1/x?stale "), "{asked}");
    assert!(!asked.contains("token"), "{asked}");
}

#[tokio::test]
async fn a_name_cannot_step_out_of_its_path() {
    let peer = peer(reply("200 OK", "[]"), Then::Stay);
    let agent = agent(&peer);
    let address = agent.addresses().next().unwrap().clone();
    for path in [
        "/v1/health/service/..?stale",
        "/v1/%2e%2E/x",
        "@elsewhere/",
        "",
        "/v1/a b",
        "/v1\\x",
    ] {
        let told = agent.get(&address, path, SOON).await;
        assert!(matches!(told, Err(Trouble::Config(_))), "{path} {told:?}");
    }
    assert_eq!(peer.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn statuses_become_words_and_a_line() {
    let long = "x".repeat(10_000);
    let cases = [
        (
            ("403 Forbidden", "Permission denied\nmore"),
            Trouble::Denied("Permission denied".into()),
        ),
        (("401 Unauthorized", ""), Trouble::Denied("".into())),
        (
            ("403 Forbidden", "no hush-1 here"),
            Trouble::Denied("no (token) here".into()),
        ),
        (
            ("500 Internal Server Error", "No path to datacenter"),
            Trouble::Status {
                code: 500,
                text: "No path to datacenter".into(),
                after: None,
            },
        ),
        (
            ("429 Too Many Requests\r\nRetry-After: 30", "\x1b[2J"),
            Trouble::Status {
                code: 429,
                text: "\\u{1b}[2J".into(),
                after: Some(Duration::from_secs(30)),
            },
        ),
        (
            ("400 Bad Request", &long),
            Trouble::Status {
                code: 400,
                text: long[..200].into(),
                after: None,
            },
        ),
    ];
    for ((head, body), expected) in cases {
        let peer = peer(reply(head, body), Then::Stay);
        assert_eq!(ask(&agent(&peer)).await, Err(expected), "{head}");
    }
    let peer = peer(
        reply("404 Not Found\r\nX-Consul-Index: 7", "Query not found"),
        Then::Stay,
    );
    let told = ask(&agent(&peer)).await.unwrap();
    assert_eq!((told.head.status, told.head.index), (404, Some(7)));
}

#[tokio::test]
async fn a_pause_that_is_asked_for_is_read_where_it_is_a_number_of_seconds() {
    for (said, after) in [
        ("Retry-After: 0\r\n", Some(0)),
        ("Retry-After: 30\r\n", Some(30)),
        ("retry-after:  1000000000 \r\n", Some(1_000_000_000)),
        ("Retry-After: -1\r\n", None),
        ("Retry-After: 1.5\r\n", None),
        ("Retry-After: 99999999999999999999\r\n", None),
        ("Retry-After: Wed, 21 Oct 2037 07:28:00 GMT\r\n", None),
        ("", None),
    ] {
        for code in [429, 503] {
            let head = format!("{code} X\r\n{said}X: x");
            let told = ask(&agent(&peer(reply(&head, ""), Then::Stay))).await;
            let after = after.map(Duration::from_secs);
            assert_eq!(told.unwrap_err().after(), after, "{said}");
        }
    }
}

#[tokio::test]
async fn a_redirect_is_named_and_nobody_gets_the_token() {
    let other = peer(reply("200 OK", "[]"), Then::Stay);
    for code in [301, 302, 303, 307, 308] {
        for (location, host) in [
            (format!("http://{}/x", other.address), "127.0.0.1"),
            ("https://hush-1.example/x".to_owned(), "(token).example"),
            ("/elsewhere".to_owned(), "127.0.0.1"),
            ("http://[".to_owned(), "an unreadable address"),
        ] {
            let head = format!("{code} X\r\nLocation: {location}");
            let peer = peer(reply(&head, ""), Then::Stay);
            let told = ask(&agent(&peer)).await;
            assert_eq!(told, Err(Trouble::Redirected(host.into())));
        }
    }
    assert_eq!(other.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn refusal_is_told_from_other_troubles() {
    // Bound, so that nobody else takes the port, and not listening.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let agent = agent_at(&format!("http://{address}"), |_| {});
    assert_eq!(ask(&agent).await, Err(Trouble::Refused));
}

#[tokio::test]
async fn silence_ends_at_the_limit_and_a_stopped_body_before() {
    let short = Duration::from_millis(200);
    let silent = peer("", Then::Silence);
    assert_eq!(
        ask_within(&agent(&silent), short).await,
        Err(Trouble::TimedOut)
    );
    let endless = peer("HTTP/1.1 200 OK\r\nX: ", Then::Silence);
    assert_eq!(
        ask_within(&agent(&endless), short).await,
        Err(Trouble::TimedOut)
    );
    let stalled = peer(
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[",
        Then::Silence,
    );
    assert_eq!(ask(&agent(&stalled)).await, Err(Trouble::TimedOut));
}

#[tokio::test]
async fn what_is_cut_or_no_http_is_an_error() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[]",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhush\r\n",
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n[]",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n[]",
        "SSH-2.0-x\r\n\r\n",
        "",
    ] {
        let peer = peer(answer, Then::Close);
        let told = ask(&agent(&peer)).await;
        assert!(
            matches!(told, Err(Trouble::Transport(_))),
            "{answer:?} {told:?}"
        );
    }
}

#[tokio::test]
async fn a_body_longer_than_said_does_not_reach_the_next_request() {
    let peer = peer(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]HTTP/1.1 500 X\r\n\r\n",
        Then::Close,
    );
    let agent = agent(&peer);
    for _ in 0..3 {
        assert_eq!(ask(&agent).await.unwrap().body, b"[]");
    }
}

#[tokio::test]
async fn headers_are_taken_up_to_a_limit() {
    let with = |length: usize| {
        let head = format!("200 OK\r\nX-A: {}\r\nX-B: 1", "a".repeat(length));
        peer(reply(&head, "[]"), Then::Stay)
    };
    // With the names, the length and the other value.
    let rest = "x-a".len() + "x-b".len() + 1 + "content-length".len() + 1;
    assert_eq!(
        ask(&agent(&with(HEAD_LIMIT - rest))).await.unwrap().body,
        b"[]"
    );
    let above = ask(&agent(&with(HEAD_LIMIT - rest + 1))).await;
    assert_eq!(above, Err(Trouble::TooLarge));
}

#[tokio::test]
async fn a_body_is_cut_off_at_its_limit_packed_or_not() {
    let said = peer(
        "HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n[",
        Then::Silence,
    );
    assert_eq!(ask(&agent(&said)).await, Err(Trouble::TooLarge));

    let mut endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..65 {
        endless.extend_from_slice(b"100000\r\n");
        endless.resize(endless.len() + (1 << 20), b' ');
        endless.extend_from_slice(b"\r\n");
    }
    let endless = peer(endless, Then::Silence);
    assert_eq!(ask(&agent(&endless)).await, Err(Trouble::TooLarge));

    let head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n";
    let bomb = [head.as_bytes(), &gzip_of_blanks(BODY_LIMIT / 258 + 2)].concat();
    assert!(bomb.len() < 1 << 20);
    let bomb = peer(bomb, Then::Close);
    assert_eq!(ask(&agent(&bomb)).await, Err(Trouble::TooLarge));
}

#[tokio::test]
async fn a_packed_body_is_unpacked() {
    let packed = gzip_of_blanks(2);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        packed.len()
    );
    let peer = peer([head.as_bytes(), &packed].concat(), Then::Stay);
    let body = ask(&agent(&peer)).await.unwrap().body;
    assert_eq!(body, vec![b' '; 1 + 2 * 258]);
}

/// A gzip member (RFC 1952) of one deflate block with fixed codes (RFC 1951,
/// 3.2.6): a blank, then `copies` times "copy 258 bytes from one back".
fn gzip_of_blanks(copies: usize) -> Vec<u8> {
    let mut bits = Vec::new();
    // Huffman codes go most significant bit first, all else the other way.
    let mut put = |code: u16, length: u16| {
        bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
    };
    put(0b110, 3); // last block; fixed codes, whose number 1 goes the other way
    put(0x30 + 0x20, 8);
    for _ in 0..copies {
        put(0b1100_0101, 8); // length 258
        put(0, 5); // distance 1
    }
    put(0, 7); // end of block
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    for byte in bits.chunks(8) {
        let ones = byte.iter().enumerate().filter(|(_, one)| **one);
        out.push(ones.map(|(at, _)| 1 << at).sum());
    }
    let length = 1 + copies * 258;
    let mut crc = u32::MAX;
    // Who takes a bomb apart to its end has failed before the sum is looked at.
    for _ in 0..length.min(1 << 16) {
        crc ^= 0x20;
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xedb8_8320
            } else {
                crc >> 1
            };
        }
    }
    out.extend((!crc).to_le_bytes());
    out.extend(u32::try_from(length).unwrap().to_le_bytes());
    out
}

#[cfg(unix)]
#[tokio::test]
async fn a_unix_socket_is_spoken_to() {
    let path = std::env::temp_dir().join(format!("proconsul-http-{}.sock", std::process::id()));
    let _ = fs::remove_file(&path);
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (tell, asked) = mpsc::channel();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        converse(stream, reply("200 OK", "[]").as_bytes(), Then::Close, &tell);
    });
    let agent = agent_at(&format!("unix://{}", path.display()), |settings| {
        settings.tls.server_name = Some("not.looked.at".into());
    });
    assert_eq!(ask(&agent).await.unwrap().body, b"[]");
    let asked = asked.recv().unwrap();
    assert!(asked.contains("\r\nhost: localhost\r\n"), "{asked}");
    // Only then is nobody listening any more.
    server.join().unwrap();
    // That the connection of before is closed may be seen only when it is used.
    let mut told = ask(&agent).await;
    if told != Err(Trouble::Refused) {
        told = ask(&agent).await;
    }
    assert_eq!(told, Err(Trouble::Refused));
    fs::remove_file(&path).unwrap();
    assert!(matches!(ask(&agent).await, Err(Trouble::Transport(_))));
}

#[tokio::test]
async fn a_token_file_wins_over_the_token() {
    let path = std::env::temp_dir().join(format!("proconsul-http-token-{}", std::process::id()));
    fs::write(&path, "\n").unwrap();
    let peer = peer(reply("200 OK", "[]"), Then::Stay);
    let agent = agent_at(&format!("http://{}", peer.address), |settings| {
        settings.token = Token::parse("hush-1").unwrap();
        settings.token_file = Some(path.clone());
    });
    ask(&agent).await.unwrap();
    assert!(
        peer.asked
            .recv()
            .unwrap()
            .contains("x-consul-token: hush-1\r\n")
    );
    fs::write(&path, "hush-2\n").unwrap();
    ask(&agent).await.unwrap();
    assert!(
        peer.asked
            .recv()
            .unwrap()
            .contains("x-consul-token: hush-2\r\n")
    );
    fs::remove_file(&path).unwrap();
    let told = format!("{agent:?}");
    assert!(!told.contains("hush"), "{told}");
}

#[test]
fn settings_that_cannot_be_meant_are_refused_before_anything_is_asked() {
    let with = |change: fn(&mut AgentSettings)| {
        let mut settings = AgentSettings {
            addresses: vec![HttpAddress::parse("https://127.0.0.1", false).unwrap()],
            ..AgentSettings::default()
        };
        change(&mut settings);
        Agent::new(settings)
    };
    assert!(with(|_| {}).is_ok());
    assert!(with(|settings| settings.tls.server_name = Some("agent.test:8501".into())).is_ok());
    assert!(with(|settings| settings.tls.server_name = Some("127.0.0.1".into())).is_ok());
    assert!(with(|settings| settings.tls.server_name = Some("10.0.0.1".into())).is_err());
    assert!(with(|settings| settings.tls.server_name = Some("a b".into())).is_err());
    assert!(with(|settings| settings.tls.server_name = Some("a/b".into())).is_err());
    assert!(with(|settings| settings.tls.cert_file = Some("x".into())).is_err());
}

/// A certificate for a name that signs itself, and a peer that shows it.
fn tls_peer(name: &str) -> (Peer, String) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let config = Arc::new(config);
    let peer = peer_of(reply("200 OK", "[]"), Then::Stay, move |stream| {
        let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        rustls::StreamOwned::new(connection, stream)
    });
    (peer, made.cert.pem())
}

fn tls_agent(peer: &Peer, ca_file: &Path, server_name: Option<&str>) -> Agent {
    agent_at(&format!("https://{}", peer.address), |settings| {
        settings.tls.ca_file = Some(ca_file.to_owned());
        settings.tls.server_name = server_name.map(Into::into);
    })
}

#[tokio::test]
async fn an_agent_proves_its_name_or_is_not_spoken_to() {
    let ca_file = std::env::temp_dir().join(format!("proconsul-http-ca-{}", std::process::id()));
    let (named, pem) = tls_peer("agent.test");
    fs::write(&ca_file, pem).unwrap();

    // The address is an IP address that the certificate does not hold.
    let told = ask(&tls_agent(&named, &ca_file, None)).await;
    assert!(matches!(told, Err(Trouble::Tls(_))), "{told:?}");
    let told = ask(&tls_agent(&named, &ca_file, Some("other.test"))).await;
    assert!(matches!(told, Err(Trouble::Tls(_))), "{told:?}");

    let agent = tls_agent(&named, &ca_file, Some("agent.test:1"));
    assert_eq!(ask(&agent).await.unwrap().body, b"[]");
    let asked = named.asked.recv().unwrap();
    assert!(
        asked.contains(&format!("host: {}\r\n", named.address)),
        "{asked}"
    );

    let blind = agent_at(&format!("https://{}", named.address), |settings| {
        settings.tls.verify = tls::Verify::Off;
    });
    assert_eq!(ask(&blind).await.unwrap().body, b"[]");

    // Another certificate takes over; a damaged one does not.
    let (ip, pem) = tls_peer("127.0.0.1");
    let changing = tls_agent(&ip, &ca_file, None);
    let told = ask(&changing).await;
    assert!(matches!(told, Err(Trouble::Tls(_))), "{told:?}");
    fs::write(&ca_file, pem).unwrap();
    assert_eq!(ask(&changing).await.unwrap().body, b"[]");
    fs::write(&ca_file, "damaged").unwrap();
    assert_eq!(ask(&changing).await.unwrap().body, b"[]");
    fs::remove_file(&ca_file).unwrap();
    assert_eq!(ask(&changing).await.unwrap().body, b"[]");
    let told = ask(&tls_agent(&ip, &ca_file, None)).await;
    assert!(matches!(told, Err(Trouble::Config(_))), "{told:?}");
}

#[tokio::test]
async fn plain_http_where_tls_is_meant_is_said_and_not_fallen_to() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 16]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        thread::sleep(SOON);
    });
    let agent = agent_at(&format!("https://{address}"), |settings| {
        settings.tls.verify = tls::Verify::Off;
    });
    let told = ask(&agent).await;
    assert_eq!(
        told,
        Err(Trouble::Tls(
            "the other side speaks no tls; is it http?".into()
        ))
    );
}

#[test]
fn the_header_that_carries_the_token_does_not_print_it() {
    let token = Token::parse("hush-1").unwrap().unwrap();
    let header = sensitive(&token).unwrap();
    assert_eq!(header, "hush-1");
    assert_eq!(format!("{header:?}"), "Sensitive");
}
