//! The example, running, and clients that see every byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::common::example::Example;
use crate::common::{PATIENCE, TempDir};

pub(crate) struct Site {
    pub(crate) example: Example,
    pub(crate) addr: SocketAddr,
    pub(crate) folder: TempDir,
}

impl Site {
    /// Named by the test, since each has a folder of its own.
    pub(crate) fn open(test: &str, args: &[&str]) -> Site {
        Site::open_as(test, &mut Command::new(Example::program("web_mail")), args)
    }

    /// By a command that runs the example in the end, with the arguments that it is given.
    pub(crate) fn open_as(test: &str, command: &mut Command, args: &[&str]) -> Site {
        let folder = TempDir::new(test);
        let mails = folder.join("mails");
        let common = ["--listen", "127.0.0.1:0", "--host", "here", "--folder", mails.to_str().unwrap()];
        let mut example = Example::start_as(command.args(common).args(args));
        let addr = example.address();
        Site { example, addr, folder }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn browser(&self) -> Browser {
        let socket = TcpStream::connect(self.addr).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Browser(BufReader::new(socket))
    }

    /// The answer to one request on a connection of its own.
    pub(crate) fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        self.browser().ask(request)
    }

    pub(crate) fn post(&self, form: &[(&str, &str)]) -> Answer {
        self.ask(posted(form))
    }

    /// What it tells a page, from now on.
    pub(crate) fn events(&self) -> Events {
        let mut browser = self.browser();
        browser.send("GET /events HTTP/1.1\r\nHost: here\r\n\r\n");
        let (status, headers) = browser.head();
        assert_eq!((status, headers.get("content-type")), (200, Some("text/event-stream")));
        Events(browser)
    }

    pub(crate) fn mails_in_folder(&self) -> Vec<String> {
        let folder: PathBuf = self.folder.join("mails");
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        // Others are not finished, and may be gone by the time they are read.
        let mails = files.filter(|path| path.extension().is_some_and(|kind| kind == "eml"));
        mails.map(|path| std::fs::read_to_string(path).unwrap()).collect()
    }
}

/// A POST of a form.
pub(crate) fn posted(form: &[(&str, &str)]) -> String {
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let kind = "Content-Type: application/x-www-form-urlencoded";
    format!("POST /mails HTTP/1.1\r\nHost: here\r\n{kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|header| header.0 == name).map(|header| header.1.as_str())
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

pub(crate) struct Browser(pub(crate) BufReader<TcpStream>);

impl Browser {
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).expect("send");
    }

    pub(crate) fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.send(request);
        self.answer()
    }

    /// The next answer, whole, to a request that was no HEAD.
    pub(crate) fn answer(&mut self) -> Answer {
        let (status, headers) = self.head();
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("the body");
        Answer { status, headers, body: String::from_utf8(body).unwrap() }
    }

    pub(crate) fn head(&mut self) -> (u16, Headers) {
        let line = self.line();
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok());
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            match line.split_once(": ") {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
                None => break assert_eq!(line, ""),
            }
        }
        (status.unwrap_or_else(|| panic!("{line:?}")), Headers(headers))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        assert!(line.ends_with("\r\n"), "{line:?}");
        line.truncate(line.len() - 2);
        line
    }

    /// Everything until the server closes.
    pub(crate) fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).expect("an orderly end");
        String::from_utf8(rest).unwrap()
    }
}

/// Server-sent events.
pub(crate) struct Events(pub(crate) Browser);

impl Events {
    pub(crate) fn next(&mut self) -> Value {
        let mut line = String::new();
        let start = Instant::now();
        while !line.starts_with("data: ") {
            // The heartbeat goes on where nothing else does.
            assert!(start.elapsed() < PATIENCE, "an event that never came");
            line.clear();
            assert!(self.0.0.read_line(&mut line).expect("an event") > 0, "the stream has ended");
        }
        serde_json::from_str(&line["data: ".len()..]).expect("JSON")
    }

    /// The states that a mail goes through, up to this one, each with why.
    pub(crate) fn states_of(&mut self, number: u64, last: &str) -> Vec<(String, String)> {
        let mut states = Vec::new();
        loop {
            let event = self.next();
            for mail in event["mails"].as_array().unwrap().iter().filter(|mail| mail["number"] == number) {
                let state = mail["state"].as_str().unwrap().to_owned();
                let is_last = state == last;
                states.push((state, mail["why"].as_str().unwrap_or_default().to_owned()));
                if is_last {
                    return states;
                }
            }
        }
    }
}
