//! **Shell.** One question over one UDP socket of its own.

use std::net::SocketAddr;

use tracing::debug;

use super::message::{self, Query, Stranger, Strangers};
use super::{Reply, Trouble};
use crate::{
    clock,
    endpoint::Transport,
    udp::{MOST_STRANGERS, connected},
};

/// Wrong ids before a question goes over to TCP, where guesses are useless.
const MOST_WRONG_IDS: usize = 16;

/// Consul 1.8 sends a few bytes more than was advertised (issue 9945).
const SLACK: usize = 512;

/// Asks `server` and waits for its reply. The caller bounds the time; dropping
/// the future closes the socket.
pub(super) async fn exchange(
    server: SocketAddr,
    query: &Query,
    strangers: &Strangers,
) -> Result<Reply, Trouble> {
    let socket = connected(server).map_err(Trouble::from_io)?;
    let id = clock::query_id();
    socket
        .send(&query.with_id(id))
        .await
        .map_err(Trouble::from_io)?;

    let mut buffer = Vec::with_capacity(usize::from(query.payload()) + SLACK);
    let mut wrong_ids = 0;
    for _ in 0..MOST_STRANGERS {
        buffer.clear();
        socket
            .recv_buf(&mut buffer)
            .await
            .map_err(Trouble::from_io)?;
        let stranger = match query.is_answered_by(id, &buffer) {
            Ok(()) => match message::decode(&buffer) {
                Ok(message) => {
                    return Ok(Reply {
                        message,
                        size: buffer.len(),
                        limit: usize::from(query.payload()),
                        advertised: query.payload(),
                        transport: Transport::Udp,
                    });
                }
                Err(stranger) => stranger,
            },
            Err(stranger) => stranger,
        };
        strangers.count(stranger);
        debug!(%server, ?stranger, bytes = buffer.len(), "datagram ignored");
        wrong_ids += usize::from(stranger == Stranger::WrongId);
        if wrong_ids >= MOST_WRONG_IDS {
            break;
        }
    }
    Err(Trouble::Flooded)
}
