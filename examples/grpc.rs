//! A generated gRPC client, given a service's name in place of an address.
//!
//! ```console
//! $ cargo run --features grpc --example grpc -- orders
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::error::Error;

use proconsul::{Resolver, grpc::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1);
    let name = name.unwrap_or_else(|| "orders".to_owned());
    let service = Resolver::from_env()?.service(&*name)?;

    let mut client = HealthClient::new(Channel::new(service));
    let answer = client.check(HealthCheckRequest::default()).await?;
    println!("{:?}", answer.into_inner().status());
    Ok(())
}
