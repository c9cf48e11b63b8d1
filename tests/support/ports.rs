//! Free loopback ports, each given out once in this process.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    sync::Mutex,
};

/// Below the range from which the kernel takes the ports of outgoing
/// connections, so that none of those gets in between.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port of 127.0.0.1 on which nothing listens, over UDP or TCP. Another
/// process may still take it, so whoever binds it must be ready to try again.
pub(super) fn free() -> u16 {
    let mut given = GIVEN.lock().expect("nothing panics with the lock held");
    loop {
        let port = rand::random_range(RANGE);
        if !given.contains(&port) && is_free(port) {
            given.insert(port);
            return port;
        }
    }
}

fn is_free(port: u16) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port);
    UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok()
}
