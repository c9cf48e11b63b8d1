//! **Pure.** The questions over one socket: under which ids, which of them may be sent now, and
//! whose a datagram is that comes back.
//!
//! What a socket holds is little: some 250 questions fill the buffer of a server's, a few dozen
//! long replies that of ours, and what comes then is lost without a word. So no more are sent than
//! [`MOST_UNREAD`] that may not be read yet, and fewer where replies are long; the others wait for
//! their turn. A question that has no reply for longer than [`READ_WITHIN`] was read, and keeps
//! nobody waiting.

// What comes from outside is read here: nothing that it says may end in a panic.
#![cfg_attr(
    not(test),
    warn(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

use std::{
    collections::{HashMap, VecDeque},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use foldhash::fast::RandomState;

use super::{
    Trouble,
    message::{self, Stranger},
};
use crate::udp::{MOST_STRAY_DATAGRAMS, MOST_WRONG_IDS};

/// Questions that may not be read yet, and the fewest of them where replies are long.
const MOST_UNREAD: usize = 128;
const LEAST_UNREAD: usize = 16;

/// A server that is well has read a question by then.
const READ_WITHIN: Duration = Duration::from_millis(20);

/// Bytes of replies that our socket holds, and what each takes beside its own: the kernel counts
/// the room, which is up to twice what is in it (socket(7), `SO_RCVBUF`).
const HELD: usize = 200 << 10;
const BESIDE: usize = 512;

/// The longest reply is forgotten by so many shorter ones, to one in e.
const FORGETS: usize = 64;

/// An id is remembered for as long as that, and at most twice: a late reply is to find nobody.
const LATE: Duration = Duration::from_secs(5);

/// Draws before an id is given that was another's not long ago.
const DRAWS: usize = 16;

/// Ids that may be in use; more would be long to draw one that is not.
const MOST_SEATS: usize = 32_768;

/// A server that has answered nothing for so long while somebody gave up may be asked in vain from
/// this port: whatever stands between us and it, or beside it, may have lost sight of who we are.
const DEAF: Duration = Duration::from_secs(1);

/// The questions over one socket.
#[derive(Debug, Default)]
pub(super) struct Seats {
    seats: HashMap<u16, Seat, RandomState>,
    /// Those that are not sent yet, in order.
    waiting: VecDeque<Ticket>,
    /// Those that were sent within [`READ_WITHIN`], in order, and when.
    sent: VecDeque<(Ticket, Instant)>,
    /// How many of them have no reply.
    unread: usize,
    /// The longest reply, as far as it is remembered.
    longest: usize,
    lent: Lent,
    /// When a question was given up first since a reply came.
    unanswered: Option<Instant>,
    /// How many questions there were.
    count: u64,
}

/// One question: its id, which others may have after it, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    id: u16,
    number: u64,
}

#[derive(Debug)]
struct Seat {
    number: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It waits for its turn, with these bytes.
    Waiting(Vec<u8>, Option<Waker>),
    Sent(Sent),
}

#[derive(Debug, Default)]
struct Sent {
    /// Whether it counts as unread.
    unread: bool,
    heard: Vec<Vec<u8>>,
    wrong_ids: usize,
    failed: Option<Trouble>,
    waker: Option<Waker>,
}

impl Ticket {
    pub(super) fn id(self) -> u16 {
        self.id
    }
}

impl Sent {
    /// Nothing comes of it any more, unless that was so before. Gives who is to be told.
    fn fail(&mut self, trouble: &Trouble) -> Option<Waker> {
        self.failed.get_or_insert_with(|| trouble.clone());
        self.waker.take()
    }
}

/// What is to be sent now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Send(Ticket, Vec<u8>),
    /// Nothing before that time, unless a reply comes.
    At(Instant),
    Nothing,
}

/// A datagram that came back.
#[derive(Debug)]
pub(super) enum Came {
    /// For a question whose asker is to be told.
    Answer(Option<Waker>),
    /// For one that nobody waits for any more.
    Late,
    /// For none of ours. Those who have enough of it are to be told.
    Stranger(Stranger, Vec<Waker>),
}

