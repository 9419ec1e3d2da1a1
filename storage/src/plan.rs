//! Reading a log after a stop, and what is to be done about what was found. Nothing is changed here: `repair.rs` carries
//! the plan out, and `inspect.rs` shows it.
//!
//! The records are walked from the front until they end. The marks behind that place say whether what is missing there
//! had been reported durable (`recover.rs`). If it had, the log is refused; or, when the node may heal from its peers,
//! cut at the place, and the plan says how far the log may have gone: [`Lost`].
//!
//! ```text
//!            ┌ the records end here: index e
//!  ├ … e-1 ──┼ ✗ … bytes that may be anything … mark ┤├ later segments … mark ┤
//!              └── upto: the highest index that a mark, a header or an intact record shows ──┘
//! ```
//!
//! What a snapshot covers is not needed: damage in there costs nothing as long as the log can begin behind it.

use crate::error::StorageError;
use crate::evidence::{Behind, behind, marks};
use crate::file::{Dir, File};
use crate::heal::Wound;
use crate::identity::Identity;
use crate::mark::{MARK_LEN, MarkKind};
use crate::meta::META_NAME;
use crate::record::{self, RecordError};
use crate::recover::{Action, Decision, Found};
use crate::segment::RECORDS_AT;
use crate::source::Unsound;
use crate::survey::{Candidate, Survey, survey};

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
pub(crate) struct Plan<F> {
    /// The segments that stay, front to back. Empty: the log begins anew, behind `base - 1` of `prev_term`.
    pub(crate) keep: Vec<Candidate<F>>,
    pub(crate) base: u64,
    pub(crate) prev_term: u64,
    /// Where the records end in the last of them.
    pub(crate) at: Walk,
    pub(crate) term_runs: Vec<(u64, u64)>,
    /// What the mark there says was flushed; `None` when a mark has to be written.
    pub(crate) sound_mark: Option<u64>,
    /// Up to where other marks say that it was flushed.
    pub(crate) seen: u64,
    pub(crate) reseal: Vec<Reseal>,
    /// The files to remove, in this order.
    pub(crate) remove: Vec<String>,
    pub(crate) next_seq: u64,
    pub(crate) decisions: Vec<Decision>,
    /// Something that may have been promised is not there.
    pub(crate) lost: Option<Lost>,
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

/// What may have been promised and is not there.
#[derive(Clone, Debug)]
pub(crate) struct Lost {
    /// The highest index that may have been reported durable; `u64::MAX` when nothing tells.
    pub(crate) upto: u64,
    pub(crate) wound: Wound,
}

/// Where the walk over a segment's records ended, and why.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walk {
    /// The index that was expected next.
    pub(crate) next: u64,
    pub(crate) offset: u64,
    pub(crate) term: u64,
    pub(crate) time_us: u64,
    pub(crate) why: String,
    /// It ended at a place that the disk does not give back.
    pub(crate) unreadable: bool,
}

/// The log as it reads from one segment on.
struct Reading {
    at: Walk,
    term_runs: Vec<(u64, u64)>,
    /// The segment in which the records end.
    ending: usize,
    end: End,
    sound_mark: Option<u64>,
    reseal: Vec<Reseal>,
    decisions: Vec<Decision>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The right mark is there, and nothing behind it.
    Whole {
        sealed: bool,
    },
    Truncated,
    Torn,
    Damaged {
        flushed: u64,
    },
}

