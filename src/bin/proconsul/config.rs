//! The configuration file: the flags' names in tables, in TOML. An unknown key is an
//! error, with line and column.
//!
//! A flag wins over the environment, that over the file, and that over the default.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::Read as _,
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use proconsul::{Error, ErrorKind, Protection, ResolverBuilder};
use serde::{Deserialize, Deserializer, de};
use serde_json::json;

use crate::{
    args::{self, AdminAddress, Check, Form, Output},
    output, serve,
};

/// Largest file that is taken.
const FILE_LIMIT: u64 = 1 << 20;

/// Names the file where no flag does.
const VARIABLE: &str = "PROCONSUL_CONFIG";

/// All that a file may hold.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct File {
    sources: Sources,
    cache: Cache,
    pub(crate) serve: Serve,
    /// Default addresses, by service.
    default: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Sources {
    dns: Option<List>,
    http: Option<List>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    tls_server_name: Option<String>,
    catalog: Option<PathBuf>,
    snapshot: Option<PathBuf>,
    domain: Option<String>,
    datacenter: Option<String>,
    namespace: Option<String>,
    partition: Option<String>,
    timeout: Option<Span>,
    must_be_found: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Cache {
    bytes: Option<usize>,
    entries: Option<NonZeroUsize>,
    ttl_floor: Option<Span>,
    ttl_cap: Option<Span>,
    keep_stale: Option<Span>,
    watches: Option<usize>,
    protection: Option<Protected>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Protected {
    Evidence,
    KeepAll,
    Off,
}

/// What only `serve` needs.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Serve {
    #[serde(deserialize_with = "listen")]
    pub(crate) listen: Option<Vec<SocketAddr>>,
    #[serde(deserialize_with = "admin")]
    pub(crate) admin: Option<AdminAddress>,
    #[serde(deserialize_with = "upstream")]
    pub(crate) upstream: Option<Vec<String>>,
    pub(crate) stop_rebind: bool,
    #[serde(deserialize_with = "trust")]
    pub(crate) trust: Option<Vec<String>>,
    pub(crate) unknown_per_second: Option<u32>,
    pub(crate) forwarded_per_second: Option<u32>,
    pub(crate) user: Option<String>,
}

/// One text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum List {
    One(String),
    Many(Vec<String>),
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(text) => f.write_str(text),
            Self::Many(texts) => f.write_str(&texts.join(",")),
        }
    }
}

/// A time as `500ms` or `1s`.
#[derive(Clone, Copy, Debug)]
struct Span(Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = humantime::parse_duration(&text);
        time.map(Self).map_err(|error| {
            de::Error::custom(format!("{text:?} is no time such as 500ms or 1s: {error}"))
        })
    }
}

fn admin<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<AdminAddress>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(de::Error::custom)
}

fn listen<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<SocketAddr>>, D::Error> {
    full(from, "leave the key out to answer on 127.0.0.1:8653")
}

fn upstream<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    let mend = "write [\"none\"] to refuse other names, or leave the key out for the servers of \
                resolv.conf";
    full(from, mend)
}

fn trust<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    let mend = "write [\"127.0.0.0/8\", \"::1/128\"] to trust this machine alone, or leave the key \
                out for this machine, private and link-local networks";
    full(from, mend)
}

/// A list with something in it. Whoever writes an empty one means nothing at all, and not the
/// default.
fn full<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    from: D,
    mend: &str,
) -> Result<Option<Vec<T>>, D::Error> {
    let list = Vec::deserialize(from)?;
    match list.is_empty() {
        true => Err(de::Error::custom(format!("an empty list: {mend}"))),
        false => Ok(Some(list)),
    }
}

impl File {
    /// Reads the file that a flag or the environment names; without one it is empty.
    pub(crate) fn load(flag: Option<&Path>) -> Result<Self, String> {
        match path(flag) {
            Some(path) => Self::read(&path),
            None => Ok(Self::default()),
        }
    }

    fn read(path: &Path) -> Result<Self, String> {
        let failed =
            |why: &dyn fmt::Display| format!("the configuration {}: {why}", path.display());
        let mut text = String::new();
        // A device has no end.
        fs::File::open(path)
            .and_then(|file| file.take(FILE_LIMIT + 1).read_to_string(&mut text))
            .map_err(|error| failed(&error))?;
        if text.len() as u64 > FILE_LIMIT {
            return Err(failed(&"is larger than 1 MiB"));
        }
        Self::parse(&text).map_err(|why| failed(&why))
    }

    fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| placed(&error, text))
    }

    /// Sets what the file says.
    pub(crate) fn apply(&self, mut builder: ResolverBuilder) -> ResolverBuilder {
        macro_rules! set {
            ($table:expr, $($key:ident),*) => {
                $(if let Some(value) = &$table.$key { builder = builder.$key(value); })*
            };
        }
        let Self { sources, cache, .. } = self;
        if let Some(list) = &sources.dns {
            builder = builder.dns(&list.to_string());
        }
        if let Some(list) = &sources.http {
            builder = builder.http(&list.to_string());
        }
        set!(
            sources,
            token_file,
            ca_file,
            cert_file,
            key_file,
            tls_server_name,
            catalog
        );
        set!(sources, snapshot, domain, datacenter, namespace, partition);
        for (span, set) in [
            (
                sources.timeout,
                ResolverBuilder::timeout as fn(ResolverBuilder, Duration) -> _,
            ),
            (cache.ttl_floor, ResolverBuilder::ttl_floor),
            (cache.ttl_cap, ResolverBuilder::ttl_cap),
            (cache.keep_stale, ResolverBuilder::keep_stale),
        ] {
            if let Some(Span(time)) = span {
                builder = set(builder, time);
            }
        }
        if let Some(must) = sources.must_be_found {
            builder = builder.must_be_found(must);
        }
        if let Some(bytes) = cache.bytes {
            builder = builder.cache_bytes(bytes);
        }
        if let Some(entries) = cache.entries {
            builder = builder.cache_entries(entries);
        }
        if let Some(watches) = cache.watches {
            builder = builder.watches(watches);
        }
        if let Some(protection) = cache.protection {
            builder = builder.protection(match protection {
                Protected::Evidence => Protection::Evidence,
                Protected::KeepAll => Protection::KeepAll,
                Protected::Off => Protection::Off,
            });
        }
        for (service, address) in &self.default {
            builder = builder.default_address(service, address);
        }
        builder
    }
}

/// What is wrong and where. Not the line itself, as TOML's own errors have it: under a name
/// that does not exist somebody may have written a secret.
fn placed(error: &toml::de::Error, text: &str) -> String {
    let why = error.message().replace('\n', ", ");
    let at = error.span().map_or(text.len(), |span| span.start);
    let before = text.get(..at).unwrap_or(text);
    let (lines, last) = match before.rsplit_once('\n') {
        Some((lines, last)) => (lines.split('\n').count() + 1, last),
        None => (1, before),
    };
    let column = last.chars().count() + 1;
    format!("line {lines}, column {column}: {why}")
}

/// The file that is meant.
pub(crate) fn path(flag: Option<&Path>) -> Option<PathBuf> {
    let variable = || std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
    flag.map(Into::into).or_else(|| variable().map(Into::into))
}

