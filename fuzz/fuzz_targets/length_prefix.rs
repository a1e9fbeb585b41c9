#![no_main]

mod common;

use backroom::internals::End;
use backroom::{Framing, LengthPrefix, LengthType};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Case<'a> {
    length: u8,
    offset: u8,
    body_offset: Option<u8>,
    keep_header: bool,
    max_frame: u16,
    splits: Vec<u16>,
    input: &'a [u8],
}

/// How each type is written: signed, the low byte first, so many bytes.
const TYPES: [(LengthType, bool, bool, usize); 10] = [
    (LengthType::I8, true, true, 1),
    (LengthType::U8, false, true, 1),
    (LengthType::I16, true, cfg!(target_endian = "little"), 2),
    (LengthType::U16, false, cfg!(target_endian = "little"), 2),
    (LengthType::U16Be, false, false, 2),
    (LengthType::U16Le, false, true, 2),
    (LengthType::I32, true, cfg!(target_endian = "little"), 4),
    (LengthType::U32, false, cfg!(target_endian = "little"), 4),
    (LengthType::U32Be, false, false, 4),
    (LengthType::U32Le, false, true, 4),
];

fuzz_target!(|case: Case| {
    let (length, signed, low_first, width) = TYPES[usize::from(case.length) % TYPES.len()];
    let (offset, max_frame) = (usize::from(case.offset % 16), 1 + usize::from(case.max_frame % 512));
    let header = offset + width;
    let body_offset = case.body_offset.map_or(header, |bytes| usize::from(bytes % 32));

    let mut prefix = LengthPrefix::new(length).offset(offset);
    if case.body_offset.is_some() {
        prefix = prefix.body_offset(body_offset);
    }
    if case.keep_header {
        prefix = prefix.keep_header();
    }
    common::check(&Framing::length_prefix(prefix), max_frame, case.input, &case.splits, |input| {
        let Some(bytes) = input.get(offset..header) else { return Ok(None) };
        let mut bytes = bytes.to_vec();
        if low_first {
            bytes.reverse();
        }
        if signed && bytes[0] >= 0x80 {
            return Err(End::Malformed);
        }
        let total = bytes.iter().fold(0, |length, byte| length * 256 + u64::from(*byte)) as usize + body_offset;
        match total {
            total if total < header => Err(End::Malformed),
            total if total > max_frame => Err(End::TooLong),
            total => Ok(input.get(if case.keep_header { 0 } else { body_offset }..total).map(|data| (data, total))),
        }
    });
});
