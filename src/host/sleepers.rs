//! Who sleeps, and who is woken for whom.

use net::Net;
use ringbuf::{Sleeper, Waker};

use crate::flow::network::body::Body;
use crate::host::layout::Layout;

/// One a thread. Stages that share the network's thread sleep with it, in the poll of the sockets.
pub(crate) struct Sleepers {
    pub(crate) network: Sleeper,
    /// Where these have threads of their own.
    pub(crate) core: Option<CoreSleepers>,
    pub(crate) user: Option<UserSleepers>,
    pub(crate) aside: AsideSleepers,
}

pub(crate) struct AsideSleepers {
    pub(crate) limits: Sleeper,
    pub(crate) background: Sleeper,
    pub(crate) transfer: Sleeper,
}

pub(crate) struct CoreSleepers {
    pub(crate) consensus: Sleeper,
    pub(crate) append: Sleeper,
}

/// Of the stages that run user code.
pub(crate) struct UserSleepers {
    pub(crate) apply: Sleeper,
    pub(crate) reply: Sleeper,
}

/// Who is woken for whom.
pub(crate) struct Wakers {
    pub(crate) consensus: Waker,
    pub(crate) append: Waker,
    pub(crate) network: Waker,
    pub(crate) apply: Waker,
    pub(crate) reply: Waker,
    pub(crate) limits: Waker,
    pub(crate) background: Waker,
    pub(crate) transfer: Waker,
}

impl Sleepers {
    pub(super) fn new(net: &Net<Body>, layout: Layout) -> Self {
        let net_waker = net.waker();
        let network = Sleeper::new(move || net_waker.wake());
        let core = (layout == Layout::PerStage).then(|| CoreSleepers {
            consensus: Sleeper::parking(),
            append: Sleeper::parking(),
        });
        let user = (layout != Layout::Shared).then(|| UserSleepers {
            apply: Sleeper::parking(),
            reply: Sleeper::parking(),
        });
        let aside = AsideSleepers {
            limits: Sleeper::parking(),
            background: Sleeper::parking(),
            transfer: Sleeper::parking(),
        };
        Self {
            network,
            core,
            user,
            aside,
        }
    }

    pub(super) fn wakers(&self) -> Wakers {
        let network = self.network.waker();
        let or_network =
            |own: Option<&Sleeper>| own.map_or_else(|| network.clone(), Sleeper::waker);
        let (core, user) = (self.core.as_ref(), self.user.as_ref());
        Wakers {
            consensus: or_network(core.map(|core| &core.consensus)),
            append: or_network(core.map(|core| &core.append)),
            apply: or_network(user.map(|user| &user.apply)),
            reply: or_network(user.map(|user| &user.reply)),
            network,
            limits: self.aside.limits.waker(),
            background: self.aside.background.waker(),
            transfer: self.aside.transfer.waker(),
        }
    }
}
