//! HTTP/1.1: a [`Decoder`] whose frames are whole requests, the requests themselves, and the answers.
//!
//! What is no request is answered by the decoder, which then has the connection closed; RFC 9112 has the rules.

use std::borrow::Cow;
use std::fmt::Write;
use std::time::SystemTime;

use backroom::{Decoder, Frame, Malformed};
use httparse::{Header, Status as Parsed};

/// A request line and the headers.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
pub(crate) const MAX_BODY: usize = 64 * 1024;
/// A body in chunks is longer than what it carries, but not by as much as one likes.
const MAX_CHUNKED: usize = 2 * MAX_BODY;
/// What the library must let pass for this to be the one who refuses.
pub(crate) const MAX_FRAME: usize = MAX_HEAD + MAX_CHUNKED + 4096;

/// Cuts what a client sends into requests.
///
/// Who asks by `Expect: 100-continue` whether to send the body has two frames: the head, and then the body.
#[derive(Default)]
pub(crate) struct Http {
    /// The head of the request that is not whole yet, once that is there.
    pending: Option<Pending>,
    /// So many bytes of an unfinished head have no end of a line that was not looked at.
    looked: usize,
}

struct Pending {
    /// How long the head is; none once it was a frame of its own.
    head: usize,
    asks: bool,
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
        self.cut(input).map_err(|refused| {
            Malformed::new(refused.reason()).reply(Response::error(refused).closing().to_bytes(false))
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
            Some(end) => Ok(Some(Frame::new(0..end, end))),
            None => {
                self.pending = Some(pending);
                Ok(None)
            }
        }
    }

    fn head(&mut self, input: &[u8]) -> Result<Option<Pending>, Status> {
        // Without the end of a line nothing is new, and bytes that come one by one are not parsed as often.
        let looked = std::mem::replace(&mut self.looked, input.len());
        if input[looked..].contains(&b'\n') {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            if let Some(head) = Head::parse(input, &mut headers)? {
                self.looked = 0;
                let body = head.body()?;
                let has_body = !matches!(body, Body::Length(0));
                return Ok(Some(Pending { head: head.len, asks: has_body && head.asks(), body }));
            }
        }
        if input.len() > MAX_HEAD { Err(Status::HeadersTooLarge) } else { Ok(None) }
    }
}

