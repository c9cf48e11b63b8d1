//! Replies are captures of Consul 1.8.7 where they come from a file.

use std::net::IpAddr;

use proptest::prelude::*;

use super::{
    ask::{Place, Reader, path},
    *,
};
use crate::{endpoint::Health, found::Instance};

const WEB: &str = include_str!("captures/web.json");
const HEALTH: &str = include_str!("captures/health.json");

fn service(name: &'static str) -> Question<'static> {
    Question {
        ask: Ask::Service { name, tag: None },
        place: Place::default(),
        reader: Reader::Any,
        domain: "consul",
        name: "web.service.consul.",
    }
}

fn read(question: &Question<'_>, body: &[u8], translated: bool) -> Result<Read, Unread> {
    let mut reading = Reading::new(question, translated);
    reading.more(body);
    reading.end()
}

fn told(question: &Question<'_>, body: &str) -> Result<Read, Unread> {
    read(question, body.as_bytes(), false)
}

fn listed(read: &Read) -> &[Instance] {
    match &read.found {
        Found::Instances(instances) => instances,
        other => panic!("{other:?}"),
    }
}

/// `target port weight kind` of each instance.
fn lines(read: &Read) -> Vec<String> {
    let line = |instance: &Instance| {
        let Instance {
            target,
            port,
            weight,
            kind,
            ..
        } = instance;
        format!("{target} {port} {weight} {kind:?}")
    };
    listed(read).iter().map(line).collect()
}

/// An entry of service `web` on node `n<number>`, with more keys of its service.
fn entry(number: usize, service: &str) -> String {
    format!(
        r#"{{"Node":{{"Node":"n{number}","Address":"10.0.0.{number}","Datacenter":"dc1"}},
            "Service":{{"Service":"web"{service}}},"Checks":null}}"#
    )
}

fn list(entries: &[String]) -> String {
    format!("[{}]", entries.join(","))
}

#[test]
fn each_kind_of_name_has_its_request() {
    let here = Place::default();
    let there = Place {
        datacenter: Some("dc2"),
        namespace: Some("n"),
        partition: Some("p"),
        peer: Some("q"),
        sameness_group: Some("s"),
    };
    let service = |name, tag| Ask::Service { name, tag };
    let cases = [
        (service("Web", None), &here, "/v1/health/service/web?stale"),
        (
            service("web", Some("v 2&x=y")),
            &here,
            "/v1/health/service/web?stale&tag=v%202%26x%3Dy",
        ),
        (
            Ask::Connect { name: "web" },
            &here,
            "/v1/health/connect/web?stale",
        ),
        (
            Ask::Ingress { name: "web" },
            &here,
            "/v1/health/ingress/web?stale",
        ),
        (
            Ask::Node { name: "Node-Upper" },
            &here,
            "/v1/catalog/node/node-upper?stale",
        ),
        (
            Ask::Query { name: "dot.q" },
            &here,
            "/v1/query/dot.q/execute?stale",
        ),
        (Ask::Servers, &here, "/v1/health/service/consul?stale"),
        (
            service("a/../b?c#d%2f\r\n", None),
            &here,
            "/v1/health/service/a%2F..%2Fb%3Fc%23d%252f%0D%0A?stale",
        ),
        (
            service("web", Some("v2")),
            &there,
            "/v1/health/service/web?stale&dc=dc2&ns=n&partition=p&peer=q&sg=s&tag=v2",
        ),
    ];
    for (ask, place, expected) in cases {
        assert_eq!(path(&ask, place, Reader::Any), expected);
        let of_the_leader = path(&ask, place, Reader::Leader);
        let is_any = matches!(ask, Ask::Reverse { .. });
        assert_eq!(of_the_leader.contains("?consistent"), !is_any);
    }
}

