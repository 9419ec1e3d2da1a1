//! Reading a log after a stop, and what is to be done about what was found. Nothing is changed here: `repair.rs` carries
//! the plan out, and `inspect` shows it.
//!
//! The records are walked from the front until they end. The markers behind that place say whether what is missing there
//! had been reported durable (`decision.rs`). If it had, the log is refused; or, when the node may heal from its peers,
//! cut at the place, and the plan says how far the log may have gone: [`LostRecords`].
//!
//! ```text
//!            ┌ the records end here: index e
//!  ├ … e-1 ──┼ ✗ … bytes that may be anything … marker ┤├ later segments … marker ┤
//!              └── upto: the highest index that a marker, a header or an intact record shows ──┘
//! ```
//!
//! What a snapshot covers is not needed: damage in there costs nothing as long as the log can begin behind it.

use crate::damage::{Damage, LostRecords};
use crate::decision::{Action, Decision, Found};
use crate::error::StorageError;
use crate::files::identity::Identity;
use crate::files::meta::META_NAME;
use crate::log::segment::RECORDS_AT;
use crate::log::tail_marker::{MARKER_LEN, MarkerKind};
use crate::medium::{Dir, File};
use crate::recovery::segments::{Candidate, SegmentScan, scan_segments};
use crate::recovery::tail_scan::{TailScan, furthest_markers, scan_tail};
use crate::recovery::walk::{End, Walk, walk};

/// A truncation that was begun, as the meta file tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intent {
    /// The last index to keep.
    pub(crate) after: u64,
    /// The file's other copy is bad.
    pub(crate) alone: bool,
}

/// What may be done about damage.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    /// What was durable and is damaged may be cut off: the peers have it.
    pub(crate) heal: bool,
    /// It was cut off before, and is not yet fetched.
    pub(crate) healing: bool,
    /// Index and term up to which the newest sound snapshot holds everything.
    pub(crate) snapshot: Option<(u64, u64)>,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) struct RecoveryPlan<F> {
    /// The segments that stay, front to back. Empty: the log begins anew, behind `base - 1` of `prev_term`.
    pub(crate) keep: Vec<Candidate<F>>,
    pub(crate) base: u64,
    pub(crate) prev_term: u64,
    /// Where the records end in the last of them.
    pub(crate) at: Walk,
    pub(crate) term_runs: Vec<(u64, u64)>,
    /// What the marker there says was flushed; `None` when a marker has to be written.
    pub(crate) sound_marker: Option<u64>,
    /// Up to where other markers say that it was flushed.
    pub(crate) seen: u64,
    pub(crate) reseal: Vec<Reseal>,
    /// The files to remove, in this order.
    pub(crate) remove: Vec<String>,
    pub(crate) next_seq: u64,
    pub(crate) decisions: Vec<Decision>,
    /// Something that may have been promised is not there.
    pub(crate) lost: Option<LostRecords>,
    /// The highest term that was seen in a record, also in those that are cut off.
    pub(crate) term: u64,
}

/// A seal to be written again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reseal {
    /// Which of the segments that stay.
    pub(crate) segment: usize,
    pub(crate) offset: u64,
    pub(crate) end_index: u64,
}

/// The log as it reads from one segment on.
struct Reading {
    at: Walk,
    term_runs: Vec<(u64, u64)>,
    /// The segment in which the records end.
    ending: usize,
    end: End,
    sound_marker: Option<u64>,
    reseal: Vec<Reseal>,
    decisions: Vec<Decision>,
}