impl Seats {
    /// Takes a seat for a question, under an id that `draw` gives and nobody has; the bytes to
    /// send under that id are what `write` makes. `None`: there are too many.
    pub(super) fn ask(
        &mut self,
        mut draw: impl FnMut() -> u16,
        write: impl FnOnce(u16) -> Vec<u8>,
    ) -> Option<Ticket> {
        if self.seats.len() >= MOST_SEATS {
            return None;
        }
        let mut draws = 0_usize;
        let id = loop {
            let id = draw();
            draws = draws.saturating_add(1);
            if !self.seats.contains_key(&id) && (draws > DRAWS || !self.lent.has(id)) {
                break id;
            }
        };
        self.count = self.count.saturating_add(1);
        let number = self.count;
        let ticket = Ticket { id, number };
        let state = State::Waiting(write(id), None);
        self.seats.insert(id, Seat { number, state });
        self.waiting.push_back(ticket);
        Some(ticket)
    }

    /// What is to be sent `now`, one after the other.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        while let Some((ticket, when)) = self.sent.front().copied() {
            let is_over = now.saturating_duration_since(when) >= READ_WITHIN;
            if !is_over && self.is_unread(ticket) {
                break;
            }
            self.sent.pop_front();
            self.read(ticket);
        }
        while let Some(&ticket) = self.waiting.front() {
            if self.unread >= self.most_unread()
                && let Some((_, when)) = self.sent.front()
            {
                return Next::At(when.checked_add(READ_WITHIN).unwrap_or(now));
            }
            self.waiting.pop_front();
            let Some(state) = self.state(ticket) else {
                continue;
            };
            if let State::Waiting(bytes, waker) = state {
                let (bytes, waker) = (std::mem::take(bytes), waker.take());
                *state = State::Sent(Sent {
                    unread: true,
                    waker,
                    ..Sent::default()
                });
                self.unread = self.unread.saturating_add(1);
                self.sent.push_back((ticket, now));
                self.lent.lend(ticket.id, now);
                return Next::Send(ticket, bytes);
            }
        }
        Next::Nothing
    }

    fn most_unread(&self) -> usize {
        let room = self.longest.saturating_add(BESIDE).saturating_mul(2);
        let held = HELD.checked_div(room).unwrap_or(MOST_UNREAD);
        held.clamp(LEAST_UNREAD, MOST_UNREAD)
    }

    /// A datagram came.
    pub(super) fn hear(&mut self, datagram: &[u8]) -> Came {
        let forgotten = self.longest.div_ceil(FORGETS);
        let shorter = self.longest.saturating_sub(forgotten);
        self.longest = shorter.max(datagram.len());
        let Some(id) = message::id(datagram) else {
            return Came::Stranger(Stranger::TooShort, self.blame());
        };
        match self.seats.get_mut(&id) {
            Some(Seat {
                number,
                state: State::Sent(sent),
            }) => {
                // What comes after it is enough is not looked at.
                let is_enough = matches!(sent.failed, Some(Trouble::Flooded));
                if is_enough || sent.heard.len() >= MOST_STRAY_DATAGRAMS {
                    return Came::Stranger(Stranger::WrongQuestion, Vec::new());
                }
                sent.heard.push(datagram.to_vec());
                let (waker, number) = (sent.waker.take(), *number);
                self.read(Ticket { id, number });
                self.unanswered = None;
                Came::Answer(waker)
            }
            // Also where another question is about to have that id.
            _ if self.lent.take(id) => {
                self.unanswered = None;
                Came::Late
            }
            _ => Came::Stranger(Stranger::WrongId, self.blame()),
        }
    }

    /// Somebody may be guessing the id of any of them. Gives those who have enough.
    fn blame(&mut self) -> Vec<Waker> {
        let mut enough = Vec::new();
        for seat in self.seats.values_mut() {
            if let State::Sent(sent) = &mut seat.state {
                sent.wrong_ids = sent.wrong_ids.saturating_add(1);
                if sent.wrong_ids >= MOST_WRONG_IDS {
                    enough.extend(sent.fail(&Trouble::Flooded));
                }
            }
        }
        enough
    }

    /// What was sent fails, all of it `but` one. Gives those who are to be told.
    pub(super) fn fail(&mut self, trouble: &Trouble, but: Option<Ticket>) -> Vec<Waker> {
        let mut told = Vec::new();
        for seat in self.seats.values_mut() {
            if let State::Sent(sent) = &mut seat.state
                && but.is_none_or(|but| but.number != seat.number)
            {
                told.extend(sent.fail(trouble));
            }
        }
        told
    }

    /// One question fails.
    pub(super) fn fail_one(&mut self, ticket: Ticket, trouble: &Trouble) -> Option<Waker> {
        match self.state(ticket)? {
            State::Sent(sent) => sent.fail(trouble),
            State::Waiting(..) => None,
        }
    }

    /// What came to a question: a datagram with its id, or why none comes any more.
    pub(super) fn poll(
        &mut self,
        ticket: Ticket,
        context: &mut Context<'_>,
    ) -> Poll<Result<Vec<u8>, Trouble>> {
        let waker = match self.state(ticket) {
            Some(State::Sent(sent)) => {
                if !sent.heard.is_empty() {
                    return Poll::Ready(Ok(sent.heard.remove(0)));
                }
                if let Some(trouble) = &sent.failed {
                    return Poll::Ready(Err(trouble.clone()));
                }
                &mut sent.waker
            }
            Some(State::Waiting(_, waker)) => waker,
            None => return Poll::Ready(Err(Trouble::Closed)),
        };
        match waker {
            Some(waker) => waker.clone_from(context.waker()),
            None => *waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Nobody waits for it any more. `answered`: its reply came.
    pub(super) fn leave(&mut self, ticket: Ticket, answered: bool, now: Instant) {
        if self.state(ticket).is_none() {
            return;
        }
        self.read(ticket);
        let seat = self.seats.remove(&ticket.id);
        let was_sent = seat.is_some_and(|seat| matches!(seat.state, State::Sent(_)));
        if was_sent && !answered {
            // It may have been sent long ago.
            self.lent.lend(ticket.id, now);
            self.unanswered.get_or_insert(now);
        }
    }

    /// Whether nothing is heard over this socket any more; that is said once.
    pub(super) fn is_deaf(&mut self, now: Instant) -> bool {
        let since = self.unanswered;
        let is_deaf = since.is_some_and(|since| now.saturating_duration_since(since) >= DEAF);
        self.unanswered = self.unanswered.filter(|_| !is_deaf);
        is_deaf
    }

    /// All who wait.
    pub(super) fn into_wakers(self) -> impl Iterator<Item = Waker> {
        let waker = |seat: Seat| match seat.state {
            State::Waiting(_, waker) => waker,
            State::Sent(sent) => sent.waker,
        };
        self.seats.into_values().filter_map(waker)
    }

    /// Whether some are to be sent as soon as they may.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether more may not be sent now.
    pub(super) fn is_crowded(&self) -> bool {
        self.has_waiting() && self.unread >= self.most_unread()
    }

    /// Whether nobody waits for anything.
    pub(super) fn is_idle(&self) -> bool {
        self.seats.is_empty()
    }

    fn is_unread(&mut self, ticket: Ticket) -> bool {
        let state = self.state(ticket);
        state.is_some_and(|state| matches!(state, State::Sent(Sent { unread: true, .. })))
    }

    /// A question does not count as unread any more.
    fn read(&mut self, ticket: Ticket) {
        if let Some(State::Sent(sent)) = self.state(ticket)
            && std::mem::take(&mut sent.unread)
        {
            self.unread = self.unread.saturating_sub(1);
        }
    }

    fn state(&mut self, ticket: Ticket) -> Option<&mut State> {
        let seat = self.seats.get_mut(&ticket.id)?;
        (seat.number == ticket.number).then_some(&mut seat.state)
    }
}

/// The ids that questions had lately: one bit each, of this turn and of the one before.
#[derive(Debug, Default)]
struct Lent {
    turns: [Vec<u64>; 2],
    since: Option<Instant>,
}

impl Lent {
    fn lend(&mut self, id: u16, now: Instant) {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= LATE {
            self.turns.swap(0, 1);
            self.turns[0].fill(0);
            self.since = Some(now);
        }
        let [turn, _] = &mut self.turns;
        turn.resize(1 << 10, 0);
        let (word, bit) = Self::place(id);
        if let Some(word) = turn.get_mut(word) {
            *word |= bit;
        }
    }

    fn has(&self, id: u16) -> bool {
        let (word, bit) = Self::place(id);
        let has = |turn: &Vec<u64>| turn.get(word).is_some_and(|word| word & bit != 0);
        self.turns.iter().any(has)
    }

    /// Whether it was lent. It is not any more.
    fn take(&mut self, id: u16) -> bool {
        let has = self.has(id);
        let (word, bit) = Self::place(id);
        for word in self.turns.iter_mut().filter_map(|turn| turn.get_mut(word)) {
            *word &= !bit;
        }
        has
    }

    fn place(id: u16) -> (usize, u64) {
        (usize::from(id >> 6), 1 << (id & 63))
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

    use super::*;
    use crate::clock;

    /// A question under the next id.
    fn ask(seats: &mut Seats) -> Ticket {
        let mut id = seats.count as u16;
        let draw = || {
            id = id.wrapping_add(1);
            id
        };
        seats.ask(draw, |id| id.to_be_bytes().to_vec()).unwrap()
    }

    /// Sends what may be sent; gives how many, and when more may be.
    fn send(seats: &mut Seats, now: Instant) -> (usize, Option<Instant>) {
        let mut count = 0;
        loop {
            match seats.next(now) {
                Next::Send(ticket, bytes) => assert_eq!(bytes, ticket.id.to_be_bytes()),
                Next::At(turn) => return (count, Some(turn)),
                Next::Nothing => return (count, None),
            }
            count += 1;
        }
    }

    fn poll(seats: &mut Seats, ticket: Ticket) -> Poll<Result<Vec<u8>, Trouble>> {
        seats.poll(ticket, &mut Context::from_waker(Waker::noop()))
    }

    fn is_stranger(came: &Came) -> bool {
        matches!(came, Came::Stranger(Stranger::WrongId, _))
    }

    #[test]
    fn no_more_are_sent_than_a_server_holds_unread_and_each_has_its_turn() {
        let (mut seats, start) = (Seats::default(), clock::now());
        let all: Vec<_> = (0..MOST_UNREAD * 3).map(|_| ask(&mut seats)).collect();
        let turn = start + READ_WITHIN;
        assert_eq!(send(&mut seats, start), (MOST_UNREAD, Some(turn)));
        assert!(seats.is_crowded());
        // A reply makes room for one; a question that is given up too, sent or not.
        seats.hear(&all[5].id.to_be_bytes());
        seats.leave(all[6], false, start);
        seats.leave(all[MOST_UNREAD + 9], false, start);
        assert!(seats.has_waiting() && !seats.is_crowded());
        assert_eq!(send(&mut seats, start), (2, Some(turn)));
        // A silent one is as good as read after a while.
        let most = (MOST_UNREAD, Some(turn + READ_WITHIN));
        assert_eq!(send(&mut seats, turn), most);
        let rest = MOST_UNREAD - 3;
        assert_eq!(send(&mut seats, turn + READ_WITHIN), (rest, None));
        assert!(!seats.is_crowded());
    }

    #[test]
    fn an_id_is_given_again_when_its_late_reply_is_due_no_more() {
        let (mut seats, start) = (Seats::default(), clock::now());
        let next = |seats: &mut Seats, mut ids: Vec<u16>, now| {
            let asks = |id: u16| id.to_be_bytes().to_vec();
            let ticket = seats.ask(|| ids.pop().unwrap(), asks).unwrap();
            let id = ticket.id;
            send(seats, now);
            seats.leave(ticket, id == 2, now);
            id
        };
        assert_eq!(next(&mut seats, vec![1], start), 1);
        assert_eq!(next(&mut seats, vec![2, 1], start), 2);
        // Neither the one that was given up nor the one that was answered is given at once.
        assert_eq!(next(&mut seats, vec![3, 2, 1], start), 3);
        // One reply each is late, and no guess: also one that comes twice.
        for id in 1..=3 {
            assert!(matches!(seats.hear(&[0, id]), Came::Late));
            assert!(is_stranger(&seats.hear(&[0, id])));
        }
        assert_eq!(next(&mut seats, vec![1], start), 1);
        for (turn, id) in [(1, 4), (2, 5), (3, 1)] {
            let now = start + LATE * turn;
            assert_eq!(next(&mut seats, vec![5, 4, 1], now), id);
        }
        // Where there is no other it is given all the same.
        let same = vec![1; DRAWS + 1];
        assert_eq!(next(&mut seats, same, start + LATE * 3), 1);
    }

    #[test]
    fn where_replies_are_long_fewer_are_asked_for_at_once() {
        let (mut seats, start) = (Seats::default(), clock::now());
        let mut most = |length: usize, times: usize| {
            for _ in 0..times {
                let one = ask(&mut seats);
                send(&mut seats, start);
                let mut reply = one.id.to_be_bytes().to_vec();
                reply.resize(length, 0);
                seats.hear(&reply);
                seats.leave(one, true, start);
            }
            seats.most_unread()
        };
        assert_eq!(most(100, 1), MOST_UNREAD);
        assert_eq!(most(4_000, 1), 22);
        assert_eq!(most(65_000, 1), LEAST_UNREAD);
        assert_eq!(most(100, 1_000), MOST_UNREAD);
    }

    #[test]
    fn who_is_not_answered_while_nobody_is_asks_from_another_port() {
        let (mut seats, start) = (Seats::default(), clock::now());
        let later = start + DEAF;
        for (given_up, heard, is_deaf) in [
            (true, false, true),
            (true, true, false),
            (false, false, false),
        ] {
            let [one, other] = [ask(&mut seats), ask(&mut seats)];
            send(&mut seats, start);
            seats.leave(one, !given_up, start);
            if heard {
                seats.hear(&other.id.to_be_bytes());
            }
            assert!(!seats.is_deaf(start));
            assert_eq!(seats.is_deaf(later), is_deaf);
            assert!(!seats.is_deaf(later));
            seats.leave(other, true, start);
        }
    }

    #[test]
    fn guesses_are_counted_to_those_who_could_be_meant() {
        let (mut seats, start) = (Seats::default(), clock::now());
        let sent = ask(&mut seats);
        send(&mut seats, start);
        let waits = ask(&mut seats);
        for _ in 1..MOST_WRONG_IDS {
            assert!(is_stranger(&seats.hear(&waits.id.to_be_bytes())));
        }
        assert!(poll(&mut seats, sent).is_pending() && poll(&mut seats, waits).is_pending());
        assert!(
            matches!(seats.hear(&[7]), Came::Stranger(Stranger::TooShort, told) if told.len() == 1)
        );
        assert!(matches!(
            poll(&mut seats, sent),
            Poll::Ready(Err(Trouble::Flooded))
        ));
        assert!(poll(&mut seats, waits).is_pending());
    }

    #[test]
    fn whatever_comes_in_whatever_order_nobody_hears_of_another_and_nothing_is_left_behind() {
        for seed in 0..200 {
            let mut dice = SmallRng::seed_from_u64(seed);
            let (mut seats, mut now) = (Seats::default(), clock::now());
            let mut asked: Vec<Ticket> = Vec::new();
            for _ in 0..2_000 {
                now += Duration::from_micros(dice.random_range(0..2_000));
                let one = (!asked.is_empty()).then(|| dice.random_range(0..asked.len()));
                match (dice.random_range(0..10), one) {
                    (0..4, _) => {
                        // Few ids, so that they are given again.
                        let draw = || dice.random_range(0..4_096);
                        let asks = |id: u16| id.to_be_bytes().to_vec();
                        if asked.len() < 1_000 {
                            asked.push(seats.ask(draw, asks).unwrap());
                        }
                    }
                    (4 | 5, _) => _ = seats.next(now),
                    (6 | 7, Some(one)) => {
                        seats.hear(&asked[one].id.to_be_bytes());
                        let told = poll(&mut seats, asked[one]);
                        if let Poll::Ready(Ok(bytes)) = told {
                            assert_eq!(bytes, asked[one].id.to_be_bytes());
                            seats.leave(asked.swap_remove(one), true, now);
                        }
                    }
                    (8, Some(one)) => seats.leave(asked.swap_remove(one), false, now),
                    (9, _) => {
                        let trouble = Trouble::Refused;
                        if dice.random_range(0..100) == 0 {
                            seats.fail(&trouble, None);
                        }
                    }
                    _ => {}
                }
                let unread = seats
                    .seats
                    .values()
                    .filter(|seat| matches!(&seat.state, State::Sent(sent) if sent.unread));
                assert_eq!(unread.count(), seats.unread, "seed {seed}");
                assert!(seats.unread <= MOST_UNREAD, "seed {seed}");
            }
            for one in asked {
                seats.leave(one, false, now);
            }
            assert!(seats.is_idle(), "seed {seed}");
            seats.next(now);
            let rest = (seats.seats.len(), seats.sent.len(), seats.unread);
            assert_eq!(rest, (0, 0, 0), "seed {seed}");
        }
    }
}
