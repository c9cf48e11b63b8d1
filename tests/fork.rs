//! A process that forks and goes on in the child with what its parent made. By itself: of all
//! threads the child has only the one that forked.

mod support;

use std::{process, time::Duration};

use fork::Fork;
use proconsul::{ErrorKind, Resolver};
use serde_json::json;
use support::Agent;
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// What is wrong with what a child is told. Nothing here may panic: the test would go on in
/// both processes.
async fn wrong_in_a_child(resolver: &Resolver) -> Option<&'static str> {
    let soon = Duration::from_secs(5);
    match timeout(soon, resolver.lookup("web")).await {
        Ok(Ok(known)) if known.endpoints().len() == 1 => {}
        _ => return Some("what is known is not given"),
    }
    match timeout(soon, resolver.lookup("api")).await {
        Ok(Err(error)) if error.kind() == ErrorKind::Invalid => {}
        _ => return Some("a name that is not known was asked for"),
    }
    match timeout(soon, resolver.services()).await {
        Ok(Err(error)) if error.to_string().contains("after the fork") => None,
        _ => Some("the HTTP API was asked"),
    }
}

#[test]
fn a_child_of_a_fork_is_given_what_is_known_and_asks_nobody() {
    let runtime_of_parent = runtime();
    let (_agent, resolver) = runtime_of_parent.block_on(async {
        let agent = Agent::start().await;
        for name in ["web", "api"] {
            let body = json!({ "Name": name, "Address": "10.0.0.1", "Port": 8000 });
            agent.register_service(body).await;
        }
        let builder = Resolver::builder()
            .dns(&agent.dns().to_string())
            .http(&agent.http())
            .ttl_floor(Duration::from_secs(60));
        let resolver = builder.build().expect("a resolver");
        let web = resolver.lookup("web").await.expect("web");
        assert_eq!(web.endpoints().len(), 1);
        (agent, resolver)
    });
    match fork::fork().expect("a child") {
        Fork::Child => {
            let wrong = runtime().block_on(wrong_in_a_child(&resolver));
            if let Some(wrong) = wrong {
                eprintln!("in the child: {wrong}");
            }
            // Nothing of the parent's is dropped here.
            process::exit(i32::from(wrong.is_some()));
        }
        Fork::Parent(child) => {
            let status = fork::waitpid(child).expect("the child's end");
            assert_eq!(status, 0, "the child ended with another status");
        }
    }
    let api = runtime_of_parent.block_on(async { resolver.lookup("api").await });
    assert_eq!(api.expect("api").endpoints().len(), 1);
}
