//! The command line: every flag once, with what it means to a user.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Arg, Args, Parser, Subcommand, ValueEnum};
use proconsul::{Error, Resolver, ResolverBuilder, Strategy};

use crate::{
    config::{self, File},
    help, systemd,
};

/// Find every healthy instance of a service registered in HashiCorp Consul.
#[derive(Debug, Parser)]
#[command(
    name = "proconsul",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(after_help = "Examples:
  proconsul lookup web                       every instance of the service web
  proconsul lookup v2.web@dc2 --json         those tagged v2 in datacenter dc2
  proconsul pick web                         one of them, as host:port
  proconsul watch web                        each change of them, as it happens
  proconsul serve                            answer DNS clients on 127.0.0.1:8653
  proconsul register web --port 80 -- ./web  run a program, registered while it runs
  proconsul lookup web --catalog FILE        the same from a file, where no Consul is

Exit status: 0 found, 2 usage or configuration, 3 no such name or nothing healthy,
4 not permitted (ACL), 5 no source answered, 1 anything else.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Look a name up once: its endpoints, or with TYPE its DNS records.
    #[command(after_help = help::LOOKUP)]
    Lookup(Lookup),
    /// Print one endpoint as host:port, as a client would be given it.
    #[command(after_help = help::PICK)]
    Pick(Pick),
    /// Tell every step of a look-up: who was asked, how, what came, and why it went on.
    #[command(after_help = help::EXPLAIN)]
    Explain(Explain),
    /// Print each change of the instances of services, until interrupted.
    #[command(after_help = help::WATCH)]
    Watch(Watch),
    /// Answer DNS clients for Consul's domain, on UDP and TCP.
    #[command(after_help = help::SERVE)]
    Serve(Serve),
    /// List what is registered: names and tags, or the instances of one service with their
    /// checks.
    #[command(after_help = help::SERVICES)]
    Services(Services),
    /// Settings in Consul's key-value store.
    #[command(subcommand, after_help = help::KV)]
    Kv(KvCommand),
    /// Register a service at this machine's agent, keep it registered, run COMMAND meanwhile.
    #[command(after_help = help::REGISTER)]
    Register(Register),
    /// Check the whole path, from configuration to resolv.conf: what is wrong, and what
    /// mends it.
    #[command(after_help = help::DOCTOR)]
    Doctor(Doctor),
    /// The configuration file.
    #[command(subcommand, after_help = help::CHECK)]
    Config(ConfigCommand),
    /// Print what makes a shell complete our commands and flags.
    #[command(after_help = help::COMPLETIONS)]
    Completions(Completions),
    /// Print the manual page, of the program or of one command.
    #[command(after_help = help::MAN)]
    Man(Man),
}

#[derive(Debug, Args)]
#[command(mut_args(without_dns))]
pub(crate) struct Services {
    /// One service: its instances, healthy or not
    pub(crate) name: Option<String>,
    /// Only those with this tag
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Option<String>,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KvCommand {
    /// Print the value of a key.
    #[command(after_help = help::KV)]
    Get(KvKey),
    /// Write a value.
    #[command(after_help = help::KV)]
    Put(KvPut),
    /// Print the value each time it changes, until interrupted.
    #[command(after_help = help::KV)]
    Watch(KvKey),
    /// Print the keys that begin so.
    #[command(after_help = help::KV)]
    List(KvKey),
    /// Delete a key.
    #[command(after_help = help::KV)]
    Delete(KvKey),
}

#[derive(Debug, Args)]
#[command(mut_args(agent_alone))]
pub(crate) struct KvKey {
    /// A path such as web/limits
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Args)]
#[command(mut_args(agent_alone))]
pub(crate) struct KvPut {
    /// A path such as web/limits
    pub(crate) key: String,
    /// The value, or - for what comes on stdin
    #[arg(allow_hyphen_values = true)]
    pub(crate) value: String,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// bash, zsh, fish, elvish or powershell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// A command [default: the program]
    pub(crate) command: Option<String>,
    /// Write all pages into this directory
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Read configuration and all files it names, and tell what is wrong with them.
    #[command(after_help = help::CHECK)]
    Check(Check),
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// A name that somebody misses.
    pub(crate) name: Option<String>,
    /// Where proconsul serve should answer on this machine [default: where the configuration
    /// says, else 127.0.0.1:8653]
    #[arg(long, value_name = "ADDR")]
    pub(crate) stub: Option<SocketAddr>,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Args)]
