use proptest::prelude::*;

use super::*;

fn name(text: &str) -> ConsulName {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn domain(text: &str) -> Domain {
    text.parse().unwrap()
}

fn wire(text: &str, srv: bool) -> Result<ConsulName, NotAName> {
    let labels: Vec<&[u8]> = text.split('.').map(str::as_bytes).collect();
    ConsulName::from_labels(&labels, srv, &Domain::default())
}

#[test]
fn every_form_has_one_canonical_name() {
    for (typed, canonical) in [
        ("web", "web.service.consul."),
        ("WEB", "web.service.consul."),
        ("v2.web", "v2.web.service.consul."),
        ("web@dc2", "web.service.dc2.consul."),
        ("v2.web@DC2", "v2.web.service.dc2.consul."),
        ("a.b.web", "a.b.web.service.consul."),
        ("_web._tcp", "web.service.consul."),
        ("_web._v2", "v2.web.service.consul."),
        ("web.service", "web.service.service.consul."),
        ("web.service.consul", "web.service.consul."),
        ("Web.Service.Consul.", "web.service.consul."),
        ("web.service.consul@dc2", "web.service.dc2.consul."),
        ("v2.web.service.dc2.consul.", "v2.web.service.dc2.consul."),
        ("web.service.dc1.dc.consul", "web.service.dc1.consul."),
        (
            "web.service.team1.ns.consul",
            "web.service.team1.ns.consul.",
        ),
        (
            "web.service.team1.ns.dc1.dc.consul",
            "web.service.team1.dc1.consul.",
        ),
        (
            "web.service.team1.dc1.consul",
            "web.service.team1.dc1.consul.",
        ),
        (
            "web.service.dc1.dc.p1.ap.team1.ns.consul",
            "web.service.team1.ns.p1.ap.dc1.dc.consul.",
        ),
        (
            "web.service.far.peer.consul",
            "web.service.far.peer.consul.",
        ),
        (
            "web.service.group.sg.consul",
            "web.service.group.sg.consul.",
        ),
        (
            "web.service.admin.port.consul",
            "web.service.admin.port.consul.",
        ),
        ("_web._tcp.service.consul", "web.service.consul."),
        ("_web._V2.service.dc1.consul", "v2.web.service.dc1.consul."),
        ("_web._tcp.consul", "web.service.consul."),
        ("_web._tcp.dc1.consul", "web.service.dc1.consul."),
        ("__lead._tcp.service.consul", "_lead.service.consul."),
        ("_lead.service.consul", "_lead.service.consul."),
        ("under_score.service.consul", "under_score.service.consul."),
        ("service.service.consul", "service.service.consul."),
        ("node.service.consul", "node.service.consul."),
        ("web.node.service.consul", "web.node.service.consul."),
        ("web.connect.consul", "web.connect.consul."),
        ("v1.web.connect.dc1.consul", "web.connect.dc1.consul."),
        ("web.ingress.consul", "web.ingress.consul."),
        ("web.virtual.consul", "web.virtual.consul."),
        ("web.virtual.far.consul", "web.virtual.far.consul."),
        ("admin.web.virtual.consul", "admin.web.virtual.consul."),
        ("host1.node.dc1.consul", "host1.node.dc1.consul."),
        ("node.with.dots.node.consul", "node.with.dots.node.consul."),
        ("near.query.consul", "near.query.consul."),
        ("dot.q.query.dc1.consul", "dot.q.query.dc1.consul."),
        ("_webq._tcp.query.consul", "webq.query.consul."),
        ("0A000001.addr.consul", "0a000001.addr.consul."),
        ("0a000001.addr.any.thing.consul", "0a000001.addr.consul."),
        ("consul", "consul."),
        ("10.0.0.1", "1.0.0.10.in-addr.arpa."),
        ("1.0.0.10.in-addr.arpa.", "1.0.0.10.in-addr.arpa."),
        (
            "2001:db8::10",
            "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.",
        ),
    ] {
        let read = name(typed);
        assert_eq!(read.to_string(), canonical, "{typed}");
        assert_eq!(
            name(canonical),
            read,
            "{typed}: the canonical name means the same"
        );
        assert_eq!(
            name(&typed.to_uppercase()),
            read,
            "{typed}: case never matters"
        );
    }
}

#[test]
fn meaning_is_told_part_by_part() {
    let read = name("a.b.web.service.team1.ns.dc1.dc.consul");
    let tag = Some("a.b".into());
    assert_eq!(
        read.subject(),
        &Subject::Service {
            service: "web".into(),
            tag
        }
    );
    assert_eq!(read.locality().namespace.as_deref(), Some("team1"));
    assert_eq!(read.locality().datacenter.as_deref(), Some("dc1"));
    assert_eq!(
        name("::1").subject(),
        &Subject::Reverse("::1".parse().unwrap())
    );
    assert_eq!(
        name("dot.q.query.consul").subject(),
        &Subject::Query("dot.q".into())
    );
    let mapped = name("00000000000000000000ffff0a000001.addr.consul");
    assert_eq!(
        mapped.subject(),
        &Subject::Address("::ffff:10.0.0.1".parse().unwrap())
    );
}

#[test]
fn names_that_consul_answers_with_nxdomain_are_told_apart_from_names_of_others() {
    for nowhere in [
        "service.consul",
        "node.consul",
        "query.consul",
        "addr.consul",
        "v4only.consul",
        "web.foo.consul",
        "web.service.a.b.c.consul",
        "web.service.dc1.dc.x.peer.consul",
        "web.service.dc1.dc.dc2.dc.consul",
        "webq.query.a.b.consul",
        "zz000001.addr.consul",
        "0a0000010.addr.consul",
        "x.0a000001.addr.consul",
        "0a0001.addr.consul",
        "a b.service.consul",
        "a@b.service.consul",
        "\u{e9}.service.consul",
        "x.in-addr.arpa",
        "10.in-addr.arpa",
        "01.0.0.10.in-addr.arpa",
        "256.0.0.10.in-addr.arpa",
        "+1.0.0.10.in-addr.arpa",
        "1.ip6.arpa",
    ] {
        assert_eq!(wire(nowhere, false), Err(NotAName::NoSuchName), "{nowhere}");
    }
    for elsewhere in [
        "www.example.com",
        "consul.example.com",
        "notconsul",
        "arpa",
        "web.consul2",
    ] {
        assert_eq!(
            wire(elsewhere, false),
            Err(NotAName::Elsewhere),
            "{elsewhere}"
        );
    }
}

#[test]
fn only_an_srv_question_may_leave_out_the_service_label() {
    assert_eq!(wire("_web._tcp.consul", true), Ok(name("web")));
    assert_eq!(wire("_web._tcp.consul", false), Err(NotAName::NoSuchName));
    assert_eq!(wire("_web._tcp.service.consul", false), Ok(name("web")));
    assert_eq!(wire("WEB.Service.CONSUL", false), Ok(name("web")));
}

#[test]
fn the_domain_may_have_several_labels_and_only_it_counts() {
    let corp = domain("Corp.Example.");
    assert_eq!(corp.as_str(), "corp.example");
    let read = ConsulName::parse("web.service.corp.example", &corp).unwrap();
    assert_eq!(read.fqdn(&corp), "web.service.corp.example.");
    assert_eq!(read, name("web"));
    // In another domain this is but a tag and a service.
    let short = ConsulName::parse("web.service.consul", &corp).unwrap();
    assert_eq!(
        short.fqdn(&corp),
        "web.service.consul.service.corp.example."
    );
    assert!(ConsulName::parse("web.service.consul.", &corp).is_err());
}

#[test]
fn errors_name_the_part_and_say_what_to_do() {
    let message = |text: &str| text.parse::<ConsulName>().unwrap_err().to_string();
    for (typed, said) in [
        ("", "say a service"),
        (".", "say a service"),
        ("a..b", "empty label"),
        ("web@", "empty label"),
        ("web.consul", "write web.service before the domain"),
        ("service.consul", "nothing before its label service"),
        ("web.service.a.b.c.consul", "a datacenter alone"),
        ("web.service.dc1.consul@dc2", "a datacenter alone"),
        ("10.0.0.1@dc1", "a datacenter alone"),
        ("web@query", "a datacenter alone"),
        ("web@_dc1", "a datacenter alone"),
        ("zz000001.addr.consul", "no address"),
        ("10.in-addr.arpa", "write the address itself"),
        ("www.example.com.", "not in Consul's domain"),
        ("caf\u{e9}", "letters, digits"),
        ("a b", "holds ' '"),
        ("a\nb", "\\n"),
    ] {
        let told = message(typed);
        assert!(told.contains(said), "{typed:?}: {told}");
        assert!(told.chars().all(|c| !c.is_control()), "{told:?}");
        assert!(!told.ends_with('.'), "{told}");
    }
    assert!(message(&"x".repeat(64)).contains("63 bytes"));
    assert!(message(&vec!["x".repeat(60); 5].join(".")).contains("255 bytes"));
    let dotted = ConsulName::service("dot.ted").unwrap_err().to_string();
    assert!(
        dotted.contains("tag \"dot\" of service \"ted\""),
        "{dotted}"
    );
}

#[test]
fn a_name_of_255_bytes_is_the_longest() {
    // key + "." + "consul" + "." in text, one byte more on the wire.
    let tag = |bytes: usize| {
        let mut tag = vec!["t".repeat(49); 4].join(".");
        tag.push('.');
        tag.push_str(&"t".repeat(bytes - tag.len()));
        format!("{tag}.web.service.consul")
    };
    assert!(tag(234).parse::<ConsulName>().is_ok());
    assert_eq!(name(&tag(234)).to_string().len() + 1, 255);
    assert!(tag(235).parse::<ConsulName>().is_err());
}

#[test]
fn defaults_fill_only_what_a_name_leaves_open() {
    let filled = |text: &str| {
        name(text)
            .with_defaults(Some("DC9"), Some("ns9"), None)
            .unwrap()
            .to_string()
    };
    assert_eq!(filled("web"), "web.service.ns9.dc9.consul.");
    assert_eq!(filled("web@dc1"), "web.service.ns9.dc1.consul.");
    assert_eq!(filled("near.query.consul"), "near.query.dc9.consul.");
    assert_eq!(
        filled("web.service.far.peer.consul"),
        "web.service.far.peer.consul."
    );
    assert_eq!(filled("10.0.0.1"), "1.0.0.10.in-addr.arpa.");
    assert_eq!(filled("0a000001.addr.consul"), "0a000001.addr.consul.");
    assert!(name("web").with_defaults(Some("d c"), None, None).is_err());
}

#[test]
fn srv_targets_are_told_apart() {
    let zones = [domain("corp.example"), Domain::default()];
    let target = |fqdn| classify_target(fqdn, &zones);
    let address = |text: &str| Target::Address(text.parse().unwrap());
    let node = |text: &str| Target::Node { node: text.into() };
    assert_eq!(target("0a000001.addr.dc1.consul."), address("10.0.0.1"));
    assert_eq!(target("0A000001.ADDR.CONSUL"), address("10.0.0.1"));
    assert_eq!(
        target("0a000001.addr.dc1.corp.example."),
        address("10.0.0.1")
    );
    assert_eq!(
        target("20010db8000000000000000000010001.addr.dc1.consul."),
        address("2001:db8::1:1")
    );
    assert_eq!(target("Node-Upper.node.dc1.consul."), node("Node-Upper"));
    assert_eq!(
        target("node.with.dots.node.dc1.consul."),
        node("node.with.dots")
    );
    assert_eq!(target(r"bad\032node.node.dc1.consul."), node("bad node"));
    assert_eq!(target(r"a\046b.node.dc1.consul."), node("a.b"));
    assert_eq!(target("n1.node.far.peer.consul."), node("n1"));
    for in_zone in [
        "v4only.service.consul.",
        "node-b.node.consul.",
        "zz.addr.consul.",
        "node.dc1.consul.",
    ] {
        assert_eq!(target(in_zone), Target::Host { in_zone: true }, "{in_zone}");
    }
    for outside in [
        "www.example.com.",
        "0a000001.addr.dc1.notconsul.",
        "consul.",
        "",
        ".",
        "\u{e9}consul.",
    ] {
        assert_eq!(
            target(outside),
            Target::Host { in_zone: false },
            "{outside}"
        );
    }
}

fn label() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z0-9_-]{1,12}",
        1 => prop::sample::select(&["service", "node", "query", "addr", "dc", "ns", "peer", "_tcp", "_", "tcp", "arpa", "consul"][..])
            .prop_map(str::to_owned),
    ]
}

