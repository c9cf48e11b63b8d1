//! **Shell.** Who is believed over mTLS: what a certificate has to be, at the time that is
//! given. The handshake itself is rustls'; what it needs is kept here, with the tasks that
//! keep it.
//!
//! | a certificate | |
//! | --- | --- |
//! | that no root of Connect vouches for, or that is out of date | refused |
//! | without exactly one identity, or of another trust domain | refused |
//! | of another namespace or partition than ours | refused |
//! | of a service or datacenter that was not asked for, or is not let in | refused |
//! | else | believed |

// What comes from outside is read here: nothing that it says may end in a panic.
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwapOption;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime, pem::PemObject},
    server::{
        ClientHello, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use serde::Deserialize;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::spiffe::SpiffeId;
use crate::task::Owned;

/// Our own certificate and those that are trusted, as they are now.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) leaf: ArcSwapOption<Leaf>,
    pub(super) roots: ArcSwapOption<Roots>,
    pub(super) provider: Arc<CryptoProvider>,
    /// What keeps them up to date, and ends with them.
    kept: OnceLock<[Owned; 2]>,
}

impl Ring {
    pub(super) fn new(provider: Arc<CryptoProvider>) -> Self {
        Self {
            leaf: ArcSwapOption::empty(),
            roots: ArcSwapOption::empty(),
            provider,
            kept: OnceLock::new(),
        }
    }

    pub(super) fn keep(&self, tasks: [Owned; 2]) {
        // Once, by who makes it.
        _ = self.kept.set(tasks);
    }
}

/// Who is asked for, or let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    service: Box<str>,
    /// `None`: our own.
    datacenter: Option<Box<str>>,
}

impl Peer {
    /// `api`, or `api@dc2`.
    pub(super) fn read(text: &str) -> Self {
        let (service, datacenter) = match text.split_once('@') {
            Some((service, datacenter)) => (service, Some(datacenter.into())),
            None => (text, None),
        };
        Self {
            service: service.into(),
            datacenter,
        }
    }

    /// No service has that name.
    pub(super) fn is_nameless(&self) -> bool {
        self.service.is_empty()
    }

    /// Whether that identity is this peer, seen from our own.
    fn is(&self, id: &SpiffeId, own: &SpiffeId) -> bool {
        let datacenter = self.datacenter.as_ref().unwrap_or(&own.datacenter);
        id.service == self.service && id.datacenter == *datacenter && is_near(id, own)
    }
}

/// Whether that identity is of our own namespace and partition.
fn is_near(id: &SpiffeId, own: &SpiffeId) -> bool {
    (&id.namespace, &id.partition) == (&own.namespace, &own.partition)
}

/// Who is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LetIn {
    /// Any service of our own namespace and partition, in whatever datacenter.
    All,
    These(Box<[Peer]>),
}

impl LetIn {
    fn has(&self, id: &SpiffeId, own: &SpiffeId) -> bool {
        match self {
            Self::All => is_near(id, own),
            Self::These(peers) => peers.iter().any(|peer| peer.is(id, own)),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.service)?;
        match &self.datacenter {
            Some(datacenter) => write!(f, "@{datacenter}"),
            None => Ok(()),
        }
    }
}

/// Our own.
#[derive(Debug)]
pub(super) struct Leaf {
    key: Arc<CertifiedKey>,
    pub(super) id: SpiffeId,
}

/// Those that are trusted.
#[derive(Debug)]
pub(super) struct Roots {
    trust_domain: Box<str>,
    anchors: Vec<TrustAnchor<'static>>,
}

/// What Connect tells, that is none of what it should be.
#[derive(Debug)]
pub(super) struct Unread(String);

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn unread(what: &'static str) -> impl Fn(&dyn fmt::Display) -> Unread {
    move |why| Unread(format!("{what}: {why}"))
}

#[derive(Deserialize)]
struct ToldLeaf {
    #[serde(rename = "CertPEM")]
    cert: String,
    #[serde(rename = "PrivateKeyPEM")]
    key: String,
}

