//! A call of any kind: made to another endpoint where one fails.
//!
//! ```console
//! $ cargo run --example call -- web
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::{error::Error, time::Duration};

use proconsul::{Resolver, Retry};
use tokio::net::TcpStream;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "web".to_owned());
    let service = Resolver::from_env()?.service(&*name)?;
    let retry = Retry::http().deadline(Duration::from_secs(5));

    let stream = service
        .call(&retry, |endpoint| {
            TcpStream::connect(endpoint.socket_addr())
        })
        .await?;
    println!("connected to {}", stream.peer_addr()?);
    Ok(())
}
