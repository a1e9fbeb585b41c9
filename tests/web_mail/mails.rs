//! What becomes of mails, and what is shown of that.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::site::{Site, posted};
use crate::common::eventually;
use crate::common::example::Example;
use crate::test_name;

pub(crate) fn names(states: &[(String, String)]) -> Vec<&str> {
    states.iter().map(|state| state.0.as_str()).collect()
}

#[test]
fn a_mail_is_accepted_at_once_and_shown_as_it_goes() {
    let site = Site::open(test_name!(), &["--task-workers", "1", "--slow-ms", "1000"]);
    let mut events = site.events();
    assert_eq!(events.next()["mails"].as_array().unwrap().len(), 0);
    let start = Instant::now();
    let form = [("to", "Zoë <zoe@example.org>"), ("subject", "Größe & <b>"), ("text", "line\nline")];
    let receipts: Vec<_> = (0..3).map(|_| site.post(&form)).collect();
    assert!(start.elapsed() < Duration::from_millis(1000), "none waited for the first to be sent");
    assert!(receipts.iter().all(|receipt| receipt.status == 202));
    let of = |receipt: usize, field: &str| receipts[receipt].json()[field].clone();
    assert_eq!((of(0, "number"), of(2, "number")), (1.into(), 3.into()));
    assert!(of(2, "ahead").as_u64().unwrap() >= 1);
    assert_ne!(of(0, "task"), of(1, "task"));
    assert_eq!(names(&events.states_of(3, "sent")), ["queued", "sending", "sent"]);

    let late = site.events().next();
    let shown = &late["mails"][2];
    assert_eq!((&shown["subject"], &shown["to"]), (&"Größe & <b>".into(), &"Zoë <zoe@example.org>".into()));
    assert_eq!((&shown["task"], &late["begun"]), (&of(2, "task"), &3.into()));
    assert_eq!(site.ask("GET /mails HTTP/1.1\r\nHost: here\r\n\r\n").json(), late);
    let written = site.mails_in_folder();
    assert_eq!(written.len(), 3);
    assert!(written[0].contains("\r\nFrom: ") || written[0].starts_with("From: "), "{}", written[0]);
    assert!(written[0].contains("<zoe@example.org>") && written[0].contains("line\r\nline"), "{}", written[0]);
}

#[test]
fn how_many_wait_before_a_mail_is_said_as_they_go() {
    let site = Site::open(test_name!(), &["--task-workers", "1", "--slow-ms", "20"]);
    let mut events = site.events();
    for _ in 0..10 {
        assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
    }
    let mut before_the_last = Vec::new();
    loop {
        let event = events.next();
        let mail = &event["mails"][0];
        if mail["number"] == 10 && mail["state"] == "sending" {
            break;
        }
        before_the_last.push(10 - event["begun"].as_u64().unwrap() - 1);
    }
    assert!(before_the_last.is_sorted_by(|before, after| before >= after), "{before_the_last:?}");
    assert_eq!(before_the_last.last(), Some(&0));
}

#[test]
fn one_more_than_may_wait_is_refused_with_503_and_may_come_again() {
    let site = Site::open(test_name!(), &["--task-workers", "1", "--queue", "2", "--slow-ms", "1000"]);
    let form = posted(&[("to", "ann@example.org")]);
    let mut browser = site.browser();
    let answers: Vec<_> = (0..10).map(|_| browser.ask(&form)).collect();
    let accepted = answers.iter().filter(|answer| answer.status == 202).count();
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
    assert_eq!(accepted + refused.len(), 10);
    assert!((2..=4).contains(&accepted), "{accepted}");
    assert!(refused.iter().all(|answer| answer.headers.get("retry-after") == Some("5")));
    eventually("there is room again", || browser.ask(&form).status == 202);
    let all = browser.ask("GET /mails HTTP/1.1\r\nHost: here\r\n\r\n").json();
    assert_eq!(all["mails"].as_array().unwrap().len(), accepted + 1, "a mail that was refused is not shown");
}

