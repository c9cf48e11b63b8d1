//! **Word.** What stood in the place of a set.

use std::sync::Arc;

use super::fate::Fate;
use crate::found::Held;

/// What was known of a name when a set of it was put.
#[derive(Debug)]
pub(crate) enum Was {
    /// Nothing at all.
    Unknown,
    /// That there is no such name.
    Nothing,
    Set(Before),
}

/// What a set was put in the place of. Dropped, it tells who gives that on that it is not so
/// any more.
#[derive(Debug)]
pub(crate) struct Before {
    pub(crate) held: Arc<Held>,
    pub(super) fate: Option<Fate>,
}

impl Before {
    /// The new one has the same members.
    pub(crate) fn renewed(mut self) {
        if let Some(fate) = self.fate.take() {
            fate.renew();
        }
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        if let Some(fate) = &self.fate {
            fate.end();
        }
    }
}
