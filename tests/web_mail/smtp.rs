//! Mail servers that are slow, silent or gone: what is delivered then, how often, and what is said of it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::Signal;

use super::mails::names;
use super::site::Site;
use crate::common::{PATIENCE, eventually};
use crate::test_name;

/// What a mail server does instead of answering as it should.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Act {
    Well,
    Say(&'static str),
    Close,
    Silence,
    /// A byte now and then, and never a whole line.
    Drip,
    Later(Duration),
}

/// Three seconds for most steps, and six to confirm a mail.
const HURRY: [&str; 2] = ["--hurry", "100"];

/// A mail server, and the mails that it has got to their end.
pub(crate) struct Server {
    addr: SocketAddr,
    taken: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// `act` is told the step, `GREETING`, `.` or a command, and how often it was taken before.
    pub(crate) fn start(act: impl Fn(&str, usize) -> Act + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, taken) = (listener.local_addr().unwrap(), Arc::default());
        let server = Server { addr, taken: Arc::clone(&taken) };
        let steps: Arc<Mutex<Vec<String>>> = Arc::default();
        let act = Arc::new(move |step: &str| {
            let mut steps = steps.lock();
            let before = steps.iter().filter(|taken| *taken == step).count();
            steps.push(step.to_owned());
            act(step, before)
        });
        thread::spawn(move || {
            for client in listener.incoming() {
                let (act, taken) = (Arc::clone(&act), Arc::clone(&taken));
                thread::spawn(move || serve(client.unwrap(), &*act, &taken));
            }
        });
        server
    }

    pub(crate) fn site(&self, test: &str, args: &[&str]) -> Site {
        let url = format!("smtp://{}", self.addr);
        Site::open(test, &[["--smtp", &url, "--task-workers", "1", "--retry-ms", "1"].as_slice(), args].concat())
    }

    fn taken(&self) -> usize {
        self.taken.lock().len()
    }
}

/// Until the client is gone.
fn serve(client: TcpStream, act: &dyn Fn(&str) -> Act, taken: &Mutex<Vec<String>>) -> Option<()> {
    let mut lines = BufReader::new(client.try_clone().unwrap()).lines().map_while(Result::ok);
    answer(&client, act("GREETING"), "220 here")?;
    while let Some(line) = lines.next() {
        let command = line.split(' ').next().unwrap().to_ascii_uppercase();
        let does = act(&command);
        answer(&client, does, if command == "DATA" { "354 go on" } else { "250 well" })?;
        if (command.as_str(), does) == ("DATA", Act::Well) {
            let mut text = vec![lines.next()?];
            while text.last()? != "." {
                text.push(lines.next()?);
            }
            taken.lock().push(text[..text.len() - 1].join("\n"));
            answer(&client, act("."), "250 taken")?;
        }
    }
    None
}

/// `None` where that was the last of it.
fn answer(mut client: &TcpStream, act: Act, well: &str) -> Option<()> {
    match act {
        Act::Well => client.write_all(format!("{well}\r\n").as_bytes()).ok(),
        Act::Say(what) => client.write_all(format!("{what}\r\n").as_bytes()).ok(),
        Act::Close => None,
        Act::Silence => loop {
            thread::park();
        },
        Act::Drip => loop {
            client.write_all(b"2").ok()?;
            thread::sleep(Duration::from_millis(50));
        },
        Act::Later(time) => {
            thread::sleep(time);
            client.write_all(format!("{well}\r\n").as_bytes()).ok()
        }
    }
}

/// Each in a thread of its own, since most of it is waiting.
fn for_each<X: Send>(cases: impl IntoIterator<Item = X>, check: impl Fn(X) + Sync) {
    thread::scope(|scope| {
        for case in cases {
            scope.spawn(|| check(case));
        }
    });
}

#[test]
fn a_mail_that_is_not_confirmed_is_delivered_once_and_said_to_be_unknown() {
    let test = test_name!();
    let acts = [Act::Close, Act::Silence, Act::Drip, Act::Say("hello"), Act::Say("354 go on")];
    for_each(acts.into_iter().enumerate(), |(number, act)| {
        let smtp = Server::start(move |step, before| if (step, before) == (".", 0) { act } else { Act::Well });
        let site = smtp.site(&format!("{test}_{number}"), &HURRY);
        let mut events = site.events();
        assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
        let states = events.states_of(1, "unknown");
        assert_eq!(names(&states), ["queued", "sending", "unknown"], "{act:?}");
        assert!(states[2].1.contains("confirm"), "{act:?}: {states:?}");
        // The task worker is free for the next.
        assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
        assert_eq!(names(&events.states_of(2, "sent")), ["queued", "sending", "sent"], "{act:?}");
        assert_eq!(smtp.taken(), 2, "{act:?}");
        site.example.signal(Signal::TERM);
        let Site { example, .. } = site;
        assert_eq!(example.end().0, "shutdown: 2 mails accepted, 1 sent, 0 not, 1 not known\n");
    });
}

#[test]
fn a_mail_server_may_take_longer_to_confirm_than_for_anything_else() {
    let slowly = |step: &str, _| if step == "." { Act::Later(Duration::from_secs(4)) } else { Act::Well };
    let smtp = Server::start(slowly);
    let site = smtp.site(test_name!(), &HURRY);
    let mut events = site.events();
    assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
    assert_eq!(names(&events.states_of(1, "sent")), ["queued", "sending", "sent"]);
    assert_eq!(smtp.taken(), 1);
}

