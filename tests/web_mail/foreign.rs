//! An SMTP server, curl and wrk, none of which anybody here has written.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::thread;

use serde_json::Value;

use super::site::Site;
use crate::common::example::Example;
use crate::common::{Program, TempDir, eventually, programs};
use crate::test_name;

/// Debian's, whose aiosmtpd `.ci/run` installs.
const PYTHON: &str = "/usr/bin/python3";

/// aiosmtpd: refuses `nobody@…` for good and `later@…` twice, and says what it is sent, and over which connection.
const SMTP_SERVER: &str = r#"
import asyncio, json, sys
from aiosmtpd.smtp import SMTP

class Handler:
    tries = {}

    async def handle_RCPT(self, server, session, envelope, address, options):
        self.tries[address] = self.tries.get(address, 0) + 1
        if address.startswith("nobody@"):
            return "550 no such person here"
        if address.startswith("later@") and self.tries[address] <= 2:
            return "451 not just now"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        content = envelope.content.decode()
        print(json.dumps([envelope.mail_from, envelope.rcpt_tos, content, session.peer[1]]), flush=True)
        return "250 OK"

async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Handler(), loop=loop), "127.0.0.1", int(sys.argv[1]))
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"#;

/// The same over TLS, for who knows the password.
const SMTPS_SERVER: &str = r#"
import asyncio, ssl, sys
from aiosmtpd.smtp import SMTP, AuthResult

class Handler:
    async def handle_DATA(self, server, session, envelope):
        print(session.auth_data.login.decode(), envelope.rcpt_tos[0], flush=True)
        return "250 OK"

def authenticate(server, session, envelope, mechanism, data):
    return AuthResult(success=data.password == b"p:w", auth_data=data, handled=False)

async def main():
    loop = asyncio.get_running_loop()
    kind, excluded, cert, key = sys.argv[1:]
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)
    begins = kind == "starttls"
    make = lambda: SMTP(
        Handler(), loop=loop, authenticator=authenticate, auth_required=True, auth_exclude_mechanism=[excluded],
        tls_context=tls if begins else None, require_starttls=begins, auth_require_tls=begins,
    )
    server = await loop.create_server(make, "127.0.0.1", 0, ssl=None if begins else tls)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"#;

struct SmtpServer {
    said: Lines<BufReader<ChildStdout>>,
    url: String,
    _program: Program,
}

impl SmtpServer {
    /// Port 0 is any that is free.
    fn start(port: &str) -> SmtpServer {
        let mut command = Command::new(PYTHON);
        command.args(["-c", SMTP_SERVER, port]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = Program::start(&mut command);
        let mut said = BufReader::new(program.0.stdout.take().unwrap()).lines();
        let port = said.next().expect("aiosmtpd, which starts").unwrap();
        SmtpServer { said, url: format!("smtp://127.0.0.1:{port}"), _program: program }
    }

    /// Who sent the next mail, to whom, what, and over which connection.
    fn mail(&mut self) -> (String, Vec<String>, String, u64) {
        serde_json::from_str(&self.said.next().expect("a mail").unwrap()).unwrap()
    }
}

#[test]
fn a_real_smtp_server_is_sent_all_mails_over_one_connection_per_task_worker() {
    if !programs(&["python3"]) {
        return;
    }
    const MAILS: u64 = 20;
    let mut smtp = SmtpServer::start("0");
    let from = ["--from", "The Shop <shop@example.org>", "--task-workers", "2"];
    let site = Site::open(test_name!(), &[["--smtp", &smtp.url].as_slice(), &from].concat());
    let mut events = site.events();
    let mut connections = Vec::new();
    for number in 1..=MAILS {
        let subject = format!("Größe {number}");
        let text = "one\n.\n..two\nMAIL FROM:<eve@example.org>";
        assert_eq!(site.post(&[("to", "Ann <ann@example.org>"), ("subject", &subject), ("text", text)]).status, 202);
        events.states_of(number, "sent");
        let (sender, recipients, content, connection) = smtp.mail();
        assert_eq!((sender.as_str(), recipients), ("shop@example.org", vec!["ann@example.org".to_owned()]));
        assert!(content.contains("Subject: =?utf-8?b?"), "{content}");
        let body = content.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(body.trim_end(), text.replace('\n', "\r\n"), "nothing of it was taken for a command");
        connections.push(connection);
    }
    connections.sort_unstable();
    connections.dedup();
    assert!(connections.len() <= 2, "{connections:?}");
}

#[test]
fn what_the_smtp_server_refuses_for_now_is_tried_again_and_what_it_refuses_for_good_is_not() {
    if !programs(&["python3"]) {
        return;
    }
    let mut smtp = SmtpServer::start("0");
    let site = Site::open(test_name!(), &["--smtp", &smtp.url, "--retry-ms", "20"]);
    let mut events = site.events();
    let mut states = |number, to, last| {
        assert_eq!(site.post(&[("to", to)]).status, 202);
        events.states_of(number, last)
    };
    let passing = states(1, "later@example.org", "sent");
    let names: Vec<&str> = passing.iter().map(|state| state.0.as_str()).collect();
    assert_eq!(names, ["queued", "sending", "waiting", "sending", "waiting", "sending", "sent"]);
    assert!(passing[2].1.contains("451") && passing[2].1.contains("not just now"), "{passing:?}");
    assert_eq!(smtp.mail().1, ["later@example.org"]);
    let for_good = states(2, "nobody@example.org", "failed");
    let names: Vec<&str> = for_good.iter().map(|state| state.0.as_str()).collect();
    assert_eq!(names, ["queued", "sending", "failed"]);
    assert!(for_good[2].1.contains("550") && for_good[2].1.contains("no such person here"), "{for_good:?}");
}

#[test]
fn a_mail_waits_out_an_smtp_server_that_is_gone_for_a_while() {
    if !programs(&["python3"]) {
        return;
    }
    let SmtpServer { url, .. } = SmtpServer::start("0");
    let site = Site::open(test_name!(), &["--smtp", &url, "--retry-ms", "100", "--attempts", "50"]);
    let mut events = site.events();
    assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
    events.states_of(1, "waiting");
    let _back = SmtpServer::start(url.rsplit(':').next().unwrap());
    events.states_of(1, "sent");
}

#[test]
fn mails_go_over_tls_with_a_password_to_a_server_whose_certificate_is_trusted_and_to_no_other() {
    if !programs(&["python3"]) {
        return;
    }
    let files = TempDir::new("tls_files");
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| files.join(name));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    for (kind, excluded, scheme, query) in [
        ("starttls", "LOGIN", "smtp", "?tls=required"),
        ("starttls", "PLAIN", "smtp", "?tls=opportunistic"),
        ("tls", "LOGIN", "smtps", ""),
    ] {
        let mut command = Command::new(PYTHON);
        command.args(["-c", SMTPS_SERVER, kind, excluded]).args([&cert, &key]);
        let mut server = Program::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()));
        let mut said = BufReader::new(server.0.stdout.take().unwrap()).lines().map(Result::unwrap);
        let port = said.next().expect("aiosmtpd, which starts");
        let open = |password, trusted: Option<&Path>| {
            let url = format!("{scheme}://ann:{password}@localhost:{port}{query}");
            let mut command = Command::new(Example::program("web_mail"));
            command.envs(trusted.map(|cert| ("SSL_CERT_FILE", cert)));
            let site = Site::open_as(test_name!(), &mut command, &["--smtp", &url, "--attempts", "1"]);
            assert_eq!(site.post(&[("to", "bob@example.org")]).status, 202);
            site
        };
        open("p%3Aw", Some(&cert)).events().states_of(1, "sent");
        assert_eq!(said.next().unwrap(), "ann bob@example.org", "{kind}");
        let why = |site: Site| site.events().states_of(1, "failed").pop().unwrap().1;
        assert!(why(open("wrong", Some(&cert))).starts_with("535"), "{kind}");
        assert!(why(open("p%3Aw", None)).contains("certificate"), "{kind}");
    }
    // A server that has no TLS is told nothing where that is required.
    let smtp = SmtpServer::start("0");
    let url = smtp.url.clone() + "?tls=required";
    let site = Site::open(test_name!(), &["--smtp", &url]);
    assert_eq!(site.post(&[("to", "bob@example.org")]).status, 202);
    assert!(site.events().states_of(1, "failed").pop().unwrap().1.contains("no TLS"));
}