#[test]
fn a_service_is_read_as_consuls_dns_tells_it() {
    let read = told(&service("web"), WEB).unwrap();
    assert_eq!(
        lines(&read),
        [
            "node-a.node.dc1.consul. 8080 1 Node",
            "0a010102.addr.dc1.consul. 8081 10 Address",
            "20010db8000000000000000000000099.addr.dc1.consul. 8083 1 Address",
            "node-v6.node.dc1.consul. 8082 1 Node",
        ]
    );
    assert_eq!((read.skipped, read.ttl), (0, None));
    assert_eq!(read.datacenter.as_deref(), Some("dc1"));

    let first = &listed(&read)[0];
    assert_eq!(first.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(first.node.as_deref(), Some("node-a"));
    let text = first.text.as_ref().unwrap();
    assert_eq!(&*text.owner, "node-a.node.dc1.consul.");
    let strings: Vec<_> = text
        .strings
        .iter()
        .map(|s| str::from_utf8(s).unwrap())
        .collect();
    assert_eq!(
        strings,
        ["e`=q=1", "owner=team=x``y", "rack=a1", "v=plain a"]
    );
    let facts = first.facts.as_ref().unwrap();
    assert_eq!(facts.id.as_deref(), Some("web1"));
    assert_eq!(&*facts.tags, ["v1".into(), "primary".into()]);
    assert_eq!(facts.health, Some(Health::Passing));

    let second = &listed(&read)[1];
    assert_eq!(second.text, None);
    let facts = second.facts.as_ref().unwrap();
    assert_eq!(facts.meta.get("version").map(|v| &**v), Some("2"));
}

#[test]
fn what_is_not_critical_is_listed_with_the_weight_of_its_worst_check() {
    let read = told(&service("health"), HEALTH).unwrap();
    assert_eq!(
        lines(&read),
        [
            "h-nocheck.node.dc1.consul. 5010 10 Node",
            "h-nodewarn.node.dc1.consul. 5012 3 Node",
            "h-other.node.dc1.consul. 5016 10 Node",
            "h-passing.node.dc1.consul. 5000 10 Node",
            "h-two.node.dc1.consul. 5015 3 Node",
            "h-warning.node.dc1.consul. 5001 3 Node",
        ]
    );
    assert_eq!(read.skipped, 0);
    let warned = &listed(&read)[1].facts.as_ref().unwrap().health;
    assert_eq!(*warned, Some(Health::Warning));
}

#[test]
fn a_registered_host_name_is_the_target() {
    let read = told(&service("fqdnone"), include_str!("captures/fqdnone.json")).unwrap();
    assert_eq!(lines(&read), ["www.example.com. 6379 1 Host"]);
    assert!(listed(&read)[0].addresses.is_empty());
    assert!(listed(&read)[0].text.is_some());
}

#[test]
fn proxies_and_gateways_answer_under_names_of_their_own() {
    let mut question = service("");
    question.ask = Ask::Connect { name: "web" };
    let read = told(&question, include_str!("captures/connect_web.json")).unwrap();
    assert_eq!(
        lines(&read),
        [
            "0a000001.addr.dc1.consul. 21000 1 Address",
            "0a010103.addr.dc1.consul. 21001 1 Address",
        ]
    );
    question.ask = Ask::Ingress { name: "web" };
    let read = told(&question, include_str!("captures/ingress_web.json")).unwrap();
    assert_eq!(lines(&read), ["node-b.node.dc1.consul. 8443 1 Node"]);
}

#[test]
fn a_prepared_query_says_its_ttl_and_the_datacenter_that_answered() {
    let mut question = service("");
    question.ask = Ask::Query { name: "x" };
    let read = told(&question, include_str!("captures/webttl.json")).unwrap();
    assert_eq!(read.ttl, Some(Duration::from_secs(25)));
    assert_eq!(listed(&read).len(), 2);

    let read = told(&question, include_str!("captures/failq.json")).unwrap();
    assert_eq!(lines(&read), ["0a140101.addr.dc2.consul. 2000 1 Address"]);
    assert_eq!(read.datacenter.as_deref(), Some("dc2"));
    assert_eq!(read.ttl, None);

    let empty = told(&question, include_str!("captures/emptyq.json"));
    assert_eq!(empty, Err(Unread::NotFound { unhealthy: 0 }));
    assert_eq!(
        told(&question, "null"),
        Err(Unread::NotFound { unhealthy: 0 })
    );
}

#[test]
fn a_node_is_one_host() {
    let mut question = service("");
    question.ask = Ask::Node { name: "NODE-V6" };
    let body = include_str!("captures/node_v6.json");
    let Found::Host(host) = told(&question, body).unwrap().found else {
        panic!("not a host");
    };
    assert_eq!(host.addresses, ["2001:db8::10".parse::<IpAddr>().unwrap()]);
    assert_eq!((host.alias, host.text.len()), (None, 0));
    assert_eq!(
        told(&question, "null"),
        Err(Unread::NotFound { unhealthy: 0 })
    );

    question.ask = Ask::Node { name: "other" };
    assert!(matches!(told(&question, body), Err(Unread::Malformed(_))));

    question.ask = Ask::Node { name: "n" };
    let body = r#"{"Node":{"Node":"n","Address":"Db.example.com","Meta":{"a":"b"}}}"#;
    let Found::Host(host) = told(&question, body).unwrap().found else {
        panic!("not a host");
    };
    assert_eq!(host.alias.as_deref(), Some("Db.example.com."));
    assert_eq!(host.text, [Box::from(*b"a=b")]);
    for body in [
        r#"{"Node":{"Node":"n","Address":"0.0.0.0"}}"#,
        r#"{"Node":{"Node":"n","Address":""}}"#,
        r#"{"Node":{"Node":5}}"#,
        "[]",
    ] {
        let told = told(&question, body);
        assert!(matches!(told, Err(Unread::Malformed(_))), "{body}");
    }
}

#[test]
fn servers_are_named_by_their_nodes_in_lower_case() {
    let mut question = service("");
    question.ask = Ask::Servers;
    let server = |node: &str, address: &str| {
        format!(
            r#"{{"Node":{{"Node":"{node}","Address":"{address}","Datacenter":"dc1"}},
                "Service":{{"Service":"consul","Port":8300}},"Checks":[]}}"#
        )
    };
    let body = list(&[
        server("S-One", "10.9.0.1"),
        server("s_two", "10.9.0.2"),
        server("a b", "10.9.0.3"),
    ]);
    let read = told(&question, &body).unwrap();
    assert_eq!(read.skipped, 1);
    let Found::Servers(servers) = read.found else {
        panic!("no servers");
    };
    let names: Vec<_> = servers.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["s-one.node.dc1.consul.", "s_two.node.dc1.consul."]);
}

