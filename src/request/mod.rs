//! A request's life: taken into the table, carried by its token, answered once, heard by its caller or an outbox.

pub(crate) mod large;
pub(crate) mod latency;
pub(crate) mod outbox;
pub(crate) mod own_thread;
pub(crate) mod pending;
pub(crate) mod sinks;
pub(crate) mod table;
pub(crate) mod time_limits;
pub(crate) mod token;

#[cfg(test)]
mod tests;