/// Whether what is meant cannot be read a second time, as a pipe.
pub(crate) fn is_read_once(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// `proconsul config check`.
pub(crate) async fn check(command: Check, form: &Output) -> ExitCode {
    let file = command.sources.config_path();
    if let Err(error) = checked(args::Serve::with(command.sources), form).await {
        return output::failure(&error, form);
    }
    let file = file.map(|file| file.display().to_string());
    if form.form() == Form::Json {
        return output::object(&json!({ "fine": true, "file": file }));
    }
    let nothing = || "there is no file: flags, environment and defaults".to_owned();
    output::data(&format!("{}: fine\n", file.unwrap_or_else(nothing)))
}

/// All that `serve` would refuse before it binds anything; others need no more. A snapshot that
/// it can never write is refused as well; one that makes room is told of, as is a folder that may
/// be there for another user, or on another machine.
async fn checked(command: args::Serve, form: &Output) -> Result<(), Error> {
    let file = command.sources.file()?;
    serve::checked(&command.settings(&file))?;
    let resolver = command.builder(&file).build()?;
    resolver.check().await?;
    match resolver.check_snapshot().await {
        Err(error) if error.kind() == ErrorKind::Io => {
            output::remark(form, &format!("proconsul: {error}"));
            Ok(())
        }
        checked => checked,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_key_is_read() {
        let file = File::parse(
            "[sources]\ndns = ['127.0.0.1:8600', '127.0.0.2:8600']\nhttp = 'none'\ntimeout = '500ms'\n\
             domain = 'corp.example'\nmust-be-found = true\n\
             [cache]\nbytes = 1000000\nttl-floor = '2s'\nprotection = 'off'\nwatches = 8\n\
             [serve]\nlisten = ['127.0.0.1:53']\nadmin = 'none'\nupstream = ['system']\n\
             trust = ['10.0.0.0/8']\nunknown-per-second = 0\nforwarded-per-second = 9\n\
             [default]\nweb = '10.0.0.1:80'\n",
        )
        .unwrap();
        assert_eq!(file.serve.admin, Some(AdminAddress(None)));
        assert_eq!(file.serve.listen.as_ref().map(Vec::len), Some(1));
        assert_eq!(file.serve.unknown_per_second, Some(0));
        assert_eq!(file.serve.forwarded_per_second, Some(9));
        let resolver = file.apply(proconsul::Resolver::builder()).build().unwrap();
        assert_eq!(resolver.domain().to_string(), "corp.example");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, place) in [
            ("[sources]\ndsn = 'x'\n", "line 2, column 1"),
            ("[source]\n", "line 1, column 2"),
            ("[sources]\ntimeout = 'soon'\n", "line 2, column 11"),
            ("[serve]\nlisten = ['here']\n", "line 2, column 11"),
            ("[serve]\nlisten = []\n", "line 2, column 10"),
            ("[serve]\nupstream = []\n", "line 2, column 12"),
            ("[serve]\ntrust = []\n", "line 2, column 9"),
            ("[cache]\nbytes = -1\n", "line 2, column 9"),
            ("[cache]\nprotection = 'on'\n", "line 2, column 14"),
            ("[sources\n", "line 1"),
        ] {
            let error = File::parse(text).unwrap_err();
            assert!(error.contains(place), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_refused_is_not_repeated() {
        for text in [
            "token = 'hush'\n",
            "[sources]\ntoken = \"hush\" # the one of hush\n",
            "[sources]\ntoken = hush\n",
            "[sources]\ntoken = 'hush\n",
            "[sources]\nhttp = { token = 'hush' }\n",
            "[sources]\ndns = 'none' hush\n",
            "[serve]\nlisten = ['hush']\n",
        ] {
            let error = File::parse(text).unwrap_err();
            assert!(error.starts_with("line "), "{text}: {error}");
            assert!(!error.contains("hush"), "{text}: {error}");
        }
    }

    /// Lines that a file may hold, with right and wrong values.
    fn line() -> impl Strategy<Value = String> {
        let key = prop::sample::select(vec![
            "[sources]",
            "[cache]",
            "[serve]",
            "[default]",
            "dns",
            "http",
            "token-file",
            "domain",
            "datacenter",
            "timeout",
            "must-be-found",
            "bytes",
            "entries",
            "ttl-floor",
            "ttl-cap",
            "keep-stale",
            "watches",
            "protection",
            "listen",
            "admin",
            "upstream",
            "stop-rebind",
            "trust",
            "unknown-per-second",
            "forwarded-per-second",
            "user",
            "web",
            "odd",
        ]);
        let value = prop_oneof![
            prop::sample::select(vec![
                "'none'",
                "''",
                "true",
                "0",
                "-1",
                "7",
                "1e309",
                "9223372036854775807",
                "'1s'",
                "'1000000y'",
                "'off'",
                "['127.0.0.1:53']",
                "['system', 'none']",
                "[]",
                "[[[]]]",
                "{}",
                "'10.0.0.1:80'",
                "'a b'",
                "'http://u:p@h'",
                "nan",
                "1979-05-27",
            ])
            .prop_map(String::from),
            "\\PC{0,12}",
        ];
        (key, value).prop_map(|(key, value)| match key.starts_with('[') {
            true => key.to_owned(),
            false => format!("{key} = {value}"),
        })
    }

    proptest! {
        /// It is refused with its place, or by the builder with its reason; nothing that is
        /// read is wrong without a word, or too much for what it sets.
        #[test]
        fn any_file_is_read_or_refused_with_its_place(
            lines in prop::collection::vec(line(), 0..8),
            junk in "\\PC{0,20}",
        ) {
            for text in [lines.join("\n"), format!("{}\n{junk}", lines.join("\n"))] {
                match File::parse(&text) {
                    Err(error) => prop_assert!(error.contains("line "), "{text}: {error}"),
                    Ok(file) => {
                        if let Err(error) = file.apply(proconsul::Resolver::builder()).build() {
                            let told = error.to_string();
                            prop_assert!(!told.is_empty() && !told.contains(char::is_control));
                        }
                    }
                }
            }
        }
    }
}