#[test]
fn nothing_healthy_is_not_found_and_says_how_many_are_unhealthy() {
    let question = service("web");
    for body in ["[]", "null", "[]\n"] {
        assert_eq!(
            told(&question, body),
            Err(Unread::NotFound { unhealthy: 0 })
        );
    }
    let critical = r#"[{"Node":{"Node":"n","Address":"10.0.0.1"},"Service":{"Service":"web"},
        "Checks":[{"Status":"critical"},{"Status":"passing"}]}]"#;
    assert_eq!(
        told(&question, critical),
        Err(Unread::NotFound { unhealthy: 1 })
    );
}

#[test]
fn equal_node_address_and_port_is_one_instance() {
    let body = list(&[
        entry(1, r#","ID":"a","Address":"10.9.0.1","Port":80"#),
        entry(1, r#","ID":"b","Address":"10.9.0.1","Port":80"#),
        entry(1, r#","ID":"c","Address":"10.9.0.1","Port":81"#),
        entry(2, r#","ID":"d","Address":"10.9.0.1","Port":80"#),
    ]);
    let read = told(&service("web"), &body).unwrap();
    assert_eq!((listed(&read).len(), read.skipped), (3, 0));
}

#[test]
fn a_service_whose_address_is_its_own_name_has_its_nodes() {
    let body = list(&[entry(1, r#","Address":"Web.service.consul""#)]);
    let read = told(&service("web"), &body).unwrap();
    assert_eq!(lines(&read), ["n1.node.dc1.consul. 0 1 Node"]);
}

#[test]
fn an_instance_of_a_peer_is_named_without_a_datacenter() {
    let mut question = service("web");
    question.place.peer = Some("east");
    let body = list(&[
        entry(1, r#","PeerName":"east","Address":"10.9.0.1""#),
        entry(2, r#","PeerName":"East""#),
    ]);
    let read = told(&question, &body).unwrap();
    assert_eq!(
        lines(&read),
        [
            "0a090001.addr.consul. 0 1 Address",
            "n2.node.East.peer.consul. 0 1 Node",
        ]
    );
}

#[test]
fn a_nodes_address_for_other_datacenters_is_named_by_itself() {
    let body = r#"[{"Node":{"Node":"t-node","Address":"198.51.100.31","Datacenter":"dc1",
        "TaggedAddresses":{"lan":"10.30.0.1","wan":"198.51.100.31"}},
        "Service":{"Service":"web","Port":2101}}]"#;
    let read = read(&service("web"), body.as_bytes(), true).unwrap();
    assert_eq!(lines(&read), ["c633641f.addr.dc1.consul. 2101 1 Address"]);
    let read = told(&service("web"), body).unwrap();
    assert_eq!(lines(&read), ["t-node.node.dc1.consul. 2101 1 Node"]);
}

#[test]
fn a_node_has_its_own_name_whatever_bytes_it_is_of() {
    let body = r#"[{"Node":{"Node":"a b","Address":"10.0.0.1","Datacenter":"dc1","Meta":{"a":"b"}},
        "Service":{"Service":"web"}}]"#;
    let read = told(&service("web"), body).unwrap();
    assert_eq!(lines(&read), [r"a\032b.node.dc1.consul. 0 1 Node"]);
    let instance = &listed(&read)[0];
    assert_eq!(instance.node.as_deref(), Some("a b"));
    let text = instance.text.as_deref().unwrap();
    assert_eq!(*text.owner, *r"a\032b.node.dc1.consul.");
}

#[test]
fn a_node_that_dns_cannot_name_is_not_lost() {
    let body = r#"[{"Node":{"Node":"a..b","Address":"10.0.0.1","Datacenter":"dc1","Meta":{"a":"b"}},
        "Service":{"Service":"web"}}]"#;
    let read = told(&service("web"), body).unwrap();
    assert_eq!(lines(&read), ["0a000001.addr.dc1.consul. 0 1 Address"]);
    assert_eq!(listed(&read)[0].text, None);
}

#[test]
fn an_address_for_nobody_is_skipped_and_costs_the_others_nothing() {
    for address in ["0.0.0.0", "::", "10.0.0.0/8", "fe80::1%eth0", "not a host"] {
        let body = list(&[
            entry(1, ""),
            entry(2, &format!(r#","Address":"{address}""#)),
        ]);
        let read = told(&service("web"), &body).unwrap();
        assert_eq!((listed(&read).len(), read.skipped), (1, 1), "{address}");
        let reason = read.first_reason.unwrap();
        assert!(reason.starts_with("entry 2: the address"), "{reason}");
    }
}

#[test]
fn where_nothing_can_be_used_the_reply_is_no_answer() {
    let body = list(&[entry(1, r#","Address":"0.0.0.0""#)]);
    let told = told(&service("web"), &body);
    assert!(matches!(told, Err(Unread::Malformed(_))), "{told:?}");
}

#[test]
fn one_bad_entry_in_ten_is_skipped_and_two_are_refused() {
    let bad = [
        r#","Port":-1"#,
        r#","Port":70000"#,
        r#","Port":"80""#,
        r#","Port":80.5"#,
        r#","Port":1e309"#,
        r#","Port":1,"Port":2"#,
        r#","Tags":"x""#,
        r#","Meta":[]"#,
        r#","Weights":7"#,
    ];
    let good: Vec<_> = (1..=9).map(|number| entry(number, "")).collect();
    for bad in bad {
        let mut entries = good.clone();
        entries.push(entry(99, bad));
        let read = told(&service("web"), &list(&entries)).unwrap();
        assert_eq!((listed(&read).len(), read.skipped), (9, 1), "{bad}");
        entries.push(entry(98, bad));
        let told = told(&service("web"), &list(&entries));
        assert!(matches!(told, Err(Unread::Malformed(_))), "{bad}");
    }
    let whole = [
        "null",
        "{}",
        "7",
        r#"{"Node":{"Node":"n"}}"#,
        r#"{"Node":null,"Service":{}}"#,
    ];
    for bad in whole {
        let mut entries = good.clone();
        entries.push(bad.to_owned());
        assert_eq!(
            told(&service("web"), &list(&entries)).unwrap().skipped,
            1,
            "{bad}"
        );
    }
}

#[test]
fn null_means_empty_and_unknown_keys_mean_nothing() {
    let body = list(&[entry(
        1,
        r#","Tags":null,"Meta":null,"Weights":null,"Address":null,"Port":null,
           "SocketPath":"/x","Locality":{"Region":[[[1e400]]]},"Ports":null"#,
    )]);
    let read = told(&service("web"), &body).unwrap();
    assert_eq!(lines(&read), ["n1.node.dc1.consul. 0 1 Node"]);
}

#[test]
fn an_answer_to_another_question_is_refused() {
    let mut question = service("other");
    assert!(matches!(told(&question, WEB), Err(Unread::Malformed(_))));
    question = service("WEB");
    assert!(told(&question, WEB).is_ok());
    question.place.datacenter = Some("dc2");
    assert!(matches!(told(&question, WEB), Err(Unread::Malformed(_))));
    // An old agent ignores the parameter and lists its own instances.
    question = service("web");
    question.place.peer = Some("east");
    let Err(Unread::Malformed(why)) = told(&question, WEB) else {
        panic!("read");
    };
    assert!(why.contains("peer none where east"), "{why}");
}

#[test]
fn what_is_no_json_is_refused_with_its_reason() {
    for (body, why) in [
        (&b""[..], "empty"),
        (b" <html>hush</html>", "web page"),
        (b"\xef\xbb\xbf[]", "not the JSON"),
        (b"[\xff]", "not the JSON"),
        (b"{}", "not the JSON"),
        (b"[", "not the JSON"),
        (b"[] x", "not the JSON"),
    ] {
        let told = read(&service("web"), body, false);
        let Err(Unread::Malformed(told)) = told else {
            panic!("read {body:?}");
        };
        assert!(told.contains(why), "{told}");
    }
}

#[test]
fn of_a_long_list_one_entry_is_held_and_what_was_made_of_those_before() {
    let text = "x".repeat(800);
    let meta = format!(r#","Port":8080,"Unread":"{text}""#);
    let entries: Vec<_> = (0..10_000)
        .map(|number| entry(number % 200, &meta))
        .collect();
    let body = list(&entries);
    let mut read = None;
    let asked = allocation_counter::measure(|| {
        let question = service("web");
        let mut reading = Reading::new(&question, false);
        for piece in body.as_bytes().chunks(16 << 10) {
            reading.more(piece);
        }
        read = Some(reading.end());
    });
    assert_eq!(listed(&read.unwrap().unwrap()).len(), 200);
    let (most, all) = (asked.bytes_max, body.len() as u64);
    assert!(most < all / 4, "{most} of {all} bytes");
}

#[test]
fn depth_is_not_a_way_to_the_end_of_the_stack() {
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    for body in [
        deep.clone(),
        format!("[{deep}]"),
        format!(r#"[{{"X":{deep}}}]"#),
        format!(r#"{{"Nodes":{deep}}}"#),
    ] {
        for ask in asks() {
            let question = Question { ask, ..service("") };
            assert!(told(&question, &body).is_err());
        }
    }
}

#[test]
fn ttls_are_gos_durations() {
    let seconds = |text| go_duration(text).map(|ttl| ttl.as_secs_f64());
    for (text, expected) in [
        ("25s", Some(25.0)),
        ("0", Some(0.0)),
        ("0s", Some(0.0)),
        ("1m30s", Some(90.0)),
        ("1h0m0s", Some(3600.0)),
        ("1.5h", Some(5400.0)),
        ("500ms", Some(0.5)),
        ("10µs", Some(1e-5)),
        ("", None),
        ("-1s", None),
        ("25", None),
        ("s", None),
        ("1.2.3s", None),
        ("1d", None),
        ("99999999999h", None),
        ("1s ", None),
    ] {
        assert_eq!(seconds(text), expected, "{text:?}");
    }
}

fn asks() -> [Ask<'static>; 6] {
    [
        Ask::Service {
            name: "web",
            tag: None,
        },
        Ask::Connect { name: "web" },
        Ask::Ingress { name: "web" },
        Ask::Node { name: "web" },
        Ask::Query { name: "web" },
        Ask::Servers,
    ]
}

/// Any JSON, often with the keys that are read.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let key = prop::sample::select(vec![
        "Node",
        "Service",
        "Checks",
        "Address",
        "Port",
        "Ports",
        "Weights",
        "Passing",
        "Tags",
        "Meta",
        "Nodes",
        "DNS",
        "TTL",
        "Status",
        "Datacenter",
        "PeerName",
        "x",
    ]);
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        (0u16..).prop_map(Into::into),
        prop::sample::select(vec!["web", "10.0.0.1", "::", "critical", "9s"]).prop_map(Into::into),
        "\\PC{0,9}".prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::hash_map(key.clone().prop_map(String::from), inner, 0..8)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

proptest! {
    #[test]
    fn no_bytes_and_no_json_make_it_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        json in any_json(),
        translated: bool,
    ) {
        for ask in asks() {
            let question = Question { ask, ..service("") };
            let _ = read(&question, &bytes, translated);
            let _ = read(&question, json.to_string().as_bytes(), translated);
        }
    }

    #[test]
    fn a_cut_reply_is_never_taken_for_a_whole_one(cut in 0..WEB.trim_end().len()) {
        let told = read(&service("web"), &WEB.as_bytes()[..cut], false);
        prop_assert!(matches!(told, Err(Unread::Malformed(_))));
    }

    #[test]
    fn a_name_never_leaves_its_place_in_the_path(name in "\\PC{1,20}", tag in "\\PC{0,20}") {
        let ask = Ask::Service { name: &name, tag: Some(&tag) };
        let path = path(&ask, &Place::default(), Reader::Any);
        let rest = path.strip_prefix("/v1/health/service/").unwrap();
        let (segment, query) = rest.split_once("?stale&tag=").unwrap();
        let plain = |text: &str| !text.contains(['/', '?', '#', '&', '=', ' ']);
        prop_assert!(plain(segment) && plain(query));
    }

    #[test]
    fn any_duration_is_read_or_refused(text in "[0-9.a-zµ+-]{0,12}") {
        let _ = go_duration(&text);
    }
}