#[command(mut_args(agent_alone))]
pub(crate) struct Register {
    /// The service [env: SERVICE_NAME]
    pub(crate) name: Option<String>,
    /// The port that it listens on [env: SERVICE_PORT]
    #[arg(long, value_name = "P")]
    pub(crate) port: Option<u16>,
    /// The address that clients connect to [env: SERVICE_ADDRESS] [default: the agent's]
    #[arg(long, value_name = "A")]
    pub(crate) address: Option<String>,
    /// Unique at the agent [default: name, address and port]
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
    /// A tag; may be given several times [env: SERVICE_TAGS]
    #[arg(long, value_name = "T")]
    pub(crate) tag: Vec<String>,
    /// Metadata; may be given several times
    #[arg(long, value_name = "K=V", value_parser = pair)]
    pub(crate) meta: Vec<(String, String)>,
    /// Its share of the calls (RFC 2782) [default: 1]
    #[arg(long, value_name = "W", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) weight: Option<u16>,
    /// The agent asks this URL: passing with 2xx, warning with 429
    #[arg(long, value_name = "URL")]
    pub(crate) check_http: Option<String>,
    /// The agent connects to host:port
    #[arg(long, value_name = "ADDR")]
    pub(crate) check_tcp: Option<String>,
    /// The agent asks gRPC's health checking at host:port, or host:port/service
    #[arg(long, value_name = "ADDR")]
    pub(crate) check_grpc: Option<String>,
    /// The agent hears from us within that time
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    pub(crate) check_ttl: Option<Duration>,
    /// Time between two checks [default: 10s]
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    pub(crate) check_interval: Option<Duration>,
    /// Time that a check may take [default: 5s]
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    pub(crate) check_timeout: Option<Duration>,
    /// The agent deregisters what is critical for so long [default: 1m, Consul's least]
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    pub(crate) deregister_after: Option<Duration>,
    /// Time between deregistering and passing SIGTERM on: clients still come
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration, default_value = "0s")]
    pub(crate) drain: Duration,
    #[command(flatten)]
    pub(crate) sources: Sources,
    /// What is run while it is registered
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[derive(Debug, Args)]
pub(crate) struct Lookup {
    /// What to look up; see below.
    pub(crate) name: String,
    /// A DNS record type: SRV, A, AAAA, TXT, PTR, ANY, SOA, NS, ...
    #[arg(value_name = "TYPE")]
    pub(crate) kind: Option<String>,
    /// Only instances with this tag.
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Option<String>,
    /// Ask only this source; nothing of a snapshot
    #[arg(long, value_name = "SOURCE")]
    pub(crate) source: Option<OnlySource>,
    /// Nothing of a snapshot: an error where no source answers now.
    #[arg(long)]
    pub(crate) no_stale: bool,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Args)]
pub(crate) struct Pick {
    /// A service, as for lookup.
    pub(crate) name: String,
    /// So many picks, a line each.
    #[arg(short = 'n', value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: u32,
    /// How to choose: weighted (RFC 2782), random, round-robin, first, least-loaded,
    /// latency, hash.
    #[arg(long, value_name = "STRATEGY", default_value_t)]
    pub(crate) strategy: Strategy,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// What to look up, as for lookup.
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// What to watch, as for lookup.
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Only instances with this tag.
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Option<String>,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

#[derive(Debug, Default, Args)]
pub(crate) struct Serve {
    /// Where to answer, on UDP and TCP; may be given several times [default:
    /// 127.0.0.1:8653]
    #[arg(long, value_name = "ADDR")]
    listen: Vec<SocketAddr>,
    /// Where health, metrics and a page for people are, over HTTP, or none [default:
    /// 127.0.0.1:8654]
    #[arg(long, value_name = "ADDR")]
    admin: Option<AdminAddress>,
    /// Who is asked for other names: an address, DOMAIN=ADDR for one domain, system
    /// for the servers of resolv.conf, or none to refuse them; may be given several
    /// times [default: system]
    #[arg(long, value_name = "ADDR")]
    upstream: Vec<String>,
    /// Hand on no answers for other names that lead into this network, except from
    /// domains with upstreams of their own
    #[arg(long)]
    stop_rebind: bool,
    /// A network as 10.0.0.0/8 whose clients get replies by UDP as long as they can take: others
    /// get three times what they sent, and come over TCP for more; may be given several times
    /// [default: this machine, private and link-local networks]
    #[arg(long, value_name = "NETWORK")]
    trust: Vec<String>,
    /// Become this user, with its groups, once all ports are bound; files are read as that
    /// user from then on
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    pub(crate) sources: Sources,
}

/// An address, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AdminAddress(pub(crate) Option<SocketAddr>);

impl std::str::FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(Self(None));
        }
        let address = text.parse().map(|address| Self(Some(address)));
        address.map_err(|_| "write an address as 127.0.0.1:8654, or none".to_owned())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnlySource {
    Dns,
    Http,
    Static,
    // What was found before: `doctor` asks for that.
    #[value(skip)]
    Snapshot,
}

