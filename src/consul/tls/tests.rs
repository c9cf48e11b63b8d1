use super::*;

/// A directory of its own for one test, gone with it.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = format!("proconsul-tls-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn put(&self, name: &str, text: &str) -> Option<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        Some(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A certificate and its key, as PEM.
fn pair() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["agent.test".into()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[test]
fn what_cannot_be_read_does_not_turn_verification_off() {
    assert_eq!(Verify::parse("true"), Ok(Verify::On));
    assert_eq!(Verify::parse("0"), Ok(Verify::Off));
    for text in ["", "no", "flase"] {
        assert_eq!(Verify::parse(text), Err(TlsError::Verify));
    }
}

#[test]
fn a_certificate_and_its_key_come_together() {
    let cert_file = Some("c".into());
    let settings = TlsSettings {
        cert_file,
        ..TlsSettings::default()
    };
    assert_eq!(client_config(&settings).unwrap_err(), TlsError::NoKey);
    let settings = TlsSettings {
        key_file: Some("k".into()),
        ..TlsSettings::default()
    };
    assert_eq!(
        client_config(&settings).unwrap_err(),
        TlsError::NoCertificate
    );
}

#[test]
fn files_and_directories_of_pem_are_read() {
    let dir = Dir::new("read");
    let (cert, key) = pair();
    let ca_file = dir.put("ca.pem", &format!("words\n{cert}{cert}"));
    let cert_file = dir.put("cert.pem", &cert);
    let key_file = dir.put("key.pem", &key);
    let file = TlsSettings {
        ca_file,
        cert_file,
        key_file,
        ..TlsSettings::default()
    };
    assert!(
        client_config(&file)
            .unwrap()
            .client_auth_cert_resolver
            .has_certs()
    );
    // A directory may hold other files too, and hidden ones are not looked at.
    dir.put(".damaged", "-----BEGIN CERTIFICATE-----\n!\n");
    let whole = TlsSettings {
        ca_dir: Some(dir.0.clone()),
        ..TlsSettings::default()
    };
    assert!(client_config(&whole).is_ok());
    let nobody = TlsSettings {
        verify: Verify::Off,
        ..TlsSettings::default()
    };
    assert!(client_config(&nobody).is_ok());
    assert!(unused().is_ok());
    assert!(
        CryptoProvider::get_default().is_none(),
        "nothing global is set"
    );
}

#[test]
fn a_bad_file_is_named_and_not_repeated() {
    let dir = Dir::new("bad");
    let (cert, key) = pair();
    let (_, other) = pair();
    let with = |ca_file: Option<PathBuf>, cert_file, key_file| TlsSettings {
        ca_file,
        cert_file,
        key_file,
        ..TlsSettings::default()
    };
    let ca = dir.put("ca.pem", &cert);
    let cases = [
        (
            with(Some(dir.0.join("none.pem")), None, None),
            "none.pem: No such file",
        ),
        (with(Some(dir.0.clone()), None, None), "is not a file"),
        (
            with(dir.put("empty.pem", ""), None, None),
            "empty.pem: holds no certificate",
        ),
        (
            with(dir.put("key.pem", &key), None, None),
            "key.pem: holds no certificate",
        ),
        (
            with(
                dir.put("x.pem", "-----BEGIN CERTIFICATE-----\nhush!\n"),
                None,
                None,
            ),
            "x.pem: its PEM form is damaged",
        ),
        (
            with(
                ca.clone(),
                ca.clone(),
                dir.put("y.pem", "-----BEGIN hush\n"),
            ),
            "y.pem: holds no private key",
        ),
        (
            with(ca.clone(), ca.clone(), ca.clone()),
            "ca.pem: holds no private key",
        ),
        (
            with(ca.clone(), ca, dir.put("other.pem", &other)),
            "certificate and key cannot be used",
        ),
    ];
    for (settings, expected) in cases {
        let told = client_config(&settings).unwrap_err().to_string();
        assert!(told.contains(expected), "{told}");
        assert!(!told.contains("hush"), "{told}");
    }
    let empty = Dir::new("none");
    let settings = TlsSettings {
        ca_dir: Some(empty.0.clone()),
        ..TlsSettings::default()
    };
    assert!(client_config(&settings).is_err());
}
