//! Rings that carry batches of records, against a queue.
//!
//! What holds: each batch arrives once, in order, as it was; a ring is full exactly when its slots are
//! in use; what a slot held before does not show through in what it holds next.

use std::collections::VecDeque;

use ringbuf::{ManySender, Receiver, Sender, Take, Waker, ring, ring_many};
use storage::record::{self, Header, Records};

use super::input::Input;

type Batch = Vec<u8>;

enum Writer {
    One(Sender<Batch>),
    Many(ManySender<Batch>),
}

impl Writer {
    fn send(&mut self, fill: impl FnOnce(&mut Batch)) -> bool {
        match self {
            Self::One(sender) => sender.try_send(fill).is_ok(),
            Self::Many(sender) => sender.try_send(fill).is_ok(),
        }
    }
}

pub(super) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let slot = || Vec::with_capacity(256);
    let (mut writer, mut reader, capacity) = match input.flag() {
        true => {
            let (sender, reader) = ring_many("fuzz", 64, slot, Waker::none());
            (Writer::Many(sender), reader, 64)
        }
        false => {
            let capacity = 1 << input.below(5);
            let (sender, reader) = ring("fuzz", capacity, slot, Waker::none());
            (Writer::One(sender), reader, capacity)
        }
    };
    let (mut model, mut next) = (VecDeque::<Batch>::new(), 1);
    for _ in 0..512 {
        if input.is_empty() {
            break;
        }
        match input.below(4) {
            0 => {
                let limit = input.below(20);
                take(&mut reader, &mut model, limit, usize::MAX);
            }
            1 => {
                let (limit, stop_at) = (input.below(20), input.below(6));
                take(&mut reader, &mut model, limit, stop_at);
            }
            _ => {
                let count = 1 + input.below(6);
                let lens: Vec<usize> = (0..count).map(|_| input.below(70)).collect();
                let batch = encode(next, &lens);
                let sent = writer.send(|slot| {
                    slot.clear();
                    slot.extend_from_slice(&batch);
                });
                assert_eq!(sent, model.len() < capacity, "{} in it", model.len());
                if sent {
                    next += lens.len() as u64;
                    model.push_back(batch);
                }
            }
        }
        if let Writer::One(sender) = &mut writer {
            assert_eq!(sender.room(), capacity - model.len());
        }
        assert_eq!(reader.is_empty(), model.is_empty());
        assert_eq!(reader.gauge().depth(), model.len());
    }
}

fn encode(first: u64, lens: &[usize]) -> Batch {
    let mut batch = Vec::new();
    for (index, &len) in (first..).zip(lens) {
        let header = Header {
            index,
            term: 1,
            time_us: index,
            origin: 1,
            token: index,
            kind: 1,
        };
        record::encode_into(&mut batch, &header, &vec![index as u8; len]);
    }
    batch
}

fn take(reader: &mut Receiver<Batch>, model: &mut VecDeque<Batch>, limit: usize, stop_at: usize) {
    let mut seen = 0;
    let taken = reader.drain_while(limit, |batch| {
        if seen == stop_at {
            return Take::Stop;
        }
        seen += 1;
        assert_eq!(Some(batch), model.pop_front().as_ref());
        assert!(Records::new(batch).all(|record| record.is_ok()));
        Take::Taken
    });
    assert_eq!(taken, seen);
    assert!(
        seen == limit.min(stop_at) || model.is_empty(),
        "{seen} of {limit}"
    );
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for knobs in [&[0, 2][..], &[0, 0], &[0, 4], &[1]] {
        let mut seed = knobs.to_vec();
        for i in 0..40 {
            seed.extend_from_slice(&[2, 1, i, 69 - i]);
            if i % 3 == 0 {
                seed.extend_from_slice(&[0, i % 5, 1, 9, i % 4]);
            }
        }
        seeds.push(seed);
    }
    seeds
}
