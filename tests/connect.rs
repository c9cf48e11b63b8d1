//! mTLS between two services with the certificates of a real agent: who is let in, who is
//! not, and what happens when the authority is another one.
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

mod support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use proconsul::{Connect, Resolver};
use rustls::pki_types::ServerName;
use serde_json::json;
use support::{Agent, PATIENCE, wait_for};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

async fn agent() -> Agent {
    let config = json!({ "connect": { "enabled": true } });
    Agent::builder().config(config).start().await
}

async fn identity(agent: &Agent, service: &str) -> Connect {
    let builder = Resolver::builder().dns("none").http(&agent.http());
    let connect = builder.build().unwrap().connect(service).unwrap();
    let ready = timeout(PATIENCE, connect.ready()).await;
    assert!(ready.is_ok(), "{:?}", connect.problem());
    connect
}

/// A server for these, or for all where none is named.
async fn server(connect: &Connect, allowed: &[&str]) -> SocketAddr {
    let config = match allowed {
        [] => connect.server_config_for_all(),
        allowed => connect.server_config(allowed),
    };
    serve(connect, config.unwrap()).await
}

/// Tells each client who it is, as far as that is known, and whether it is let in.
async fn serve(connect: &Connect, config: rustls::ServerConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let connect = connect.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let certificates = stream.get_ref().1.peer_certificates();
            let peer = Connect::peer(certificates).unwrap();
            let may = connect.authorize(certificates).await.unwrap();
            let sum: u64 = certificates.unwrap()[0]
                .iter()
                .map(|byte| u64::from(*byte))
                .sum();
            let told = format!("{} {may} {sum}", peer.service);
            _ = stream.write_all(told.as_bytes()).await;
            _ = stream.shutdown().await;
        }
    });
    address
}

/// What the server says to a client that wants to talk to that service.
async fn shown(
    config: rustls::ClientConfig,
    server: SocketAddr,
) -> std::io::Result<(String, String)> {
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("anything.example").unwrap();
    let stream = TcpStream::connect(server).await?;
    let mut stream = connector.connect(name, stream).await?;
    // Who was let in once is looked at again each time.
    let kind = stream.get_ref().1.handshake_kind();
    assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    let mut told = String::new();
    stream.read_to_string(&mut told).await?;
    let (told, sum) = told.rsplit_once(' ').unwrap_or_default();
    Ok((told.to_owned(), sum.to_owned()))
}

/// The same without the sum of what we showed.
async fn call(config: rustls::ClientConfig, server: SocketAddr) -> std::io::Result<String> {
    Ok(shown(config, server).await?.0)
}

#[tokio::test]
async fn two_services_believe_each_other_and_nobody_else() {
    let agent = agent().await;
    let (web, api) = (identity(&agent, "web").await, identity(&agent, "api").await);
    let id = web.identity().unwrap();
    assert_eq!((&*id.service, &*id.datacenter), ("web", "dc1"));
    let address = server(&web, &["api"]).await;
    let told = call(api.client_config("web").unwrap(), address).await;
    assert_eq!(told.unwrap(), "api true");
    // The client asked for somebody else.
    let error = call(api.client_config("db").unwrap(), address)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("is not db"), "{error}");
    let elsewhere = api.client_config("web@dc2").unwrap();
    call(elsewhere, address).await.unwrap_err();
    // The server lets others in.
    let db = identity(&agent, "db").await;
    call(db.client_config("web").unwrap(), address)
        .await
        .unwrap_err();
    let open = server(&web, &[]).await;
    assert_eq!(
        call(db.client_config("web").unwrap(), open).await.unwrap(),
        "db true"
    );
    // Without a certificate.
    let mut naked = db.client_config("web").unwrap();
    naked.client_auth_cert_resolver = Arc::new(Nobody);
    call(naked, open).await.unwrap_err();
    // Of another cluster.
    let other = self::agent().await;
    let stranger = identity(&other, "api").await;
    call(stranger.client_config("web").unwrap(), open)
        .await
        .unwrap_err();
    let address = server(&stranger, &[]).await;
    call(api.client_config("api").unwrap(), address)
        .await
        .unwrap_err();
    assert!(!format!("{web:?}").contains("PRIVATE"));
}

#[tokio::test]
async fn a_list_without_a_name_lets_nobody_in_and_is_told() {
    let agent = agent().await;
    let web = identity(&agent, "web").await;
    for none in [&[][..], &[""], &["api", ""], &["@dc1"]] {
        let error = web.server_config(none).unwrap_err();
        assert_eq!(error.kind(), proconsul::ErrorKind::Invalid);
        assert!(
            error.to_string().contains("server_config_for_all()"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn intentions_are_asked() {
    let agent = agent().await;
    let (web, api) = (identity(&agent, "web").await, identity(&agent, "api").await);
    let address = server(&web, &[]).await;
    let deny = json!({ "SourceName": "api", "DestinationName": "web", "Action": "deny" });
    let made = agent.request(reqwest::Method::POST, "/v1/connect/intentions");
    assert!(made.json(&deny).send().await.unwrap().status().is_success());
    wait_for("the word of the intentions", async || {
        let told = call(api.client_config("web").unwrap(), address)
            .await
            .unwrap();
        (told == "api false").then_some(())
    })
    .await;
    assert!(web.authorize(None).await.is_err());
}

#[tokio::test]
async fn a_new_authority_is_taken_over_by_configurations_that_are_there() {
    let agent = agent().await;
    let (web, api) = (identity(&agent, "web").await, identity(&agent, "api").await);
    let address = server(&web, &["api"]).await;
    let config = api.client_config("web").unwrap();
    // A configuration keeps its identity by itself.
    let alone = identity(&agent, "api").await.client_config("web").unwrap();
    let before = shown(alone.clone(), address).await.unwrap();
    assert_eq!(call(config.clone(), address).await.unwrap(), "api true");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let authority = json!({
        "Provider": "consul",
        "Config": { "LeafCertTTL": "72h", "RotationPeriod": "2160h", "PrivateKey": key.serialize_pem(), "RootCert": "" },
    });
    agent.put("/v1/connect/ca/configuration", authority).await;
    // The agent spreads new certificates over half a minute.
    let rotated = async {
        while web.rotations() < 2 || api.rotations() < 2 {
            sleep(Duration::from_millis(100)).await;
            // There is no gap.
            assert_eq!(call(config.clone(), address).await.unwrap(), "api true");
        }
    };
    timeout(Duration::from_secs(90), rotated).await.unwrap();
    wait_for("the new certificate of who is alone", async || {
        let now = shown(alone.clone(), address).await.unwrap();
        (now.0 == before.0 && now.1 != before.1).then_some(())
    })
    .await;
    assert_eq!(call(config, address).await.unwrap(), "api true");
}

#[tokio::test]
async fn an_agent_without_connect_is_told() {
    let config = json!({ "connect": { "enabled": false } });
    let agent = Agent::builder().config(config).start().await;
    let builder = Resolver::builder().dns("none").http(&agent.http());
    let connect = builder.build().unwrap().connect("web").unwrap();
    let problem = wait_for("the problem", async || connect.problem()).await;
    assert!(
        problem.to_string().contains("connect { enabled"),
        "{problem}"
    );
    assert!(connect.identity().is_none());
}

/// A client that shows nothing.
#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
