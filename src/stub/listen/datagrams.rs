//! **Shell.** A socket for datagrams that answers each from the address that it
//! was sent to.
//!
//! A socket bound to every address (`0.0.0.0`, `[::]`) would send from the one
//! that the route to the client prefers. A client whose socket is connected, or
//! that compares (RFC 5452, section 9.1), never takes such a reply. On Linux each
//! datagram tells where it was sent to (`IP_PKTINFO`, RFC 3542, section 6); on
//! other systems the route goes on to decide. A socket bound to one address has
//! no choice to make.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use socket2::{SockRef, Socket};
use tokio::net::UdpSocket;

/// The socket.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: UdpSocket,
    bound: Bound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    One,
    Every,
}

/// Who sent a datagram, and to which of our addresses, where that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) client: SocketAddr,
    asked: Option<IpAddr>,
}

impl Datagrams {
    /// Takes a socket that is bound to `address` and does not block.
    pub(super) fn new(socket: Socket, address: SocketAddr) -> io::Result<Self> {
        let bound = match address.ip().is_unspecified() {
            true => packet_info::turn_on(&socket, address)?,
            false => Bound::One,
        };
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self { socket, bound })
    }

    /// The next datagram, its length and where it came from.
    ///
    /// # Cancel safety
    ///
    /// No datagram is lost.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
        match self.bound {
            Bound::Every => packet_info::receive(&self.socket, buffer).await,
            Bound::One => {
                let (length, client) = self.socket.recv_from(buffer).await?;
                let asked = None;
                Ok((length, Peer { client, asked }))
            }
        }
    }

    /// Sends a reply, without waiting: what does not fit the kernel's queue is lost, as datagrams
    /// are. Replies to neighbours that are not there fill it for seconds.
    pub(super) fn send(&self, reply: &[u8], to: Peer) -> io::Result<()> {
        match to.asked {
            Some(asked) => packet_info::send(&self.socket, reply, to.client, asked),
            // It does not block: tokio sees to that.
            None => SockRef::from(&self.socket)
                .send_to(reply, &to.client.into())
                .map(drop),
        }
    }
}

#[cfg(target_os = "linux")]
mod packet_info {
    use std::{
        io::{IoSlice, IoSliceMut},
        net::{Ipv4Addr, Ipv6Addr},
        os::fd::AsRawFd as _,
    };

    use nix::{
        cmsg_space,
        libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo},
        sys::socket::{
            ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
            setsockopt,
            sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo},
        },
    };
    use tokio::io::Interest;

    use super::{Bound, IpAddr, Peer, Socket, SocketAddr, UdpSocket, io};

    pub(super) fn turn_on(socket: &Socket, address: SocketAddr) -> io::Result<Bound> {
        match address {
            SocketAddr::V4(_) => setsockopt(socket, Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(socket, Ipv6RecvPacketInfo, &true)?,
        }
        Ok(Bound::Every)
    }

    pub(super) async fn receive(
        socket: &UdpSocket,
        buffer: &mut [u8],
    ) -> io::Result<(usize, Peer)> {
        let mut control = cmsg_space!(in6_pktinfo);
        let receive = || {
            let mut parts = [IoSliceMut::new(buffer)];
            let descriptor = socket.as_raw_fd();
            let none = MsgFlags::empty();
            let got = recvmsg::<SockaddrStorage>(descriptor, &mut parts, Some(&mut control), none)?;
            let client = got.address.as_ref().and_then(address);
            let client = client.ok_or(io::ErrorKind::InvalidData)?;
            let asked = got.cmsgs()?.find_map(|message| asked(&message));
            Ok((got.bytes, Peer { client, asked }))
        };
        socket.async_io(Interest::READABLE, receive).await
    }

    pub(super) fn send(
        socket: &UdpSocket,
        reply: &[u8],
        client: SocketAddr,
        asked: IpAddr,
    ) -> io::Result<()> {
        // By whichever interface the route leads: only the address is ours to say.
        let (v4, v6);
        let source = match asked {
            IpAddr::V4(asked) => {
                v4 = in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr {
                        s_addr: u32::from_ne_bytes(asked.octets()),
                    },
                    ipi_addr: in_addr { s_addr: 0 },
                };
                ControlMessage::Ipv4PacketInfo(&v4)
            }
            IpAddr::V6(asked) => {
                v6 = in6_pktinfo {
                    ipi6_ifindex: 0,
                    ipi6_addr: in6_addr {
                        s6_addr: asked.octets(),
                    },
                };
                ControlMessage::Ipv6PacketInfo(&v6)
            }
        };
        let client = SockaddrStorage::from(client);
        let parts = [IoSlice::new(reply)];
        let (descriptor, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        sendmsg(descriptor, &parts, &[source], flags, Some(&client))?;
        Ok(())
    }

    fn address(address: &SockaddrStorage) -> Option<SocketAddr> {
        let v4 = || address.as_sockaddr_in().map(|v4| SocketAddr::from(*v4));
        let v6 = || address.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6));
        v4().or_else(v6)
    }

    fn asked(message: &ControlMessageOwned) -> Option<IpAddr> {
        match message {
            // The address of ours to answer from, also where all were asked at once.
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let octets = info.ipi_spec_dst.s_addr.to_ne_bytes();
                Some(Ipv4Addr::from(octets).into())
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let asked = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                // Nobody may send from there.
                (!asked.is_multicast()).then_some(asked.into())
            }
            _ => None,
        }
    }
}

