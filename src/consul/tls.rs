//! **Shell.** How an agent proves who it is over TLS, and how we do: reads the
//! certificates and makes rustls' configuration of them. When it is read again
//! is [`http`](crate::consul::http)'s business.
//!
//! | asked for | trusted |
//! | --- | --- |
//! | a CA file | what it signed |
//! | else a CA directory | what any certificate in it signed |
//! | else | the system's roots |
//! | verification off | everybody, for what it is worth |
//!
//! TLS 1.2 and 1.3. The provider of cryptography is given by hand, so nothing is
//! set for the process that the library is linked into.

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
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use crate::consul::address::go_bool;

/// More than any bundle of certificates holds.
const FILE_LIMIT: u64 = 16 << 20;

/// What TLS towards an agent is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    /// `CONSUL_CACERT`.
    pub(crate) ca_file: Option<PathBuf>,
    /// `CONSUL_CAPATH`; not looked at where there is a file.
    pub(crate) ca_dir: Option<PathBuf>,
    /// `CONSUL_CLIENT_CERT`: our certificate, with its chain.
    pub(crate) cert_file: Option<PathBuf>,
    /// `CONSUL_CLIENT_KEY`.
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) verify: Verify,
    /// `CONSUL_TLS_SERVER_NAME`: the name sent and verified in place of the
    /// address's host. A port in it does not count.
    pub(crate) server_name: Option<Box<str>>,
}

/// Whether the agent has to prove who it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Verify {
    #[default]
    On,
    Off,
}

impl Verify {
    /// Reads `CONSUL_HTTP_SSL_VERIFY`. What cannot be read is an error; Consul's
    /// own client would turn verification off.
    pub(crate) fn parse(text: &str) -> Result<Self, TlsError> {
        match go_bool(text) {
            Some(true) => Ok(Self::On),
            Some(false) => Ok(Self::Off),
            None => Err(TlsError::Verify),
        }
    }
}

impl TlsSettings {
    /// What can be said without reading a file.
    pub(crate) fn check(&self) -> Result<(), TlsError> {
        match (&self.cert_file, &self.key_file) {
            (Some(_), None) => Err(TlsError::NoKey),
            (None, Some(_)) => Err(TlsError::NoCertificate),
            _ => Ok(()),
        }
    }

    /// The files that a configuration is read from.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        [&self.ca_file, &self.ca_dir, &self.cert_file, &self.key_file]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
    }
}

/// Reads the files and makes the configuration. Blocks.
pub(crate) fn client_config(settings: &TlsSettings) -> Result<ClientConfig, TlsError> {
    settings.check()?;
    let builder = builder()?;
    let builder = match settings.verify {
        Verify::On => builder.with_root_certificates(roots(settings)?),
        Verify::Off => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider()))),
    };
    let mut config = match (&settings.cert_file, &settings.key_file) {
        (Some(cert), Some(key)) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|error| TlsError::Pair(error.to_string().into()))?,
        _ => builder.with_no_client_auth(),
    };
    // Over HTTP/2 all blocking queries share one connection.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A configuration that trusts nobody, for clients that never use TLS: reqwest
/// wants one anyway and would look for the process's provider.
pub(crate) fn unused() -> Result<ClientConfig, TlsError> {
    let builder = builder()?.with_root_certificates(RootCertStore::empty());
    Ok(builder.with_no_client_auth())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TlsError> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| TlsError::Pair(error.to_string().into()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(settings: &TlsSettings) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    match (&settings.ca_file, &settings.ca_dir) {
        (Some(file), _) => trust(&mut store, file, certificates(file)?)?,
        (None, Some(dir)) => {
            for file in files_in(dir)? {
                match certificates(&file) {
                    Err(TlsError::File { why, .. }) if &*why == NO_CERTIFICATE => {}
                    found => trust(&mut store, &file, found?)?,
                }
            }
            if store.is_empty() {
                return Err(TlsError::file(dir, NO_CERTIFICATE));
            }
        }
        (None, None) => {
            let system = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(system.certs);
            if store.is_empty() {
                let why = system.errors.first().map(ToString::to_string);
                return Err(TlsError::NoRoots(why.unwrap_or_default().into()));
            }
        }
    }
    Ok(store)
}

fn trust(
    store: &mut RootCertStore,
    file: &Path,
    certificates: Vec<CertificateDer<'static>>,
) -> Result<(), TlsError> {
    for certificate in certificates {
        store
            .add(certificate)
            .map_err(|error| TlsError::file(file, &error.to_string()))?;
    }
    Ok(())
}

/// The files of a directory in order of their names, hidden ones left out.
fn files_in(dir: &Path) -> Result<Vec<PathBuf>, TlsError> {
    let failed = |error: std::io::Error| TlsError::file(dir, &error.to_string());
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

const NO_CERTIFICATE: &str = "holds no certificate in PEM form";

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(TlsError::file(file, NO_CERTIFICATE)),
        Ok(found) => Ok(found),
        Err(_) => Err(TlsError::file(file, "its PEM form is damaged")),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    // The parser's own words are not repeated: they may hold a line of the key.
    PrivateKeyDer::from_pem_slice(&read(file)?)
        .map_err(|_| TlsError::file(file, "holds no private key that can be read"))
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |error: std::io::Error| TlsError::file(file, &error.to_string());
    // Opening a pipe would wait for its other end.
    if !fs::metadata(file).map_err(failed)?.is_file() {
        return Err(TlsError::file(file, "is not a file"));
    }
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).map_err(failed)?;
    opened
        .take(FILE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= FILE_LIMIT => Ok(bytes),
        _ => Err(TlsError::file(file, "is larger than 16 MiB")),
    }
}

/// Takes any certificate; the handshake's signature has to be right all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Why there can be no TLS. Names files, never what is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TlsError {
    Verify,
    NoKey,
    NoCertificate,
    NoRoots(Box<str>),
    File { path: PathBuf, why: Box<str> },
    Pair(Box<str>),
}

impl TlsError {
    fn file(path: &Path, why: &str) -> Self {
        Self::File {
            path: path.to_owned(),
            why: why.into(),
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verify => f.write_str("whether to verify certificates is said by true or false"),
            Self::NoKey => f.write_str("a client certificate needs its key"),
            Self::NoCertificate => f.write_str("a client key needs its certificate"),
            Self::NoRoots(why) if why.is_empty() => {
                f.write_str("the system has no root certificates; name a CA file")
            }
            Self::NoRoots(why) => write!(
                f,
                "the system's root certificates cannot be read: {why}; name a CA file"
            ),
            Self::File { path, why } => write!(f, "{}: {why}", path.display()),
            Self::Pair(why) => write!(f, "certificate and key cannot be used: {why}"),
        }
    }
}

impl std::error::Error for TlsError {}

#[cfg(test)]
mod tests;