impl Leaf {
    /// Reads `/v1/agent/connect/ca/leaf/X`. Nothing of the key stands in an error.
    pub(super) fn read(body: &[u8], provider: &CryptoProvider) -> Result<Self, Unread> {
        // Where it is wrong is told, not what stands there.
        let told: ToldLeaf = serde_json::from_slice(body)
            .map_err(|error| Unread(format!("the leaf: no JSON at column {}", error.column())))?;
        let bad = unread("the leaf's certificate");
        let chain = CertificateDer::pem_slice_iter(told.cert.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bad(&error))?;
        let first = chain.first().ok_or_else(|| bad(&"there is none"))?;
        let id = identity(first).map_err(|error| bad(&error))?;
        let key = PrivateKeyDer::from_pem_slice(told.key.as_bytes())
            .map_err(|_| Unread("the leaf's key is none".into()))?;
        let key = (provider.key_provider)
            .load_private_key(key)
            .map_err(|_| Unread("the leaf's key is of no kind that is known".into()))?;
        let key = Arc::new(CertifiedKey::new(chain, key));
        Ok(Self { key, id })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ToldRoots {
    trust_domain: Box<str>,
    #[serde(default)]
    roots: Option<Vec<ToldRoot>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ToldRoot {
    root_cert: String,
}

impl Roots {
    /// Reads `/v1/agent/connect/ca/roots`: all roots, for old leaves live on for a while.
    pub(super) fn read(body: &[u8]) -> Result<Self, Unread> {
        let bad = unread("the roots");
        let told: ToldRoots = serde_json::from_slice(body).map_err(|error| bad(&error))?;
        let mut anchors = Vec::new();
        for root in told.roots.unwrap_or_default() {
            for cert in CertificateDer::pem_slice_iter(root.root_cert.as_bytes()) {
                let cert = cert.map_err(|error| bad(&error))?;
                let anchor = anchor_from_trusted_cert(&cert).map_err(|error| bad(&error))?;
                anchors.push(anchor.to_owned());
            }
        }
        if anchors.is_empty() {
            return Err(bad(&"there is none"));
        }
        Ok(Self {
            trust_domain: told.trust_domain.to_ascii_lowercase().into(),
            anchors,
        })
    }
}

/// The one identity in a certificate, which nobody has vouched for yet.
pub(super) fn identity(cert: &CertificateDer<'_>) -> Result<SpiffeId, Error> {
    let bad = |_| Error::from(CertificateError::BadEncoding);
    let cert = EndEntityCert::try_from(cert).map_err(bad)?;
    let mut uris = cert.valid_uri_names();
    match (uris.next().map(str::parse), uris.next()) {
        (Some(Ok(id)), None) => Ok(id),
        _ => Err(refused("it has not one identity of a service".into())),
    }
}

fn refused(why: String) -> Error {
    CertificateError::Other(OtherError(Arc::new(Unread(why)))).into()
}

impl std::error::Error for Unread {}

impl Ring {
    /// The identity in a certificate that is believed.
    fn verified(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: UnixTime,
    ) -> Result<SpiffeId, Error> {
        let roots = self.roots.load();
        let roots = (roots.as_ref())
            .ok_or_else(|| Error::General("the roots of Connect are not known yet".into()))?;
        let bad = |_| Error::from(CertificateError::BadEncoding);
        let end = EndEntityCert::try_from(cert).map_err(bad)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        end.verify_for_usage(
            algorithms,
            &roots.anchors,
            intermediates,
            now,
            usage,
            None,
            None,
        )
        .map_err(|error| match error {
            webpki::Error::CertExpired { .. } => CertificateError::Expired.into(),
            webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet.into(),
            webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer.into(),
            other => refused(other.to_string()),
        })?;
        let id = identity(cert)?;
        if id.trust_domain != roots.trust_domain {
            return Err(refused(format!("{id} is of another trust domain")));
        }
        Ok(id)
    }

    /// Our own certificate.
    fn key(&self) -> Option<Arc<CertifiedKey>> {
        let leaf = self.leaf.load();
        leaf.as_ref().map(|leaf| Arc::clone(&leaf.key))
    }

    /// Who we are.
    fn own(&self) -> Result<SpiffeId, Error> {
        let leaf = self.leaf.load();
        let unknown = || Error::General("our own certificate is not known yet".into());
        leaf.as_ref()
            .map(|leaf| leaf.id.clone())
            .ok_or_else(unknown)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }

    fn signed12(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, &algorithms)
    }

    fn signed13(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, &algorithms)
    }
}

/// Shows our own certificate, the newest.
#[derive(Debug)]
pub(super) struct Shown(pub(super) Arc<Ring>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.key()
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Believes a server that is the service asked for.
#[derive(Debug)]
pub(super) struct ServerIs {
    pub(super) ring: Arc<Ring>,
    pub(super) peer: Peer,
}

impl ServerCertVerifier for ServerIs {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // Where it was reached says nothing: who it is stands in its certificate.
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usage = KeyUsage::server_auth();
        let id = self.ring.verified(cert, intermediates, usage, now)?;
        match self.peer.is(&id, &self.ring.own()?) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(refused(format!("{id} is not {}", self.peer))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.ring.signed12(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.ring.signed13(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.ring.schemes()
    }
}

/// Believes clients that are let in.
#[derive(Debug)]
pub(super) struct ClientIs {
    pub(super) ring: Arc<Ring>,
    pub(super) let_in: LetIn,
}

impl ClientCertVerifier for ClientIs {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // They change; a client of Connect's has one certificate anyway.
        &[]
    }

    fn verify_client_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let usage = KeyUsage::client_auth();
        let id = self.ring.verified(cert, intermediates, usage, now)?;
        match self.let_in.has(&id, &self.ring.own()?) {
            true => Ok(ClientCertVerified::assertion()),
            false => Err(refused(format!("{id} is not let in"))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.ring.signed12(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.ring.signed13(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.ring.schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_let_in_is_of_our_own_namespace_and_partition() {
        let id = |place: &str| -> SpiffeId { format!("spiffe://a.consul{place}").parse().unwrap() };
        let own = id("/ap/p1/ns/n1/dc/dc1/svc/web");
        let these =
            |names: &[&str]| LetIn::These(names.iter().map(|name| Peer::read(name)).collect());
        let named = these(&["api", "db@dc2"]);
        for (place, is_named, is_near) in [
            ("/ap/p1/ns/n1/dc/dc1/svc/api", true, true),
            ("/ap/p1/ns/n1/dc/dc2/svc/db", true, true),
            ("/ap/p1/ns/n1/dc/dc2/svc/api", false, true),
            ("/ap/p1/ns/n1/dc/dc1/svc/other", false, true),
            ("/ap/p1/ns/n2/dc/dc1/svc/api", false, false),
            ("/ap/p2/ns/n1/dc/dc1/svc/api", false, false),
            ("/ns/n1/dc/dc1/svc/api", false, false),
        ] {
            let id = id(place);
            let let_in = (named.has(&id, &own), LetIn::All.has(&id, &own));
            assert_eq!(let_in, (is_named, is_near), "{place}");
            assert!(
                !these(&[]).has(&id, &own),
                "nobody is let in by nobody's name"
            );
        }
    }
}