impl Chunks {
    /// Where the body ends, with its trailers, if all of it is there.
    fn end(&mut self, body: &[u8]) -> Result<Option<usize>, Status> {
        loop {
            let rest = &body[self.at..];
            let Parsed::Complete((line, size)) = httparse::parse_chunk_size(rest).map_err(|_| Status::BadRequest)?
            else {
                return if body.len() > MAX_CHUNKED { Err(Status::TooLarge) } else { Ok(None) };
            };
            let size = usize::try_from(size).map_err(|_| Status::TooLarge)?;
            if size.saturating_add(self.carried) > MAX_BODY || self.at > MAX_CHUNKED {
                return Err(Status::TooLarge);
            }
            if size == 0 {
                let mut trailers = [httparse::EMPTY_HEADER; MAX_HEADERS];
                return match httparse::parse_headers(&rest[line..], &mut trailers).map_err(Status::of)? {
                    Parsed::Complete((trailers, _)) => Ok(Some(self.at + line + trailers)),
                    Parsed::Partial if rest.len() > MAX_HEAD => Err(Status::HeadersTooLarge),
                    Parsed::Partial => Ok(None),
                };
            }
            match rest.get(line + size..line + size + 2) {
                Some(b"\r\n") => {
                    self.at += line + size + 2;
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

/// All of a request but its body.
struct Head<'a, 'h> {
    method: &'a str,
    target: &'a str,
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
        let head = Head { method, target, is_1_1: version == 1, headers, len };
        if head.is_1_1 && head.all("host").count() != 1 {
            return Err(Status::BadRequest);
        }
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
    pub(crate) body: Cow<'a, [u8]>,
    /// Whether the body is to come, once it is asked for.
    pub(crate) asks: bool,
    pub(crate) keeps_alive: bool,
    headers: Vec<Header<'a>>,
}

impl<'a> Request<'a> {
    /// Of a frame that [`Http`] has cut, or of two of them that belong together.
    pub(crate) fn of(frame: &'a [u8]) -> Result<Request<'a>, Status> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let head = Head::parse(frame, &mut headers)?.ok_or(Status::BadRequest)?;
        let rest = &frame[head.len..];
        let body = match head.body()? {
            Body::Length(_) => Cow::Borrowed(rest),
            Body::Chunked(_) => Cow::Owned(Chunks::joined(rest)),
        };
        Ok(Request {
            method: head.method,
            path: head.target.split('?').next().unwrap_or_default(),
            body,
            asks: rest.is_empty() && head.asks() && !matches!(head.body()?, Body::Length(0)),
            keeps_alive: head.keeps_alive(),
            headers: head.headers.to_vec(),
        })
    }

    /// The first header of this name, if it is text.
    pub(crate) fn header(&self, name: &str) -> Option<&'a str> {
        let header = self.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(header.value).ok().map(str::trim)
    }
}

/// What is said before an answer that one has to wait for.
pub(crate) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ok = 200,
    Accepted = 202,
    BadRequest = 400,
    Forbidden = 403,
    NotFound = 404,
    MethodNotAllowed = 405,
    TooLarge = 413,
    UnsupportedMediaType = 415,
    Unprocessable = 422,
    HeadersTooLarge = 431,
    NotImplemented = 501,
    Unavailable = 503,
    VersionNotSupported = 505,
}

impl Status {
    fn of(error: httparse::Error) -> Status {
        match error {
            httparse::Error::TooManyHeaders => Status::HeadersTooLarge,
            httparse::Error::Version => Status::VersionNotSupported,
            _ => Status::BadRequest,
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::Accepted => "Accepted",
            Status::BadRequest => "Bad Request",
            Status::Forbidden => "Forbidden",
            Status::NotFound => "Not Found",
            Status::MethodNotAllowed => "Method Not Allowed",
            Status::TooLarge => "Content Too Large",
            Status::UnsupportedMediaType => "Unsupported Media Type",
            Status::Unprocessable => "Unprocessable Content",
            Status::HeadersTooLarge => "Request Header Fields Too Large",
            Status::NotImplemented => "Not Implemented",
            Status::Unavailable => "Service Unavailable",
            Status::VersionNotSupported => "HTTP Version Not Supported",
        }
    }
}

/// An answer.
pub(crate) struct Response {
    status: Status,
    headers: Vec<(&'static str, Cow<'static, str>)>,
    /// `None` for one without end.
    body: Option<Cow<'static, [u8]>>,
    closes: bool,
}

impl Response {
    pub(crate) fn new(status: Status, kind: &'static str, body: impl Into<Cow<'static, [u8]>>) -> Response {
        let headers = vec![("Content-Type", kind.into())];
        Response { status, headers, body: Some(body.into()), closes: false }
    }

    /// A short text that says what is wrong.
    pub(crate) fn error(status: Status) -> Response {
        let text = format!("{} {}\n", status as u16, status.reason());
        Response::new(status, "text/plain; charset=utf-8", text.into_bytes())
    }

    /// One whose body follows, until the connection ends.
    pub(crate) fn stream(kind: &'static str) -> Response {
        Response { status: Status::Ok, headers: vec![("Content-Type", kind.into())], body: None, closes: true }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Response {
        self.headers.push((name, value.into()));
        self
    }

    /// The connection closes after it.
    pub(crate) fn closing(mut self) -> Response {
        self.closes = true;
        self
    }

    pub(crate) fn closes(&self) -> bool {
        self.closes
    }

    /// As it is sent; to a HEAD request without the body.
    pub(crate) fn to_bytes(&self, is_head: bool) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status as u16, self.status.reason());
        let _ = write!(head, "Date: {}\r\n", httpdate::fmt_http_date(SystemTime::now()));
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if let Some(body) = &self.body {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
        }
        if self.closes {
            head.push_str("Connection: close\r\n");
        }
        head.push_str("X-Content-Type-Options: nosniff\r\n\r\n");
        let mut bytes = head.into_bytes();
        if let (Some(body), false) = (&self.body, is_head) {
            bytes.extend_from_slice(body);
        }
        bytes
    }
}
