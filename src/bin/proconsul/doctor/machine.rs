//! This machine: whether `proconsul serve` answers here, and whether programs ask it.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
    time::Duration,
};

use super::Findings;

/// A stub on this machine answers within this.
const PATIENCE: Duration = Duration::from_millis(900);

/// Where systemd-resolved answers (systemd-resolved.service(8)).
const RESOLVED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// Where the stub should answer, and whether it does.
struct Stub {
    address: SocketAddr,
    answers: bool,
}

impl Stub {
    /// Whether whoever asks that address asks this stub.
    fn is_at(&self, ip: IpAddr, port: u16) -> bool {
        let own = self.address.ip();
        // Nobody can bind an address of another machine.
        let is_local = || UdpSocket::bind((ip, 0)).is_ok();
        self.address.port() == port && (own == ip || own.is_unspecified() && is_local())
    }
}

pub(super) fn look(addresses: &[SocketAddr], domain: &str, findings: &mut Findings) {
    let stubs: Vec<_> = addresses
        .iter()
        .map(|address| stub(*address, domain, findings))
        .collect();
    let root = Path::new("/");
    whom_programs_ask(root, &stubs, domain, findings);
}

/// Whether `proconsul serve` answers here: a question that needs no Consul.
fn stub(address: SocketAddr, domain: &str, findings: &mut Findings) -> Stub {
    let asked = ask(address, domain);
    let answers = matches!(asked, Ok(true));
    match asked {
        Ok(true) => findings.ok("stub", format!("answers on {address}")),
        Ok(false) => {
            let what = format!("{address} answers, but not for {domain}");
            let mend = "another program has that port, or its domain is another one (--domain)";
            findings.warn("stub", what, mend);
        }
        Err(_) => {
            let what = format!("nothing answers on {address}");
            let mend = "for programs that only speak DNS: proconsul serve";
            findings.warn("stub", what, mend);
        }
    }
    Stub { address, answers }
}

fn ask(address: SocketAddr, domain: &str) -> io::Result<bool> {
    let (any, own): (IpAddr, IpAddr) = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
    };
    let ip = match address.ip().is_unspecified() {
        true => own,
        false => address.ip(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((ip, address.port()))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let question = question(domain);
    socket.send(&question)?;
    let mut reply = [0; 512];
    let length = socket.recv(&mut reply)?;
    Ok(length > 12 && reply[..2] == question[..2] && reply[7] == 1)
}

/// `7f000001.addr.consul` A, of this domain.
fn question(domain: &str) -> Vec<u8> {
    let mut question = b"\x70\x63\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    let labels = ["7f000001", "addr"].into_iter().chain(domain.split('.'));
    for label in labels.filter(|label| !label.is_empty()) {
        question.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        question.extend(label.as_bytes());
    }
    question.extend(b"\x00\x00\x01\x00\x01");
    question
}

/// Where programs of this machine send their questions.
fn whom_programs_ask(root: &Path, stubs: &[Stub], domain: &str, findings: &mut Findings) {
    let check = "resolv.conf";
    let file = root.join("etc/resolv.conf");
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) => {
            let what = format!("{}: {error}", file.display());
            let mend = "programs that use the system's resolver have no name server";
            return findings.warn(check, what, mend);
        }
    };
    let servers: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .map(str::trim)
        .collect();
    let addresses = || servers.iter().filter_map(|server| server.parse().ok());
    if addresses().any(|server: IpAddr| server == RESOLVED) {
        return resolved(root, stubs, domain, findings);
    }
    let first = addresses().next();
    let ours = first.and_then(|first| stubs.iter().find(|stub| stub.is_at(first, 53)));
    match ours {
        Some(stub) if stub.answers => findings.ok(check, "programs ask proconsul"),
        Some(stub) => dead(stub, "programs ask", findings),
        None if servers.is_empty() => findings.warn(check, "it names no server", "name one"),
        None => {
            let servers = servers.join(", ");
            let what = format!("programs ask {servers}, who need not know Consul's domain");
            let mend = "let proconsul be that server, or let that server ask it for Consul's domain: packaging/ has drop-ins";
            findings.warn(check, what, mend);
        }
    }
}

/// Whoever is sent to the stub gets no answer.
fn dead(stub: &Stub, who: &str, findings: &mut Findings) {
    let what = format!("{who} proconsul at {}, which does not answer", stub.address);
    let mend = "start it (proconsul serve, systemctl start proconsul), or name another server";
    findings.fail("resolv.conf", what, mend);
}

