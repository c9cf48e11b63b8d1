//! **Pure.** What one client has in the air: where there is no room for all, who asks a thousand
//! things at once does not keep the others waiting.

use std::{collections::HashMap, net::SocketAddr};

use foldhash::fast::RandomState;

/// Questions of one socket of a client.
const MOST_OF_ONE: u32 = 128;

/// Questions in the air, by the client's socket.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<SocketAddr, u32, RandomState>);

impl Shares {
    /// One more question, if it is not one too many. `crowded`: others may need the room.
    pub(super) fn take(&mut self, client: SocketAddr, crowded: bool) -> bool {
        let count = self.0.entry(client).or_default();
        let takes = !crowded || *count < MOST_OF_ONE;
        *count += u32::from(takes);
        takes
    }

    /// A question is answered. `None`: nobody knows whose it was, since it panicked: all are
    /// counted anew.
    pub(super) fn give_back(&mut self, client: Option<SocketAddr>) {
        let Some(client) = client else {
            return self.0.clear();
        };
        if let Some(count) = self.0.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_has_its_share_and_no_more_and_others_have_theirs() {
        let (one, other) = (
            "192.0.2.1:53".parse().unwrap(),
            "192.0.2.1:54".parse().unwrap(),
        );
        let mut shares = Shares::default();
        assert!((0..MOST_OF_ONE).all(|_| shares.take(one, true)));
        assert!(!shares.take(one, true) && shares.take(other, true));
        shares.give_back(Some(one));
        assert!(shares.take(one, true) && !shares.take(one, true));
        shares.give_back(Some(other));
        assert_eq!(shares.0.len(), 1);
        // There is room: nobody is turned away.
        assert!((0..1_000).all(|_| shares.take(other, false)));
        shares.give_back(None);
        assert!(shares.take(one, true));
        // Of those that were counted before.
        shares.give_back(Some(other));
    }
}
