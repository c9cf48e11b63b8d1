//! What `--help` tells behind the flags of each command: examples first.

pub(crate) const SERVICES: &str = "Examples:
  proconsul services
  proconsul services -o short | xargs -n 1 proconsul lookup
  proconsul services web                     its instances, and why some are not healthy
  proconsul services --catalog FILE          where no agent tells, what is written down

The HTTP API is asked; with ACLs in force the token sees what it may see. Where it is turned
off or says nothing, the static catalog is told, with a warning, and \"source\" in JSON is
static.";

pub(crate) const KV: &str = "Examples:
  proconsul kv put web/limits '{\"calls\": 100}'
  proconsul kv get web/limits
  proconsul kv watch web/limits --json
  proconsul kv put web/certificate - < certificate.pem

The value is printed as it is, and a line end after it. With --json it is an object with key,
value, flags, index and session (null where it is not locked); a value that is no text stands
as base64 in place of value. list --json has all of them as keys. Exit status: 3 where there is
no such key, 4 where the token may not.";

pub(crate) const COMPLETIONS: &str = "Examples:
  proconsul completions bash > /etc/bash_completion.d/proconsul
  proconsul completions zsh > ~/.zfunc/_proconsul";

pub(crate) const MAN: &str = "Examples:
  proconsul man serve | man -l -
  proconsul man --dir /usr/local/share/man/man1";

pub(crate) const DOCTOR: &str = "Examples:
  proconsul doctor
  proconsul doctor web --json

One line a check: ok, warn or FAIL, what was seen, and what mends it. It asks Consul for
its own service, this machine's stub for an address, and reads resolv.conf; it asks
nobody else. Exit status: 0 without a FAIL, 2 with one of the configuration, else 1.";

pub(crate) const CHECK: &str = "Examples:
  proconsul config check --config /etc/proconsul.toml

A file:
  [sources]
  dns = [\"127.0.0.1:8600\"]
  http = [\"http://127.0.0.1:8500\"]
  snapshot = \"/var/lib/proconsul/snapshot\"
  timeout = \"1s\"

  [cache]
  bytes = 16777216
  ttl-floor = \"1s\"
  keep-stale = \"1d\"

  [serve]
  listen = [\"127.0.0.1:8653\"]
  admin = \"127.0.0.1:8654\"
  upstream = [\"system\", \"corp.example=10.0.0.53\"]

  [default]
  web = \"10.0.0.1:8080\"

Keys have the names of the flags. All that serve would refuse before it binds a port is
refused. Exit status: 0 fine, 2 not.";

pub(crate) const LOOKUP: &str = "Names:
  web                   the service web
  v2.web                its instances tagged v2
  web@dc2               in the datacenter dc2
  _web._tcp             the same after RFC 2782
  near.query.consul     a prepared query
  host1.node.consul     a node
  10.0.0.1              the names of an address

Examples:
  proconsul lookup web
  proconsul lookup web --tag v2 -o short
  proconsul lookup web SRV
  proconsul lookup web --source http --json
  proconsul lookup web --snapshot /var/tmp/web.snapshot   also when Consul is down";

pub(crate) const PICK: &str = "Examples:
  curl http://$(proconsul pick web)/
  proconsul pick web -n 3 --strategy round-robin";

pub(crate) const EXPLAIN: &str = "Examples:
  proconsul explain web
  proconsul explain web --http none --json
  proconsul explain 10.0.0.1                 with the records, where there are no endpoints";

pub(crate) const WATCH: &str =
    "A line for each instance: + came, - went, ~ has another weight, health or tag. The
first lines are what is there. With --json one object a line, with added, removed,
updated, and endpoints for all that are there now.

Examples:
  proconsul watch web api
  proconsul watch web --json | jq -r '.endpoints[] | \"\\(.address):\\(.port)\"'

Changes come by blocking queries of the HTTP API, within milliseconds; where that
cannot be asked the other sources are asked once a second. SIGINT and SIGTERM end it
with status 0.";

pub(crate) const SERVE: &str = "Examples:
  proconsul serve
  proconsul serve --listen 127.0.0.1:5353 --listen '[::1]:5353'
  proconsul serve --upstream 10.0.0.53 --upstream corp.example=10.1.0.53
  proconsul serve --upstream none
  dig @127.0.0.1 -p 8653 web.service.consul SRV

It answers for Consul's domain. Other names go to the upstreams, in the order given, and
those of Consul's domain never do. SIGHUP reads the configuration again and keeps what
is known; SIGTERM and SIGINT end it with status 0. Under systemd it says when it is
ready and takes sockets that are handed over.";

pub(crate) const REGISTER: &str = "Examples:
  proconsul register web --port 8080 --check-http http://127.0.0.1:8080/health
  proconsul register web --port 8080 --tag v2 --meta zone=a -- ./web --listen :8080
  SERVICE_NAME=web SERVICE_PORT=8080 proconsul register -- ./web

It stays registered until COMMAND ends, or a signal comes: an agent that is not there yet is
waited for, one that forgets is told again within 2 s. Of several addresses of the HTTP API
the first is this machine's agent, and only that is told.

At SIGTERM, SIGINT and SIGQUIT it is deregistered first; after --drain the signal is passed
on to COMMAND, which an agent that hangs holds up by 2 s at most. On a terminal, whose keys
interrupt COMMAND too, SIGINT and SIGQUIT are passed on where it still runs 5 s later. SIGHUP,
SIGUSR1 and SIGUSR2 are passed on at once. Without another check COMMAND has a heartbeat: 15 s
after both are gone it is critical. Exit status: COMMAND's own (128 and the signal that ended
it), 127 where there is none of that name; without COMMAND 0, and where it never was registered
4 or 5.

Environment, each where its flag is not given: SERVICE_NAME, SERVICE_PORT, SERVICE_ADDRESS or
SERVICE_HOST, SERVICE_TAGS (separated by commas), SERVICE_TYPE (kept as the metadata type).";
