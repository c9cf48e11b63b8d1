//! The tests' own clients: as plain as can be, so that a fault in proconsul is
//! not hidden by the same fault here.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Edns, Message, OpCode, Query},
    rr::{Name, RecordType},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// An agent that is up answers within milliseconds, one that is starting or
/// paused not at all.
const REPLY: Duration = Duration::from_secs(2);

/// How a question is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// Without EDNS.
    Tcp,
    /// Without EDNS.
    Udp,
    /// UDP, with EDNS and this size.
    Edns(u16),
}

/// Asks over UDP, without EDNS, from the loopback address and with a connected
/// socket, which takes replies from the address asked and no other. `None` when no readable reply comes.
pub(crate) async fn ask_udp(server: SocketAddr, name: &str, kind: RecordType) -> Option<Message> {
    let asked = ask(server, name, kind, Over::Udp).await;
    asked.map(|(reply, _)| reply)
}

/// Asks over TCP. `None` when no readable reply comes.
pub(crate) async fn ask_tcp(server: SocketAddr, name: &str, kind: RecordType) -> Option<Message> {
    let asked = ask(server, name, kind, Over::Tcp).await;
    asked.map(|(reply, _)| reply)
}

/// Asks, and gives the reply with its length. `None` when no readable reply comes.
pub(crate) async fn ask(
    server: SocketAddr,
    name: &str,
    kind: RecordType,
    over: Over,
) -> Option<(Message, usize)> {
    let mut question = question(name, kind);
    if let Over::Edns(size) = over {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        question.set_edns(edns);
    }
    let packet = exchange(server, &question.to_vec().ok()?, over).await?;
    let reply = Message::from_vec(&packet).ok()?;
    let ours = reply.metadata.id == question.metadata.id;
    ours.then_some((reply, packet.len()))
}

/// Sends a packet and gives what comes back. `None` when nothing does.
pub(crate) async fn exchange(server: SocketAddr, packet: &[u8], over: Over) -> Option<Vec<u8>> {
    let told = async {
        match over {
            Over::Tcp => over_tcp(server, packet).await,
            Over::Udp | Over::Edns(_) => over_udp(server, packet).await,
        }
    };
    timeout(REPLY, told).await.ok()?
}

async fn over_udp(server: SocketAddr, packet: &[u8]) -> Option<Vec<u8>> {
    let own = if server.is_ipv4() {
        "127.0.0.1:0"
    } else {
        "[::1]:0"
    };
    let socket = UdpSocket::bind(own).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(packet).await.ok()?;
    let mut reply = vec![0; 65_535];
    let length = socket.recv(&mut reply).await.ok()?;
    reply.truncate(length);
    Some(reply)
}

async fn over_tcp(server: SocketAddr, packet: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    stream.write_all(&framed(packet)).await.ok()?;
    next_message(&mut stream).await
}

/// A message as TCP carries it: its length comes first.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("TCP carries 64 kB at most");
    [&length.to_be_bytes(), message].concat()
}

/// The next message of a connection. `None` when none comes for long.
pub(crate) async fn next_message(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let length = timeout(Duration::from_secs(10), stream.read_u16()).await;
    let mut message = vec![0; length.ok()?.ok()?.into()];
    stream.read_exact(&mut message).await.ok()?;
    Some(message)
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.op_code = OpCode::Query;
    message.metadata.recursion_desired = true;
    // Label by label: hickory's parser refuses some that the wire carries.
    let labels = name.split('.').filter(|label| !label.is_empty());
    let name = Name::from_labels(labels.map(str::as_bytes))
        .expect("a test asks for names that can be asked for");
    message.add_query(Query::query(name, kind));
    message
}

/// An HTTP client of no settings but its own: no proxy of the environment, and
/// no TLS provider made global, since proconsul must do without one.
pub(crate) fn http_client() -> reqwest::Client {
    http_client_with(|builder| builder)
}

/// The same with something else about it.
pub(crate) fn http_client_with(
    more: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> reqwest::Client {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .expect("ring speaks TLS 1.2 and 1.3")
    .with_root_certificates(rustls::RootCertStore::empty())
    .with_no_client_auth();
    let builder = reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls)
        .timeout(super::PATIENCE);
    more(builder)
        .build()
        .expect("a client without files or environment is always built")
}
