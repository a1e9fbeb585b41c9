//! A client of SMTP (RFC 5321) that sends one mail after the other over one connection.
//!
//! lettre has one too, which does not say in which step it has failed, and whose times are those of single reads. Here
//! two things must hold. What fails before the end of a mail is sent may be tried again; what fails after it may have been
//! delivered. And a server that sends a byte now and then holds nobody for ever: each step has an end, and so has the
//! attempt.

#[path = "smtp/server.rs"]
mod server;
#[path = "smtp/timed.rs"]
mod timed;

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lettre::Message;
use rustls::{ClientConnection, StreamOwned};

use self::server::{Encryption, Login, Server, Tls};
use self::timed::Timed;
use crate::outgoing::Failure;

// How long the steps may take: RFC 5321, 4.5.3.2.
const COMMAND_TIME: Duration = Duration::from_secs(5 * 60);
const DATA_TIME: Duration = Duration::from_secs(2 * 60);
const TEXT_TIME: Duration = Duration::from_secs(3 * 60);
const CONFIRMATION_TIME: Duration = Duration::from_secs(10 * 60);
/// All steps together, of which there may be twelve.
const ATTEMPT_TIME: Duration = Duration::from_secs(60 * 60);

/// A connection that was idle for this time is made anew; most servers would soon close it.
const MAX_IDLE: Duration = Duration::from_secs(60);
const MAX_LINE: u64 = 4 * 1024;
const MAX_LINES: usize = 100;

/// A server, and a connection to it that is made for the first mail, kept while it is used, and made anew when it is lost.
pub(crate) struct Smtp {
    server: Server,
    hurry: u32,
    kept: Option<(Connection, Instant)>,
}

impl Smtp {
    /// With all times divided by `hurry`.
    pub(crate) fn to(url: &str, hurry: u32) -> anyhow::Result<Smtp> {
        Ok(Smtp { server: Server::parse(url)?, hurry, kept: None })
    }

    /// One attempt, which is over in time, and by then if there is such a moment.
    pub(crate) fn send(&mut self, message: &Message, end: Option<Instant>) -> Result<(), Failure> {
        let last = Instant::now() + ATTEMPT_TIME / self.hurry;
        let end = end.map_or(last, |end| end.min(last));
        let kept = self.kept.take().filter(|(_, used)| used.elapsed() < MAX_IDLE);
        let kept = kept.and_then(|(kept, _)| kept.reset(end).ok());
        let mut connection = match kept {
            Some(kept) => kept,
            None => Connection::open(&self.server, self.hurry, end)?,
        };
        connection.deliver(message)?;
        self.kept = Some((connection, Instant::now()));
        Ok(())
    }
}

struct Connection {
    stream: BufReader<Box<dyn Stream>>,
    /// The same socket, to be encrypted.
    socket: Timed,
    /// When the step ends.
    until: Rc<Cell<Instant>>,
    /// When the attempt ends.
    end: Instant,
    hurry: u32,
    /// What the server has said that it can do.
    extensions: Vec<String>,
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

impl Connection {
    fn open(server: &Server, hurry: u32, end: Instant) -> Result<Connection, Failure> {
        let until = Rc::new(Cell::new(end.min(Instant::now() + COMMAND_TIME / hurry)));
        let socket = server.connect(&until)?;
        let stream: Box<dyn Stream> = Box::new(socket.try_clone()?);
        let stream = BufReader::new(stream);
        let mut connection = Connection { stream, socket, until, end, hurry, extensions: Vec::new() };
        if let Tls::FromTheStart(encryption) = &server.tls {
            connection.encrypt(encryption)?;
        }
        connection.greeting()?.expect(2)?;
        connection.hello()?;
        match &server.tls {
            Tls::IfOffered(encryption) if connection.can("STARTTLS") => connection.start_tls(encryption)?,
            Tls::Required(encryption) if connection.can("STARTTLS") => connection.start_tls(encryption)?,
            Tls::Required(_) => return Err(Failure::ForGood("the SMTP server offers no TLS".to_owned())),
            _ => {}
        }
        if let Some(login) = &server.login {
            connection.log_in(login)?;
        }
        Ok(connection)
    }

    /// For the next mail.
    fn reset(mut self, end: Instant) -> Result<Connection, Failure> {
        self.end = end;
        self.command("RSET")?.expect(2)?;
        Ok(self)
    }

    fn deliver(&mut self, message: &Message) -> Result<(), Failure> {
        let envelope = message.envelope();
        let from = envelope.from().map_or("", AsRef::as_ref);
        self.command(&format!("MAIL FROM:<{from}>"))?.expect(2)?;
        for to in envelope.to() {
            self.command(&format!("RCPT TO:<{to}>"))?.expect(2)?;
        }
        self.begin_step(DATA_TIME);
        self.ask("DATA")?.expect(3)?;
        self.begin_step(TEXT_TIME);
        self.write(&stuffed(&message.formatted()))?;
        // From here on the server may have the mail.
        self.begin_step(CONFIRMATION_TIME);
        let confirmed =
            self.ask(".").map_err(|error| Failure::Unknown(format!("the server did not confirm: {error}")))?;
        if confirmed.code < 400 && confirmed.code / 100 != 2 {
            return Err(Failure::Unknown(format!("the server did not confirm, but said {}", confirmed.text)));
        }
        confirmed.expect(2)
    }

