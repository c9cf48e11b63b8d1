//! Find every instance of a service registered in HashiCorp Consul.

mod balance;
mod cache;
mod clock;
mod complete;
mod config;
mod consul;
mod endpoint;
mod error;
mod flight;
mod found;
mod ladder;
mod name;
mod record;
mod records;
mod resolver;
mod source;
mod stamp;
pub mod stub;
mod zone;

pub use balance::{Picker, Strategy, UnknownStrategy};
pub use config::ResolverBuilder;
pub use endpoint::{Answer, Attempt, Endpoint, Freshness, Health, Outcome, Source, Transport};
pub use error::{Error, ErrorKind};
pub use name::{ConsulName, Domain, Locality, NameError, Subject};
pub use record::{Record, Records, Section};
pub use resolver::{Name, Resolver};