proptest! {
    #[test]
    fn a_name_prints_as_what_it_was_read_from(
        labels in prop::collection::vec(label(), 1..6),
        place in prop::collection::vec(label(), 0..3),
        zone in prop::sample::select(&["consul", "corp.example"][..]),
    ) {
        let zone = domain(zone);
        for kind in ["", ".service", ".connect", ".ingress", ".virtual", ".node", ".query"] {
            let place: String = place.iter().map(|label| format!(".{label}")).collect();
            let typed = format!("{}{kind}{place}.{zone}.", labels.join("."));
            if let Ok(read) = ConsulName::parse(&typed, &zone) {
                let printed = read.fqdn(&zone);
                let again = ConsulName::parse(&printed, &zone);
                prop_assert!(again.is_ok(), "{typed} -> {printed}");
                let again = again.unwrap();
                prop_assert_eq!(&again, &read, "{} -> {}", &typed, &printed);
                prop_assert_eq!(again.subject(), read.subject());
                prop_assert_eq!(again.locality(), read.locality());
                let wire: Vec<&[u8]> = printed.trim_end_matches('.').split('.').map(str::as_bytes).collect();
                prop_assert_eq!(ConsulName::from_labels(&wire, false, &zone), Ok(read));
            }
        }
    }

    #[test]
    fn no_text_and_no_labels_are_too_odd(text in any::<String>(), labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..8)) {
        if let Err(error) = text.parse::<ConsulName>() {
            prop_assert!(error.to_string().chars().all(|c| !c.is_control()));
        }
        let labels: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
        let _ = ConsulName::from_labels(&labels, true, &Domain::default());
        let _ = classify_target(&text, &[Domain::default()]);
    }

    #[test]
    fn an_address_survives_its_target_and_its_reverse_name(bits in any::<u128>(), v4 in any::<bool>()) {
        let address: IpAddr = if v4 {
            std::net::Ipv4Addr::from_bits(bits as u32).into()
        } else {
            std::net::Ipv6Addr::from_bits(bits).into()
        };
        let zones = [Domain::default()];
        let target = format!("{}.addr.dc1.consul.", hex(address));
        prop_assert_eq!(classify_target(&target, &zones), Target::Address(address));
        let direct = name(&target);
        prop_assert_eq!(direct.subject(), &Subject::Address(address));
        let reverse = name(&address.to_string());
        prop_assert_eq!(reverse.subject(), &Subject::Reverse(address));
        prop_assert_eq!(name(&reverse.to_string()), reverse);
    }
}
