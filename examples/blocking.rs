//! Everything from code that is not async.
//!
//! ```console
//! $ PROCONSUL_CATALOG=examples/catalog.json cargo run --example blocking -- web
//! ```

#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use proconsul::{Error, Resolver, blocking};

fn main() -> Result<(), Error> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "web".to_owned());
    let resolver = blocking::Resolver::new(Resolver::builder().environment())?;
    println!("{} endpoints", resolver.lookup(&*name)?.endpoints().len());

    let service = resolver.service(&*name)?;
    let lease = resolver.run(service.pick())??;
    println!("{}", lease.socket_addr());
    Ok(())
}
