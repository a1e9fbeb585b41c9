use super::*;
use proptest::prelude::*;

/// All frames of these chunks, or what ended them.
fn frames(framing: &Framing, max_frame: usize, chunks: &[&[u8]]) -> Result<Vec<Vec<u8>>, FrameError> {
    let mut framer = Framer::new(framing, max_frame);
    let (mut pending, mut frames) = (Vec::new(), Vec::new());
    for chunk in chunks {
        pending.extend_from_slice(chunk);
        while let Some(cut) = framer.cut(&pending)? {
            frames.push(pending[cut.data.clone()].to_vec());
            pending.drain(..cut.taken);
        }
    }
    Ok(frames)
}

fn prefixed(length: LengthType) -> Framing {
    Framing::length_prefix(LengthPrefix::new(length))
}

#[test]
fn a_frame_of_exactly_the_maximum_passes_and_one_byte_more_does_not() {
    let framing = Framing::delimiter("\r\n");
    assert_eq!(frames(&framing, 3, &[b"abc\r", b"\n"]).unwrap(), [b"abc"]);
    assert_eq!(frames(&framing, 3, &[b"abcd\r\n"]), Err(FrameError::TooLong));
    assert_eq!(frames(&framing, 3, &[b"abcd", b"\r\n"]), Err(FrameError::TooLong));
    assert_eq!(frames(&prefixed(LengthType::U8), 4, &[b"\x03abc"]).unwrap(), [b"abc"]);
    assert_eq!(frames(&prefixed(LengthType::U8), 4, &[b"\x04"]), Err(FrameError::TooLong));
}

#[test]
fn an_unended_frame_over_the_maximum_is_an_error_before_its_end_comes() {
    assert_eq!(frames(&Framing::lines(), 10, &[&[b'x'; 11]]), Err(FrameError::TooLong));
    assert_eq!(frames(&Framing::decoder(|| Never), 10, &[&[b'x'; 11]]), Err(FrameError::TooLong));
}

#[test]
fn a_delimiter_has_one_to_eight_bytes() {
    assert!(Framing::delimiter("").problem(100).is_some());
    assert!(Framing::delimiter("123456789").problem(100).is_some());
    assert!(Framing::delimiter("12345678").problem(100).is_none());
    assert!(Framing::raw().problem(100).is_none());
}

#[test]
fn what_can_never_fit_is_a_problem_before_the_first_client() {
    assert!(Framing::fixed(0).problem(100).is_some());
    assert!(Framing::fixed(101).problem(100).is_some());
    assert!(Framing::fixed(100).problem(100).is_none());
    let prefix = LengthPrefix::new(LengthType::U32Be);
    assert!(Framing::length_prefix(prefix.offset(97)).problem(100).is_some());
    assert!(Framing::length_prefix(prefix.offset(96)).problem(100).is_none());
    assert!(Framing::length_prefix(prefix.body_offset(usize::MAX)).problem(usize::MAX).is_some());
}

/// One frame of each type, written by hand.
#[test]
fn every_type_of_length_is_read_as_swoole_writes_it() {
    let native = |big: &'static [u8], little: &'static [u8]| if cfg!(target_endian = "big") { big } else { little };
    let written: [(LengthType, &[u8]); 10] = [
        (LengthType::I8, b"\x03"),
        (LengthType::U8, b"\x03"),
        (LengthType::I16, native(b"\0\x03", b"\x03\0")),
        (LengthType::U16, native(b"\0\x03", b"\x03\0")),
        (LengthType::U16Be, b"\0\x03"),
        (LengthType::U16Le, b"\x03\0"),
        (LengthType::I32, native(b"\0\0\0\x03", b"\x03\0\0\0")),
        (LengthType::U32, native(b"\0\0\0\x03", b"\x03\0\0\0")),
        (LengthType::U32Be, b"\0\0\0\x03"),
        (LengthType::U32Le, b"\x03\0\0\0"),
    ];
    for (length, header) in written {
        let twice = [header, b"abc", header, b"def"].concat();
        assert_eq!(frames(&prefixed(length), 100, &[&twice]).unwrap(), [b"abc", b"def"], "{length:?}");
    }
}