    fn greeting(&mut self) -> io::Result<Answer> {
        self.begin_step(COMMAND_TIME);
        self.answer()
    }

    /// By the address, as RFC 5321, 4.1.4 has it for who may have no name that others know.
    fn hello(&mut self) -> Result<(), Failure> {
        let hello = match self.socket.socket.local_addr()?.ip() {
            IpAddr::V4(address) => format!("EHLO [{address}]"),
            IpAddr::V6(address) => format!("EHLO [IPv6:{address}]"),
        };
        let answer = self.command(&hello)?;
        self.extensions = answer.lines().skip(1).map(str::to_ascii_uppercase).collect();
        answer.expect(2)
    }

    fn can(&self, extension: &str) -> bool {
        self.extensions.iter().any(|known| known == extension)
    }

    fn start_tls(&mut self, encryption: &Encryption) -> Result<(), Failure> {
        self.command("STARTTLS")?.expect(2)?;
        self.encrypt(encryption)?;
        self.hello()
    }

    /// What has come unencrypted is forgotten, lest it counts as an answer to what follows.
    fn encrypt(&mut self, encryption: &Encryption) -> Result<(), Failure> {
        let tls = ClientConnection::new(Arc::clone(&encryption.config), encryption.name.clone())
            .map_err(|error| Failure::ForNow(error.to_string()))?;
        self.stream = BufReader::new(Box::new(StreamOwned::new(tls, self.socket.try_clone()?)));
        Ok(())
    }

    fn log_in(&mut self, Login { user, password }: &Login) -> Result<(), Failure> {
        let base64 = |text: &str| BASE64_STANDARD.encode(text);
        let mechanisms = self.extensions.iter().find_map(|known| known.strip_prefix("AUTH ")).unwrap_or_default();
        if !mechanisms.contains("PLAIN") && mechanisms.contains("LOGIN") {
            self.command("AUTH LOGIN")?.expect(3)?;
            self.command(&base64(user))?.expect(3)?;
            return self.command(&base64(password))?.expect(2);
        }
        self.command(&format!("AUTH PLAIN {}", base64(&format!("\0{user}\0{password}"))))?.expect(2)
    }

    fn begin_step(&self, time: Duration) {
        self.until.set(self.end.min(Instant::now() + time / self.hurry));
    }

    fn command(&mut self, line: &str) -> io::Result<Answer> {
        self.begin_step(COMMAND_TIME);
        self.ask(line)
    }

    fn ask(&mut self, line: &str) -> io::Result<Answer> {
        self.write(format!("{line}\r\n").as_bytes())?;
        self.answer()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        self.stream.get_mut().flush()
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let broken = |what| io::Error::new(ErrorKind::InvalidData, what);
        let mut answer = Answer { code: 0, text: String::new() };
        for _ in 0..MAX_LINES {
            let mut line = Vec::new();
            (&mut self.stream).take(MAX_LINE).read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") {
                return Err(broken("the SMTP server closed the connection, or sent a line too long"));
            }
            // It is shown to people, and on terminals.
            let line: String = String::from_utf8_lossy(&line).trim_end().replace(char::is_control, " ");
            let code = line.get(..3).and_then(|code| code.parse().ok()).filter(|code| (200..600).contains(code));
            answer.code = code.ok_or_else(|| broken("what the SMTP server sent is no answer"))?;
            answer.text += &line;
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(answer);
            }
            answer.text.push('\n');
        }
        Err(broken("an answer without end"))
    }
}

/// Says goodbye, and does not wait for the answer.
impl Drop for Connection {
    fn drop(&mut self) {
        self.until.set(Instant::now() + Duration::from_secs(1));
        let _ = self.write(b"QUIT\r\n");
    }
}

struct Answer {
    code: u16,
    /// All of its lines, with the code.
    text: String,
}

impl Answer {
    fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.lines().map(|line| line.get(4..).unwrap_or_default())
    }

    /// Whether it begins with this digit.
    fn expect(self, digit: u16) -> Result<(), Failure> {
        match self.code / 100 {
            first if first == digit => Ok(()),
            5 => Err(Failure::ForGood(self.text)),
            _ => Err(Failure::ForNow(self.text)),
        }
    }
}

/// As it is sent: the end of a line at the end, and no line of the text is taken for that of the mail.
fn stuffed(text: &[u8]) -> Vec<u8> {
    let mut stuffed = Vec::with_capacity(text.len() + text.len() / 32);
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b".") {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    if !stuffed.ends_with(b"\r\n") {
        stuffed.extend_from_slice(b"\r\n");
    }
    stuffed
}