/// Reads the log of `dir` and says what is to be done.
pub(crate) fn look<D: Dir>(
    dir: &D,
    identity: &Identity,
    intent: Option<Intent>,
    rules: Rules,
) -> Result<Plan<D::File>, StorageError> {
    let mut survey = survey(dir, identity, rules.heal)?;
    if survey.candidates.is_empty() {
        return no_segment(dir, identity, rules, survey);
    }
    let incarnation = identity.incarnation;
    let covered = rules.snapshot.map_or(0, |(index, _)| index);
    let base = survey.candidates[0].header.base;
    // A copy of the intent that stands alone may be long over: then it does not count.
    let intent = intent.filter(|i| !(rules.heal && i.alone && i.after < base - 1));
    let limit = intent.map_or(u64::MAX, |intent| intent.after);
    if limit < base - 1 {
        let detail = format!("a truncation after {limit} was begun, the log starts at {base}");
        return Err(StorageError::corrupt(
            survey.candidates[0].file.path(),
            0,
            detail,
        ));
    }
    if rules.heal && base > covered + 1 {
        let wound = match survey.broken.first() {
            Some(broken) => broken.wound(),
            None => Wound {
                file: survey.candidates[0].name.clone(),
                offset: 40,
                index: Some(covered + 1),
                detail: format!("the log begins with record {base}; what comes before is missing"),
            },
        };
        let behind = behind(&survey, 0, RECORDS_AT, incarnation)?;
        return Ok(anew(survey, rules, Some(wound), behind));
    }

    let mut start = 0;
    let (reading, behind) = loop {
        let reading = read(dir, incarnation, &survey, start, intent, rules)?;
        let behind = match (reading.sound_mark, &reading.end) {
            (Some(_), _) if survey.broken.is_empty() => Behind::default(),
            _ => behind(&survey, reading.ending, reading.at.offset, incarnation)?,
        };
        if !matches!(reading.end, End::Damaged { .. }) || reading.at.next > covered {
            break (reading, behind);
        }
        // The snapshot has what is bad. If the log can begin behind the place, nothing is lost.
        let (ending, at) = (reading.ending, &reading.at);
        let later = &survey.candidates[ending + 1..];
        match later.iter().position(|c| c.header.base <= covered + 1) {
            Some(ahead) => start = ending + 1 + ahead,
            None => {
                let wound = survey.candidates[ending].wound(at);
                return Ok(anew(survey, rules, Some(wound), behind));
            }
        }
    };

    let Reading {
        at,
        mut term_runs,
        ending,
        end,
        sound_mark,
        mut reseal,
        decisions,
    } = reading;
    survey.decisions.extend(decisions);
    let known_limit = match intent {
        Some(Intent {
            after,
            alone: false,
        }) => after,
        _ => u64::MAX,
    };
    let upto = behind.upto().min(known_limit);
    let mut wound = None;
    if let End::Damaged { flushed } = end {
        assert!(
            flushed <= upto,
            "durable up to {flushed}, written up to {upto}"
        );
        wound = Some(survey.candidates[ending].wound(&at));
    }
    let last_seq = survey.candidates[ending].header.seq;
    for broken in std::mem::take(&mut survey.broken) {
        let in_use = broken.seq > last_seq && broken.held(&end, &at, incarnation)?;
        let offset = broken.offset;
        let found = Found::SegmentDamaged { offset, in_use };
        survey
            .decisions
            .push(Decision::healing(&*broken.name, found));
        if in_use && wound.is_none() {
            wound = Some(broken.wound());
        }
        survey.to_remove.push(broken.name);
    }
    let lost = wound.map(|wound| Lost { upto, wound });
    let found = match end {
        End::Truncated => Found::BehindTruncation,
        End::Damaged { .. } => Found::BehindDamage,
        _ if lost.is_some() => Found::BehindDamage,
        _ => Found::BehindTear,
    };
    let mut remove = std::mem::take(&mut survey.to_remove);
    for candidate in &survey.candidates[ending + 1..] {
        survey
            .decisions
            .push(Decision::new(&*candidate.name, found.clone()));
        remove.push(candidate.name.clone());
    }
    // Back to front, so that a hole never appears. What a snapshot covers goes front to back.
    remove.reverse();
    for candidate in &survey.candidates[..start] {
        survey.decisions.push(Decision::new(
            &*candidate.name,
            Found::Covered { index: covered },
        ));
        remove.push(candidate.name.clone());
    }
    survey.decisions.sort_by(|a, b| a.file.cmp(&b.file));
    for seal in &mut reseal {
        seal.segment -= start;
    }
    // What comes behind the records that are kept was read too, for the term.
    let term = behind.term.max(at.term);
    let header = survey.candidates[start].header;
    let seen = behind.marks.flushed.min(at.next - 1);
    let keep = survey
        .candidates
        .into_iter()
        .take(ending + 1)
        .skip(start)
        .collect();
    term_runs.shrink_to_fit();
    Ok(Plan {
        keep,
        base: header.base,
        prev_term: header.prev_term,
        at,
        term_runs,
        sound_mark,
        seen,
        reseal,
        remove,
        next_seq: survey.next_seq,
        decisions: survey.decisions,
        lost,
        term,
    })
}