#[test]
fn a_mail_that_fails_before_its_end_is_tried_again_and_no_server_holds_a_task_worker_for_long() {
    let test = test_name!();
    for_each(["GREETING", "EHLO", "MAIL", "RCPT", "DATA"], |step| {
        for (number, act) in [Act::Close, Act::Drip, Act::Say("421 not now")].into_iter().enumerate() {
            let at = move |asked: &str, before| if (asked, before) == (step, 0) { act } else { Act::Well };
            let smtp = Server::start(at);
            let site = smtp.site(&format!("{test}_{step}_{number}"), &HURRY);
            let mut events = site.events();
            assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
            let states = events.states_of(1, "sent");
            assert_eq!(names(&states), ["queued", "sending", "waiting", "sending", "sent"], "{step}: {act:?}");
            assert_eq!(smtp.taken(), 1, "{step}: {act:?}");
        }
    });
}

#[test]
fn what_the_mail_server_says_after_the_end_of_a_mail_counts() {
    for (says, last) in [("452 no room", "sent"), ("554 no thanks", "failed")] {
        let smtp = Server::start(move |step, before| match (step, before) {
            (".", 0) => Act::Say(says),
            _ => Act::Well,
        });
        let site = smtp.site(test_name!(), &[]);
        let mut events = site.events();
        assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
        let states = events.states_of(1, last);
        assert!(states.iter().any(|(_, why)| why == says), "{states:?}");
        assert!(!names(&states).contains(&"unknown"), "{states:?}");
    }
}

#[test]
fn a_connection_that_was_lost_between_two_mails_is_made_anew() {
    let smtp = Server::start(|step, _| if step == "RSET" { Act::Close } else { Act::Well });
    let site = smtp.site(test_name!(), &[]);
    let mut events = site.events();
    for number in 1..=3 {
        assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
        assert_eq!(names(&events.states_of(number, "sent")), ["queued", "sending", "sent"]);
    }
    assert_eq!(smtp.taken(), 3);
}

#[test]
fn lines_that_somebody_writes_end_neither_the_mail_nor_one_another() {
    let smtp = Server::start(|_, _| Act::Well);
    let site = smtp.site(test_name!(), &[]);
    let mut events = site.events();
    let text = "a\r.\r\nMAIL FROM:<eve@example.org>\r\rb\n.\n..c\r\n\td";
    assert_eq!(site.post(&[("to", "ann@example.org"), ("text", text)]).status, 202);
    events.states_of(1, "sent");
    let taken = smtp.taken.lock();
    let (_, body) = taken[0].split_once("\n\n").unwrap();
    assert!(!body.contains('\r'), "{body:?}");
    assert_eq!(body.trim_end(), "a\n..\nMAIL FROM:<eve@example.org>\n\nb\n..\n...c\n\td");
}

#[test]
fn a_mail_that_waits_for_another_attempt_has_it_when_the_server_is_to_end() {
    for (acts, said, code) in [
        ([Act::Say("451 not now"), Act::Well], "shutdown: 1 mails accepted, 1 sent, 0 not\n", 0),
        (
            [Act::Say("451 not now"), Act::Say("452 not now either")],
            "mail 1 to \"ann@example.org\": not sent: 452 not now either\nshutdown: 1 mails accepted, 0 sent, 1 not\n",
            1,
        ),
    ] {
        let smtp = Server::start(move |step, before| if step == "RCPT" { acts[before] } else { Act::Well });
        let site = smtp.site(test_name!(), &["--retry-ms", "600000"]);
        let mut events = site.events();
        assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
        events.states_of(1, "waiting");
        site.example.signal(Signal::TERM);
        assert!(!events.0.rest().contains("failed"), "nothing is said to have failed that may still be sent");
        let Site { example, .. } = site;
        let (output, status) = example.end();
        assert_eq!((output.as_str(), status.code()), (said, Some(code)));
        assert_eq!(smtp.taken(), usize::from(code == 0));
    }
}

#[test]
fn at_a_second_signal_no_mail_server_is_waited_for_any_more() {
    // In a last attempt, which begins at the first signal, and in one that both signals find.
    for (silent_at, failed_before) in [("RCPT", true), (".", false)] {
        let (tell, told) = std::sync::mpsc::channel();
        let smtp = Server::start(move |step, before| match (step, before) {
            ("RCPT", 0) if failed_before => Act::Say("451 not now"),
            _ if step == silent_at => {
                tell.send(()).unwrap();
                Act::Silence
            }
            _ => Act::Well,
        });
        let site = smtp.site(test_name!(), &["--retry-ms", "600000"]);
        let mut events = site.events();
        assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
        if failed_before {
            events.states_of(1, "waiting");
            site.example.signal(Signal::TERM);
        }
        told.recv_timeout(PATIENCE).expect("an attempt");
        site.example.signal(Signal::TERM);
        if !failed_before {
            // Two that come at once may count as one.
            eventually("the first has come", || TcpStream::connect(site.addr).is_err());
            site.example.signal(Signal::TERM);
        }
        let Site { example, .. } = site;
        let (output, status) = example.end();
        assert!(output.starts_with("mail 1 to \"ann@example.org\": not known whether it was delivered: "), "{output}");
        assert!(output.ends_with("shutdown: 1 mails accepted, 0 sent, 0 not, 1 not known\n"), "{output}");
        assert_eq!(status.code(), Some(1));
    }
}
