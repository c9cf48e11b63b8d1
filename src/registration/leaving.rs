//! **Pure.** What is to be done next to take one service away where it is ours. Time comes in
//! as pauses that somebody else waits for.
//!
//! | known | next |
//! | --- | --- |
//! | nothing | look whose it is |
//! | it is ours | take it away |
//! | it is not there, or another's | it is gone |
//! | a request failed | the same again after a [`PAUSE`], [`TRIES`] times in all |
//! | nobody says whose it is | in the end take it away all the same, unless it was another's |
//! | a registration may still [arrive](ARRIVES) | all of it once more then |

use std::time::Duration;

use super::agenda::{Failed, Seen};

/// Times that it is tried, and the pause between.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// What was sent before may arrive within this.
const ARRIVES: Duration = Duration::from_millis(200);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    Look,
    TakeAway,
    Rest(Duration),
    Gone,
    /// The last request failed, and there is none left.
    GiveUp,
}

/// How far it is.
#[derive(Clone, Debug)]
pub(crate) struct Leaving {
    /// Whose it was when that was seen last.
    last: Seen,
    /// A registration had no answer, and may still be carried out.
    may_arrive: bool,
    tried: u32,
    next: Move,
}

impl Leaving {
    pub(crate) fn new(last: Seen, may_arrive: bool) -> Self {
        Self {
            last,
            may_arrive,
            tried: 1,
            next: Move::Look,
        }
    }

    /// Where its guard was dropped: `is_sent`, a registration that had no answer. What is not
    /// known to be ours may be on its way as well.
    pub(crate) fn dropped(last: Seen, is_sent: bool) -> Self {
        Self::new(last, is_sent || last != Seen::Ours)
    }

    /// What is next: a rest is told once, and then it is over.
    pub(crate) fn next(&mut self) -> Move {
        match self.next {
            Move::Rest(_) => std::mem::replace(&mut self.next, Move::Look),
            next => next,
        }
    }

    /// What a look gave. An agent that does not say whose it is may still hear.
    pub(crate) fn looked(&mut self, seen: Result<Seen, Failed>) {
        match seen {
            Ok(seen) => {
                self.last = seen;
                match seen {
                    Seen::Ours => self.next = Move::TakeAway,
                    Seen::Nothing | Seen::Another => self.ends(Move::Gone),
                }
            }
            Err(_) if self.tried == TRIES && self.last == Seen::Another => self.ends(Move::Gone),
            Err(_) if self.tried == TRIES => self.next = Move::TakeAway,
            Err(how) => self.failed(how),
        }
    }

    /// What taking it away gave: that it was not there is as good.
    pub(crate) fn took_away(&mut self, done: Result<(), Failed>) {
        match done {
            Ok(()) | Err(Failed::Forgotten) => self.ends(Move::Gone),
            Err(how) => self.failed(how),
        }
    }

    fn failed(&mut self, how: Failed) {
        if how == Failed::Denied || self.tried == TRIES {
            return self.ends(Move::GiveUp);
        }
        self.tried += 1;
        self.next = Move::Rest(PAUSE);
    }

    fn ends(&mut self, end: Move) {
        self.next = match std::mem::take(&mut self.may_arrive) {
            true => Move::Rest(ARRIVES),
            false => end,
        };
        self.tried = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays it against what an agent says, and gives what was done.
    fn play(mut leaving: Leaving, says: &[Result<Seen, Failed>]) -> Vec<Move> {
        let mut says = says.iter().cycle();
        let mut moves = Vec::new();
        loop {
            let next = leaving.next();
            moves.push(next);
            match next {
                Move::Look => leaving.looked(*says.next().unwrap()),
                Move::TakeAway => leaving.took_away(says.next().unwrap().map(|_| ())),
                Move::Rest(_) => {}
                Move::Gone | Move::GiveUp => return moves,
            }
        }
    }

    const OURS: Result<Seen, Failed> = Ok(Seen::Ours);
    const NOTHING: Result<Seen, Failed> = Ok(Seen::Nothing);
    const ANOTHER: Result<Seen, Failed> = Ok(Seen::Another);
    const SILENT: Result<Seen, Failed> = Err(Failed::Unheard);

    #[test]
    fn only_what_is_ours_is_taken_away() {
        let leaving = Leaving::new(Seen::Ours, false);
        let taken = [Move::Look, Move::TakeAway, Move::Gone];
        assert_eq!(play(leaving.clone(), &[OURS]), taken);
        for other in [NOTHING, ANOTHER] {
            assert_eq!(play(leaving.clone(), &[other]), [Move::Look, Move::Gone]);
        }
        let unknown = [OURS, Err(Failed::Forgotten)];
        assert_eq!(play(leaving, &unknown), taken);
    }

    #[test]
    fn who_is_silent_is_told_in_the_dark_unless_it_was_anothers() {
        let again = [Move::Look, Move::Rest(PAUSE)];
        let mut moves = [again, again].concat();
        moves.push(Move::Look);
        for (last, ends) in [
            (Seen::Ours, &[Move::TakeAway, Move::GiveUp][..]),
            (Seen::Nothing, &[Move::TakeAway, Move::GiveUp]),
            (Seen::Another, &[Move::Gone]),
        ] {
            let expected = [&moves, ends].concat();
            assert_eq!(play(Leaving::new(last, false), &[SILENT]), expected);
        }
    }

    #[test]
    fn what_is_not_permitted_is_not_tried_again() {
        let denied = [Err(Failed::Denied)];
        let moves = play(Leaving::new(Seen::Ours, false), &denied);
        assert_eq!(moves, [Move::Look, Move::GiveUp]);
        let moves = play(Leaving::new(Seen::Ours, false), &[OURS, denied[0]]);
        assert_eq!(moves, [Move::Look, Move::TakeAway, Move::GiveUp]);
    }

    #[test]
    fn a_registration_that_arrives_late_is_taken_away_too() {
        let late = [NOTHING, OURS, OURS];
        let moves = play(Leaving::new(Seen::Nothing, true), &late);
        let (rest, gone) = (Move::Rest(ARRIVES), [Move::TakeAway, Move::Gone]);
        assert_eq!(moves, [&[Move::Look, rest, Move::Look], &gone[..]].concat());
        // What failed before it arrives is no end.
        let moves = play(
            Leaving::new(Seen::Ours, true),
            &[Err(Failed::Denied), NOTHING],
        );
        assert_eq!(moves, [Move::Look, rest, Move::Look, Move::Gone]);
    }
}
