#![no_main]

mod common;

use backroom::Framing;
use backroom::internals::End;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Case<'a> {
    delimiter: [u8; 8],
    delimiter_len: u8,
    max_frame: u16,
    splits: Vec<u16>,
    input: &'a [u8],
}

fuzz_target!(|case: Case| {
    let delimiter = &case.delimiter[..1 + usize::from(case.delimiter_len % 8)];
    // Small, so that the input comes to it.
    let max_frame = 1 + usize::from(case.max_frame % 512);
    common::check(&Framing::delimiter(delimiter), max_frame, case.input, &case.splits, |input| {
        match (0..input.len()).find(|at| input[*at..].starts_with(delimiter)) {
            Some(at) if at <= max_frame => Ok(Some((&input[..at], at + delimiter.len()))),
            Some(_) => Err(End::TooLong),
            // It could still begin within the last bytes.
            None if input.len() < max_frame + delimiter.len() => Ok(None),
            None => Err(End::TooLong),
        }
    });
});
