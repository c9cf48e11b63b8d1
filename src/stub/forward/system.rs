//! **Shell.** The name servers of this system, as resolv.conf names them, followed as it
//! changes.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use crate::{stamp::Stamp, stub::upstreams};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Where name servers stand. The first counts that names one that is neither us nor
/// systemd-resolved: that may send other names on to us, and its own servers stand in a file of
/// their own.
const FILES: [&str; 3] = [
    "/etc/resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
];

/// The addresses of systemd-resolved itself (systemd-resolved.service(8)).
const RESOLVED: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)),
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54)),
];

/// The servers that were named last.
#[derive(Debug)]
pub(super) struct System {
    files: Vec<PathBuf>,
    servers: Vec<SocketAddr>,
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

    /// Those that were named when that was last looked at.
    pub(super) fn known(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// Whether others are named now.
    fn look(&mut self, own: &[SocketAddr]) -> bool {
        let stamp = |file: &PathBuf| fs::metadata(file).ok().map(|file| Stamp::of(&file));
        let stamps: Vec<_> = self.files.iter().map(stamp).collect();
        if self.stamps == stamps {
            return false;
        }
        self.stamps = stamps;
        let read = |file: &PathBuf| {
            let text = fs::read_to_string(file).unwrap_or_default();
            upstreams::resolv_conf(&text, own, interface)
        };
        let mut all = self.files.iter().map(read).filter(|all| !all.is_empty());
        // Where there is nobody else, it is asked all the same.
        let first = all.next();
        let is_resolved =
            |all: &Vec<SocketAddr>| all.iter().all(|one| RESOLVED.contains(&one.ip()));
        let better = match &first {
            Some(first) if is_resolved(first) => all.find(|all| !is_resolved(all)),
            _ => None,
        };
        let Some(servers) = better.or(first) else {
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
        let are_others = servers != self.servers;
        if are_others {
            info!(?servers, "other names go to the servers of resolv.conf");
            self.servers = servers;
        }
        are_others
    }
}

/// The number of a network interface, as Linux tells it.
fn interface(name: &str) -> Option<u32> {
    let is_name = !name.contains(['/', '\0']) && !name.starts_with('.');
    let file = is_name.then(|| format!("/sys/class/net/{name}/ifindex"))?;
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[cfg(target_os = "linux")]
    #[test]
    fn an_interface_has_a_number_and_no_path_is_one() {
        assert!(interface("lo").is_some_and(|number| number > 0));
        for none in ["", "none0", "../net/lo", ".", "..", "lo/"] {
            assert_eq!(interface(none), None, "{none}");
        }
    }

    #[test]
    fn behind_systemd_resolved_its_own_servers_are_asked_and_it_only_where_there_are_none() {
        let folder = std::env::temp_dir();
        let file = |what| folder.join(format!("proconsul-{what}-{}", std::process::id()));
        let (etc, run) = (file("etc-resolv"), file("run-resolv"));
        let own = ["127.0.0.1:53".parse().unwrap()];
        let asked = |first: &str, second: &str| {
            fs::write(&etc, first).unwrap();
            fs::write(&run, second).unwrap();
            let mut system = System::of(vec![etc.clone(), run.clone()]);
            let (servers, _) = system.servers(&own, clock::now());
            servers.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let (stub, real) = ("nameserver 127.0.0.53\n", "nameserver 192.0.2.1\n");
        assert_eq!(asked(stub, real), ["192.0.2.1:53"]);
        assert_eq!(asked(stub, ""), ["127.0.0.53:53"]);
        assert_eq!(asked(stub, "nameserver 127.0.0.1\n"), ["127.0.0.53:53"]);
        assert_eq!(asked("nameserver 192.0.2.2\n", real), ["192.0.2.2:53"]);
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
