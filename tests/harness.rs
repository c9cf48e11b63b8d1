//! The harness against a real agent: other tests rest on it.

mod support;

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, RecordType},
};
use serde_json::json;
use support::{Agent, SilentDns, ask_tcp, ask_udp, closed_port};
use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};

fn ports(reply: &Message) -> BTreeSet<u16> {
    let srv = |data: &RData| match data {
        RData::SRV(srv) => Some(srv.port),
        _ => None,
    };
    let answers = reply.answers.iter();
    answers.filter_map(|record| srv(&record.data)).collect()
}

fn ports_of(addresses: &[SocketAddr]) -> BTreeSet<u16> {
    addresses.iter().map(SocketAddr::port).collect()
}

#[tokio::test]
async fn started_agent_answers_over_http_and_over_dns() {
    let agent = Agent::builder().node("alpha").start().await;
    let own = agent.get("/v1/agent/self").await;
    assert_eq!(own["Config"]["NodeName"], "alpha");

    for reply in [
        ask_udp(agent.dns(), "alpha.node.consul.", RecordType::A).await,
        ask_tcp(agent.dns(), "alpha.node.consul.", RecordType::A).await,
    ] {
        assert_eq!(reply.unwrap().answers.len(), 1);
    }
}

#[tokio::test]
async fn configuration_of_the_test_wins_over_the_harness() {
    let config = json!({ "domain": "corp.example", "dns_config": { "node_ttl": "30s" } });
    let agent = Agent::builder().node("alpha").config(config).start().await;
    let reply = ask_udp(agent.dns(), "alpha.node.corp.example.", RecordType::A).await;
    assert_eq!(reply.unwrap().answers[0].ttl, 30);
}

#[tokio::test]
async fn registered_service_is_seen_at_once_and_gone_after_deregistration() {
    let agent = Agent::start().await;
    agent
        .register_service(json!({ "Name": "db", "Port": 5432, "Tags": ["primary"] }))
        .await;
    let reply = ask_udp(agent.dns(), "primary.db.service.consul.", RecordType::SRV).await;
    assert_eq!(ports(&reply.unwrap()), [5432].into());

    agent.deregister_service("db").await;
    agent.wait_for_instances("db", 0).await;
    let reply = ask_udp(agent.dns(), "db.service.consul.", RecordType::SRV).await;
    assert_eq!(
        reply.unwrap().metadata.response_code,
        ResponseCode::NXDomain
    );
}

#[tokio::test]
async fn external_node_is_registered_through_the_catalog() {
    let agent = Agent::start().await;
    let service = json!({ "Service": "mail", "Port": 25 });
    agent
        .register_catalog(json!({ "Node": "far", "Address": "10.9.9.9", "Service": service }))
        .await;
    let reply = ask_udp(agent.dns(), "mail.service.consul.", RecordType::SRV).await;
    assert_eq!(ports(&reply.unwrap()), [25].into());
}

#[tokio::test]
async fn hundred_instances_are_all_there_over_tcp_and_cut_over_udp() {
    let agent = Agent::start().await;
    let registered = agent.register_instances("web", 100).await;
    let reply = ask_tcp(agent.dns(), "web.service.consul.", RecordType::SRV).await;
    assert_eq!(ports(&reply.unwrap()), ports_of(&registered));

    let reply = ask_udp(agent.dns(), "web.service.consul.", RecordType::SRV).await;
    let reply = reply.unwrap();
    assert_eq!(reply.answers.len(), 3);
    assert!(!reply.metadata.truncation);
}

#[tokio::test]
async fn fifteen_hundred_instances_of_each_kind_are_registered() {
    let agent = Agent::start().await;
    for (service, addresses) in [
        ("local", agent.register_instances("local", 1500).await),
        ("far", agent.register_nodes("far", 1500).await),
    ] {
        let found = agent.get(&format!("/v1/health/service/{service}")).await;
        let found = found.as_array().unwrap();
        let port = |entry: &serde_json::Value| entry["Service"]["Port"].as_u64().unwrap() as u16;
        let found: BTreeSet<u16> = found.iter().map(port).collect();
        assert_eq!(found, ports_of(&addresses));
    }
}

#[tokio::test]
async fn paused_agent_is_silent_until_it_is_resumed() {
    let agent = Agent::start().await;
    agent.pause();
    assert!(TcpStream::connect(agent.http_address()).await.is_ok());
    let asked = ask_udp(agent.dns(), "consul.service.consul.", RecordType::A).await;
    assert!(asked.is_none());

    agent.resume();
    let asked = ask_udp(agent.dns(), "consul.service.consul.", RecordType::A).await;
    assert!(asked.is_some());
}

#[tokio::test]
async fn ended_agent_leaves_closed_ports_and_comes_back_on_the_same() {
    let mut agent = Agent::start().await;
    agent.kill();
    assert!(TcpStream::connect(agent.dns()).await.is_err());
    agent.restart().await;
    assert!(TcpStream::connect(agent.dns()).await.is_ok());

    agent.stop().await;
    assert!(agent.log().contains("shutdown complete"), "{}", agent.log());
    assert!(TcpStream::connect(agent.http_address()).await.is_err());
}

#[tokio::test]
async fn client_agent_tells_what_its_server_knows() {
    let server = Agent::start().await;
    server
        .register_service(json!({ "Name": "db", "Port": 5432 }))
        .await;
    let client = Agent::builder().client_of(&server).start().await;
    let reply = ask_udp(client.dns(), "db.service.consul.", RecordType::SRV).await;
    assert_eq!(ports(&reply.unwrap()), [5432].into());
}

#[tokio::test]
async fn agent_with_acls_is_ready_for_whoever_has_the_token() {
    let token = "00000000-0000-0000-0000-00000000beef";
    let config = json!({ "primary_datacenter": "dc1", "acl": {
        "enabled": true,
        "default_policy": "deny",
        "tokens": { "master": token, "agent": token },
    } });
    let agent = Agent::builder().config(config).token(token).start().await;
    agent
        .register_service(json!({ "Name": "db", "Port": 5432 }))
        .await;
    let reply = ask_udp(agent.dns(), "db.service.consul.", RecordType::SRV).await;
    assert_eq!(
        reply.unwrap().metadata.response_code,
        ResponseCode::NXDomain
    );
}

#[tokio::test]
async fn leaderless_server_starts_and_has_no_answers() {
    let agent = Agent::builder().leaderless().start().await;
    assert_eq!(agent.get("/v1/status/leader").await, "");
    let asked = ask_udp(agent.dns(), "consul.service.consul.", RecordType::A).await;
    assert!(asked.is_none_or(|reply| reply.answers.is_empty()));
}

#[tokio::test]
async fn closed_port_refuses_over_tcp_and_udp() {
    let address = closed_port();
    assert!(TcpStream::connect(address).await.is_err());
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address).await.unwrap();
    socket.send(b"anybody?").await.unwrap();
    assert!(socket.recv(&mut [0; 1]).await.is_err());
}

#[tokio::test]
async fn silent_dns_takes_questions_and_answers_none() {
    let silent = SilentDns::start();
    assert!(TcpStream::connect(silent.address()).await.is_ok());
    let asked = ask_udp(silent.address(), "web.service.consul.", RecordType::A);
    assert!(timeout(Duration::from_millis(200), asked).await.is_err());
    assert_eq!(silent.questions().len(), 1);
    assert_eq!(silent.questions().len(), 0);
}
