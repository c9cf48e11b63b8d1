//! **Door.** [`Connect`]: mTLS between services with the certificates of Consul's own
//! authority, without a proxy (Consul docs: Connect-Native). Who is believed is
//! [`verify`]'s to say.

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod spiffe;
mod verify;

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    crypto::ring,
    pki_types::CertificateDer,
    server::NoServerSessionStorage,
    version::{TLS12, TLS13},
};
use serde::Deserialize;
use tokio::sync::watch;
use tracing::{debug, warn};
use webpki::EndEntityCert;

pub use self::spiffe::{SpiffeId, SpiffeIdError};
use self::verify::{ClientIs, Leaf, LetIn, Peer, Ring, Roots, ServerIs, Shown};
use crate::{
    consul::{
        api::{Api, Repeat, json},
        health::ask::escaped,
        http::{Reply, Trouble, Verb},
    },
    error::{Error, ErrorKind},
    resolver::Resolver,
    task::{Owned, runtime},
};

/// The identity of a service of this process, kept up to date by its agent; made by
/// [`Resolver::connect`]. Cheap to clone; it is kept while a clone or a configuration that
/// it made lives.
///
/// Certificates are rotated by the agent; configurations that were made before show and
/// trust what is newest in each handshake. No session is resumed, for that would let in
/// again whoever was let in once.
///
/// A peer is named `api` in our own datacenter, `api@dc2` in another; whoever it is, it has
/// to be in our own namespace and partition.
#[derive(Clone)]
pub struct Connect(Arc<Inner>);

struct Inner {
    service: Box<str>,
    ring: Arc<Ring>,
    api: Api,
    told: watch::Receiver<Told>,
}

/// What was heard of each.
#[derive(Clone, Debug, Default)]
struct Told {
    leaf: Heard,
    roots: Heard,
    /// How often the leaf was another one.
    rotations: u64,
}

/// What was heard of one of them.
#[derive(Clone, Debug, Default)]
struct Heard {
    is_known: bool,
    problem: Option<Error>,
}