/// Walks the records from segment `start` on, and decides where they end.
fn read<D: Dir>(
    dir: &D,
    incarnation: u64,
    survey: &Survey<D::File>,
    start: usize,
    intent: Option<Intent>,
    rules: Rules,
) -> Result<Reading, StorageError> {
    let candidates = &survey.candidates;
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
    let mut sound_mark = None;
    let mut i = start;
    let end = loop {
        let candidate = &candidates[i];
        at = walk(candidate, at, limit, &mut term_runs)?;
        let mut source = candidate.source()?;
        let mark = source
            .mark(at.offset, candidate.header.seq, incarnation)?
            .filter(|mark| mark.end_index == at.next - 1);
        if at.next > limit {
            // A copy is torn only by the write that follows the intent, which clears it, and by then
            // nothing was left behind it. If there is something, the truncation was over long ago, the
            // copy that said so went bad, and what stands there was promised since.
            let goes_on = source.record(at.offset)?.is_ok() || i + 1 < candidates.len();
            if goes_on && intent.is_some_and(|intent| intent.alone) {
                if rules.heal {
                    return read(dir, incarnation, survey, start, None, rules);
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
        let sealed = mark.is_some_and(|mark| mark.kind == MarkKind::Seal);
        if sealed && connects {
            let found = Found::Sealed { first, last };
            decisions.push(Decision::new(&*candidate.name, found));
            i += 1;
            continue;
        }
        if let (Some(mark), None) = (mark, next) {
            let leftovers = !source.is_zero_from(at.offset + MARK_LEN as u64)?;
            let found = Found::Tail {
                first,
                last,
                leftovers,
            };
            decisions.push(Decision::new(&*candidate.name, found));
            sound_mark = (!sealed).then_some(mark.flushed_index);
            break End::Whole { sealed };
        }
        if let (Some(_), Some(next)) = (mark, next)
            && next.header.base != at.next
        {
            at.why = format!("the next segment begins with {}", next.header.base);
        }
        let flushed = marks(survey, i, at.offset, incarnation)?.flushed.min(limit);
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
        decisions.push(decision);
        break End::Damaged { flushed };
    };
    Ok(Reading {
        at,
        term_runs,
        ending: i,
        end,
        sound_mark,
        reseal,
        decisions,
    })
}

/// A log in which no segment is in use.
fn no_segment<D: Dir>(
    dir: &D,
    identity: &Identity,
    rules: Rules,
    survey: Survey<D::File>,
) -> Result<Plan<D::File>, StorageError> {
    if !rules.heal && !rules.healing {
        let detail = "no segment is in use, although the directory was a log";
        return Err(StorageError::corrupt(&dir.path("log"), 0, detail));
    }
    // The first segment is made when the file `heal` is durable: a stop between the two is no loss that is new.
    let wound = match survey.broken.first() {
        Some(broken) => Some(broken.wound()),
        None if rules.healing => None,
        None => Some(Wound {
            file: "log".into(),
            offset: 0,
            index: None,
            detail: "no segment is in use, although the directory was a log".into(),
        }),
    };
    let mut behind = Behind::default();
    for broken in &survey.broken {
        broken.look(identity.incarnation, &mut behind)?;
    }
    Ok(anew(survey, rules, wound, behind))
}

/// Nothing of the log can be kept: it begins anew, behind the snapshot where there is one.
fn anew<F: File>(survey: Survey<F>, rules: Rules, wound: Option<Wound>, behind: Behind) -> Plan<F> {
    let (covered, prev_term) = rules.snapshot.unwrap_or((0, 0));
    let Survey {
        candidates,
        broken,
        to_remove,
        mut decisions,
        next_seq,
    } = survey;
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
    Plan {
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
        sound_mark: None,
        seen: 0,
        reseal: Vec::new(),
        remove,
        next_seq,
        decisions,
        lost: wound
            .filter(|_| upto > covered)
            .map(|wound| Lost { upto, wound }),
        term: behind.term.max(prev_term),
    }
}

impl<F: File> Candidate<F> {
    fn wound(&self, at: &Walk) -> Wound {
        Wound {
            file: self.name.clone(),
            offset: at.offset,
            index: Some(at.next),
            detail: at.why.clone(),
        }
    }
}

/// Walks the records of one segment: each verified, each the successor of the one before.
fn walk<F: File>(
    candidate: &Candidate<F>,
    from: Walk,
    limit: u64,
    term_runs: &mut Vec<(u64, u64)>,
) -> Result<Walk, StorageError> {
    let view = &candidate.view;
    let mut source = candidate.source()?;
    let mut at = Walk {
        offset: RECORDS_AT,
        why: String::new(),
        unreadable: false,
        ..from
    };
    while at.next <= limit {
        let header = match source.record(at.offset)? {
            Ok((record, len))
                if record.header.index == at.next && record.header.term >= at.term =>
            {
                view.index.note(at.next - view.base, at.offset);
                at.offset += len as u64;
                record.header
            }
            Ok((record, _)) => {
                let record::Header { index, term, .. } = record.header;
                at.why = format!("record {index} of term {term} is in its place");
                break;
            }
            Err(error) => {
                if let Unsound::Bytes(RecordError::Version(found)) = error
                    && record::u64_at(source.bytes(at.offset, record::HEADER_LEN)?, 8) == at.next
                {
                    let (found, supported) = (found.into(), record::VERSION.into());
                    return Err(StorageError::Version {
                        path: candidate.file.path().into(),
                        found,
                        supported,
                    });
                }
                at.unreadable = matches!(error, Unsound::Unreadable(_));
                at.why = error.to_string();
                break;
            }
        };
        if term_runs
            .last()
            .is_none_or(|&(term, _)| term != header.term)
        {
            term_runs.push((header.term, header.index));
        }
        (at.next, at.term, at.time_us) = (header.index + 1, header.term, header.time_us);
    }
    Ok(at)
}
