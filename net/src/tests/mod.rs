//! Stories over real loopback sockets: several networks in one thread, and raw sockets in the part
//! of those who misbehave. Time that has to pass is added to the clock that the polls are given,
//! never waited for.

mod alloc;
mod flow;
mod greet;
mod harness;
mod limits;
mod liveness;
mod names;
mod strangers;
