//! Embeds the DNS server in a program, on a free port, and asks it one question.
//!
//! ```console
//! $ PROCONSUL_CATALOG=examples/catalog.json cargo run --example stub -- web.service.consul
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::{error::Error, net::UdpSocket, time::Duration};

use proconsul::{Resolver, stub::Stub};
use tokio::sync::oneshot;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1);
    let name = name.unwrap_or_else(|| "web.service.consul".to_owned());

    let stub = Stub::bind(Resolver::from_env()?, &["127.0.0.1:0".parse()?]).await?;
    let server = stub.addresses()[0];
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(stub.run(async { stopped.await.unwrap_or(()) }));

    // Any DNS client would do; this one needs no other crate.
    let packet = question(&name);
    let reply = tokio::task::spawn_blocking(move || -> std::io::Result<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(&packet, server)?;
        let mut reply = vec![0; 4096];
        let length = socket.recv(&mut reply)?;
        reply.truncate(length);
        Ok(reply)
    })
    .await??;

    // Response code and number of answers stand in the header (RFC 1035, section 4.1.1).
    let (code, answers) = (reply[3] & 15, u16::from_be_bytes([reply[6], reply[7]]));
    println!("{name} SRV: response code {code}, {answers} answers");

    stop.send(())
        .map_err(|()| "the server has ended by itself")?;
    Ok(serving.await?)
}

/// An SRV question for `name` (RFC 1035, section 4.1).
fn question(name: &str) -> Vec<u8> {
    let mut packet = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        packet.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        packet.extend(label.bytes());
    }
    packet.extend([0, 0, 33, 0, 1]);
    packet
}
