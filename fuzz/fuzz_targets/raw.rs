#![no_main]

mod common;

use backroom::Framing;
use backroom::internals::{End, frames};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Case<'a> {
    max_frame: u16,
    splits: Vec<u16>,
    input: &'a [u8],
}

// No boundary is kept, but every byte, and a chunk is no longer than a frame may be.
fuzz_target!(|case: Case| {
    let max_frame = usize::from(case.max_frame % 512) + 1;
    let pieces = common::split(case.input, &case.splits);
    let found = frames(&Framing::raw(), max_frame, &pieces).expect("raw works with any maximum");
    assert!(found.frames.iter().all(|chunk| (1..=max_frame).contains(&chunk.len())));
    assert_eq!((found.frames.concat().as_slice(), found.end), (case.input, End::Waits(0)));
});
