use proptest::prelude::*;

use super::*;

const SHOP: &str = include_str!("../../../examples/catalog.json");

fn parse(text: &str) -> Result<StaticCatalog, StaticError> {
    StaticCatalog::parse(text, "consul")
}

fn instances(found: Option<Found>) -> Vec<Instance> {
    match found {
        Some(Found::Instances(instances)) => instances,
        None => Vec::new(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_example_is_a_shop_with_its_services() {
    let shop = parse(SHOP).unwrap();
    let names: Vec<_> = shop.services().map(|(name, _)| name).collect();
    assert_eq!(names, ["ai-provider", "db", "payment", "web"]);
    let (_, tags) = shop.services().last().unwrap();
    assert_eq!(Vec::from_iter(tags), ["canary", "primary", "v1", "v2"]);

    let web = instances(shop.find("web", None));
    let lines: Vec<_> = web
        .iter()
        .map(|own| format!("{} {} {} {:?}", own.target, own.port, own.weight, own.kind))
        .collect();
    assert_eq!(
        lines,
        [
            "0a14000b.addr.consul. 8080 10 Address",
            "0a14000c.addr.consul. 8080 10 Address",
            "20010db8002000000000000000000013.addr.consul. 8080 1 Address",
        ]
    );
    let facts = web[0].facts.as_ref().unwrap();
    assert_eq!(facts.id.as_deref(), Some("web-1"));
    assert_eq!(facts.meta.get("zone").map(|zone| &**zone), Some("a"));
    assert_eq!((facts.health, &web[0].node), (None, &None));

    let provider = instances(shop.find("ai-provider", None));
    assert_eq!(&*provider[0].target, "inference.eu.example.com.");
    assert_eq!(
        (provider[0].kind, provider[0].addresses.len()),
        (TargetKind::Host, 0)
    );
}

#[test]
fn names_and_tags_are_found_in_any_case() {
    let shop = parse(SHOP).unwrap();
    let count = |service, tag| instances(shop.find(service, tag)).len();
    assert_eq!(count("WEB", None), 3);
    assert_eq!(count("Web", Some("V2")), 2);
    assert_eq!(count("web", Some("v3")), 0);
    assert_eq!(count("nosuch", None), 0);
    let mixed = r#"{"services":[
        {"name":"Web","id":"a","address":"10.0.0.1"},{"name":"wEB","id":"b","address":"10.0.0.2"}]}"#;
    let mixed = parse(mixed).unwrap();
    assert_eq!(instances(mixed.find("web", None)).len(), 2);
    assert_eq!(
        mixed.services().map(|(name, _)| name).collect::<Vec<_>>(),
        ["Web"]
    );
}

#[test]
fn one_service_or_many_or_both_and_what_is_not_used_is_passed_over() {
    for (text, count) in [
        (r#"{"service":{"name":"a","address":"10.0.0.1"}}"#, 1),
        (
            r#"{"Service":{"Name":"a","ID":"x","Address":"10.0.0.1","Port":80}}"#,
            1,
        ),
        (
            r#"{"services":[{"name":"a","address":"10.0.0.1"}],"service":{"name":"b","address":"h.test"}}"#,
            2,
        ),
        (r#"{"services":[]}"#, 0),
        (r#"{"services":null}"#, 0),
        (
            r#"{"service":{"name":"a","address":"10.0.0.1","tags":null,"meta":null,"weights":null,
                "port":null,"check":7,"checks":{},"connect":[],"enable_tag_override":1},"datacenter":"x"}"#,
            1,
        ),
    ] {
        assert_eq!(parse(text).unwrap().services().count(), count, "{text}");
    }
}

#[test]
fn a_mistake_is_refused_with_its_place() {
    let cases = [
        (
            r#"{"services":[{]}"#,
            "line 1, column 15: key must be a string",
        ),
        (
            "{\n\"services\": [\n,]}",
            "line 3, column 1: expected value",
        ),
        ("", "line 1, column 0: EOF while parsing a value"),
        ("[]", "the file is not a JSON object"),
        ("{}", "the file has neither \"services\" nor \"service\""),
        (r#"{"services":{}}"#, "\"services\" is not a list"),
        (
            r#"{"service":[]}"#,
            "entry 1 is a list where an object belongs",
        ),
        (
            r#"{"services":[7]}"#,
            "entry 1 is a number where an object belongs",
        ),
    ];
    for (text, told) in cases {
        assert_eq!(parse(text).unwrap_err().to_string(), told, "{text}");
    }
    let cases = [
        (r#""x":1"#, "entry 2, name: is missing"),
        (r#""name":"""#, "entry 2, name: is missing"),
        (
            r#""name":7"#,
            "entry 2, name: is a number where a text belongs",
        ),
        (r#""name":"a""#, "entry 2, address: is missing"),
        (
            r#""name":"a","address":[]"#,
            "entry 2, address: is a list where a text belongs",
        ),
        (
            r#""name":"a","address":"0.0.0.0""#,
            "entry 2, address: the address 0.0.0.0 means every address",
        ),
        (
            r#""name":"a","address":"10.0.0.1:80""#,
            "entry 2, address: the address \"10.0.0.1:80\" is neither an IP address nor a host name",
        ),
    ];
    for (service, told) in cases {
        refused(service, told);
    }
    let whole = [
        (r#""port":"80""#, "port: is a text where a number belongs"),
        (
            r#""port":70000"#,
            "port: 70000 is not a whole number from 0 to 65535",
        ),
        (
            r#""port":-1"#,
            "port: -1 is not a whole number from 0 to 65535",
        ),
        (
            r#""port":80.5"#,
            "port: 80.5 is not a whole number from 0 to 65535",
        ),
        (
            r#""tags":"v1""#,
            "tags: is a text where a list of texts belongs",
        ),
        (
            r#""tags":[1]"#,
            "tags: is a number where a list of texts belongs",
        ),
        (
            r#""meta":[]"#,
            "meta: is a list where an object of texts belongs",
        ),
        (
            r#""meta":{"a":1}"#,
            "meta: is a number where an object of texts belongs",
        ),
        (
            r#""weights":1"#,
            "weights: is a number where an object belongs",
        ),
        (
            r#""weights":{"passing":0}"#,
            "weights.passing: 0 is not a whole number from 1 to 65535",
        ),
        (
            r#""weights":{"warning":65536}"#,
            "weights.warning: 65536 is not a whole number from 0 to 65535",
        ),
        (r#""id":true"#, "id: is true or false where a text belongs"),
        (
            r#""id":"first""#,
            "id: \"first\" is taken by an entry before",
        ),
    ];
    for (field, told) in whole {
        let service = format!(r#""name":"a","address":"10.0.0.1",{field}"#);
        refused(&service, &format!("entry 2, {told}"));
    }
    // Without an id it is the name, as in Consul: the second would replace the first.
    refused(
        r#""name":"first","address":"10.0.0.2""#,
        "entry 2, id: \"first\" is taken by an entry before",
    );
}

fn refused(service: &str, told: &str) {
    let text = format!(r#"{{"services":[{{"name":"first","address":"10.0.0.1"}},{{{service}}}]}}"#);
    assert_eq!(parse(&text).unwrap_err().to_string(), told, "{service}");
}

#[test]
fn depth_is_refused_and_no_way_to_the_end_of_the_stack() {
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(parse(&deep), Err(StaticError::Syntax { .. })));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(
        text in "\\PC{0,40}",
        service in r#"("(name|id|address|port|tags|meta|weights)":(1|-1|"x"|"10.0.0.1"|null|\[\]|\{\}|true),?){0,6}"#,
    ) {
        let _ = parse(&text);
        if let Ok(catalog) = parse(&format!(r#"{{"services":[{{{service}"x":0}}]}}"#)) {
            for (name, _) in catalog.services() {
                prop_assert!(catalog.find(name, None).is_some());
            }
        }
    }
}