/// Reads the log of `dir` and says what is to be done.
pub(crate) fn look<D: Dir>(
    dir: &D,
    identity: &Identity,
    intent: Option<Intent>,
    rules: Rules,
) -> Result<RecoveryPlan<D::File>, StorageError> {
    let scan = scan_segments(dir, identity, rules.heal)?;
    if scan.candidates.is_empty() {
        return no_segment(dir, identity, rules, scan);
    }
    let incarnation = identity.incarnation;
    let covered = rules.snapshot.map_or(0, |(index, _)| index);
    let base = scan.candidates[0].header.base;
    // A copy of the intent that stands alone may be long over: then it does not count.
    let intent = intent.filter(|i| !(rules.heal && i.alone && i.after < base - 1));
    let limit = intent.map_or(u64::MAX, |intent| intent.after);
    if limit < base - 1 {
        let detail = format!("a truncation after {limit} was begun, the log starts at {base}");
        return Err(StorageError::corrupt(
            scan.candidates[0].file.path(),
            0,
            detail,
        ));
    }
    if rules.heal && base > covered + 1 {
        let damage = missing_front(&scan, base, covered);
        let behind = scan_tail(&scan, 0, RECORDS_AT, incarnation)?;
        return Ok(anew(scan, rules, Some(damage), behind));
    }

    let mut start = 0;
    let (reading, behind) = loop {
        let reading = read(dir, incarnation, &scan, start, intent, rules)?;
        let behind = match (reading.sound_marker, &reading.end) {
            (Some(_), _) if scan.broken.is_empty() => TailScan::default(),
            _ => scan_tail(&scan, reading.ending, reading.at.offset, incarnation)?,
        };
        if !matches!(reading.end, End::Damaged { .. }) || reading.at.next > covered {
            break (reading, behind);
        }
        // The snapshot has what is bad. If the log can begin behind the place, nothing is lost.
        let (ending, at) = (reading.ending, &reading.at);
        let later = &scan.candidates[ending + 1..];
        match later.iter().position(|c| c.header.base <= covered + 1) {
            Some(ahead) => start = ending + 1 + ahead,
            None => {
                let damage = scan.candidates[ending].damage(at);
                return Ok(anew(scan, rules, Some(damage), behind));
            }
        }
    };

    plan(scan, start, reading, &behind, intent, rules, incarnation)
}

/// The log does not begin where it should.
fn missing_front<F: File>(scan: &SegmentScan<F>, base: u64, covered: u64) -> Damage {
    match scan.broken.first() {
        Some(broken) => broken.damage(),
        None => Damage {
            file: scan.candidates[0].name.clone(),
            offset: 40,
            index: Some(covered + 1),
            detail: format!("the log begins with record {base}; what comes before is missing"),
        },
    }
}

/// What is to be done about a log that reads like this from segment `start` on.
fn plan<F: File>(
    mut scan: SegmentScan<F>,
    start: usize,
    reading: Reading,
    behind: &TailScan,
    intent: Option<Intent>,
    rules: Rules,
    incarnation: u64,
) -> Result<RecoveryPlan<F>, StorageError> {
    let Reading {
        at,
        mut term_runs,
        ending,
        end,
        sound_marker,
        mut reseal,
        decisions,
    } = reading;
    scan.decisions.extend(decisions);
    let covered = rules.snapshot.map_or(0, |(index, _)| index);
    let known_limit = match intent {
        Some(Intent {
            after,
            alone: false,
        }) => after,
        _ => u64::MAX,
    };
    let upto = behind.upto().min(known_limit);
    let mut damage = None;
    if let End::Damaged { flushed } = end {
        assert!(
            flushed <= upto,
            "durable up to {flushed}, written up to {upto}"
        );
        damage = Some(scan.candidates[ending].damage(&at));
    }
    let last_seq = scan.candidates[ending].header.seq;
    for broken in std::mem::take(&mut scan.broken) {
        let in_use = broken.seq > last_seq && broken.held(&end, &at, incarnation)?;
        let offset = broken.offset;
        let found = Found::SegmentDamaged { offset, in_use };
        scan.decisions.push(Decision::healing(&*broken.name, found));
        if in_use && damage.is_none() {
            damage = Some(broken.damage());
        }
        scan.to_remove.push(broken.name);
    }
    let lost = damage.map(|damage| LostRecords { upto, damage });
    let found = match end {
        End::Truncated => Found::BehindTruncation,
        End::Damaged { .. } => Found::BehindDamage,
        _ if lost.is_some() => Found::BehindDamage,
        _ => Found::BehindTear,
    };
    let mut remove = std::mem::take(&mut scan.to_remove);
    for candidate in &scan.candidates[ending + 1..] {
        scan.decisions
            .push(Decision::new(&*candidate.name, found.clone()));
        remove.push(candidate.name.clone());
    }
    // Back to front, so that a hole never appears. What a snapshot covers goes front to back.
    remove.reverse();
    for candidate in &scan.candidates[..start] {
        scan.decisions.push(Decision::new(
            &*candidate.name,
            Found::Covered { index: covered },
        ));
        remove.push(candidate.name.clone());
    }
    scan.decisions.sort_by(|a, b| a.file.cmp(&b.file));
    for seal in &mut reseal {
        seal.segment -= start;
    }
    // What comes behind the records that are kept was read too, for the term.
    let term = behind.term.max(at.term);
    let header = scan.candidates[start].header;
    let seen = behind.markers.flushed.min(at.next - 1);
    let keep = scan
        .candidates
        .into_iter()
        .take(ending + 1)
        .skip(start)
        .collect();
    term_runs.shrink_to_fit();
    Ok(RecoveryPlan {
        keep,
        base: header.base,
        prev_term: header.prev_term,
        at,
        term_runs,
        sound_marker,
        seen,
        reseal,
        remove,
        next_seq: scan.next_seq,
        decisions: scan.decisions,
        lost,
        term,
    })
}

