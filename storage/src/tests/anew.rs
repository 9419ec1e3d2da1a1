//! A new directory in the place of one that is gone for good.

use super::rot::{Opened, open_with, settled};
use super::*;
use crate::medium::memory::{Fault, Loss};

fn open_anew(dir: &Memory) -> Opened {
    let options = Options {
        heal: true,
        replaces: true,
        ..small()
    };
    Log::open(dir.clone(), options, CLUSTER, GROUP, NODE)
}

#[test]
fn a_directory_in_the_place_of_a_lost_one_is_born_healing() {
    let mut steps = 0;
    loop {
        let memory = Memory::new(5);
        memory.fail_at(memory.steps() + steps, Fault::PowerOff);
        let made = open_anew(&memory);
        let is_made = made.is_ok();
        if let Ok((_, found)) = &made {
            assert!(found.is_new);
        }
        drop(made);
        for seed in 0..8 {
            // However far it came: the next start is of the same mind, and finds nothing that does not say so.
            let left = memory.power_cut(Loss::Random(seed));
            let (_, found) = open_anew(&left).expect("it is made anew, or there");
            let heal = found.data_loss.expect("it heals");
            assert_eq!((heal.upto, heal.vote_lost), (u64::MAX, true), "{steps}");
            assert!(heal.replaces && heal.damage.is_empty(), "{steps}: {heal:?}");
            assert_eq!((found.vote.term, found.last_index), (0, 0));
        }
        if is_made {
            break;
        }
        steps += 1;
    }
    assert!(steps >= 10, "only {steps} steps");
}

#[test]
fn what_is_there_is_not_taken_for_lost() {
    let (memory, log) = settled();
    let last = log.last();
    drop(log);
    let (_, found) = open_anew(&memory).expect("sound");
    assert_eq!((found.data_loss, found.last_index), (None, last));
    assert!(!found.is_new);
}

#[test]
fn who_does_not_say_that_the_old_directory_is_lost_gets_a_new_one_that_is_not_healing() {
    let mut unfinished = 0;
    for step in 0.. {
        let memory = Memory::new(5);
        memory.fail_at(memory.steps() + step, Fault::PowerOff);
        let is_made = open_anew(&memory).is_ok();
        let left = memory.power_cut(Loss::Nothing);
        let (_, found) = open_with(&left, true).expect("it is made anew, or there");
        assert_eq!(found.data_loss.is_some(), !found.is_new, "step {step}");
        unfinished += u64::from(found.is_new);
        if is_made {
            break;
        }
    }
    assert!(unfinished > 3, "only {unfinished}");
}

#[test]
fn it_heals_start_after_start_until_it_is_healed() {
    let memory = Memory::new(5);
    drop(open_anew(&memory).expect("made"));
    let (mut log, found) = open_with(&memory, true).expect("sound");
    assert!(found.data_loss.expect("it heals still").replaces);
    log.healed().expect("forgotten");
    drop(log);
    let (_, found) = open_anew(&memory.power_cut(Loss::All)).expect("sound");
    assert_eq!(found.data_loss, None);
}
