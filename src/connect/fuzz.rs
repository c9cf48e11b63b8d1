//! **Pure.** The rule of reading what Connect tells, for the fuzzer.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{crypto::ring, pki_types::CertificateDer};

use super::verify::{Leaf, Roots, identity};

/// Any bytes as a certificate, and as the reply that brings one: nothing of a key stands in a
/// refusal, nor what would move a cursor; and whose certificate it is stands in it.
pub fn connect(bytes: &[u8]) {
    // Nobody's key.
    let key = "hush+hush+hush+hush+hush+hush+hu";
    let pem =
        |what: &str, text: &str| format!("-----BEGIN {what}-----\n{text}\n-----END {what}-----\n");
    let cert = pem("CERTIFICATE", &STANDARD.encode(bytes));
    let leaf = serde_json::json!({
        "CertPEM": cert,
        "PrivateKeyPEM": pem("PRIVATE KEY", key),
    });
    let roots = serde_json::json!({ "TrustDomain": "T.consul", "Roots": [{ "RootCert": cert }] });
    for body in [
        leaf.to_string().as_bytes(),
        roots.to_string().as_bytes(),
        bytes,
    ] {
        let leaf = Leaf::read(body, &ring::default_provider()).map(drop);
        let leaf = leaf.map_err(|unread| format!("{unread} {unread:?}"));
        let leaf = leaf.err().unwrap_or_default();
        assert!(!leaf.contains("hush"), "{leaf}");
        let roots = Roots::read(body).map(drop);
        let roots = roots.map_err(|unread| unread.to_string());
        for told in [leaf, roots.err().unwrap_or_default()] {
            assert!(!told.contains(char::is_control), "{told:?}");
        }
    }
    if let Ok(id) = identity(&CertificateDer::from(bytes)) {
        let text = id.to_string();
        assert_eq!(text.parse().as_ref(), Ok(&id), "{text}");
        let stands = bytes
            .windows(text.len())
            .any(|part| part.eq_ignore_ascii_case(text.as_bytes()));
        assert!(stands, "{text} stands nowhere");
    }
}