fn curl(args: &[&str]) -> String {
    let output = Command::new("curl").args(["-sS", "--max-time", "30"]).args(args).output().unwrap();
    assert!(output.status.success(), "curl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn curl_gets_on_with_it() {
    if !programs(&["curl"]) {
        return;
    }
    let site = Site::open(test_name!(), &[]);
    let (page, mails) = (site.url() + "/", site.url() + "/mails");
    let form = "to=ann@example.org&subject=from+curl";
    let status = ["-o", "/dev/null", "-w", "%{http_code} "];
    assert!(curl(&[&page]).contains("<form"));
    assert_eq!(curl(&[&status[..], &["-I", &page]].concat()), "200 ");
    let accepted: Value = serde_json::from_str(&curl(&["-d", form, &mails])).unwrap();
    assert_eq!(accepted["number"], 1);
    for how in ["Transfer-Encoding: chunked", "Expect: 100-continue", "Connection: close"] {
        assert_eq!(curl(&[&status[..], &["-H", how, "-d", form, &mails]].concat()), "202 ", "{how}");
    }
    assert_eq!(curl(&[&status[..], &["--http1.0", "-d", form, &mails]].concat()), "202 ");
    let large = site.folder.join("large");
    std::fs::write(&large, "x".repeat(300_000)).unwrap();
    let large = format!("@{}", large.display());
    assert_eq!(curl(&[&status[..], &["--data-binary", &large, &mails]].concat()), "413 ");
    let reused = curl(&["-o", "/dev/null", "-o", "/dev/null", "-w", "%{num_connects} ", &page, &mails]);
    assert_eq!(reused, "1 0 ", "the second request goes over the connection of the first");
    eventually("all mails are there", || site.mails_in_folder().len() == 5);
}

#[test]
fn curl_follows_the_events_while_mails_are_posted() {
    if !programs(&["curl"]) {
        return;
    }
    let site = Site::open(test_name!(), &[]);
    let mut curl = Command::new("curl");
    let mut curl = Program::start(curl.args(["-sSN", &(site.url() + "/events")]).stdout(Stdio::piped()));
    let mut lines = BufReader::new(curl.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), r#"data: {"mails":[],"begun":0,"retrying":0}"#);
    assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
    let is_sent = |line: Result<String, _>| line.unwrap().contains(r#""state":"sent""#);
    assert!(lines.any(is_sent));
}

#[test]
fn wrk_finds_no_error_on_the_page_while_mails_are_slow() {
    if !programs(&["wrk"]) {
        return;
    }
    let site = Site::open(test_name!(), &["--slow-ms", "100"]);
    let output = thread::scope(|scope| {
        let url = site.url() + "/";
        let wrk = scope.spawn(move || Command::new("wrk").args(["-t1", "-c32", "-d2s", &url]).output().unwrap());
        for _ in 0..20 {
            assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
        }
        wrk.join().unwrap()
    });
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && report.contains("requests in"), "{report}");
    assert!(!report.contains("Non-2xx") && !report.contains("Socket errors"), "{report}");
}
