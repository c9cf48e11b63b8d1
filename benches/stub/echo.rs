//! The physical limit: a server that sends the same bytes to whoever sends it
//! something, with the same batches as ours, on UDP and on TCP.

use std::{
    array,
    io::{IoSlice, IoSliceMut, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
};

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

use crate::Outcome;

const BATCH: usize = 64;

pub(crate) fn serve(port: u16, length: usize) -> Outcome<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || connection(stream, length));
        }
    });
    let socket = UdpSocket::bind(("127.0.0.1", port))?;
    let mut rooms = vec![0_u8; BATCH * 4_096];
    let reply = vec![0_u8; length];
    let mut taken = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let mut sent = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    loop {
        let mut to: [Option<SockaddrIn>; BATCH] = [None; BATCH];
        let mut chunks = rooms.chunks_exact_mut(4_096);
        let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
            array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())]);
        let flags = MsgFlags::MSG_WAITFORONE;
        let from = recvmmsg(
            socket.as_raw_fd(),
            &mut taken,
            slices.iter_mut(),
            flags,
            None,
        )?;
        let mut count = 0;
        for (message, to) in from.zip(&mut to) {
            *to = message.address;
            count += 1;
        }
        let slices: [[IoSlice<'_>; 1]; BATCH] = array::from_fn(|_| [IoSlice::new(&reply)]);
        let flags = MsgFlags::empty();
        sendmmsg(
            socket.as_raw_fd(),
            &mut sent,
            slices[..count].iter(),
            to,
            [],
            flags,
        )?
        .count();
    }
}

fn connection(mut stream: TcpStream, length: usize) -> Option<()> {
    let mut rooms = vec![0; 64 << 10];
    let mut reply = u16::try_from(length).ok()?.to_be_bytes().to_vec();
    reply.resize(length + 2, 0);
    let mut filled = 0;
    loop {
        let more = stream
            .read(&mut rooms[filled..])
            .ok()
            .filter(|more| *more > 0)?;
        filled += more;
        let (mut at, mut out) = (0, Vec::new());
        while filled - at >= 2 {
            let length = usize::from(u16::from_be_bytes([rooms[at], rooms[at + 1]]));
            if filled - at < length + 2 {
                break;
            }
            at += length + 2;
            out.extend_from_slice(&reply);
        }
        rooms.copy_within(at..filled, 0);
        filled -= at;
        stream.write_all(&out).ok()?;
    }
}