/// Where answers come from. A flag wins over the environment, that over the
/// configuration.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Where answers come from")]
pub(crate) struct Sources {
    /// Consul's DNS interface, or none [env: PROCONSUL_DNS] [default: 127.0.0.1:8600]
    #[arg(long, value_name = "ADDR[,ADDR]")]
    dns: Option<String>,
    /// Configuration in TOML; see `proconsul config check --help` [env: PROCONSUL_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Consul's HTTP API, or none [env: CONSUL_HTTP_ADDR] [default: http://127.0.0.1:8500]
    #[arg(long, value_name = "URL[,URL]")]
    http: Option<String>,
    /// File with the ACL token [env: CONSUL_HTTP_TOKEN_FILE, or CONSUL_HTTP_TOKEN for the token itself]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Authorities that may vouch for the agent, PEM [env: CONSUL_CACERT] [default: the system's]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Our own certificate, PEM [env: CONSUL_CLIENT_CERT]
    #[arg(long, value_name = "FILE")]
    cert_file: Option<PathBuf>,
    /// Our own private key, PEM [env: CONSUL_CLIENT_KEY]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Name that the agent's certificate must bear [env: CONSUL_TLS_SERVER_NAME]
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,
    /// Datacenter of names that say none [env: CONSUL_DATACENTER] [default: the agent's]
    #[arg(long, value_name = "DC")]
    datacenter: Option<String>,
    /// Namespace of names that say none (Enterprise) [env: CONSUL_NAMESPACE]
    #[arg(long, value_name = "NS")]
    namespace: Option<String>,
    /// Admin partition of names that say none (Enterprise) [env: CONSUL_PARTITION]
    #[arg(long, value_name = "AP")]
    partition: Option<String>,
    /// Limit of a whole look-up: 500ms, 1s [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Static catalog, Consul's service definitions in JSON: the last source asked [env: PROCONSUL_CATALOG]
    #[arg(long, value_name = "FILE")]
    catalog: Option<PathBuf>,
    /// The domain that Consul answers for [env: PROCONSUL_DOMAIN] [default: consul]
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// Last good answers, kept here across runs [env: PROCONSUL_SNAPSHOT] [default: none; of
    /// serve under systemd, in the state directory]
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,
}

/// One set of flags serves all commands, and not every one has a use for each: `--help` of those
/// that ask no DNS does not tell of it.
fn without_dns(flag: Arg) -> Arg {
    let is_of_dns = ["dns", "snapshot"].contains(&flag.get_id().as_str());
    if is_of_dns { flag.hide(true) } else { flag }
}

/// The same of commands that ask the agent's HTTP API and nothing else.
fn agent_alone(flag: Arg) -> Arg {
    let is_written = ["catalog", "domain"].contains(&flag.get_id().as_str());
    without_dns(if is_written { flag.hide(true) } else { flag })
}

/// What is printed and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Output {
    /// Form of what is printed on stdout [default: table]
    #[arg(short, long, value_name = "FORM", global = true)]
    output: Option<Form>,
    /// The same as -o json.
    #[arg(long, global = true)]
    json: bool,
    /// The same as -o short.
    #[arg(long, global = true)]
    short: bool,
    /// Colour: auto is on a terminal only, and never where NO_COLOR is set.
    #[arg(long, value_name = "WHEN", global = true, default_value = "auto")]
    pub(crate) color: Color,
    /// Tell more on stderr, whatever RUST_LOG says; twice, yet more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Tell less on stderr, whatever RUST_LOG says.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people.
    Table,
    /// One address:port a line.
    Short,
    /// One object.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

impl Output {
    pub(crate) fn form(&self) -> Form {
        self.asked().next().unwrap_or(Form::Table)
    }

    /// The forms that are asked for, in whatever way.
    fn asked(&self) -> impl Iterator<Item = Form> {
        let json = self.json.then_some(Form::Json);
        let short = self.short.then_some(Form::Short);
        self.output.into_iter().chain(json).chain(short)
    }

    /// Whether two of them are not one. clap does not see it where one stands before the command
    /// and the other behind it.
    pub(crate) fn contradicts_itself(&self) -> bool {
        self.asked().any(|form| form != self.form())
    }
}

impl Serve {
    /// Without a flag of its own.
    pub(crate) fn with(sources: Sources) -> Self {
        Self {
            sources,
            ..Self::default()
        }
    }

