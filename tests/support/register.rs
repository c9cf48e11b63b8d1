//! Registrations: single ones, and many at once.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Agent;

/// How many requests are in the air at once.
const PARALLEL: usize = 32;

/// Consul takes at most 64 operations in a transaction; a node with its service
/// is two.
const NODES_IN_TRANSACTION: usize = 32;

impl Agent {
    /// Registers a service on the agent's own node, and waits until the catalog
    /// has it. The body is that of `/v1/agent/service/register`.
    pub(crate) async fn register_service(&self, service: Value) {
        let id = service.get("ID").unwrap_or_else(|| &service["Name"]);
        let path = format!(
            "/v1/catalog/service/{}?filter=ServiceID=={id}",
            service["Name"].as_str().expect("a service has a name")
        );
        self.put("/v1/agent/service/register", service.clone())
            .await;
        super::wait_for("the service in the catalog", async || {
            let found = self.get(&path).await;
            found.as_array().filter(|found| !found.is_empty()).map(drop)
        })
        .await;
    }

    /// Registers a node, and what stands on it, as an external service. The
    /// body is that of `/v1/catalog/register`.
    pub(crate) async fn register_catalog(&self, node: Value) {
        self.put("/v1/catalog/register", node).await;
    }

    /// Takes a service off the agent's own node.
    pub(crate) async fn deregister_service(&self, id: &str) {
        self.put(&format!("/v1/agent/service/deregister/{id}"), Value::Null)
            .await;
    }

    /// Registers instances on the agent's own node, each with an address of its
    /// own, waits until the catalog has them, and gives back where they are.
    /// Their ids are the service's name and a number from 0: `web-0`.
    pub(crate) async fn register_instances(&self, service: &str, count: usize) -> Vec<SocketAddr> {
        let addresses: Vec<_> = (0..count).map(|index| instance(1, index)).collect();
        let mut left = addresses.iter().enumerate();
        let mut running = JoinSet::new();
        loop {
            while running.len() < PARALLEL
                && let Some((index, address)) = left.next()
            {
                let body = json!({
                    "ID": format!("{service}-{index}"),
                    "Name": service,
                    "Address": address.ip(),
                    "Port": address.port(),
                });
                let request = self.request(Method::PUT, "/v1/agent/service/register");
                running.spawn(request.json(&body).send());
            }
            let Some(done) = running.join_next().await else {
                break;
            };
            let response = done.expect("the request does not panic");
            let response = response.expect("the agent answers");
            assert!(response.status().is_success(), "{}", response.status());
        }
        self.wait_for_instances(service, count).await;
        addresses
    }

    /// Registers as many external nodes, each with one instance and its address,
    /// and gives back where they are. Node and id are the service's name and a
    /// number from 0: `web-0`.
    pub(crate) async fn register_nodes(&self, service: &str, count: usize) -> Vec<SocketAddr> {
        let addresses: Vec<_> = (0..count).map(|index| instance(2, index)).collect();
        let numbered: Vec<_> = addresses.iter().enumerate().collect();
        for part in numbered.chunks(NODES_IN_TRANSACTION) {
            let operations: Vec<_> = part
                .iter()
                .flat_map(|(index, address)| {
                    let name = format!("{service}-{index}");
                    let node = json!({ "Node": name, "Address": address.ip() });
                    let instance =
                        json!({ "ID": name, "Service": service, "Port": address.port() });
                    [
                        json!({ "Node": { "Verb": "set", "Node": node } }),
                        json!({ "Service": { "Verb": "set", "Node": name, "Service": instance } }),
                    ]
                })
                .collect();
            self.put("/v1/txn", json!(operations)).await;
        }
        addresses
    }
}

/// Unlike any other instance's, also in its port, so that a mix-up shows.
fn instance(network: u8, index: usize) -> SocketAddr {
    let [.., high, low] = u32::try_from(index)
        .expect("tests register thousands")
        .to_be_bytes();
    let address = Ipv4Addr::new(10, network, high, low);
    let port = 10_000 + u16::try_from(index).expect("tests register thousands");
    (IpAddr::from(address), port).into()
}
