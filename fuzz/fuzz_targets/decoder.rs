#![no_main]

mod common;

use backroom::internals::End;
use backroom::{Decoder, Frame, Framing, Malformed};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

/// As in the documentation of `Decoder`.
struct Netstring;

impl Decoder for Netstring {
    fn decode(&mut self, input: &[u8]) -> Result<Option<Frame>, Malformed> {
        let Some(digits) = input.iter().take(8).position(|byte| *byte == b':') else {
            return if input.len() < 8 { Ok(None) } else { Err(Malformed::new("a length without end")) };
        };
        let length: usize = std::str::from_utf8(&input[..digits])
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| Malformed::new("a length that is no number").reply("0:,"))?;
        let data = digits + 1..digits + 1 + length;
        match input.get(data.end) {
            None => Ok(None),
            Some(b',') => Ok(Some(Frame::new(data.clone(), data.end + 1))),
            Some(_) => Err(Malformed::new("no comma where one belongs")),
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Case<'a> {
    max_frame: u16,
    splits: Vec<u16>,
    input: &'a [u8],
}

fuzz_target!(|case: Case| {
    let max_frame = 1 + usize::from(case.max_frame % 512);
    let framing = Framing::decoder(|| Netstring);
    // What is both too long and malformed is one of these, depending on how much of it is there.
    let either = |end| if end == End::TooLong { End::Malformed } else { end };
    common::check_ends(&framing, max_frame, case.input, &case.splits, either, |input| {
        let digits = input.iter().take_while(|byte| **byte != b':').count();
        let total = match String::from_utf8_lossy(&input[..digits]).parse::<usize>() {
            _ if digits >= 8 => return Err(End::Malformed),
            Ok(length) if digits < input.len() => digits + 1 + length + 1,
            _ if digits < input.len() => return Err(End::Malformed),
            // Longer than all there is.
            _ => usize::MAX,
        };
        match input.get(total - 1) {
            None if input.len() <= max_frame => Ok(None),
            Some(b',') if total <= max_frame => Ok(Some((&input[digits + 1..total - 1], total))),
            _ => Err(End::Malformed),
        }
    });
});