    /// Flags, then the file, then defaults.
    pub(crate) fn settings(&self, file: &File) -> ServeSettings {
        let file = &file.serve;
        ServeSettings {
            listen: given(&self.listen, &file.listen).unwrap_or_else(|| vec![LISTEN]),
            admin: self.admin.or(file.admin).unwrap_or(ADMIN).0,
            upstream: given(&self.upstream, &file.upstream)
                .unwrap_or_else(|| vec!["system".to_owned()]),
            stop_rebind: self.stop_rebind || file.stop_rebind,
            trust: given(&self.trust, &file.trust),
            unknown_per_second: file.unknown_per_second,
            forwarded_per_second: file.forwarded_per_second,
            user: self.user.clone().or_else(|| file.user.clone()),
        }
    }

    /// A resolver over its sources, not yet made. Where nothing says where the snapshot is, it
    /// is in the directory that systemd keeps for the service.
    pub(crate) fn builder(&self, file: &File) -> ResolverBuilder {
        let defaults = match systemd::state_directory() {
            Some(directory) => Resolver::builder().snapshot(directory.join("snapshot")),
            None => Resolver::builder(),
        };
        self.sources.over(defaults, file)
    }
}

/// The flags where there are any, else what the file says.
fn given<T: Clone>(flags: &[T], file: &Option<Vec<T>>) -> Option<Vec<T>> {
    match flags {
        [] => file.clone(),
        flags => Some(flags.to_vec()),
    }
}

/// What `serve` does.
#[derive(Debug)]
pub(crate) struct ServeSettings {
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) upstream: Vec<String>,
    pub(crate) stop_rebind: bool,
    /// `None`: the default.
    pub(crate) trust: Option<Vec<String>>,
    /// `None`: the default; 0: no limit.
    pub(crate) unknown_per_second: Option<u32>,
    pub(crate) forwarded_per_second: Option<u32>,
    pub(crate) user: Option<String>,
}

/// Where `serve` answers, unless it is told otherwise.
pub(crate) const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8653);
const ADMIN: AdminAddress =
    AdminAddress(Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8654)));

impl Sources {
    /// The configuration that is meant.
    pub(crate) fn config_path(&self) -> Option<PathBuf> {
        config::path(self.config.as_deref())
    }

    /// Reads the configuration. Once for all that is made of it: it may be a pipe, or become
    /// another one meanwhile.
    pub(crate) fn file(&self) -> Result<File, Error> {
        let read = File::load(self.config.as_deref());
        read.map_err(Error::invalid_setting)
    }

    /// A resolver over these sources, or over one of them alone.
    pub(crate) fn resolver(
        &self,
        only: Option<OnlySource>,
        stale: Stale,
    ) -> Result<Resolver, Error> {
        self.builder(&self.file()?, only, stale).build()
    }

    /// The same, not yet made.
    pub(crate) fn builder(
        &self,
        file: &File,
        only: Option<OnlySource>,
        stale: Stale,
    ) -> ResolverBuilder {
        let mut builder = self.over(Resolver::builder(), file);
        if let Some(only) = only {
            if only != OnlySource::Dns {
                builder = builder.dns("none");
            }
            if only != OnlySource::Http {
                builder = builder.http("none");
            }
            // Neither catalog nor default addresses, and no word about their files.
            if only != OnlySource::Static {
                builder = builder.no_catalog();
            }
            builder = builder.must_be_found(only != OnlySource::Static);
            if only != OnlySource::Snapshot {
                builder = builder.no_snapshot();
            }
        }
        if stale == Stale::No {
            builder = builder.keep_stale(Duration::ZERO).no_snapshot();
        }
        builder
    }

    /// These defaults, then the file, the environment and the flags.
    fn over(&self, defaults: ResolverBuilder, file: &File) -> ResolverBuilder {
        let mut builder = file.apply(defaults).environment();
        macro_rules! set {
            ($($flag:ident),*) => {
                $(if let Some(value) = &self.$flag { builder = builder.$flag(value); })*
            };
        }
        if self.token_file.is_some() {
            builder = builder.no_token();
        }
        set!(dns, http, token_file, ca_file, cert_file, key_file);
        set!(tls_server_name, catalog, snapshot, domain);
        set!(datacenter, namespace, partition);
        if let Some(timeout) = self.timeout {
            builder = builder.timeout(timeout);
        }
        builder
    }
}

/// Whether what was found before may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stale {
    Yes,
    No,
}

impl Lookup {
    pub(crate) fn stale(&self) -> Stale {
        if self.no_stale { Stale::No } else { Stale::Yes }
    }
}
