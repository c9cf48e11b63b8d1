//! An agent that cannot prove who it is, or speaks too old a TLS or none: it is told nothing,
//! the cause is named, DNS goes on, and a certificate that is made good is taken at once.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

#[path = "support/script.rs"]
mod script;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use proconsul::{Outcome, Resolver, ResolverBuilder, Source};
use rcgen::{Certificate, CertificateParams, Issuer, KeyPair, date_time_ymd};
use rustls::{
    RootCertStore, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use support::http::{ScriptedHttp, entries, ok};

/// What nobody may be told who is not known.
const CANARY: &str = "c0ffee22-dead-4bad-beef-0000000canary";

type Shown = (Vec<CertificateDer<'static>>, Vec<u8>);

/// An authority of the test's own.
struct Authority(Issuer<'static, KeyPair>, String, CertificateDer<'static>);

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let own = params.self_signed(&key).unwrap();
        let (pem, der) = (own.pem(), own.der().clone());
        Self(Issuer::new(params, key), pem, der)
    }

    /// A certificate for a name, valid in these years.
    fn signs(&self, name: &str, years: (i32, i32)) -> Shown {
        let (signed, key) = self.makes(name, years);
        (vec![signed.der().clone()], key.serialize_der())
    }

    fn makes(&self, name: &str, years: (i32, i32)) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        (params.signed_by(&key, &self.0).unwrap(), key)
    }
}

fn file(name: &str, text: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("bad-tls-{}-{name}", std::process::id()));
    fs::write(&path, text).unwrap();
    path
}

/// A peer that shows the certificate that stands there, and gives all that it was told.
fn peer(shown: &Arc<Mutex<Shown>>) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let told = Arc::<Mutex<Vec<u8>>>::default();
    let tells = Arc::clone(&told);
    let tell = move |_: Option<&[CertificateDer<'static>]>, said: &[u8]| {
        tells.lock().unwrap().extend_from_slice(said);
    };
    (start(shown, None, tell), told)
}

/// A peer that shows the certificate that stands there, wants one of `clients` where there is
/// such an authority, and tells what it was shown and told.
fn start(
    shown: &Arc<Mutex<Shown>>,
    clients: Option<&Authority>,
    tell: impl Fn(Option<&[CertificateDer<'static>]>, &[u8]) + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let shown = Arc::clone(shown);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = clients.map_or_else(WebPkiClientVerifier::no_client_auth, |clients| {
        let mut roots = RootCertStore::empty();
        roots.add(clients.2.clone()).unwrap();
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap()
    });
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let (chain, key) = shown.lock().unwrap().clone();
            let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_client_cert_verifier(Arc::clone(&verifier))
                .with_single_cert(chain, PrivatePkcs8KeyDer::from(key).into())
                .unwrap();
            let connection = ServerConnection::new(Arc::new(config)).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            let mut head = [0; 4_096];
            let Ok(length) = stream.read(&mut head) else {
                continue;
            };
            tell(stream.conn.peer_certificates(), &head[..length]);
            let body = entries("web", &[80]);
            let length = body.len();
            let reply = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            _ = stream.write_all(reply.as_bytes());
            stream.conn.send_close_notify();
            _ = stream.flush();
        }
    });
    address
}

fn builder(address: SocketAddr, ca: &Path) -> ResolverBuilder {
    Resolver::builder()
        .dns("none")
        .http(&format!("https://{address}"))
        .ca_file(ca)
        .token(CANARY)
        .ttl_floor(Duration::ZERO)
}

const NOW: (i32, i32) = (2020, 2099);

#[tokio::test]
async fn who_cannot_prove_who_it_is_is_told_nothing_and_the_cause_is_named() {
    let (known, stranger) = (Authority::new("known"), Authority::new("stranger"));
    let ca = file("known.pem", &known.1);
    for (name, shown, cause) in [
        (
            "one of another authority",
            stranger.signs("127.0.0.1", NOW),
            "UnknownIssuer",
        ),
        (
            "another name",
            known.signs("agent.test", NOW),
            "not valid for",
        ),
        (
            "one that has expired",
            known.signs("127.0.0.1", (2001, 2002)),
            "expired",
        ),
        (
            "one of the future",
            known.signs("127.0.0.1", (2098, 2099)),
            "not valid yet",
        ),
    ] {
        let (address, told) = peer(&Arc::new(Mutex::new(shown)));
        let resolver = builder(address, &ca).build().unwrap();
        let error = resolver.lookup("web").await.unwrap_err();
        let last = error.attempts().last().unwrap();
        assert_eq!(last.outcome, Outcome::Unreachable, "{name}: {error}");
        assert!(last.detail.contains("tls: "), "{name}: {error}");
        assert!(last.detail.contains(cause), "{name}: {error}");
        assert_eq!(*told.lock().unwrap(), b"", "{name}");
    }
    let (address, told) = peer(&Arc::new(Mutex::new(known.signs("127.0.0.1", NOW))));
    builder(address, &ca)
        .build()
        .unwrap()
        .lookup("web")
        .await
        .unwrap();
    assert!(String::from_utf8_lossy(&told.lock().unwrap()).contains(CANARY));
    fs::remove_file(ca).unwrap();
}

/// A TLS record of a ServerHello that speaks this version (RFC 5246, section 7.4.1.3).
fn server_hello(version: [u8; 2]) -> Vec<u8> {
    let mut hello = version.to_vec();
    hello.extend([7; 32]);
    // No session, TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, no compression.
    hello.extend([0, 0xc0, 0x13, 0]);
    let length = u8::try_from(hello.len()).unwrap();
    let mut record = vec![0x16, version[0], version[1], 0, length + 4, 2, 0, 0, length];
    record.extend(hello);
    record
}