#[test]
fn a_header_may_have_more_than_the_length_in_it() {
    let prefix = LengthPrefix::new(LengthType::U16Be).offset(2).body_offset(6);
    let input = b"TT\0\x03FFabcTT\0\0FF";
    let bodies = frames(&Framing::length_prefix(prefix), 100, &[input]).unwrap();
    assert_eq!(bodies, [b"abc".to_vec(), b"".to_vec()]);
    let whole = frames(&Framing::length_prefix(prefix.keep_header()), 100, &[input]).unwrap();
    assert_eq!(whole, [b"TT\0\x03FFabc".to_vec(), b"TT\0\0FF".to_vec()]);
}

#[test]
fn a_length_may_count_its_own_header() {
    let framing = Framing::length_prefix(LengthPrefix::new(LengthType::U16Be).body_offset(0));
    assert_eq!(frames(&framing, 100, &[b"\0\x05abc"]).unwrap(), [b"\0\x05abc"]);
    // One that says it is shorter than that would never end, or begin the next inside this one.
    for header in [b"\0\0", b"\0\x01"] {
        assert!(matches!(frames(&framing, 100, &[header]), Err(FrameError::Malformed(_))));
    }
}

#[test]
fn lies_about_the_length_end_the_connection_before_anything_is_kept_for_them() {
    for (length, header) in
        [(LengthType::I8, &b"\xff"[..]), (LengthType::I16, b"\xff\xff"), (LengthType::I32, b"\xff\xff\xff\xff")]
    {
        assert!(matches!(frames(&prefixed(length), 100, &[header]), Err(FrameError::Malformed(_))), "{length:?}");
    }
    for header in [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x61"] {
        assert_eq!(frames(&prefixed(LengthType::U32Be), 100, &[header]), Err(FrameError::TooLong));
    }
    assert_eq!(frames(&prefixed(LengthType::U32Be), 100, &[b"\0\0\0\x60"]), Ok(vec![]));
}

const HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

#[test]
fn a_tls_client_is_known_where_lines_are_awaited_however_its_first_bytes_come() {
    assert_eq!(frames(&Framing::lines(), 1000, &[HELLO]), Err(FrameError::Tls));
    assert_eq!(frames(&Framing::lines(), 1000, &HELLO.chunks(1).collect::<Vec<_>>()), Err(FrameError::Tls));
    assert_eq!(frames(&Framing::raw(), 1000, &[HELLO]).unwrap(), [HELLO]);
    // Not at the beginning, it is anybody's.
    assert!(frames(&Framing::lines(), 1000, &[b"abc\n", HELLO]).is_ok());
}

#[test]
fn where_a_length_is_awaited_tls_is_only_the_reason_for_what_is_wrong_anyway() {
    assert_eq!(frames(&prefixed(LengthType::U32Be), 1000, &[HELLO]), Err(FrameError::Tls));
    // 790 bytes, by its first two.
    let body = [&HELLO[2..], &[b'x'; 781]].concat();
    let found = frames(&prefixed(LengthType::U16Le), 1000, &[&HELLO[..2], &body]).unwrap();
    assert_eq!(found, [&body[..]]);
    assert_eq!(frames(&Framing::fixed(4), 1000, &[HELLO]).unwrap().len(), 2);
}

struct Never;

impl Decoder for Never {
    fn decode(&mut self, _input: &[u8]) -> Result<Option<Frame>, Malformed> {
        Ok(None)
    }
}

/// Cuts as it is told.
struct Says(Frame);

impl Decoder for Says {
    fn decode(&mut self, _input: &[u8]) -> Result<Option<Frame>, Malformed> {
        Ok(Some(self.0.clone()))
    }
}

#[test]
#[expect(clippy::reversed_empty_ranges)]
fn a_decoder_that_cuts_where_nothing_is_ends_the_connection() {
    for frame in [Frame::new(0..0, 0), Frame::new(0..3, 9), Frame::new(0..9, 4), Frame::new(3..2, 4)] {
        let says = frame.clone();
        let cut = frames(&Framing::decoder(move || Says(says.clone())), 100, &[b"abcd"]);
        assert!(matches!(cut, Err(FrameError::Malformed(_))), "{frame:?}: {cut:?}");
    }
}

/// The same as [`Framing::lines`], byte by byte, with what it has looked at remembered.
#[derive(Default)]
struct SlowLines(usize);

impl Decoder for SlowLines {
    fn decode(&mut self, input: &[u8]) -> Result<Option<Frame>, Malformed> {
        while let Some(byte) = input.get(self.0) {
            self.0 += 1;
            if *byte == b'\n' {
                let taken = std::mem::take(&mut self.0);
                return Ok(Some(Frame::new(0..taken - 1, taken)));
            }
        }
        Ok(None)
    }
}

