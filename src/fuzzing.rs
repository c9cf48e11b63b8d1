//! **Pure.** The rules that hold for every input, for the targets of `fuzz/`. Built
//! only with `--cfg fuzzing`; each function panics where its rule is broken.

use crate::{ConsulName, Domain};
pub use crate::{
    records::fuzz::reply, snapshot::snapshot, stub::answer::fuzz::packet,
    stub::answer::fuzz_lanes::shortcut,
};

/// Labels off the wire, and text: what is read is printed and read again as the
/// same, and no error lets a raw byte through.
pub fn name(bytes: &[u8]) {
    for domain in ["consul", "corp.example"] {
        let domain: Domain = domain.parse().expect("a plain domain");
        let labels: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
        for srv in [true, false] {
            if let Ok(name) = ConsulName::from_labels(&labels, srv, &domain) {
                same(&name, &domain);
            }
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            continue;
        };
        match ConsulName::parse(text, &domain) {
            Ok(name) => {
                assert!(
                    name.fqdn(&domain).len() < 255,
                    "a name too long for the wire"
                );
                same(&name, &domain);
            }
            Err(error) => assert!(error.to_string().chars().all(|c| !c.is_control())),
        }
    }
}

fn same(name: &ConsulName, domain: &Domain) {
    let printed = name.fqdn(domain);
    let read = ConsulName::parse(&printed, domain).expect("what is printed can be read");
    assert_eq!(
        (&read, read.subject(), read.locality()),
        (name, name.subject(), name.locality())
    );
}