#[test]
fn a_mail_that_cannot_be_sent_is_tried_again_and_then_said_to_have_failed_and_why() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let smtp = format!("smtp://{nobody}");
    let site = Site::open(test_name!(), &["--smtp", &smtp, "--attempts", "3", "--retry-ms", "20"]);
    let mut events = site.events();
    assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
    let states = events.states_of(1, "failed");
    assert_eq!(names(&states), ["queued", "sending", "waiting", "sending", "waiting", "sending", "failed"]);
    assert!(states[2].1.contains("refused") && states[6].1.contains("refused"), "{states:?}");
}

#[test]
fn mails_that_are_to_be_tried_again_count_as_waiting_before_others_and_as_too_many() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let smtp = format!("smtp://{nobody}");
    let limits = ["--task-workers", "1", "--queue", "2", "--retry-ms", "60000"];
    let site = Site::open(test_name!(), &[["--smtp", &smtp].as_slice(), &limits].concat());
    let mut events = site.events();
    let mut browser = site.browser();
    let form = posted(&[("to", "ann@example.org")]);
    for number in 1..=3 {
        let answer = browser.ask(&form);
        assert_eq!((answer.status, &answer.json()["ahead"]), (202, &(number - 1).into()));
        events.states_of(number, "waiting");
    }
    assert_eq!(site.events().next()["retrying"], 3);
    assert_eq!(browser.ask(&form).status, 503);
}

#[test]
fn the_longest_text_is_taken_in_any_writing_and_one_character_more_is_not() {
    let site = Site::open(test_name!(), &[]);
    for (character, line) in [("x", "\n"), ("\u{10348}", "\r\n")] {
        let text = format!("{}{line}", character.repeat(19_999));
        assert_eq!(site.post(&[("to", "ann@example.org"), ("text", &text)]).status, 202);
        let text = text + character;
        assert_eq!(site.post(&[("to", "ann@example.org"), ("text", &text)]).status, 422);
    }
}

#[test]
fn however_many_mails_there_are_the_latest_of_them_are_shown_to_who_comes() {
    let site = Site::open(test_name!(), &["--task-workers", "1", "--slow-ms", "600000"]);
    let (to, subject) = (format!("{} <ann@example.org>", "\u{10348}".repeat(200)), "\u{10348}".repeat(200));
    let mut browser = site.browser();
    let form = posted(&[("to", &to), ("subject", &subject)]);
    (0..700).for_each(|_| assert_eq!(browser.ask(&form).status, 202));
    let shown = site.events().next();
    let mails = shown["mails"].as_array().unwrap();
    assert_eq!((mails.len(), &mails[199]["number"]), (200, &700.into()));
}

#[test]
fn no_field_can_become_a_header_of_the_mail_or_an_address_of_its_own() {
    let site = Site::open(test_name!(), &[]);
    for (field, value) in [
        ("subject", "hello\r\nBcc: eve@example.org"),
        ("subject", "hello\nBcc: eve@example.org"),
        ("subject", "hello\0"),
        ("subject", "hello\x1b[2J"),
        ("to", "\"a\x1b[2J\" <ann@example.org>"),
        ("to", "\"a\0\" <ann@example.org>"),
        ("text", "a\0b"),
        ("text", "a\x1bb"),
        ("text", "a\x0bb\x0cc"),
        ("text", "a\u{9b}31m"),
        ("to", "ann@example.org\r\nBcc: eve@example.org"),
        ("to", "ann@example.org, eve@example.org"),
        ("to", "<ann@example.org> eve@example.org"),
        ("to", ""),
        ("to", "ann"),
        ("to", "@example.org"),
        ("subject", &"x".repeat(201)),
        ("to", &format!("{}@example.org", "x".repeat(300))),
        ("text", &"x".repeat(20_001)),
    ] {
        let mut form = vec![("to", "ann@example.org"), ("subject", "hello")];
        form.push((field, value));
        let answer = site.post(&form);
        assert_eq!((answer.status, &answer.json()["field"]), (422, &field.into()), "{value:?}: {}", answer.body);
    }
    // An end of the text, as SMTP has it, and headers in it, are text.
    let text = "first\r\n.\r\nMAIL FROM:<eve@example.org>\r\n\r\nBcc: eve@example.org";
    assert_eq!(site.post(&[("to", "\"Bcc: eve\" <ann@example.org>"), ("text", text)]).status, 202);
    site.events().states_of(1, "sent");
    let written = &site.mails_in_folder()[0];
    let (head, body) = written.split_once("\r\n\r\n").unwrap();
    assert!(!head.lines().any(|line| line.starts_with("Bcc")), "{head}");
    assert!(body.contains("MAIL FROM"), "{body}");
}

