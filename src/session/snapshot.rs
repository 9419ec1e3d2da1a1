//! The table in a snapshot: in front of the wrapped machine's own, sorted by session.
//!
//! ```text
//! "RGSESS01" │ limits: 24 bytes │ opened: u64 │ evicted: u64 │ sessions: u64
//!   session:  id: u64 │ used at: u64 │ used at (µs): u64 │ low: u64 │ answers: u32
//!     answer: sequence - low: u32 │ kind: u8 │ kind ≤ 22: so many bytes
//!                                              23: long, index: u64   24: gone
//! long answers: u64
//!     answer: index: u64 │ session: u64 │ sequence: u64 │ length: u32 │ the bytes
//! ```
//!
//! It follows from the table's state alone: two nodes that have applied the same entries write the same bytes. What
//! is read is checked in full before it takes the place of what there was.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use super::code::{LIMITS_BYTES, decode_limits, encode_limits};
use super::table::{Kept, Long, SHORT_BYTES, Table};
use super::{MAX_WINDOW, Watch};

const MAGIC: &[u8; 8] = b"RGSESS01";
const LONG: u8 = SHORT_BYTES as u8 + 1;
const GONE: u8 = LONG + 1;
/// Beyond what an entry can bring forth: a length over it is damage.
const MAX_ANSWER: u32 = 1 << 30;

/// The table as it was: encoded at once, the long answers shared.
#[derive(Debug)]
pub(super) struct Captured {
    table: Vec<u8>,
    long: Vec<(u64, u64, u64, Arc<[u8]>)>,
}

impl Captured {
    pub(super) fn of(table: &Table) -> Self {
        let sessions = table.sorted();
        let mut out = Vec::with_capacity(96 + sessions.len() * 96);
        out.extend_from_slice(MAGIC);
        encode_limits(&table.limits, &mut out);
        for number in [table.opened, table.evicted, sessions.len() as u64] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for of in sessions {
            for number in [of.id, of.used_at, of.used_us, of.low] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            let count_at = out.len();
            out.extend_from_slice(&[0; 4]);
            let mut count = 0u32;
            for (sequence, kept) in of.all_kept() {
                count += 1;
                out.extend_from_slice(&((sequence - of.low) as u32).to_le_bytes());
                match kept {
                    Kept::Free => unreachable!("what is free is not kept"),
                    Kept::Short { len, bytes } => {
                        out.push(len);
                        out.extend_from_slice(&bytes[..len as usize]);
                    }
                    Kept::Long(index) => {
                        out.push(LONG);
                        out.extend_from_slice(&index.to_le_bytes());
                    }
                    Kept::Gone => out.push(GONE),
                }
            }
            out[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
        }
        let long = table
            .long()
            .map(|(index, id, long)| (index, id, long.sequence, long.bytes.clone()))
            .collect();
        Self { table: out, long }
    }

    pub(super) fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(&self.table)?;
        to.write_all(&(self.long.len() as u64).to_le_bytes())?;
        for (index, session, sequence, bytes) in &self.long {
            for number in [index, session, sequence] {
                to.write_all(&number.to_le_bytes())?;
            }
            to.write_all(&(bytes.len() as u32).to_le_bytes())?;
            to.write_all(bytes)?;
        }
        Ok(())
    }
}

