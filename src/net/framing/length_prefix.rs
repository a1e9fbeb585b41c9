//! Frames that say how long they are.

use super::{Cut, FrameError, Malformed};

/// The header of a frame that says how long the rest is, for [`Framing::length_prefix`](crate::Framing::length_prefix).
///
/// ```text
/// ┌───────────┬────────┬──────────┬──────────────────────┐
/// │ …         │ length │ …        │ so many bytes        │
/// └───────────┴────────┴──────────┴──────────────────────┘
/// 0           offset              body_offset
/// ```
///
/// Swoole's `package_length_type`, `package_length_offset` and `package_body_offset`.
///
/// ```
/// use backroom::{LengthPrefix, LengthType};
///
/// // Two bytes of type, four of length, two of flags; the length counts what comes after these.
/// let prefix = LengthPrefix::new(LengthType::U32Be).offset(2).body_offset(8).keep_header();
/// # let _ = prefix;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct LengthPrefix {
    length: LengthType,
    offset: usize,
    /// `None`: right behind the length.
    body_offset: Option<usize>,
    keeps_header: bool,
}

/// How a length is written. A negative one closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthType {
    /// A signed byte. Swoole's `c`.
    I8,
    /// A byte. Swoole's `C`.
    U8,
    /// Two bytes, signed, in this machine's order. Swoole's `s`.
    I16,
    /// Two bytes in this machine's order. Swoole's `S`.
    U16,
    /// Two bytes, the high one first: network order. Swoole's `n`.
    U16Be,
    /// Two bytes, the low one first. Swoole's `v`.
    U16Le,
    /// Four bytes, signed, in this machine's order. Swoole's `l`.
    I32,
    /// Four bytes in this machine's order. Swoole's `L`.
    U32,
    /// Four bytes, the highest first: network order. Swoole's `N`.
    U32Be,
    /// Four bytes, the lowest first. Swoole's `V`.
    U32Le,
}

impl LengthType {
    fn width(self) -> usize {
        match self {
            LengthType::I8 | LengthType::U8 => 1,
            LengthType::I16 | LengthType::U16 | LengthType::U16Be | LengthType::U16Le => 2,
            LengthType::I32 | LengthType::U32 | LengthType::U32Be | LengthType::U32Le => 4,
        }
    }

    /// `None` if there are too few bytes.
    #[inline]
    fn read(self, bytes: &[u8]) -> Option<i64> {
        let length = match self {
            LengthType::I8 => i8::from_ne_bytes(*bytes.first_chunk()?).into(),
            LengthType::U8 => u8::from_ne_bytes(*bytes.first_chunk()?).into(),
            LengthType::I16 => i16::from_ne_bytes(*bytes.first_chunk()?).into(),
            LengthType::U16 => u16::from_ne_bytes(*bytes.first_chunk()?).into(),
            LengthType::U16Be => u16::from_be_bytes(*bytes.first_chunk()?).into(),
            LengthType::U16Le => u16::from_le_bytes(*bytes.first_chunk()?).into(),
            LengthType::I32 => i32::from_ne_bytes(*bytes.first_chunk()?).into(),
            LengthType::U32 => u32::from_ne_bytes(*bytes.first_chunk()?).into(),
            LengthType::U32Be => u32::from_be_bytes(*bytes.first_chunk()?).into(),
            LengthType::U32Le => u32::from_le_bytes(*bytes.first_chunk()?).into(),
        };
        Some(length)
    }
}

/// A header longer than this is a slip of the pen.
const MAX_HEADER: usize = 64 * 1024;

impl LengthPrefix {
    /// A frame that begins with its length, which counts the bytes behind it.
    pub fn new(length: LengthType) -> LengthPrefix {
        LengthPrefix { length, offset: 0, body_offset: None, keeps_header: false }
    }

    /// How many bytes come before the length. Default 0.
    pub fn offset(mut self, bytes: usize) -> Self {
        self.offset = bytes;
        self
    }

    /// From where on the length counts: with 0, all of the frame. Default: right behind the length. (Swoole's default is
    /// 4, whatever the width.)
    pub fn body_offset(mut self, bytes: usize) -> Self {
        self.body_offset = Some(bytes);
        self
    }

    /// Leaves the header in `data`, as Swoole does. Without it, `data` is what the length counts.
    pub fn keep_header(mut self) -> Self {
        self.keeps_header = true;
        self
    }

    fn header(&self) -> usize {
        self.offset.saturating_add(self.length.width())
    }

    #[inline]
    pub(super) fn cut(&self, input: &[u8], max_frame: usize) -> Result<Option<Cut>, FrameError> {
        let Some(length) = input.get(self.offset..).and_then(|input| self.length.read(input)) else { return Ok(None) };
        let body_offset = self.body_offset.unwrap_or_else(|| self.header());
        // The header is bounded and the length has 33 bits, so this does not overflow.
        let total = length + body_offset as i64;
        if length < 0 {
            return Err(malformed(format_args!("a frame of {length} bytes")));
        }
        let total = usize::try_from(total).map_err(|_| FrameError::TooLong)?;
        if total < self.header() {
            return Err(malformed(format_args!("a frame of {total} bytes is shorter than its header")));
        }
        if total > max_frame {
            return Err(FrameError::TooLong);
        }
        let from = if self.keeps_header { 0 } else { body_offset };
        Ok((input.len() >= total).then_some(Cut { data: from..total, taken: total }))
    }

    pub(super) fn problem(&self, max_frame: usize) -> Option<&'static str> {
        if self.offset > MAX_HEADER || self.body_offset.is_some_and(|offset| offset > MAX_HEADER) {
            Some("an offset of a length prefix is beyond 64 KiB")
        } else if self.header() > max_frame || self.body_offset.is_some_and(|offset| offset > max_frame) {
            Some("the header of a length prefix is longer than max_frame")
        } else {
            None
        }
    }
}

fn malformed(reason: std::fmt::Arguments<'_>) -> FrameError {
    FrameError::Malformed(Malformed::new(reason))
}
