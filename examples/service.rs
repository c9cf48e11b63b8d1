//! A live handle of a service: endpoints in nanoseconds, by a policy: those of one version,
//! and of one zone while it has any.
//!
//! ```console
//! $ PROCONSUL_CATALOG=examples/catalog.json cargo run --example service -- web
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use proconsul::{Error, Filter, Policy, Resolver, Strategy};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "web".to_owned());
    let policy = Policy::new(Strategy::RoundRobin)
        .require(Filter::new().meta("version", "2.14.0"))
        .prefer(Filter::new().meta("zone", "a"));

    let service = Resolver::from_env()?.service_with(&*name, policy)?;
    let lease = service.pick().await?;
    println!("{}", lease.socket_addr());
    lease.succeeded();

    // From now on without waiting, from any thread.
    for _ in 0..3 {
        let lease = service.try_pick()?;
        println!("{}", lease.socket_addr());
        // Five in a row, and it rests for a minute.
        lease.failed();
    }
    for standing in service.standings() {
        println!("{standing}");
    }
    Ok(())
}
