//! Which node's thread this is, if any, and whether user code may run on it.

use std::cell::Cell;

thread_local! {
    static CURRENT: Cell<Current> = const { Cell::new(Current::ELSEWHERE) };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Current {
    /// The node, by the address of its table of requests; 0: none.
    node: usize,
    /// User code that takes long holds up nobody but user code here.
    runs_user_code: bool,
}

impl Current {
    const ELSEWHERE: Self = Self {
        node: 0,
        runs_user_code: true,
    };

    pub(crate) fn of<T>(node: *const T, runs_user_code: bool) -> Self {
        Self {
            node: node as usize,
            runs_user_code,
        }
    }

    /// Marks this thread, until what is returned is dropped.
    pub(crate) fn enter(self) -> Entered {
        Entered(CURRENT.replace(self))
    }
}

/// A thread that is marked.
pub(crate) struct Entered(Current);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Whether this is a thread of that node.
pub(crate) fn is_of<T>(node: *const T) -> bool {
    CURRENT.get().node == node as usize
}

/// Whether wakers, callbacks and notifications may run on this thread.
pub(crate) fn runs_user_code() -> bool {
    CURRENT.get().runs_user_code
}

/// A number of this thread that no other living one has, and never 0.
pub(crate) fn thread() -> usize {
    CURRENT.with(|own| std::ptr::from_ref(own) as usize)
}
