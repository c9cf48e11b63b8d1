//! **Door.** For tower and hyper: a service's endpoints as a tower `Discover`, and a
//! connector that takes service names.

use std::{
    collections::HashSet,
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use tower::discover;

use crate::{
    endpoint::Endpoint,
    resolver::{Changes, Resolver, Service},
};

/// The endpoints of a service as a [`tower::discover::Discover`], each made into a tower
/// service. Give it to `tower::balance::p2c::Balance`. Made by [`Service::discover`].
#[must_use = "nothing is discovered until it is polled"]
pub struct Discover<F> {
    changes: Changes,
    make: F,
    /// What is still to be told, the last first.
    due: Vec<Due>,
    known: HashSet<SocketAddr>,
}

enum Due {
    Remove(SocketAddr),
    Insert(Endpoint),
}

impl Service {
    /// Its endpoints for tower, as they come and go; `make` makes a tower service of each.
    pub fn discover<S, F: FnMut(&Endpoint) -> S>(&self, make: F) -> Discover<F> {
        Discover {
            changes: self.changes(),
            make,
            due: Vec::new(),
            known: HashSet::new(),
        }
    }
}

impl<F> Unpin for Discover<F> {}

impl<S, F: FnMut(&Endpoint) -> S> Stream for Discover<F> {
    type Item = Result<discover::Change<SocketAddr, S>, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match this.due.pop() {
                Some(Due::Remove(address)) => {
                    this.known.remove(&address);
                    return Poll::Ready(Some(Ok(discover::Change::Remove(address))));
                }
                Some(Due::Insert(endpoint)) => {
                    let address = endpoint.socket_addr();
                    // One that has changed is what it was to whoever connects.
                    if endpoint.port != 0 && this.known.insert(address) {
                        let service = (this.make)(&endpoint);
                        return Poll::Ready(Some(Ok(discover::Change::Insert(address, service))));
                    }
                }
                None => match Pin::new(&mut this.changes).poll_next(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Ready(Some(change)) => {
                        let gone = change.removed.iter().map(Endpoint::socket_addr);
                        this.due.extend(gone.map(Due::Remove));
                        this.due.extend(change.added.into_iter().map(Due::Insert));
                    }
                },
            }
        }
    }
}

impl<F> fmt::Debug for Discover<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discover")
            .field("changes", &self.changes)
            .finish_non_exhaustive()
    }
}

/// The time for a connection to one address.
const LIMIT: Duration = Duration::from_secs(1);

/// Connects to services by name, for hyper's clients: `http://web/`. Names in Consul's
/// domain and names of one label are found with the resolver, their port too where the URI
/// has none; others are the system's, and addresses are taken as they are.
///
/// A connection goes to one endpoint, drawn by weight; where it cannot be made within 1 s,
/// to the others in turn.
#[derive(Clone, Debug)]
pub struct Connector(Resolver);

impl Resolver {
    /// A [`Connector`] for hyper's clients.
    pub fn connector(&self) -> Connector {
        Connector(self.clone())
    }
}

impl Connector {
    async fn connect(self, uri: Uri) -> io::Result<TokioIo<TcpStream>> {
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
        let host = uri.host().ok_or_else(|| invalid("the URI has no host"))?;
        let usual = if uri.scheme_str() == Some("https") {
            443
        } else {
            80
        };
        let addresses = self.0.addresses(host).await.map_err(io::Error::other)?;
        let mut last = invalid("the host has no address");
        for mut address in addresses {
            match uri.port_u16() {
                Some(port) => address.set_port(port),
                None if address.port() == 0 => address.set_port(usual),
                None => {}
            }
            let connecting = timeout(LIMIT, TcpStream::connect(address));
            match connecting.await.unwrap_or_else(|late| Err(late.into())) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(TokioIo::new(stream));
                }
                Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
            }
        }
        Err(last)
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}
