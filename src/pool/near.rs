//! **Pure.** What a thread remembers of the pools that it picks from, so that a pick asks
//! and tells other threads nothing.
//!
//! A view is let go when another takes its place, or with the thread: at most [`KNOWN`] of
//! pools that are gone stay.

use std::{cell::RefCell, ops::Deref, sync::Arc};

use super::set::View;

/// Pools whose views a thread remembers, at most: as many as a power of two.
const KNOWN: usize = 64;

struct Known {
    pool: usize,
    version: u64,
    view: Arc<View>,
    /// A handle that was given back: to count it anew costs more than all the rest.
    spare: Option<Arc<View>>,
}

thread_local! {
    static VIEWS: RefCell<[Option<Known>; KNOWN]> =
        const { RefCell::new([const { None }; KNOWN]) };
}

/// Calls `pick` with the view of that pool and version, which `look` gives where this
/// thread does not know it.
pub(super) fn with<T>(
    (pool, version): (usize, u64),
    look: impl Fn() -> Option<Arc<View>>,
    pick: impl Fn(Near<'_>) -> Option<T>,
) -> Option<T> {
    let known = VIEWS.try_with(|views| {
        let mut views = views.borrow_mut();
        let slot = views.get_mut(pool & (KNOWN - 1))?;
        let known = match slot {
            Some(known) if known.pool == pool && known.version == version => known,
            _ => slot.insert(Known {
                pool,
                version,
                view: look()?,
                spare: None,
            }),
        };
        pick(Near {
            view: &known.view,
            spare: &mut known.spare,
        })
    });
    // A thread that is about to end remembers nothing.
    known.unwrap_or_else(|_| {
        let view = look()?;
        pick(Near {
            view: &view,
            spare: &mut None,
        })
    })
}

/// A view, as a pick has it at hand.
pub(super) struct Near<'a> {
    view: &'a Arc<View>,
    spare: &'a mut Option<Arc<View>>,
}

impl Near<'_> {
    /// A handle of it for a call.
    pub(super) fn handle(self) -> Handle {
        let spare = self.spare.take();
        Handle(Some(spare.unwrap_or_else(|| Arc::clone(self.view))))
    }
}

impl Deref for Near<'_> {
    type Target = View;

    fn deref(&self) -> &View {
        self.view
    }
}

/// A view that a call holds. Dropped, it is kept for the thread's next call.
#[derive(Debug)]
pub(super) struct Handle(Option<Arc<View>>);

impl Deref for Handle {
    type Target = View;

    fn deref(&self) -> &View {
        self.0.as_ref().expect("held until it is dropped")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let Some(view) = self.0.take() else { return };
        // A thread that is about to end keeps nothing.
        _ = VIEWS.try_with(|views| {
            if let Ok(mut views) = views.try_borrow_mut()
                && let Some(Some(known)) = views.get_mut(view.pool() & (KNOWN - 1))
                && Arc::ptr_eq(&known.view, &view)
                && known.spare.is_none()
            {
                known.spare = Some(view);
            }
        });
    }
}