/// Walks the records from segment `start` on, and decides where they end.
fn read<D: Dir>(
    dir: &D,
    incarnation: u64,
    scan: &SegmentScan<D::File>,
    start: usize,
    intent: Option<Intent>,
    rules: Rules,
) -> Result<Reading, StorageError> {
    let candidates = &scan.candidates;
    let limit = intent.map_or(u64::MAX, |intent| intent.after);
    let header = candidates[start].header;
    let mut decisions = Vec::new();
    let (mut term_runs, mut reseal) = (Vec::new(), Vec::new());
    let mut at = Walk {
        next: header.base,
        offset: RECORDS_AT,
        term: header.prev_term,
        ..Walk::default()
    };
    let mut sound_marker = None;
    let mut i = start;
    let end = loop {
        let candidate = &candidates[i];
        at = walk(candidate, at, limit, &mut term_runs)?;
        let mut source = candidate.source()?;
        let marker = source
            .marker(at.offset, candidate.header.seq, incarnation)?
            .filter(|marker| marker.end_index == at.next - 1);
        if at.next > limit {
            // A copy is torn only by the write that follows the intent, which clears it, and by then
            // nothing was left behind it. If there is something, the truncation was over long ago, the
            // copy that said so went bad, and what stands there was promised since.
            let goes_on = source.record(at.offset)?.is_ok() || i + 1 < candidates.len();
            if goes_on && intent.is_some_and(|intent| intent.alone) {
                if rules.heal {
                    return read(dir, incarnation, scan, start, None, rules);
                }
                let detail = format!(
                    "the copy in force is damaged: the other one wants the log to end at {limit}, but \
                     it goes on"
                );
                return Err(StorageError::corrupt(&dir.path(META_NAME), 0, detail));
            }
            let found = Found::TruncationBegun { after: limit };
            decisions.push(Decision::new(&*candidate.name, found));
            break End::Truncated;
        }
        let (first, last) = (candidate.header.base, at.next - 1);
        let next = candidates.get(i + 1);
        let connects = next
            .is_some_and(|next| (next.header.base, next.header.prev_term) == (at.next, at.term));
        let sealed = marker.is_some_and(|marker| marker.kind == MarkerKind::Seal);
        if sealed && connects {
            let found = Found::Sealed { first, last };
            decisions.push(Decision::new(&*candidate.name, found));
            i += 1;
            continue;
        }
        if let (Some(marker), None) = (marker, next) {
            let leftovers = !source.is_zero_from(at.offset + MARKER_LEN as u64)?;
            let found = Found::Tail {
                first,
                last,
                leftovers,
            };
            decisions.push(Decision::new(&*candidate.name, found));
            sound_marker = (!sealed).then_some(marker.flushed_index);
            break End::Whole { sealed };
        }
        if let (Some(_), Some(next)) = (marker, next)
            && next.header.base != at.next
        {
            at.why = format!("the next segment begins with {}", next.header.base);
        }
        let flushed = furthest_markers(scan, i, at.offset, incarnation)?
            .flushed
            .min(limit);
        let (index, offset) = (at.next, at.offset);
        // A power failure leaves a sector as it was or as it shall be, and readable. So one that is not is no torn end:
        // nothing says any more what was promised there.
        if index > flushed && !at.unreadable {
            decisions.push(Decision::new(
                &*candidate.name,
                Found::Torn { index, offset },
            ));
            break End::Torn;
        }
        if connects {
            // Only the seal is bad: the next segment says itself that it goes on here.
            let found = Found::SealDamaged { offset };
            decisions.push(Decision::new(&*candidate.name, found));
            reseal.push(Reseal {
                segment: i,
                offset,
                end_index: last,
            });
            i += 1;
            continue;
        }
        decisions.push(damaged(candidate, &at, flushed, rules)?);
        break End::Damaged { flushed };
    };
    Ok(Reading {
        at,
        term_runs,
        ending: i,
        end,
        sound_marker,
        reseal,
        decisions,
    })
}

