//! HTTP/1.1: a [`Decoder`] whose frames are whole requests, and the requests themselves.
//!
//! What is no request is answered by the decoder, which then has the connection closed; RFC 9112 has the rules.

use std::borrow::Cow;

use backroom::{Decoder, Frame, Malformed};
use httparse::{Header, Status as Parsed};

use crate::response::{Response, Status};
use crate::target::{Target, host_of};

/// Who gets this is told what happens from then on, and may ask for nothing more.
pub(crate) const EVENTS: &str = "/events";

/// A request line and the headers.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// A form of the longest text there may be, each character of which takes up to twelve bytes in it.
const MAX_BODY: usize = 256 * 1024;
/// A body in chunks is longer than what it carries, but not by as much as one likes.
const MAX_CHUNKED: usize = 2 * MAX_BODY;
/// The size of a chunk, with what may be said about it.
const MAX_CHUNK_LINE: usize = 256;
const MAX_TRAILERS: usize = 1024;
/// What the library must let pass for this to be the one who refuses.
pub(crate) const MAX_FRAME: usize = MAX_HEAD + MAX_CHUNKED + 64 * 1024;

/// Cuts what a client sends into requests.
///
/// Who asks by `Expect: 100-continue` whether to send the body has two frames: the head, and then the body.
#[derive(Default)]
pub(crate) struct Http {
    /// The head of the request that is not whole yet, once that is there.
    pending: Option<Pending>,
    /// So many bytes of an unfinished head have no end of a line that was not looked at.
    looked: usize,
    /// The request is a HEAD, whose answer has no body.
    is_head: bool,
    /// The events were asked for.
    is_watching: bool,
}

struct Pending {
    /// How long the head is; none once it was a frame of its own.
    head: usize,
    asks: bool,
    /// It is for the events.
    watches: bool,
    body: Body,
}

#[derive(Clone, Copy)]
enum Body {
    Length(usize),
    Chunked(Chunks),
}

/// How far the chunks of a body have been looked at.
#[derive(Clone, Copy, Default)]
struct Chunks {
    /// Here the next chunk begins,
    at: usize,
    /// and so many bytes were in those before.
    carried: usize,
}

impl Decoder for Http {
    fn decode(&mut self, input: &[u8]) -> Result<Option<Frame>, Malformed> {
        if self.is_watching && !input.is_empty() {
            // An answer would stand among the events.
            return Err(Malformed::new("a request after that for the events"));
        }
        self.cut(input).map_err(|refused| {
            Malformed::new(refused.reason()).reply(Response::error(refused).closing().to_bytes(self.is_head))
        })
    }
}

impl Http {
    fn cut(&mut self, input: &[u8]) -> Result<Option<Frame>, Status> {
        let mut pending = match self.pending.take() {
            Some(pending) => pending,
            None => match self.head(input)? {
                Some(pending) => pending,
                None => return Ok(None),
            },
        };
        if pending.asks {
            let head = std::mem::take(&mut pending.head);
            self.pending = Some(Pending { asks: false, ..pending });
            return Ok(Some(Frame::new(0..head, head)));
        }
        let rest = &input[pending.head..];
        let end = match &mut pending.body {
            Body::Length(length) => (rest.len() >= *length).then_some(*length),
            Body::Chunked(chunks) => chunks.end(rest)?,
        };
        match end.map(|end| pending.head + end) {
            Some(end) => {
                self.is_watching = pending.watches;
                Ok(Some(Frame::new(0..end, end)))
            }
            None => {
                self.pending = Some(pending);
                Ok(None)
            }
        }
    }

    fn head(&mut self, input: &[u8]) -> Result<Option<Pending>, Status> {
        // Without the end of a line nothing is new, and bytes that come one by one are not parsed as often.
        let looked = std::mem::replace(&mut self.looked, input.len());
        self.is_head = is_head(input);
        if input[looked..].contains(&b'\n') {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            if let Some(head) = Head::parse(input, &mut headers)? {
                self.looked = 0;
                let body = head.body()?;
                let has_body = !matches!(body, Body::Length(0));
                let (asks, watches) = (has_body && head.asks(), head.watches());
                return Ok(Some(Pending { head: head.len, asks, watches, body }));
            }
        }
        if input.len() > MAX_HEAD { Err(Status::HeadersTooLarge) } else { Ok(None) }
    }
}