/// Reads a table; what follows it is left to be read.
pub(super) fn read(from: &mut dyn Read, watch: Watch) -> io::Result<Table> {
    let from = &mut Counted { from, at: 0 };
    if from.bytes()? != *MAGIC {
        return Err(from.bad("it does not begin as a table of sessions does; was the snapshot made by a machine without `Sessions`?"));
    }
    let limits: [u8; LIMITS_BYTES] = from.bytes()?;
    let Some((limits, [])) = decode_limits(&limits) else {
        return Err(from.bad("limits that cannot be"));
    };
    let mut table = Table::new(limits, watch);
    (table.opened, table.evicted) = (from.u64()?, from.u64()?);
    let count = from.u64()?;
    if count > u64::from(limits.sessions) {
        return Err(from.bad(&format!(
            "{count} sessions, and there may be {}",
            limits.sessions
        )));
    }
    // The counts that follow are not trusted with memory: it grows as there are bytes for it.
    let mut found: Vec<Found> = Vec::new();
    for _ in 0..count {
        let session = read_session(from)?;
        if found.last().is_some_and(|before| before.id >= session.id) {
            return Err(from.bad(&format!("session {} is not in its order", session.id)));
        }
        found.push(session);
    }
    found.sort_by_key(|of| of.used_at);
    let mut wanted = BTreeMap::new();
    let mut places = BTreeMap::new();
    let (mut used_at, mut used_us) = (0, 0);
    for of in found {
        if of.used_at <= used_at || of.used_us < used_us {
            return Err(from.bad(&format!(
                "session {} was last used at {} ({} µs), behind one at {used_at} ({used_us} µs)",
                of.id, of.used_at, of.used_us
            )));
        }
        (used_at, used_us) = (of.used_at, of.used_us);
        let place = table.add(of.id, of.used_at, of.used_us, of.low);
        places.insert(of.id, place);
        for (sequence, kept) in of.kept {
            table.session_mut(place).put(sequence, kept);
            if let Kept::Long(index) = kept
                && wanted.insert(index, (of.id, sequence)).is_some()
            {
                return Err(from.bad(&format!("two answers are of entry {index}")));
            }
        }
    }
    let count = from.u64()?;
    if count != wanted.len() as u64 {
        return Err(from.bad(&format!(
            "{count} long answers, and sessions name {}",
            wanted.len()
        )));
    }
    for (index, (session, sequence)) in wanted {
        let there = (from.u64()?, from.u64()?, from.u64()?);
        if there != (index, session, sequence) {
            return Err(from.bad(&format!(
                "the answer of (entry, session, sequence) {there:?} stands where that of {:?} is due",
                (index, session, sequence)
            )));
        }
        let len = from.u32()?;
        if len as usize <= SHORT_BYTES || len > MAX_ANSWER {
            return Err(from.bad(&format!("a long answer of {len} bytes")));
        }
        let mut bytes = Vec::new();
        from.by_ref().take(u64::from(len)).read_to_end(&mut bytes)?;
        if bytes.len() != len as usize {
            return Err(from.ends());
        }
        let long = Long {
            place: places[&session],
            sequence,
            bytes: bytes.into(),
        };
        table.add_long(index, long);
    }
    table.tell();
    Ok(table)
}

/// A session as it is read.
struct Found {
    id: u64,
    used_at: u64,
    used_us: u64,
    low: u64,
    kept: Vec<(u64, Kept)>,
}

fn read_session(from: &mut Counted<'_>) -> io::Result<Found> {
    let (id, used_at, used_us, low) = (from.u64()?, from.u64()?, from.u64()?, from.u64()?);
    if used_at < id {
        return Err(from.bad(&format!(
            "session {id} was last used at {used_at}, before it was opened"
        )));
    }
    let mut kept: Vec<(u64, Kept)> = Vec::new();
    for _ in 0..from.u32()? {
        let step = from.u32()?;
        let sequence = low.checked_add(u64::from(step));
        let Some(sequence) = sequence.filter(|_| step < MAX_WINDOW) else {
            return Err(from.bad(&format!(
                "session {id}: an answer {step} above its lowest, and no window is longer than {MAX_WINDOW}"
            )));
        };
        if kept.last().is_some_and(|&(before, _)| before >= sequence) {
            return Err(from.bad(&format!(
                "session {id}: the answer to {sequence} is not in its order"
            )));
        }
        let answer = match from.u8()? {
            LONG => Kept::Long(from.u64()?),
            GONE => Kept::Gone,
            len if len as usize <= SHORT_BYTES => {
                let mut bytes = [0; SHORT_BYTES];
                from.fill(&mut bytes[..len as usize])?;
                Kept::Short { len, bytes }
            }
            kind => return Err(from.bad(&format!("session {id}: an answer of kind {kind}"))),
        };
        if let Kept::Long(index) = answer
            && !(id < index && index <= used_at)
        {
            return Err(from.bad(&format!(
                "session {id}, used from {id} to {used_at}: an answer of entry {index}"
            )));
        }
        kept.push((sequence, answer));
    }
    Ok(Found {
        id,
        used_at,
        used_us,
        low,
        kept,
    })
}

/// A reader that can say where it is.
struct Counted<'a> {
    from: &'a mut dyn Read,
    at: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Counted<'_> {
    fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
        match self.read_exact(into) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.ends()),
            other => other,
        }
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u8(&mut self) -> io::Result<u8> {
        self.bytes().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bad(&self, what: &str) -> io::Error {
        let text = format!(
            "the table of sessions in the snapshot, before byte {}: {what}",
            self.at
        );
        io::Error::new(io::ErrorKind::InvalidData, text)
    }

    fn ends(&self) -> io::Error {
        let text = format!(
            "the table of sessions in the snapshot ends at byte {}, in the middle",
            self.at
        );
        io::Error::new(io::ErrorKind::UnexpectedEof, text)
    }
}