/// Systems where datagrams do not tell: nobody asks them.
#[cfg(not(target_os = "linux"))]
mod packet_info {
    use super::{Bound, IpAddr, Peer, Socket, SocketAddr, UdpSocket, io};

    pub(super) fn turn_on(_: &Socket, _: SocketAddr) -> io::Result<Bound> {
        Ok(Bound::Every)
    }

    pub(super) async fn receive(
        socket: &UdpSocket,
        buffer: &mut [u8],
    ) -> io::Result<(usize, Peer)> {
        let (length, client) = socket.recv_from(buffer).await?;
        let asked = None;
        Ok((length, Peer { client, asked }))
    }

    pub(super) fn send(
        socket: &UdpSocket,
        reply: &[u8],
        client: SocketAddr,
        _: IpAddr,
    ) -> io::Result<()> {
        socket.try_send_to(reply, client).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Type};

    use super::*;

    /// Bound to `address`, with a port of its own.
    fn bound(address: &str) -> io::Result<(Datagrams, u16)> {
        let address: SocketAddr = address.parse().unwrap();
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        let port = socket.local_addr()?.as_socket().unwrap().port();
        Ok((Datagrams::new(socket, address)?, port))
    }

    /// What the socket says that a client at `client` asked.
    async fn asked(socket: &Datagrams, client: &str, asks: SocketAddr) -> Option<IpAddr> {
        let client = UdpSocket::bind(client).await.unwrap();
        client.connect(asks).await.unwrap();
        client.send(b"?").await.unwrap();
        let (length, peer) = socket.receive(&mut [0; 8]).await.unwrap();
        assert_eq!((length, peer.client), (1, client.local_addr().unwrap()));
        socket.send(b"!", peer).unwrap();
        let mut reply = [0; 8];
        assert_eq!(client.recv(&mut reply).await.unwrap(), 1);
        peer.asked
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_socket_bound_to_every_address_hears_which_was_asked() {
        let (socket, port) = bound("0.0.0.0:0").unwrap();
        for ip in ["127.0.0.1", "127.0.0.2", "127.8.9.10"] {
            let ip: IpAddr = ip.parse().unwrap();
            let asks = SocketAddr::new(ip, port);
            assert_eq!(asked(&socket, "127.0.0.1:0", asks).await, Some(ip));
        }
        // Some machines have no IPv6.
        if let Ok((socket, port)) = bound("[::]:0") {
            let ip: IpAddr = "::1".parse().unwrap();
            let asks = SocketAddr::new(ip, port);
            assert_eq!(asked(&socket, "[::1]:0", asks).await, Some(ip));
        }
    }

    #[tokio::test]
    async fn a_socket_bound_to_one_address_need_not_hear() {
        let (socket, port) = bound("127.0.0.2:0").unwrap();
        let asks = SocketAddr::new("127.0.0.2".parse().unwrap(), port);
        assert_eq!(asked(&socket, "127.0.0.1:0", asks).await, None);
    }
}