#[tokio::test]
async fn too_old_a_tls_and_none_are_refused_and_no_plain_http_is_tried() {
    let ca = file("any.pem", &Authority::new("any").1);
    for (name, says) in [
        ("TLS 1.0", server_hello([3, 1])),
        ("TLS 1.1", server_hello([3, 2])),
        ("SSL 3", server_hello([3, 0])),
        ("an alert about the version", vec![0x15, 3, 1, 0, 2, 2, 70]),
        ("plain HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("noise", vec![0xff; 64]),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let told = Arc::<Mutex<Vec<u8>>>::default();
        let tells = Arc::clone(&told);
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut hello = [0; 4_096];
                let length = stream.read(&mut hello).unwrap_or(0);
                tells.lock().unwrap().extend_from_slice(&hello[..length]);
                _ = stream.write_all(&says);
                _ = stream.read_to_end(&mut tells.lock().unwrap());
            }
        });
        let resolver = builder(address, &ca).build().unwrap();
        let error = resolver.lookup("web").await.unwrap_err();
        let last = error.attempts().last().unwrap();
        assert_eq!(last.outcome, Outcome::Unreachable, "{name}: {error}");
        assert!(last.detail.contains("tls: "), "{name}: {error}");
        let told = told.lock().unwrap();
        let told = String::from_utf8_lossy(&told);
        assert!(!told.contains("canary") && !told.contains("GET"), "{name}");
    }
    fs::remove_file(ca).unwrap();
}

#[tokio::test]
async fn dns_goes_on_meanwhile_and_a_certificate_that_is_made_good_is_taken_at_once() {
    let authority = Authority::new("first");
    let ca = file("made-good.pem", &authority.1);
    let shown = Arc::new(Mutex::new(authority.signs("127.0.0.1", (2001, 2002))));
    let (address, _) = peer(&shown);
    let dns = script::Server::start(|question, _| vec![script::srv(question, 2)]).await;
    let both = builder(address, &ca).dns(&dns.address().to_string());
    let both = both.build().unwrap();
    let answer = both.lookup("web").await.unwrap();
    assert_eq!(
        (answer.source(), answer.endpoints().len()),
        (Source::Dns, 2)
    );

    let alone = builder(address, &ca).build().unwrap();
    assert!(alone.lookup("web").await.is_err());
    *shown.lock().unwrap() = authority.signs("127.0.0.1", NOW);
    support::wait_for("the certificate that is good", async || {
        alone.lookup("web").await.ok()
    })
    .await;
    // What is trusted is read again too: now nothing that this one signs.
    let other = Authority::new("second");
    fs::write(&ca, &other.1).unwrap();
    support::wait_for("the authority that is not trusted any more", async || {
        alone.lookup("web").require_fresh().await.err()
    })
    .await;
    *shown.lock().unwrap() = other.signs("127.0.0.1", NOW);
    support::wait_for("the new one", async || {
        alone.lookup("web").require_fresh().await.ok()
    })
    .await;
    fs::remove_file(ca).unwrap();
}

#[tokio::test]
async fn a_pair_of_our_own_is_replaced_on_disk_and_the_old_one_shown_until_both_files_are_there() {
    let authority = Authority::new("of both");
    let pair = |name: &str| {
        let (signed, key) = authority.makes(name, NOW);
        (signed.der().clone(), signed.pem(), key.serialize_pem())
    };
    let (old, new) = (pair("old.test"), pair("new.test"));
    let ca = file("mutual.pem", &authority.1);
    let (cert, key) = (
        file("mutual-cert.pem", &old.1),
        file("mutual-key.pem", &old.2),
    );
    let by = Arc::<Mutex<Vec<CertificateDer<'static>>>>::default();
    let noted = Arc::clone(&by);
    let shown = Arc::new(Mutex::new(authority.signs("127.0.0.1", NOW)));
    let address = start(&shown, Some(&authority), move |client, _| {
        noted.lock().unwrap().push(client.unwrap()[0].clone());
    });
    let client = builder(address, &ca).cert_file(&cert).key_file(&key);
    let client = client.build().unwrap();
    // Every answer, and by whom it was asked for.
    let asks = async || {
        let asked = client.lookup("web").max_age(Duration::ZERO).require_fresh();
        asked.await.unwrap();
        by.lock().unwrap().last().cloned().unwrap()
    };
    assert_eq!(asks().await, old.0);
    // The new certificate is there, and its key is not yet.
    fs::write(&cert, &new.1).unwrap();
    for _ in 0..5 {
        assert_eq!(asks().await, old.0);
    }
    fs::write(&key, &new.2).unwrap();
    support::wait_for("the new pair", async || {
        (asks().await == new.0).then_some(())
    })
    .await;
    // What is no pair at all changes nothing.
    fs::write(&key, "no key").unwrap();
    assert_eq!(asks().await, new.0);
    for file in [ca, cert, key] {
        fs::remove_file(file).unwrap();
    }
}

#[tokio::test]
async fn an_agent_without_tls_is_not_asked_by_it() {
    let plain = ScriptedHttp::of_web(|_| vec![ok("", &entries("web", &[80]))]);
    let resolver = Resolver::builder()
        .dns("none")
        .http(&format!("https://{}", plain.address()))
        .token(CANARY);
    let error = resolver.build().unwrap().lookup("web").await.unwrap_err();
    assert!(!error.is_not_found(), "{error}");
    assert_eq!(plain.asked().len(), 0);
}
