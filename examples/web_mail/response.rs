//! Answers of HTTP/1.1.

use std::borrow::Cow;
use std::fmt::Write;
use std::time::SystemTime;

use crate::http::Request;

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
    RequestTimeout = 408,
    TooLarge = 413,
    UnsupportedMediaType = 415,
    Misdirected = 421,
    Unprocessable = 422,
    HeadersTooLarge = 431,
    NotImplemented = 501,
    Unavailable = 503,
    VersionNotSupported = 505,
}

impl Status {
    pub(crate) fn of(error: httparse::Error) -> Status {
        match error {
            httparse::Error::TooManyHeaders => Status::HeadersTooLarge,
            httparse::Error::Version => Status::VersionNotSupported,
            _ => Status::BadRequest,
        }
    }

    pub(crate) fn reason(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::Accepted => "Accepted",
            Status::BadRequest => "Bad Request",
            Status::Forbidden => "Forbidden",
            Status::NotFound => "Not Found",
            Status::MethodNotAllowed => "Method Not Allowed",
            Status::RequestTimeout => "Request Timeout",
            Status::TooLarge => "Content Too Large",
            Status::UnsupportedMediaType => "Unsupported Media Type",
            Status::Misdirected => "Misdirected Request",
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

    /// The connection stays or closes after it, as its client wants.
    pub(crate) fn for_connection_of(self, request: &Request<'_>) -> Response {
        match (request.keeps_alive, request.is_1_1) {
            (false, _) => self.closing(),
            (true, true) => self,
            (true, false) => self.header("Connection", "keep-alive"),
        }
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
