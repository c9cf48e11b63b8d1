//! **Door.** The stub: a DNS server for Consul's domain on this machine. What a
//! packet means and how an answer fits is in `stub/answer.rs`, the sockets are in
//! `stub/listen.rs`, what the zone answers in `zone.rs`.

pub(crate) mod answer;
mod listen;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::timeout;

use self::{answer::Judged, listen::Sockets};
use crate::{
    endpoint::Transport,
    error::{Error, ErrorKind},
    records::write::Sections,
    resolver::Resolver,
    zone,
};

/// A DNS server for Consul's domain, bound and ready to [`run`](Self::run).
#[derive(Debug)]
pub struct Stub {
    sockets: Vec<Sockets>,
    server: Arc<Server>,
}

/// Every question is answered within 900 ms, before clients ask again after a second.
const LIMIT: Duration = Duration::from_millis(850);

/// What every packet is answered from.
#[derive(Debug)]
struct Server {
    resolver: Resolver,
}

impl Stub {
    /// Binds each address on UDP and TCP. Port 0 takes a free port, the same for
    /// both; [`addresses`](Self::addresses) tells which. `0.0.0.0` and `[::]` stand
    /// for every address of their family; a question is answered from the one that
    /// it was sent to: over TCP always, over UDP on Linux.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] with the address that cannot be had, and why.
    pub async fn bind(resolver: Resolver, addresses: &[SocketAddr]) -> Result<Self, Error> {
        let mut sockets = Vec::with_capacity(addresses.len());
        for address in addresses {
            sockets.push(
                Sockets::bind(*address)
                    .await
                    .map_err(|error| not_bound(*address, error))?,
            );
        }
        Ok(Self {
            sockets,
            server: Arc::new(Server { resolver }),
        })
    }

    /// Where it answers.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(Sockets::address).collect()
    }

    /// Answers until `stop` completes; then takes no more questions, sends the
    /// answers that are still due for at most 5 s, and returns.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the sockets at once.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        listen::run(self.sockets, &self.server, stop).await;
    }
}

impl Server {
    /// The life of one packet. `None`: nothing is to be sent.
    async fn answer(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match answer::judge(packet, self.resolver.domain()) {
            Judged::Drop => None,
            Judged::Reply(reply) => Some(reply),
            Judged::Ask(question) => {
                let answer = timeout(LIMIT, zone::answer(&self.resolver, &question.asked));
                let sections = match answer.await {
                    Ok((sections, _)) => sections,
                    Err(_) => Sections::failed(ErrorKind::Timeout),
                };
                Some(question.reply(&sections, transport))
            }
        }
    }
}

fn not_bound(address: SocketAddr, error: io::Error) -> Error {
    let next = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program answers there: choose another port with --listen"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need the capability CAP_NET_BIND_SERVICE: choose another with --listen"
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address",
        _ => "choose another with --listen",
    };
    Error::caused(
        ErrorKind::Io,
        format!("{address} cannot be bound: {error}; {next}"),
        error,
    )
}