/// `<data>`.
struct Brackets;

impl Decoder for Brackets {
    fn decode(&mut self, input: &[u8]) -> Result<Option<Frame>, Malformed> {
        let end = input.iter().position(|byte| *byte == b'>');
        Ok(end.filter(|end| *end > 0).map(|end| Frame::new(1..end, end + 1)))
    }
}

/// Found by fuzzing: it passed if it came at once.
#[test]
fn a_frame_of_a_decoder_is_too_long_with_what_is_around_its_data_however_it_comes() {
    let framing = Framing::decoder(|| Brackets);
    for (max_frame, expected) in [(5, Ok(vec![b"abc".to_vec()])), (4, Err(FrameError::TooLong))] {
        assert_eq!(frames(&framing, max_frame, &[b"<abc>"]), expected);
        assert_eq!(frames(&framing, max_frame, &[b"<", b"a", b"b", b"c", b">"]), expected);
    }
}

fn any_framing() -> impl Strategy<Value = Framing> {
    let length = prop_oneof![
        Just(LengthType::I8),
        Just(LengthType::U8),
        Just(LengthType::I16),
        Just(LengthType::U16),
        Just(LengthType::U16Be),
        Just(LengthType::U16Le),
        Just(LengthType::I32),
        Just(LengthType::U32),
        Just(LengthType::U32Be),
        Just(LengthType::U32Le),
    ];
    let prefix = (length, 0usize..4, proptest::option::of(0usize..10), any::<bool>()).prop_map(
        |(length, offset, body_offset, keep)| {
            let prefix = LengthPrefix::new(length).offset(offset);
            let prefix = if keep { prefix.keep_header() } else { prefix };
            body_offset.map_or(prefix, |body_offset| prefix.body_offset(body_offset))
        },
    );
    prop_oneof![
        prop_oneof![Just("\n"), Just("\r\n"), Just("\r\r\n"), Just("aaaaaaaa")].prop_map(Framing::delimiter),
        prefix.prop_map(Framing::length_prefix),
        (1usize..20).prop_map(Framing::fixed),
        Just(Framing::decoder(SlowLines::default)),
    ]
}

proptest! {
    #[test]
    fn raw_chunks_are_all_that_came_and_none_is_longer_than_the_maximum(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..10),
        max_frame in 1usize..40,
    ) {
        let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        let found = frames(&Framing::raw(), max_frame, &chunks).unwrap();
        prop_assert!(found.iter().all(|chunk| (1..=max_frame).contains(&chunk.len())));
        prop_assert_eq!(found.concat(), chunks.concat());
    }

    #[test]
    fn any_split_of_the_input_gives_the_same_frames(
        framing in any_framing(),
        input in proptest::collection::vec(
            prop_oneof![Just(b'a'), Just(b'\r'), Just(b'\n'), 0u8..12, any::<u8>()],
            0..200,
        ),
        splits in proptest::collection::vec(0usize..200, 0..10),
        max_frame in 12usize..40,
    ) {
        prop_assume!(framing.problem(max_frame).is_none());
        let mut splits: Vec<usize> = splits.into_iter().map(|at| at.min(input.len())).collect();
        splits.extend([0, input.len()]);
        splits.sort_unstable();
        let chunks: Vec<&[u8]> = splits.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
        prop_assert_eq!(frames(&framing, max_frame, &chunks), frames(&framing, max_frame, &[&input]));
    }

    #[test]
    fn no_frame_is_longer_than_the_maximum_and_no_more_than_one_waits(
        framing in any_framing(),
        input in proptest::collection::vec(prop_oneof![0u8..12, any::<u8>()], 0..200),
        max_frame in 12usize..40,
    ) {
        prop_assume!(framing.problem(max_frame).is_none());
        let mut framer = Framer::new(&framing, max_frame);
        let mut rest = &input[..];
        let end = loop {
            match framer.cut(rest) {
                Ok(Some(Cut { data, taken })) => {
                    prop_assert!(data.len() <= max_frame && data.end <= taken && 0 < taken && taken <= rest.len());
                    rest = &rest[taken..];
                }
                end => break end,
            }
        };
        // What waits is less than a frame with a delimiter, or its sender is told.
        prop_assert!(end.is_err() || rest.len() <= max_frame + MAX_DELIMITER);
    }
}