impl Resolver {
    /// The identity of `service` for mTLS. The token needs `service:write` for it.
    ///
    /// ```no_run
    /// use std::sync::Arc;
    /// use tokio_rustls::TlsConnector;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let resolver = proconsul::Resolver::from_env()?;
    /// let api = resolver.connect("api")?;
    /// api.ready().await;
    /// // Talks to whoever is `web`, and to nobody else.
    /// let connector = TlsConnector::from(Arc::new(api.client_config("web")?));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] where the HTTP API is turned off, and outside a tokio runtime.
    pub fn connect(&self, service: &str) -> Result<Connect, Error> {
        let runtime = runtime("an identity can be kept")?;
        if self.config().http.addresses.is_empty() {
            let message = "the HTTP API is turned off: certificates come from it";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let api = self.agent_api();
        let ring = Arc::new(Ring::new(Arc::new(ring::default_provider())));
        let (tell, told) = watch::channel(Told::default());
        let tell = Arc::new(tell);
        let roots = {
            let (api, ring, tell) = (api.clone(), Arc::downgrade(&ring), Arc::clone(&tell));
            let mut before = Vec::new();
            let heard = move |replied| {
                take(
                    &tell,
                    |told| &mut told.roots,
                    replied,
                    &mut before,
                    |body| {
                        if let Some(ring) = ring.upgrade() {
                            ring.roots.store(Some(Arc::new(Roots::read(body)?)));
                        }
                        Ok(())
                    },
                )
            };
            async move { api.follow("/v1/agent/connect/ca/roots?", None, heard).await }
        };
        let leaf = {
            let (api, ring) = (api.clone(), Arc::downgrade(&ring));
            let path = format!("/v1/agent/connect/ca/leaf/{}?", escaped(service));
            let mut before = Vec::new();
            let heard = move |replied| {
                take(
                    &tell,
                    |told| &mut told.leaf,
                    replied,
                    &mut before,
                    |body| {
                        if let Some(ring) = ring.upgrade() {
                            let leaf = Leaf::read(body, &ring.provider)?;
                            debug!(id = %leaf.id, "a certificate of our own");
                            ring.leaf.store(Some(Arc::new(leaf)));
                            tell.send_modify(|told| told.rotations += 1);
                        }
                        Ok(())
                    },
                )
            };
            async move { api.follow(&path, None, heard).await }
        };
        // They end with the ring.
        ring.keep([
            Owned(runtime.spawn(roots).abort_handle()),
            Owned(runtime.spawn(leaf).abort_handle()),
        ]);
        Ok(Connect(Arc::new(Inner {
            service: service.into(),
            ring,
            api,
            told,
        })))
    }
}

/// Takes one reply in, for that part of what is told. Whether it is news.
fn take(
    tell: &watch::Sender<Told>,
    part: impl Fn(&mut Told) -> &mut Heard,
    replied: Result<Reply, Trouble>,
    before: &mut Vec<u8>,
    read: impl FnOnce(&[u8]) -> Result<(), verify::Unread>,
) -> bool {
    let kind = (replied.as_ref().err()).map_or(ErrorKind::Unavailable, Trouble::kind);
    let taken = match replied {
        Ok(reply) if reply.head.status == 404 => Err("the agent has no Connect".to_owned()),
        Ok(reply) if reply.body == *before => Ok(false),
        Ok(reply) => match read(&reply.body) {
            Ok(()) => {
                *before = reply.body;
                Ok(true)
            }
            Err(unread) => Err(unread.to_string()),
        },
        Err(trouble) => Err(trouble.to_string()),
    };
    let (is_news, problem) = match taken {
        Ok(is_news) => (is_news, None),
        Err(why) => {
            let mend =
                "see that the agent has connect { enabled = true }, and the token service:write";
            let message = format!("no certificates of Connect: {why}; {mend}");
            (false, Some(Error::new(kind, message)))
        }
    };
    let text = |problem: &Option<Error>| problem.as_ref().map(ToString::to_string);
    tell.send_if_modified(|told| {
        let heard = part(told);
        let is_other = text(&heard.problem) != text(&problem);
        let first = !heard.is_known && problem.is_none();
        heard.is_known |= first;
        if let Some(problem) = problem.as_ref().filter(|_| is_other) {
            warn!("{problem}; what there was before stays in use");
        }
        heard.problem = problem;
        first || is_other
    });
    is_news
}

impl Connect {
    /// Waits until there is a certificate of our own and one to trust.
    ///
    /// # Cancel safety
    ///
    /// Safe: it waits for a state and takes nothing.
    pub async fn ready(&self) {
        let mut told = self.0.told.clone();
        if told
            .wait_for(|told| told.leaf.is_known && told.roots.is_known)
            .await
            .is_err()
        {
            // Its runtime has ended.
            std::future::pending::<()>().await;
        }
    }

    /// Who we are; `None` before the first answer.
    pub fn identity(&self) -> Option<SpiffeId> {
        let leaf = self.0.ring.leaf.load();
        leaf.as_ref().map(|leaf| leaf.id.clone())
    }

    /// How often our certificate was another one, the first among them.
    pub fn rotations(&self) -> u64 {
        self.0.told.borrow().rotations
    }

    /// Why what is used is not the newest.
    pub fn problem(&self) -> Option<Error> {
        let told = self.0.told.borrow();
        let problem = told.leaf.problem.as_ref().or(told.roots.problem.as_ref());
        problem.cloned()
    }

