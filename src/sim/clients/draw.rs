//! What the clients ask for next: drawn, as everything is.

use crate::sim::clients::Clients;
use crate::sim::clients::operation::{Ask, Way};
use crate::sim::clients::sessions::Next;
use crate::sim::machine::model::{DEED_BYTES, Deed};
use crate::sim::plan::Plan;

impl Clients {
    pub(super) fn kind_of_read(&mut self, plan: &Plan) -> Ask {
        let election_us = plan.config.election_timeout.as_micros() as u64;
        let way = match self.rng.below(100) {
            0..35 => Way::Round,
            35..65 => Way::Lease,
            65..75 => Way::Log,
            75..87 => {
                let ages = [0, 100, election_us / 10, 2 * election_us];
                Way::Old(self.rng.pick(&ages), self.rng.pick(&[0, 0, 1, 5]))
            }
            87..95 => Way::Stale,
            _ => return Ask::Wait(self.ledger.book().last() + self.rng.below(3)),
        };
        Ask::Read(way, self.pick_register())
    }

    pub(super) fn kind_of_write(&mut self, plan: &Plan) -> Ask {
        if let Some(retries) = &mut self.retries
            && let Some(next) = retries.choose(&mut self.rng)
        {
            return Ask::Session(match next {
                Next::New(session) => {
                    let deed = self.draw_deed();
                    let len = self.draw_length(plan.command_bytes);
                    let (op, call) = (self.ops.len() as u64, self.history.event());
                    let floor = self.committed();
                    let retries = self.retries.as_mut().expect("it has chosen");
                    retries.begin(session, deed, len, (op, call, floor))
                }
                other => other,
            });
        }
        Ask::Do(self.draw_deed())
    }

    fn pick_register(&mut self) -> u8 {
        match self.load.registers {
            0 => 0,
            count => self.rng.below(u64::from(count)) as u8,
        }
    }

    /// Something to be done by the next request.
    pub(super) fn draw_deed(&mut self) -> Deed {
        if self.load.registers == 0 {
            return Deed::Increment;
        }
        let register = self.pick_register();
        let new = self.ops.len() as i64;
        if self.rng.chance(400_000) {
            return Deed::Write { register, new };
        }
        // What somebody has just seen, mostly; else what was there for a while, or never.
        let expected = match self.rng.below(8) {
            0 => None,
            1 => Some(new - 1 - self.rng.below(20) as i64),
            _ => self.known[usize::from(register)],
        };
        Deed::CompareAndSet {
            register,
            expected,
            new,
        }
    }

    pub(super) fn draw_length(&mut self, longest: u64) -> u64 {
        let shortest = match self.load.registers {
            0 => 8,
            _ => DEED_BYTES,
        };
        let longest = match self.rng.below(8) {
            0 => longest,
            _ => longest.min(64),
        };
        self.rng.between(shortest, longest.max(shortest))
    }
}