/// Whether what comes is a HEAD, though it may be no request.
pub(crate) fn is_head(input: &[u8]) -> bool {
    input.trim_ascii_start().starts_with(b"HEAD ")
}

impl Chunks {
    /// Where the body ends, with its trailers, if all of it is there.
    fn end(&mut self, body: &[u8]) -> Result<Option<usize>, Status> {
        loop {
            let rest = &body[self.at..];
            let Some((line, size)) = chunk_line(rest)? else { return Ok(None) };
            if size == 0 {
                let mut trailers = [httparse::EMPTY_HEADER; MAX_HEADERS];
                return match httparse::parse_headers(&rest[line..], &mut trailers).map_err(Status::of)? {
                    Parsed::Complete((trailers, _)) => Ok(Some(self.at + line + trailers)),
                    Parsed::Partial if rest.len() > line + MAX_TRAILERS => Err(Status::HeadersTooLarge),
                    Parsed::Partial => Ok(None),
                };
            }
            let end = line.saturating_add(size).saturating_add(2);
            if size.saturating_add(self.carried) > MAX_BODY || end.saturating_add(self.at) > MAX_CHUNKED {
                return Err(Status::TooLarge);
            }
            match rest.get(end - 2..end) {
                Some(b"\r\n") => {
                    self.at += end;
                    self.carried += size;
                }
                Some(_) => return Err(Status::BadRequest),
                None => return Ok(None),
            }
        }
    }

    /// What the chunks of a whole body carry.
    fn joined(body: &[u8]) -> Vec<u8> {
        let mut joined = Vec::with_capacity(body.len());
        let mut rest = body;
        while let Ok(Parsed::Complete((line, size @ 1..))) = httparse::parse_chunk_size(rest) {
            let end = line + size as usize;
            joined.extend_from_slice(&rest[line..end]);
            rest = &rest[end + 2..];
        }
        joined
    }
}

/// How long the line of a chunk is, and how long the chunk that follows. Stricter than the parser, which takes a line
/// without a number for the last, and the end of a line within what is said about a chunk.
fn chunk_line(rest: &[u8]) -> Result<Option<(usize, usize)>, Status> {
    let Some(end) = rest.iter().take(MAX_CHUNK_LINE).position(|byte| *byte == b'\n') else {
        return if rest.len() < MAX_CHUNK_LINE { Ok(None) } else { Err(Status::BadRequest) };
    };
    let line = &rest[..=end];
    if !line[0].is_ascii_hexdigit() || !line.ends_with(b"\r\n") {
        return Err(Status::BadRequest);
    }
    match httparse::parse_chunk_size(line) {
        Ok(Parsed::Complete((length, size))) if length == line.len() => {
            Ok(Some((length, usize::try_from(size).map_err(|_| Status::TooLarge)?)))
        }
        _ => Err(Status::BadRequest),
    }
}

/// All of a request but its body.
struct Head<'a, 'h> {
    method: &'a str,
    target: Target<'a>,
    /// Whose resource it asks for, as the target says or `Host`: with the port, and without.
    authority: Option<&'a str>,
    host: Option<&'a str>,
    /// Whether it is of HTTP/1.1, and not 1.0.
    is_1_1: bool,
    headers: &'h [Header<'a>],
    len: usize,
}

