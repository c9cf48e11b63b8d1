//! Peers that fail in ways a real agent does not.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
};

use socket2::{Domain, Socket, Type};

use super::ports;

/// An address on which nothing listens: TCP is refused, and UDP is answered by
/// the kernel with "port unreachable".
pub(crate) fn closed_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, ports::free()).into()
}

/// A port where connections are neither made nor refused: its queue is full.
pub(crate) fn black_hole(at: SocketAddr) -> io::Result<(SocketAddr, Vec<Socket>)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.set_reuse_address(true)?;
    listener.bind(&at.into())?;
    listener.listen(0)?;
    let address = listener.local_addr()?.as_socket().expect("it is of IP");
    let mut held = vec![listener];
    for _ in 0..4 {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        filler.set_nonblocking(true)?;
        // In progress: that is what it is for.
        _ = filler.connect(&address.into());
        held.push(filler);
    }
    Ok((address, held))
}

/// Takes questions over UDP and connections over TCP, and never answers.
pub(crate) struct SilentDns {
    udp: UdpSocket,
    /// Never accepted from: the kernel completes the handshake by itself.
    _tcp: TcpListener,
}

impl SilentDns {
    pub(crate) fn start() -> Self {
        loop {
            let address = (Ipv4Addr::LOCALHOST, ports::free());
            if let (Ok(udp), Ok(tcp)) = (UdpSocket::bind(address), TcpListener::bind(address)) {
                udp.set_nonblocking(true)
                    .expect("a bound socket takes its mode");
                return Self { udp, _tcp: tcp };
            }
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.udp
            .local_addr()
            .expect("a bound socket has an address")
    }

    /// The UDP questions that came in since this was last called.
    pub(crate) fn questions(&self) -> Vec<Vec<u8>> {
        let mut packet = [0; 65_535];
        std::iter::from_fn(|| {
            let length = self.udp.recv(&mut packet).ok()?;
            Some(packet[..length].to_vec())
        })
        .collect()
    }
}
