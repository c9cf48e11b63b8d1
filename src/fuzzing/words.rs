//! **Pure.** The rules of what people write: names and settings.

use std::net::SocketAddr;

use crate::{
    ConsulName, Domain, ResolverBuilder, ServiceDefinition, SpiffeId,
    consul::{address::HttpAddress, token::Token},
    source::static_catalog::StaticCatalog,
    stub::{Upstreams, upstreams},
};

/// Labels off the wire, and text: what is read is printed and read again as the
/// same, and no error lets a raw byte through.
pub fn name(bytes: &[u8]) {
    for domain in ["consul", "corp.example"] {
        let domain: Domain = domain.parse().expect("a plain domain");
        let labels: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
        for srv in [true, false] {
            if let Ok(name) = ConsulName::from_labels(&labels, srv, &domain) {
                same(&name, &domain);
            }
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            continue;
        };
        match ConsulName::parse(text, &domain) {
            Ok(name) => {
                assert!(
                    name.fqdn(&domain).len() < 255,
                    "a name too long for the wire"
                );
                same(&name, &domain);
            }
            Err(error) => assert!(error.to_string().chars().all(|c| !c.is_control())),
        }
    }
}

fn same(name: &ConsulName, domain: &Domain) {
    let printed = name.fqdn(domain);
    let read = ConsulName::parse(&printed, domain).expect("what is printed can be read");
    assert_eq!(
        (&read, read.subject(), read.locality()),
        (name, name.subject(), name.locality())
    );
}

/// Any text as what a user, a variable or a file says: it is taken or refused, what is taken
/// prints as what is read again as the same, and no refusal repeats a token or moves a cursor.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for ssl in [false, true] {
        if let Ok(address) = HttpAddress::parse(text, ssl) {
            let printed = address.to_string();
            let again = HttpAddress::parse(&printed, false);
            assert_eq!(again.as_ref(), Ok(&address), "{printed}");
        }
    }
    let built = |builder: ResolverBuilder| {
        if let Err(error) = builder.finish() {
            let told = error.to_string();
            assert!(!told.contains(|c: char| c.is_control()), "{told:?}");
        }
    };
    let builder = ResolverBuilder::default;
    built(builder().dns(text));
    built(builder().http(text));
    built(builder().domain(text));
    built(builder().default_address("web", text));
    built(builder().default_address(text, "10.0.0.1:80"));
    let token = format!("hush{text}hush");
    if let Err(error) = builder().token(&token).finish() {
        assert!(!format!("{error} {error:?}").contains("hush"));
    }
    let peer = ServiceDefinition::new(text, 80)
        .address(text)
        .tag(text)
        .meta(text, text);
    _ = (peer.validate(), peer.lint(), peer.id());
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}

/// Any bytes as what stands in a file of the system's or of the operator's: what is read of it
/// is what stands there, no more than is asked for, and no refusal moves a cursor.
pub fn files(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // resolv.conf: servers in the order in which they stand there, without ourselves.
    let own: [SocketAddr; 2] = [([127, 0, 0, 1], 53).into(), ([0, 0, 0, 0], 5_353).into()];
    let servers = upstreams::resolv_conf(text, &own, |_| Some(1));
    assert!(servers.len() <= 3, "more than are looked at");
    let mut lines = text.lines();
    for server in &servers {
        assert!(server.port() == 53 && !upstreams::is_ours(*server, &own));
        let names = |line: &str| {
            let mut words = line.split_whitespace();
            let address = (words.next() == Some("nameserver")).then(|| words.next());
            let bare = address.flatten().and_then(|word| word.split('%').next());
            bare.and_then(|word| word.parse().ok()) == Some(server.ip())
        };
        assert!(lines.any(names), "{server} stands nowhere");
    }

    let told = match Upstreams::parse(text.split('\n')) {
        Ok(upstreams) => {
            let labels: Vec<&[u8]> = text.split('.').map(str::as_bytes).collect();
            let all = upstreams.of(&labels, &servers);
            assert!(all.iter().all(|server| server.port() != 0));
            assert!(!upstreams.is_none() || text.trim().eq_ignore_ascii_case("none"));
            String::new()
        }
        Err(error) => error.to_string(),
    };
    assert!(!told.contains(char::is_control), "{told:?}");

    if let Ok(Some(token)) = Token::parse(text) {
        assert_eq!(token.secret(), text.trim());
        assert!(token.secret().bytes().all(|byte| byte.is_ascii_graphic()));
    }
    if let Err(error) = StaticCatalog::parse(text, "consul") {
        let told = error.to_string();
        assert!(!told.contains(char::is_control), "{told:?}");
    }
}
