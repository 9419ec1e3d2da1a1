//! What an entry of the log is: `record::Header::kind`.

/// A command of the user, in `record::Header::kind`.
pub(crate) const KIND_COMMAND: u8 = 1;
/// The first entry of a term, empty.
pub(crate) const KIND_TERM_START: u8 = 2;
/// A query that goes through the log: answered where it was asked, when it is applied; nothing to anybody else.
pub(crate) const KIND_QUERY: u8 = 4;
