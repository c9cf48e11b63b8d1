//! **Shell.** The name servers of this system, as resolv.conf names them, followed as it
//! changes.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::net::if_::if_nametoindex;
use tracing::{info, warn};

use crate::{stamp::Stamp, stub::upstreams};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Where name servers stand. The first counts that names one that is not us; the others name
/// those who stand behind it.
const FILES: [&str; 3] = [
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
];

/// The servers that were named last.
#[derive(Debug)]
pub(super) struct System {
    files: Vec<PathBuf>,
    servers: Vec<SocketAddr>,
    /// Those who stand behind them.
    behind: Vec<SocketAddr>,
    /// One of them stands behind an interface, which may come and go.
    has_zones: bool,
    looked: Option<Instant>,
    stamps: Vec<Option<Stamp>>,
    /// The files name nobody now, and that was said.
    is_empty: bool,
}

impl Default for System {
    fn default() -> Self {
        Self::of(FILES.map(PathBuf::from).to_vec())
    }
}

impl System {
    pub(super) fn of(files: Vec<PathBuf>) -> Self {
        Self {
            files,
            servers: Vec::new(),
            behind: Vec::new(),
            has_zones: false,
            looked: None,
            stamps: Vec::new(),
            is_empty: false,
        }
    }

    /// The servers, without us, and whether they are others than a moment ago. Where the files
    /// name nobody, as they do while they are written anew, those that were named before stay.
    pub(super) fn servers(&mut self, own: &[SocketAddr], now: Instant) -> (Vec<SocketAddr>, bool) {
        let is_soon =
            (self.looked).is_some_and(|looked| now.saturating_duration_since(looked) < LOOK);
        let mut are_others = false;
        if !is_soon {
            self.looked = Some(now);
            are_others = self.look(own);
        }
        (self.servers.clone(), are_others)
    }

    /// Those to ask where all that are named send their questions to us: systemd-resolved does
    /// where it is told to ask us for more than Consul's domain.
    pub(super) fn behind(&self) -> Vec<SocketAddr> {
        self.behind.clone()
    }

    /// Those that were named when that was last looked at.
    pub(super) fn known(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// Whether others are named now.
    fn look(&mut self, own: &[SocketAddr]) -> bool {
        let stamp = |file: &PathBuf| fs::metadata(file).ok().map(|file| Stamp::of(&file));
        let stamps: Vec<_> = self.files.iter().map(stamp).collect();
        if self.stamps == stamps && !self.has_zones {
            return false;
        }
        self.stamps = stamps;
        let texts = (self.files.iter()).map(|file| fs::read_to_string(file).unwrap_or_default());
        let texts: Vec<_> = texts.collect();
        self.has_zones = texts.iter().any(|text| text.contains('%'));
        let read = |text: &String| upstreams::resolv_conf(text, own, interface);
        let mut all = texts.iter().map(read).filter(|all| !all.is_empty());
        let Some(servers) = all.next() else {
            if !self.is_empty {
                match self.servers.as_slice() {
                    [] => warn!("resolv.conf names no server but us: other names are refused"),
                    kept => warn!(
                        servers = ?kept,
                        "resolv.conf names no server but us any more: other names still go to \
                         those that it named before"
                    ),
                }
            }
            self.is_empty = true;
            return false;
        };
        self.is_empty = false;
        let behind = all.find(|others| *others != servers);
        self.behind = behind.unwrap_or_else(|| std::mem::take(&mut self.behind));
        let are_others = servers != self.servers;
        if are_others {
            info!(?servers, "other names go to the servers of resolv.conf");
            self.servers = servers;
        }
        are_others
    }
}

/// The number of a network interface, where there is one of that name.
fn interface(name: &str) -> Option<u32> {
    if_nametoindex(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_server_behind_an_interface_is_named_by_its_number() {
        assert!(interface("lo").is_some_and(|number| number > 0));
        for none in ["", "none0", "../net/lo", "l\0o"] {
            assert_eq!(interface(none), None, "{none}");
        }
    }

    #[test]
    fn who_stands_behind_the_servers_that_are_named_is_known_and_stays_so() {
        let folder = std::env::temp_dir();
        let file = |what| folder.join(format!("proconsul-{what}-{}", std::process::id()));
        let (etc, run) = (file("etc-resolv"), file("run-resolv"));
        let own = ["127.0.0.1:53".parse().unwrap()];
        let mut system = System::of(vec![etc.clone(), run.clone()]);
        let (mut now, stub) = (clock::now(), "nameserver 127.0.0.53\n");
        let mut asked = |first: &str, second: &str| {
            fs::write(&etc, first).unwrap();
            fs::write(&run, second).unwrap();
            now += LOOK;
            let (servers, _) = system.servers(&own, now);
            let texts = |all: Vec<SocketAddr>| all.iter().map(ToString::to_string).collect();
            let both: (Vec<String>, Vec<String>) = (texts(servers), texts(system.behind()));
            both
        };
        let both = |first: &str, second: &str| (vec![first.to_owned()], vec![second.to_owned()]);
        let behind = both("127.0.0.53:53", "192.0.2.1:53");
        assert_eq!(asked(stub, "nameserver 192.0.2.1\n"), behind);
        // Its link is down.
        assert_eq!(asked(stub, "# none\n"), behind);
        assert_eq!(asked(stub, "nameserver 127.0.0.1\n"), behind);
        for file in [etc, run] {
            fs::remove_file(file).unwrap();
        }
    }

    #[test]
    fn a_resolv_conf_that_names_nobody_for_a_moment_takes_no_server_away() {
        let name = format!("proconsul-resolv-{}.conf", std::process::id());
        let file = std::env::temp_dir().join(name);
        let mut system = System::of(vec![file.clone()]);
        let (start, own) = (clock::now(), ["127.0.0.1:53".parse().unwrap()]);
        let steps = [
            (None, &[][..]),
            (Some("nameserver 192.0.2.1\n"), &["192.0.2.1:53"]),
            (Some(""), &["192.0.2.1:53"]),
            (Some("nameserver 127.0.0.1\n"), &["192.0.2.1:53"]),
            (None, &["192.0.2.1:53"]),
            (Some("nameserver 192.0.2.22\n"), &["192.0.2.22:53"]),
        ];
        for (step, (text, expected)) in (0..).zip(steps) {
            match text {
                Some(text) => fs::write(&file, text).unwrap(),
                None => _ = fs::remove_file(&file),
            }
            let (servers, are_others) = system.servers(&own, start + LOOK * step);
            assert_eq!(are_others, matches!(step, 1 | 5), "{text:?}");
            let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
            assert_eq!(servers, expected, "{text:?}");
        }
        fs::remove_file(&file).unwrap();
    }
}