/// systemd-resolved has to be told of Consul's domain, and of who answers for it
/// (resolved.conf(5)).
fn resolved(root: &Path, stubs: &[Stub], domain: &str, findings: &mut Findings) {
    let mut all = Vec::new();
    for place in ["etc", "run", "usr/local/lib", "usr/lib"] {
        let systemd = root.join(place).join("systemd");
        let files = fs::read_dir(systemd.join("resolved.conf.d")).into_iter();
        let files = files.flatten().flatten().map(|file| file.path());
        let files = files.chain([systemd.join("resolved.conf")]);
        all.extend(files.map(|file| fs::read_to_string(file).unwrap_or_default()));
    }
    let words = |key: &'static str| {
        let lines = all.iter().flat_map(|text| text.lines());
        let values = lines.filter_map(move |line| line.trim().strip_prefix(key)?.strip_prefix('='));
        values.flat_map(str::split_whitespace)
    };
    let covers = |word: &str| {
        let (word, domain) = (word.trim_start_matches('~'), domain.to_lowercase());
        let word = word.trim_matches('.').to_lowercase();
        let rest = domain.strip_suffix(&word);
        rest.is_some_and(|rest| word.is_empty() || rest.is_empty() || rest.ends_with('.'))
    };
    if !words("Domains").any(covers) {
        let mend = "install packaging/resolved.conf as /etc/systemd/resolved.conf.d/proconsul.conf and restart systemd-resolved";
        let what = "systemd-resolved does not know Consul's domain";
        return findings.warn("resolv.conf", what, mend);
    }
    let asks = |stub: &&Stub| {
        words("DNS")
            .filter_map(server)
            .any(|(ip, port)| stub.is_at(ip, port))
    };
    match stubs.iter().find(asks) {
        Some(stub) if !stub.answers => dead(stub, "systemd-resolved asks", findings),
        _ => findings.ok("resolv.conf", "systemd-resolved is told of Consul's domain"),
    }
}

/// `127.0.0.1:8653`, or an address alone; what may stand behind `%` and `#` says nothing here.
fn server(word: &str) -> Option<(IpAddr, u16)> {
    let word = word.split(['%', '#']).next()?;
    let whole = word
        .parse()
        .map(|address: SocketAddr| (address.ip(), address.port()));
    whole.ok().or_else(|| Some((word.parse().ok()?, 53)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    /// What is said of a machine with these files and this stub.
    fn verdict(files: &[(&str, &str)], stub: &str, answers: bool) -> Verdict {
        let thread = std::thread::current().id();
        let folder = format!("proconsul-doctor-{}-{thread:?}", std::process::id());
        let root = std::env::temp_dir().join(folder);
        for (name, text) in files {
            let file = root.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let address = stub.parse().unwrap();
        let mut findings = Findings::default();
        whom_programs_ask(
            &root,
            &[Stub { address, answers }],
            "corp.example",
            &mut findings,
        );
        _ = fs::remove_dir_all(root);
        findings.0[0].verdict
    }

    #[test]
    fn resolv_conf_is_judged_by_whom_programs_ask_and_whether_it_answers() {
        let ours = [("etc/resolv.conf", "nameserver 127.0.0.1\n")];
        assert_eq!(verdict(&ours, "127.0.0.1:53", true), Verdict::Ok);
        assert_eq!(verdict(&ours, "0.0.0.0:53", true), Verdict::Ok);
        assert_eq!(verdict(&ours, "127.0.0.1:53", false), Verdict::Fail);
        assert_eq!(verdict(&ours, "127.0.0.1:8653", true), Verdict::Warn);
        let others = [("etc/resolv.conf", "nameserver 192.0.2.1\n")];
        assert_eq!(verdict(&others, "127.0.0.1:53", true), Verdict::Warn);
        assert_eq!(verdict(&others, "0.0.0.0:53", true), Verdict::Warn);
        let nobody = [("etc/resolv.conf", "search example\n")];
        assert_eq!(verdict(&nobody, "127.0.0.1:53", true), Verdict::Warn);
        assert_eq!(verdict(&[], "127.0.0.1:53", true), Verdict::Warn);
    }

    #[test]
    fn systemd_resolved_is_judged_by_the_domain_it_is_told_and_by_whom_it_asks_for_it() {
        let told_at = |place: &str, text: &str, answers| {
            let resolv = ("etc/resolv.conf", "nameserver 127.0.0.53\n");
            let file = format!("{place}/systemd/resolved.conf.d/proconsul.conf");
            let files = [resolv, (&*file, text)];
            verdict(&files, "127.0.0.1:8653", answers)
        };
        let told = |text: &str, answers| told_at("etc", text, answers);
        let ours = "[Resolve]\nDNS=127.0.0.1:8653\nDomains=~consul ~Corp.Example\n";
        assert_eq!(told(ours, true), Verdict::Ok);
        assert_eq!(told(ours, false), Verdict::Fail);
        // Wherever systemd looks.
        for place in ["run", "usr/lib", "usr/local/lib"] {
            assert_eq!(told_at(place, ours, true), Verdict::Ok, "{place}");
            assert_eq!(told_at(place, ours, false), Verdict::Fail, "{place}");
        }
        assert_eq!(
            told("DNS=127.0.0.1:8600\nDomains=~example\n", false),
            Verdict::Ok
        );
        assert_eq!(
            told("DNS=127.0.0.1:8653\nDomains=~consul\n", true),
            Verdict::Warn
        );
        assert_eq!(told("Domains=~notcorp.example\n", true), Verdict::Warn);
        assert_eq!(told("Domains=~p.example\n", true), Verdict::Warn);
    }
}