    /// For connections to `service`: it has to prove that it is, under whatever name or
    /// address it is reached.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] where rustls takes no protocol version: never, as it is built.
    pub fn client_config(&self, service: &str) -> Result<ClientConfig, Error> {
        let ring = &self.0.ring;
        let builder = ClientConfig::builder_with_provider(Arc::clone(&ring.provider))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(unbuilt)?;
        let server = ServerIs {
            ring: Arc::clone(ring),
            peer: Peer::read(service),
        };
        let mut config = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(server))
            .with_client_cert_resolver(Arc::new(Shown(Arc::clone(ring))));
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// For connections from these services, each of which has to prove that it is one of
    /// them. Consul's intentions are asked with [`authorize`](Self::authorize).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] where no service is named, or one without a name: that would
    /// let nobody in.
    pub fn server_config(
        &self,
        services: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<ServerConfig, Error> {
        let peers = services.into_iter().map(|peer| Peer::read(peer.as_ref()));
        let peers: Box<[Peer]> = peers.collect();
        if peers.is_empty() || peers.iter().any(Peer::is_nameless) {
            let message = "no service is named that is let in: name each, or let all in with \
                           server_config_for_all()";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        self.server(LetIn::These(peers))
    }

    /// For connections from any service of our own namespace and partition, in whatever
    /// datacenter of the cluster: who may talk to us is left to
    /// [`authorize`](Self::authorize).
    ///
    /// # Errors
    ///
    /// As [`client_config`](Self::client_config).
    pub fn server_config_for_all(&self) -> Result<ServerConfig, Error> {
        self.server(LetIn::All)
    }

    fn server(&self, let_in: LetIn) -> Result<ServerConfig, Error> {
        let ring = Arc::clone(&self.0.ring);
        let builder = ServerConfig::builder_with_provider(Arc::clone(&ring.provider))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(unbuilt)?;
        let shown = Shown(Arc::clone(&ring));
        let mut config = builder
            .with_client_cert_verifier(Arc::new(ClientIs { ring, let_in }))
            .with_cert_resolver(Arc::new(shown));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Who a peer is whose handshake succeeded: from the certificates that rustls gives.
    pub fn peer(certificates: Option<&[CertificateDer<'_>]>) -> Option<SpiffeId> {
        verify::identity(certificates?.first()?).ok()
    }

    /// Whether Consul's intentions let that peer talk to this service. The agent answers
    /// from memory; ask once a connection.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a certificate without an identity,
    /// [`ErrorKind::Denied`] where the token has no `service:write`,
    /// [`ErrorKind::Unavailable`] and [`ErrorKind::Timeout`] where no agent answers. Who is
    /// not known to be let in is not to be let in.
    ///
    /// # Cancel safety
    ///
    /// Safe: it only asks.
    pub async fn authorize(
        &self,
        certificates: Option<&[CertificateDer<'_>]>,
    ) -> Result<bool, Error> {
        let nobody = || Error::new(ErrorKind::Invalid, "the peer has shown no identity");
        let certificate = certificates.and_then(<[_]>::first).ok_or_else(nobody)?;
        let id = verify::identity(certificate).map_err(|_| nobody())?;
        let serial = {
            let cert = EndEntityCert::try_from(certificate).map_err(|_| nobody())?;
            let bytes: Vec<_> = cert
                .serial()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            bytes.join(":")
        };
        let body = serde_json::json!({
            "Target": self.0.service,
            "ClientCertURI": id.to_string(),
            "ClientCertSerial": serial,
        });
        #[derive(Deserialize)]
        struct Said {
            #[serde(rename = "Authorized")]
            authorized: bool,
        }
        let what = "the intentions";
        let verb = Verb::Post(body.to_string().into());
        let asked = self
            .0
            .api
            .ask(verb, "/v1/agent/connect/authorize?", what, Repeat::Safe);
        let said: Said = json(what, &asked.await?)?;
        Ok(said.authorized)
    }
}

fn unbuilt(error: rustls::Error) -> Error {
    Error::invalid(format!("no TLS configuration: {error}"), error)
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = self.identity();
        f.debug_struct("Connect")
            .field("service", &self.0.service)
            .field("identity", &identity)
            .field("rotations", &self.rotations())
            .finish_non_exhaustive()
    }
}