impl<'a, 'h> Head<'a, 'h> {
    /// `None` while it is unfinished.
    fn parse(input: &'a [u8], headers: &'h mut [Header<'a>]) -> Result<Option<Head<'a, 'h>>, Status> {
        let mut request = httparse::Request::new(headers);
        let Parsed::Complete(len) = request.parse(input).map_err(Status::of)? else { return Ok(None) };
        let httparse::Request { method: Some(method), path: Some(target), version: Some(version), headers } = request
        else {
            return Err(Status::BadRequest);
        };
        if len > MAX_HEAD {
            return Err(Status::HeadersTooLarge);
        }
        let target = Target::parse(method, target)?;
        let mut head = Head { method, target, authority: None, host: None, is_1_1: version == 1, headers, len };
        if head.all("host").count() > 1 || head.is_1_1 && head.all("host").count() == 0 {
            return Err(Status::BadRequest);
        }
        let named = head.all("host").next().map(std::str::from_utf8).transpose().map_err(|_| Status::BadRequest)?;
        named.map(host_of).transpose()?;
        head.authority = head.target.authority.or(named);
        head.host = head.authority.map(host_of).transpose()?;
        Ok(Some(head))
    }

    /// How the end of the body is told. What could be read in two ways is refused, lest a proxy reads the other.
    fn body(&self) -> Result<Body, Status> {
        let mut codings = self.all("transfer-encoding");
        let mut lengths = self.all("content-length");
        match (codings.next(), lengths.next()) {
            (None, None) => Ok(Body::Length(0)),
            (None, Some(length)) => {
                if lengths.next().is_some() || length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
                    return Err(Status::BadRequest);
                }
                let length = std::str::from_utf8(length).ok().and_then(|length| length.parse().ok());
                length.filter(|length| *length <= MAX_BODY).map(Body::Length).ok_or(Status::TooLarge)
            }
            (Some(_), Some(_)) => Err(Status::BadRequest),
            (Some(_), None) if !self.is_1_1 => Err(Status::BadRequest),
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none() => {
                Ok(Body::Chunked(Chunks::default()))
            }
            (Some(_), None) => Err(Status::NotImplemented),
        }
    }

    fn watches(&self) -> bool {
        self.method == "GET" && self.target.path == EVENTS
    }

    /// Whether it wants to be asked for the body.
    fn asks(&self) -> bool {
        self.is_1_1 && self.has("expect", "100-continue")
    }

    fn keeps_alive(&self) -> bool {
        if self.is_1_1 { !self.has("connection", "close") } else { self.has("connection", "keep-alive") }
    }

    /// Whether this is among the words of these headers.
    fn has(&self, name: &str, word: &str) -> bool {
        let mut words = self.all(name).flat_map(|value| value.split(|byte| *byte == b','));
        words.any(|found| found.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }
}

/// A whole request, or the head of one whose client asks whether to send the rest.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    /// Without the query.
    pub(crate) path: &'a str,
    /// Whose resource it asks for, with the port.
    pub(crate) authority: Option<&'a str>,
    /// The same without.
    pub(crate) host: Option<&'a str>,
    pub(crate) body: Cow<'a, [u8]>,
    /// Whether the body is to come, once it is asked for.
    pub(crate) asks: bool,
    pub(crate) keeps_alive: bool,
    /// Whether it is of HTTP/1.1, and not 1.0.
    pub(crate) is_1_1: bool,
    headers: Vec<Header<'a>>,
}

impl<'a> Request<'a> {
    /// Of a frame that [`Http`] has cut, or of two of them that belong together.
    pub(crate) fn of(frame: &'a [u8]) -> Result<Request<'a>, Status> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let head = Head::parse(frame, &mut headers)?.ok_or(Status::BadRequest)?;
        let rest = &frame[head.len..];
        let (body, has_body) = match head.body()? {
            Body::Length(length) => (Cow::Borrowed(rest), length > 0),
            Body::Chunked(_) => (Cow::Owned(Chunks::joined(rest)), true),
        };
        Ok(Request {
            method: head.method,
            path: head.target.path,
            authority: head.authority,
            host: head.host,
            body,
            asks: has_body && rest.is_empty() && head.asks(),
            keeps_alive: head.keeps_alive(),
            is_1_1: head.is_1_1,
            headers: head.headers.to_vec(),
        })
    }

    /// The first header of this name, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&'a str> {
        let header = self.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok().map(str::trim)
    }
}
