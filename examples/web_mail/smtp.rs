//! A client of SMTP (RFC 5321) that sends one mail after the other over one connection.
//!
//! Two things must hold that those we know do not promise. What fails before the end of a mail is sent may be tried
//! again; what fails after it may have been delivered. And a server that sends a byte now and then, so that no read takes
//! long, holds nobody for ever: each step has an end, and so has the attempt.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lettre::Message;
use percent_encoding::percent_decode_str;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use url::{Host, Url};

use crate::outgoing::Failure;

// How long the steps may take: RFC 5321, 4.5.3.2.
const COMMAND_TIME: Duration = Duration::from_secs(5 * 60);
const DATA_TIME: Duration = Duration::from_secs(2 * 60);
const TEXT_TIME: Duration = Duration::from_secs(3 * 60);
const CONFIRMATION_TIME: Duration = Duration::from_secs(10 * 60);

/// A connection that was not used for so long is made anew; most servers would soon close it.
const MAX_IDLE: Duration = Duration::from_secs(60);
const MAX_LINE: u64 = 4 * 1024;
const MAX_LINES: usize = 100;

/// A server, and a connection to it that is made for the first mail, kept while it is used, and made anew when it is lost.
pub(crate) struct Smtp {
    server: Server,
    kept: Option<(Connection, Instant)>,
}

struct Server {
    url: Url,
    tls: Tls,
    login: Option<Login>,
}

/// When the connection is encrypted.
enum Tls {
    Never,
    IfOffered(Encryption),
    Required(Encryption),
    FromTheStart(Encryption),
}

#[derive(Clone)]
struct Encryption {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

struct Login {
    user: String,
    password: String,
}

impl Smtp {
    /// By smtp://, smtp://…?tls=required, smtp://…?tls=opportunistic or smtps://. No error shows the URL, since there may
    /// be a password in it.
    pub(crate) fn parse(url: &str) -> anyhow::Result<Smtp> {
        let url = Url::parse(url)?;
        let query = url.query();
        let tls = match (url.scheme(), query) {
            ("smtp", None) => Tls::Never,
            ("smtp", Some("tls=opportunistic")) => Tls::IfOffered(Encryption::to(&url)?),
            ("smtp", Some("tls=required")) => Tls::Required(Encryption::to(&url)?),
            ("smtps", _) => Tls::FromTheStart(Encryption::to(&url)?),
            _ => bail!("neither smtp://server, with ?tls=required or ?tls=opportunistic, nor smtps://server"),
        };
        let decoded = |text| anyhow::Ok(percent_decode_str(text).decode_utf8()?.into_owned());
        let login = match url.password() {
            Some(password) => Some(Login { user: decoded(url.username())?, password: decoded(password)? }),
            None => None,
        };
        Ok(Smtp { server: Server { url, tls, login }, kept: None })
    }

    /// One attempt, which ends by then.
    pub(crate) fn send(&mut self, message: &Message, end: Instant) -> Result<(), Failure> {
        let kept = self.kept.take().filter(|(_, used)| used.elapsed() < MAX_IDLE);
        let kept = kept.and_then(|(kept, _)| kept.reset(end).ok());
        let mut connection = match kept {
            Some(kept) => kept,
            None => Connection::open(&self.server, end)?,
        };
        connection.deliver(message)?;
        self.kept = Some((connection, Instant::now()));
        Ok(())
    }
}

impl Server {
    fn connect(&self, until: &Rc<Cell<Instant>>) -> io::Result<Timed> {
        let port = match self.tls {
            Tls::Never => 25,
            Tls::IfOffered(_) | Tls::Required(_) => 587,
            Tls::FromTheStart(_) => 465,
        };
        let mut failed = io::Error::new(ErrorKind::NotFound, "the name of the SMTP server has no address");
        for address in self.url.socket_addrs(|| Some(port))? {
            match TcpStream::connect_timeout(&address, time_left(until.get())?) {
                Ok(socket) => return Ok(Timed { socket, until: Rc::clone(until) }),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

impl Encryption {
    /// With the certificates that this machine trusts, or those of `SSL_CERT_FILE`.
    fn to(url: &Url) -> anyhow::Result<Encryption> {
        let name = match url.host().context("no host")? {
            Host::Domain(name) => ServerName::try_from(name.to_owned())?,
            Host::Ipv4(address) => IpAddr::from(address).into(),
            Host::Ipv6(address) => IpAddr::from(address).into(),
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
        Ok(Encryption { config, name })
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
    /// What the server has said that it can do.
    extensions: Vec<String>,
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

impl Connection {
    fn open(server: &Server, end: Instant) -> Result<Connection, Failure> {
        let until = Rc::new(Cell::new(end.min(Instant::now() + COMMAND_TIME)));
        let socket = server.connect(&until)?;
        let stream: Box<dyn Stream> = Box::new(socket.try_clone()?);
        let stream = BufReader::new(stream);
        let mut connection = Connection { stream, socket, until, end, extensions: Vec::new() };
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
        self.until.set(self.end.min(Instant::now() + time));
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

/// Whoever goes says so, and does not wait for the answer.
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

/// A socket on which all that is read and written is so by a certain moment, however little it is at a time.
struct Timed {
    socket: TcpStream,
    until: Rc<Cell<Instant>>,
}

impl Timed {
    fn try_clone(&self) -> io::Result<Timed> {
        Ok(Timed { socket: self.socket.try_clone()?, until: Rc::clone(&self.until) })
    }
}

fn time_left(until: Instant) -> io::Result<Duration> {
    match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::new(ErrorKind::TimedOut, "the SMTP server took too long")),
        left => Ok(left),
    }
}

/// Whether to look how much time is left.
fn is_interrupted<X>(result: &io::Result<X>) -> bool {
    result.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted))
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            self.socket.set_read_timeout(Some(time_left(self.until.get())?))?;
            let read = self.socket.read(bytes);
            if !is_interrupted(&read) {
                return read;
            }
        }
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.socket.set_write_timeout(Some(time_left(self.until.get())?))?;
            let written = self.socket.write(bytes);
            if !is_interrupted(&written) {
                return written;
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