/// A record that had been durable, or may have been, is not there: refused, unless the peers have it.
fn damaged<F: File>(
    candidate: &Candidate<F>,
    at: &Walk,
    flushed: u64,
    rules: Rules,
) -> Result<Decision, StorageError> {
    let (index, offset) = (at.next, at.offset);
    let found = Found::Damaged {
        index,
        offset,
        flushed,
    };
    let decision = match rules.heal {
        true => Decision::healing(&*candidate.name, found),
        false => Decision::new(&*candidate.name, found),
    };
    if decision.action == Action::Refuse {
        let durable = match index > flushed {
            true => "whether it had been durable is not known, but".to_owned(),
            false => format!("the log had been durable up to {flushed}, but"),
        };
        let detail = format!("{durable} record {index} is not there: {}", at.why);
        let path = candidate.file.path().into();
        return Err(StorageError::Corrupt {
            path,
            offset,
            index: Some(index),
            detail,
        });
    }
    Ok(decision)
}

/// A log in which no segment is in use.
fn no_segment<D: Dir>(
    dir: &D,
    identity: &Identity,
    rules: Rules,
    scan: SegmentScan<D::File>,
) -> Result<RecoveryPlan<D::File>, StorageError> {
    if !rules.heal && !rules.healing {
        let detail = "no segment is in use, although the directory was a log";
        return Err(StorageError::corrupt(&dir.path("log"), 0, detail));
    }
    // The first segment is made when the file `heal` is durable: a stop between the two is no loss that is new.
    let damage = match scan.broken.first() {
        Some(broken) => Some(broken.damage()),
        None if rules.healing => None,
        None => Some(Damage {
            file: "log".into(),
            offset: 0,
            index: None,
            detail: "no segment is in use, although the directory was a log".into(),
        }),
    };
    let mut behind = TailScan::default();
    for broken in &scan.broken {
        broken.look(identity.incarnation, &mut behind)?;
    }
    Ok(anew(scan, rules, damage, behind))
}

/// Nothing of the log can be kept: it begins anew, behind the snapshot where there is one.
fn anew<F: File>(
    scan: SegmentScan<F>,
    rules: Rules,
    damage: Option<Damage>,
    behind: TailScan,
) -> RecoveryPlan<F> {
    let (covered, prev_term) = rules.snapshot.unwrap_or((0, 0));
    let SegmentScan {
        candidates,
        broken,
        to_remove,
        mut decisions,
        next_seq,
    } = scan;
    let mut remove = to_remove;
    let segments = candidates.into_iter().map(|c| c.name);
    let mut names: Vec<_> = segments.chain(broken.into_iter().map(|b| b.name)).collect();
    names.sort_unstable();
    for name in names {
        decisions.push(Decision::healing(&*name, Found::GivenUp));
        remove.push(name);
    }
    remove.reverse();
    decisions.sort_by(|a, b| a.file.cmp(&b.file));
    let upto = behind.upto();
    RecoveryPlan {
        keep: Vec::new(),
        base: covered + 1,
        prev_term,
        at: Walk {
            next: covered + 1,
            offset: RECORDS_AT,
            term: prev_term,
            ..Walk::default()
        },
        term_runs: Vec::new(),
        sound_marker: None,
        seen: 0,
        reseal: Vec::new(),
        remove,
        next_seq,
        decisions,
        lost: damage
            .filter(|_| upto > covered)
            .map(|damage| LostRecords { upto, damage }),
        term: behind.term.max(prev_term),
    }
}

impl<F: File> Candidate<F> {
    fn damage(&self, at: &Walk) -> Damage {
        Damage {
            file: self.name.clone(),
            offset: at.offset,
            index: Some(at.next),
            detail: at.why.clone(),
        }
    }
}
