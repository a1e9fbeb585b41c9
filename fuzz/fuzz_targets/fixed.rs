#![no_main]

mod common;

use backroom::Framing;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Case<'a> {
    size: u16,
    max_frame: u16,
    splits: Vec<u16>,
    input: &'a [u8],
}

fuzz_target!(|case: Case| {
    let (size, max_frame) = (usize::from(case.size % 512), usize::from(case.max_frame % 512));
    common::check(&Framing::fixed(size), max_frame, case.input, &case.splits, |input| {
        // 0 cannot work, and the library says so.
        Ok(if size == 0 { None } else { input.get(..size).map(|data| (data, size)) })
    });
});
