//! **Pure.** Who has an address: the requests that ask for it, and what their JSON
//! says. As Consul's own DNS: a node before a service, whatever their health.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

use super::{
    ask::escaped,
    target::{end, node_target},
};
use crate::name::canonical;

/// The names of all services.
pub(crate) const SERVICES: &str = "/v1/catalog/services?stale";

/// Who was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    name: Box<str>,
    datacenter: Option<Box<str>>,
}

impl Pointer {
    /// `<service>.service.<dc>.<domain>.`; `None` where DNS does not carry the name.
    pub(crate) fn fqdn(&self, domain: &str) -> Option<String> {
        let mut name = format!("{}.service.", self.name);
        end(&mut name, self.datacenter.as_deref(), domain);
        canonical(&name)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    node: Box<str>,
    address: Option<Box<str>>,
    datacenter: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Instance {
    service_name: Box<str>,
    service_address: Option<Box<str>>,
    datacenter: Option<Box<str>>,
}

/// The request for nodes with this address.
pub(crate) fn path_of_nodes(ip: IpAddr) -> String {
    let filter = escaped(&format!("Address == \"{ip}\""));
    format!("/v1/catalog/nodes?stale&filter={filter}")
}

/// The request for instances of a service with this address.
pub(crate) fn path_of_service(service: &str, ip: IpAddr) -> String {
    let (service, filter) = (
        escaped(service),
        escaped(&format!("ServiceAddress == \"{ip}\"")),
    );
    format!("/v1/catalog/service/{service}?stale&filter={filter}")
}

/// The first node with the address, as a full name.
pub(crate) fn node(body: &[u8], ip: IpAddr, domain: &str) -> Result<Option<String>, String> {
    let nodes: Vec<Node> = read(body)?;
    let found = nodes.iter().find(|node| is(&node.address, ip));
    Ok(found.and_then(|node| node_target(&node.node, node.datacenter.as_deref(), domain)))
}

/// The names of services, sorted.
pub(crate) fn names(body: &[u8]) -> Result<Vec<Box<str>>, String> {
    let names: BTreeMap<Box<str>, serde::de::IgnoredAny> = read(body)?;
    Ok(names.into_keys().collect())
}

/// The service, if it has an instance with the address.
pub(crate) fn service(body: &[u8], ip: IpAddr) -> Result<Option<Pointer>, String> {
    let instances: Vec<Instance> = read(body)?;
    let found = instances
        .into_iter()
        .find(|instance| is(&instance.service_address, ip));
    Ok(found.map(|instance| Pointer {
        name: instance.service_name,
        datacenter: instance.datacenter,
    }))
}

/// An agent too old to know filters gives all there are.
fn is(address: &Option<Box<str>>, ip: IpAddr) -> bool {
    let address = address.as_deref().and_then(|text| text.parse().ok());
    address == Some(ip)
}

/// `null` is nothing.
fn read<'a, T: Deserialize<'a> + Default>(body: &'a [u8]) -> Result<T, String> {
    let read: Result<Option<T>, _> = serde_json::from_slice(body);
    read.map(Option::unwrap_or_default)
        .map_err(|error| format!("the reply is not the JSON asked for: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    #[test]
    fn the_requests_ask_for_the_address() {
        assert_eq!(
            path_of_nodes(IP),
            "/v1/catalog/nodes?stale&filter=Address%20%3D%3D%20%2210.0.0.1%22"
        );
        assert!(path_of_service("a/b", IP).starts_with("/v1/catalog/service/a%2Fb?stale&filter="));
    }

    #[test]
    fn only_who_has_the_address_is_found() {
        let nodes = br#"[{"Node": "a", "Address": "10.0.0.2", "Datacenter": "dc1"},
            {"Node": "B", "Address": "10.0.0.1", "Datacenter": "dc1"}]"#;
        let found = node(nodes, IP, "consul").unwrap();
        assert_eq!(found.as_deref(), Some("B.node.dc1.consul."));
        let instances = br#"[{"ServiceName": "web", "ServiceAddress": "", "Datacenter": "dc1"},
            {"ServiceName": "web", "ServiceAddress": "10.0.0.1", "Datacenter": "dc1"}]"#;
        let found = service(instances, IP).unwrap().unwrap();
        assert_eq!(
            found.fqdn("consul").as_deref(),
            Some("web.service.dc1.consul.")
        );
        for none in [&b"[]"[..], b"null"] {
            assert_eq!(node(none, IP, "consul"), Ok(None));
            assert_eq!(service(none, IP), Ok(None));
        }
    }

    #[test]
    fn what_is_no_such_list_is_refused() {
        for bad in [&b""[..], b"{", b"[1]", b"<html>"] {
            assert!(node(bad, IP, "consul").is_err());
            assert!(service(bad, IP).is_err());
            assert!(names(bad).is_err());
        }
        assert_eq!(
            names(br#"{"web": [], "api": null}"#).unwrap(),
            ["api".into(), "web".into()]
        );
    }
}
