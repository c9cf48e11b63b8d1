//! **Door.** The stub: a DNS server for Consul's domain on this machine. The life of a
//! question is in `stub/server.rs`, what a packet means and how an answer fits in
//! `stub/answer.rs`, the sockets are in `stub/listen.rs`, what the zone answers in `zone.rs`.

pub(crate) mod answer;
mod budget;
mod forward;
mod framed;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod listen;
mod networks;
mod server;
pub(crate) mod shortcut;
mod tally;
pub(crate) mod upstreams;

#[cfg(any(fuzzing, test))]
pub(crate) use self::forward::answers as answers_forwarded;
pub use self::{
    budget::DEFAULT as PER_SECOND, networks::Networks, tally::Traffic, upstreams::Upstreams,
};

use std::{io, net::SocketAddr, sync::Arc};

use self::{listen::Sockets, server::Server};
use crate::{
    error::{Error, ErrorKind},
    resolver::Resolver,
};

/// A DNS server for Consul's domain, bound and ready to [`run`](Self::run).
#[derive(Debug)]
pub struct Stub {
    sockets: Vec<Sockets>,
    server: Arc<Server>,
}

/// Changes what a stub answers from while it runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Control(Arc<Server>);

impl Control {
    /// The resolver that it answers from now.
    pub fn resolver(&self) -> Resolver {
        self.0.current().resolver.clone()
    }

    /// From now on it answers from this resolver, and sends other names there.
    pub fn replace(&self, resolver: Resolver, upstreams: Upstreams) {
        self.0.replace(resolver, upstreams);
    }

    /// The same networks as [`Stub::trusting`], from the next reply on.
    pub fn trust(&self, networks: Networks) {
        self.0.trusted.set(networks);
    }

    /// The same limit as [`Stub::unknown_per_second`], from now on.
    pub fn unknown_per_second(&self, most: u32) {
        self.0.budget().set(most);
    }

    /// The same limit as [`Stub::forwarded_per_second`], from now on.
    pub fn forwarded_per_second(&self, most: u32) {
        self.0.counted.lasting.budget().set(most);
    }
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
        Ok(Self::over(resolver, sockets))
    }

    /// Takes sockets that are bound already, as a service manager hands them over.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] for a socket that cannot be used.
    pub fn with_sockets(
        resolver: Resolver,
        udp: Vec<std::net::UdpSocket>,
        tcp: Vec<std::net::TcpListener>,
    ) -> Result<Self, Error> {
        let udp = udp.into_iter().map(Sockets::of_udp);
        let tcp = tcp.into_iter().map(Sockets::of_tcp);
        let sockets: io::Result<Vec<_>> = udp.chain(tcp).collect();
        let sockets = sockets.map_err(|error| {
            let message = format!("a socket that was handed over cannot be used: {error}");
            Error::caused(ErrorKind::Io, message, error)
        })?;
        Ok(Self::over(resolver, sockets))
    }

    fn over(resolver: Resolver, sockets: Vec<Sockets>) -> Self {
        let addresses = sockets.iter().map(Sockets::address).collect();
        let server = Arc::new(Server::new(resolver, addresses));
        Self { sockets, server }
    }

    /// Where it answers.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.server.addresses.clone()
    }

    /// Sends questions for names that are not Consul's to these servers; otherwise they
    /// are refused. Answers say then that recursion is available.
    #[must_use]
    pub fn forwarding(self, upstreams: Upstreams) -> Self {
        let resolver = self.server.current().resolver.clone();
        self.server.replace(resolver, upstreams);
        self
    }

    /// Only clients of these networks get replies by UDP as long as they can take, at most 1,232
    /// bytes (4,096 on this machine). Others get at most three times what they sent, and come over TCP for more: for who
    /// writes another's address on a question, the stub is no better than any other way to flood
    /// it (RFC 5358). Default: this machine, private and link-local networks.
    #[must_use]
    pub fn trusting(self, trusted: Networks) -> Self {
        self.control().trust(trusted);
        self
    }

    /// At most so many questions a second go to Consul for names of which nothing is known, also
    /// not that they do not exist, and as many at once; 0 is no limit. Who asks for more of them
    /// is told that there is no time (SERVFAIL, "Not Ready": RFC 8914, section 4.15), so that a
    /// flood of names that somebody makes up is not one at the agent. Of the last half one
    /// client's socket gets 64 a second, so that others find what they need. Default: 5,000.
    #[must_use]
    pub fn unknown_per_second(self, most: u32) -> Self {
        self.control().unknown_per_second(most);
        self
    }

    /// At most so many questions a second go to upstreams for names of which nothing is
    /// remembered, and as many at once; 0 is no limit. The rest is as for names in
    /// [Consul's domain](Self::unknown_per_second), which have a limit of their own: a flood of
    /// the ones takes nothing from the others. Default: 5,000.
    #[must_use]
    pub fn forwarded_per_second(self, most: u32) -> Self {
        self.control().forwarded_per_second(most);
        self
    }

    /// Changes what it answers from, now and later: the handle outlives
    /// [`run`](Self::run).
    pub fn control(&self) -> Control {
        Control(Arc::clone(&self.server))
    }

    /// What it has answered, now and later: the handle outlives [`run`](Self::run).
    pub fn traffic(&self) -> Traffic {
        Traffic(Arc::clone(&self.server.counted))
    }

    /// Answers until `stop` completes; then takes no more questions, sends the
    /// answers that are still due for at most 5 s, and returns.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the sockets, those for UDP within 100 ms.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        listen::run(self.sockets, &self.server, stop).await;
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