#[test]
fn a_domain_in_any_script_is_sent_in_ascii_and_shown_as_it_was_written() {
    let site = Site::open(test_name!(), &["--from", "Der Laden <laden@bücher.example>"]);
    assert_eq!(site.post(&[("to", "Zoë <zoe@Größe.example>")]).status, 202);
    site.events().states_of(1, "sent");
    let written = &site.mails_in_folder()[0];
    assert!(written.contains("<zoe@xn--gre-6ka8i.example>"), "{written}");
    assert!(written.contains("<laden@xn--bcher-kva.example>"), "{written}");
    assert_eq!(site.events().next()["mails"][0]["to"], "Zoë <zoe@Größe.example>");
    for unfit in ["zoë@example.org", "ann@-\u{301}.example"] {
        let answer = site.post(&[("to", unfit)]);
        assert_eq!((answer.status, &answer.json()["field"]), (422, &"to".into()), "{unfit}: {}", answer.body);
    }
}

/// A limit on the size of files is as good as a full disk, and anybody can set one.
#[test]
fn a_mail_for_which_there_is_no_room_leaves_no_file() {
    let limited = "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", limited]).arg(Example::program("web_mail"));
    let site = Site::open_as(test_name!(), &mut command, &["--attempts", "2", "--retry-ms", "1"]);
    let mut events = site.events();
    assert_eq!(site.post(&[("to", "ann@example.org"), ("text", &"too much\n".repeat(2000))]).status, 202);
    let states = events.states_of(1, "failed");
    assert_eq!(names(&states), ["queued", "sending", "waiting", "sending", "failed"]);
    assert!(states[4].1.contains("too large"), "{states:?}");
    assert_eq!(std::fs::read_dir(site.folder.join("mails")).unwrap().count(), 0);
    assert_eq!(site.post(&[("to", "ann@example.org"), ("text", "little")]).status, 202);
    events.states_of(2, "sent");
    assert!(site.mails_in_folder()[0].contains("little"));
}

#[test]
fn what_the_pages_of_others_have_a_browser_post_is_refused() {
    let site = Site::open(test_name!(), &[]);
    let form = posted(&[("to", "ann@example.org")]);
    for (header, status) in [
        ("Origin: here", 403),
        ("Sec-Fetch-Site: cross-site", 403),
        ("Sec-Fetch-Site: same-site", 403),
        ("Origin: https://evil.example", 403),
        ("Origin: null", 403),
        ("Sec-Fetch-Site: same-origin", 202),
        ("Sec-Fetch-Site: none", 202),
        ("Origin: http://here", 202),
        ("X: y", 202),
    ] {
        let request = form.replacen("\r\n", &format!("\r\n{header}\r\n"), 1);
        assert_eq!(site.ask(request).status, status, "{header}");
    }
}

#[test]
fn at_sigterm_what_was_accepted_is_sent_first() {
    let site = Site::open(test_name!(), &["--task-workers", "1", "--slow-ms", "50"]);
    for _ in 0..5 {
        assert_eq!(site.post(&[("to", "ann@example.org")]).status, 202);
    }
    site.example.signal(Signal::TERM);
    let Site { mut example, .. } = site;
    let mut said = String::new();
    std::io::Read::read_to_string(&mut example.stdout, &mut said).unwrap();
    assert_eq!(said, "shutdown: 5 mails accepted, 5 sent, 0 not\n");
}
