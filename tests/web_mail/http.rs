//! HTTP as a client sees it, well-behaved or not.

use std::thread;
use std::time::Duration;

use super::site::{Browser, Events, Site, posted};
use crate::common::eventually;
use crate::common::house::slow_client;
use crate::test_name;

const GET: &str = "GET /icon.svg HTTP/1.1\r\nHost: here\r\n\r\n";

#[test]
fn the_page_has_all_its_parts_from_here_and_may_load_no_others() {
    let site = Site::open(test_name!(), &[]);
    let mut browser = site.browser();
    for (path, kind, part) in [
        ("/", "text/html; charset=utf-8", "<form"),
        ("/style.css", "text/css; charset=utf-8", "light-dark"),
        ("/page.js", "text/javascript; charset=utf-8", "EventSource"),
        ("/icon.svg", "image/svg+xml", "<svg"),
        ("/?from=here", "text/html; charset=utf-8", "<form"),
    ] {
        let answer = browser.ask(format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n"));
        assert_eq!((answer.status, answer.headers.get("content-type")), (200, Some(kind)), "{path}");
        assert!(answer.body.contains(part), "{path}");
        assert!(answer.headers.get("content-security-policy").unwrap().starts_with("default-src 'none'"), "{path}");
        assert!(answer.headers.get("date").unwrap().ends_with(" GMT"), "{path}");
        assert!(!answer.body.contains("//cdn") && !answer.body.contains("https://"), "{path}");
    }
}

#[test]
fn what_cannot_be_served_is_answered_with_the_status_that_says_why() {
    let site = Site::open(test_name!(), &[]);
    let long = "x".repeat(20_000);
    let many: String = (0..65).map(|number| format!("X-{number}: x\r\n")).collect();
    let form = "Content-Type: application/x-www-form-urlencoded";
    for (request, status) in [
        ("GET /nowhere HTTP/1.1\r\nHost: here\r\n\r\n".to_owned(), 404),
        ("GET /../etc/passwd HTTP/1.1\r\nHost: here\r\n\r\n".to_owned(), 404),
        ("DELETE /mails HTTP/1.1\r\nHost: here\r\n\r\n".to_owned(), 405),
        ("POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n".to_owned(), 405),
        ("PUT /events HTTP/1.1\r\nHost: here\r\n\r\n".to_owned(), 405),
        ("POST /mails HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n{}".to_owned(), 415),
        (format!("POST /mails HTTP/1.1\r\nHost: here\r\n{form}\r\nContent-Length: 5\r\n\r\nto=ab"), 422),
        (format!("POST /mails HTTP/1.1\r\nHost: here\r\n{form}\r\n\r\n"), 422),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(), 421),
        ("GET / HTTP/1.1\r\nHost: evil.example:80\r\n\r\n".to_owned(), 421),
        ("GET / HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n".to_owned(), 421),
        ("GET / HTTP/1.1\r\nHost: LocalHost:1\r\n\r\n".to_owned(), 200),
        ("GET / HTTP/1.1\r\nHost: [::1]:1\r\n\r\n".to_owned(), 200),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: here\r\nbroken\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: here\r\nX: a\0b\r\n\r\n".to_owned(), 400),
        ("hello\r\n\r\n".to_owned(), 400),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\n".to_owned(), 400),
        ("GET / HTTP/2.0\r\nHost: here\r\n\r\n".to_owned(), 505),
        (format!("GET / HTTP/1.1\r\nHost: here\r\nX: {long}\r\n\r\n"), 431),
        (format!("GET /{long} HTTP/1.1\r\nHost: here\r\n\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nHost: here\r\n{many}\r\n"), 431),
        ("POST /mails HTTP/1.1\r\nHost: here\r\nContent-Length: 262145\r\n\r\n".to_owned(), 413),
        ("POST /mails HTTP/1.1\r\nHost: here\r\nContent-Length: 99999999999999999999999\r\n\r\n".to_owned(), 413),
        ("POST /mails HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n40001\r\n".to_owned(), 413),
        ("POST /mails HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".to_owned(), 501),
    ] {
        let answer = site.ask(&request);
        let short = &request[..request.len().min(80)];
        assert_eq!(answer.status, status, "{short:?}");
        assert_eq!(answer.headers.get("allow").is_some(), status == 405, "{short:?}");
    }
    assert_eq!(site.ask("PUT /mails HTTP/1.1\r\nHost: here\r\n\r\n").headers.get("allow"), Some("GET, HEAD, POST"));
    assert_eq!(site.ask(GET).status, 200, "it serves on");
}

#[test]
fn whose_page_is_asked_for_the_target_says_and_without_that_the_host() {
    let site = Site::open(test_name!(), &[]);
    for (target, host, status) in [
        ("http://here/", "here", 200),
        ("http://here?query", "here", 200),
        ("http://here?a/b", "here", 200),
        ("HTTP://HERE:80/", "here", 200),
        ("http://here/", "evil.example", 200),
        ("http://[::1]:80/", "evil.example", 200),
        ("http://[fe80::1%25eth0]/", "here", 200),
        ("http://evil.example/", "here", 421),
        ("http://evil.example?here/", "here", 421),
        ("http://evil.example\\here/", "here", 400),
        ("https://here/", "here", 421),
        ("ftp://here/", "here", 400),
        ("http:///", "here", 400),
        ("http://user@here/", "here", 400),
        ("http://here@evil.example/", "here", 400),
        ("http://here:port/", "here", 400),
        ("here:80", "here", 400),
        ("here", "here", 400),
        ("*", "here", 400),
        ("//here/", "here", 404),
        ("/", "[fe80::1%eth0]:80", 200),
        ("/", "[fe80::1%25eth0]", 200),
        ("/", "[::1", 400),
        ("/", "[here]", 400),
        ("/", "user@here", 400),
        ("/", "here:80:90", 400),
        ("/", "here, here", 400),
        ("/", "", 421),
    ] {
        let answer = site.ask(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(answer.status, status, "{target} {host}");
    }
    let able = site.ask("OPTIONS * HTTP/1.1\r\nHost: here\r\n\r\n");
    assert_eq!((able.status, able.headers.get("allow")), (200, Some("GET, HEAD, POST")));
    // Also where it is asked whether a page of this site had the mail posted.
    let form = posted(&[("to", "ann@example.org")]);
    for (target, origin, status) in [
        ("http://here/mails", "http://here", 202),
        ("http://localhost/mails", "http://here", 403),
        ("http://localhost/mails", "http://localhost", 202),
    ] {
        let line = format!("POST {target} HTTP/1.1\r\nOrigin: {origin}\r\n");
        let request = form.replacen("POST /mails HTTP/1.1\r\n", &line, 1);
        assert_eq!(site.ask(request).status, status, "{target} {origin}");
    }
}

#[test]
fn no_answer_to_a_head_has_a_body() {
    let site = Site::open(test_name!(), &[]);
    let many: String = (0..65).map(|number| format!("X-{number}: x\r\n")).collect();
    let asks = "Host: here\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n";
    for (request, statuses) in [
        ("HEAD /nowhere HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".to_owned(), [404].as_slice()),
        ("HEAD / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".to_owned(), &[421]),
        ("HEAD / HTTP/1.1\r\n\r\n".to_owned(), &[400]),
        ("\r\nHEAD / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(), &[400]),
        ("HEAD / HTTP/1.1\r\nHost: here\r\nContent-Length: x\r\n\r\n".to_owned(), &[400]),
        (format!("HEAD / HTTP/1.1\r\nHost: here\r\n{many}\r\n"), &[431]),
        (format!("HEAD /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000)), &[431]),
        (format!("HEAD /{}", "x".repeat(20_000)), &[431]),
        ("HEAD https://here/ HTTP/1.1\r\nHost: here\r\n\r\n".to_owned(), &[421]),
        ("HEAD / HTTP/2.0\r\nHost: here\r\n\r\n".to_owned(), &[505]),
        (format!("HEAD / HTTP/1.1\r\n{asks}"), &[100, 400]),
        (format!("{GET}HEAD / HTTP/1.1\r\n\r\n"), &[200, 400]),
    ] {
        let mut browser = site.browser();
        browser.send(&request);
        let short = &request[..request.len().min(80)];
        for status in statuses {
            match status {
                200 => assert_eq!(browser.answer().status, 200),
                _ => assert_eq!(browser.head().0, *status, "{short:?}"),
            }
        }
        assert_eq!(browser.rest(), "", "{short:?}");
    }
}

/// What a proxy in front might read otherwise would let one client speak for another.
#[test]
fn a_body_whose_end_is_not_clear_is_refused_and_nothing_behind_it_is_read() {
    let site = Site::open(test_name!(), &[]);
    for headers in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4\r\nContent-Length: 4",
        "Content-Length: +4",
        "Content-Length: 4, 4",
        "Content-Length: 0x4",
        "Content-Length: -1",
        "Content-Length: ",
        "Content-Length : 4",
        "Transfer-Encoding : chunked",
        " Transfer-Encoding: chunked",
    ] {
        let mut browser = site.browser();
        browser.send(format!("POST / HTTP/1.1\r\nHost: here\r\n{headers}\r\n\r\n0\r\n\r\n{GET}"));
        let answer = browser.answer();
        assert_eq!((answer.status, answer.headers.get("connection")), (400, Some("close")), "{headers:?}");
        assert_eq!(browser.rest(), "", "{headers:?}");
    }
    for headers in ["Transfer-Encoding: chunked, chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"] {
        let answer = site.ask(format!("POST / HTTP/1.1\r\nHost: here\r\n{headers}\r\n\r\n0\r\n\r\n"));
        assert_eq!(answer.status, 501, "{headers:?}");
    }
    let long = format!("1;{}\r\n", "x".repeat(300));
    for chunks in [
        "\r\n",
        ";x\r\n",
        "1;a\nb\r\n",
        "1\n",
        &long,
        "x\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "1\r\nabc",
        "-1\r\n",
        "FFFFFFFFFFFFFFFFF\r\n",
    ] {
        let answer = site.ask(format!("POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"));
        assert_eq!(answer.status, 400, "{chunks:?}");
    }
    let old = site.ask("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(old.status, 400);
}

#[test]
fn requests_that_come_at_once_are_answered_in_their_order() {
    let site = Site::open(test_name!(), &[]);
    let mut browser = site.browser();
    let form = posted(&[("to", "ann@example.org")]);
    let head = "HEAD /icon.svg HTTP/1.1\r\nHost: here\r\n\r\n";
    let nowhere = "GET /nowhere HTTP/1.1\r\nHost: here\r\n\r\n";
    let round = [GET, nowhere, &form, GET].concat();
    browser.send(round.repeat(50) + head + GET);
    for _ in 0..50 {
        assert_eq!([(); 4].map(|()| browser.answer().status), [200, 404, 202, 200]);
    }
    let (status, headers) = browser.head();
    assert_eq!(status, 200);
    let icon = browser.answer();
    assert_eq!(
        headers.get("content-length"),
        Some(&*icon.body.len().to_string()),
        "HEAD has no body, and says how long"
    );
    assert!(icon.body.starts_with("<svg"));
}

/// The answers to what a client sends in these parts: five, and then the end.
fn answers(site: &Site, parts: impl Iterator<Item = Vec<u8>>) -> [(u16, Option<String>); 5] {
    let mut browser = site.browser();
    browser.0.get_ref().set_nodelay(true).unwrap();
    parts.for_each(|part| browser.send(part));
    let answers = [(); 5].map(|()| {
        let answer = browser.answer();
        (answer.status, answer.headers.get("connection").map(str::to_owned))
    });
    assert_eq!(browser.rest(), "");
    answers
}

#[test]
fn however_the_bytes_are_split_they_mean_the_same() {
    let site = Site::open(test_name!(), &["--queue", "5000"]);
    let body = "to=ann%40example.org&subject=in+parts";
    let (first, second) = body.split_at(10);
    let chunked = format!(
        "POST /mails HTTP/1.1\r\nHost: here\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Transfer-Encoding: Chunked\r\n\r\na;name=value\r\n{first}\r\n{:X}\r\n{second}\r\n0\r\nTrailer: x\r\n\r\n",
        second.len()
    );
    let last = "GET /nowhere HTTP/1.1\r\nHost: here\r\nConnection: Close\r\n\r\n";
    let form = posted(&[("to", "ann@example.org")]);
    let stream = ["\r\n", GET, &form, &chunked, "GET /icon.svg HTTP/1.1\nHost: here\n\n", last].concat().into_bytes();
    let whole = answers(&site, std::iter::once(stream.clone()));
    assert_eq!(whole.each_ref().map(|answer| answer.0), [200, 202, 202, 200, 404]);
    assert_eq!(answers(&site, stream.iter().map(|byte| vec![*byte])), whole);
    for cut in (1..stream.len()).step_by(7) {
        assert_eq!(answers(&site, [&stream[..cut], &stream[cut..]].map(<[u8]>::to_vec).into_iter()), whole, "{cut}");
    }
}

#[test]
fn a_connection_stays_or_closes_as_its_client_says() {
    let site = Site::open(test_name!(), &[]);
    let closes = |browser: &mut Browser| {
        let answer = browser.answer();
        assert_eq!((answer.status, answer.headers.get("connection")), (200, Some("close")));
        assert_eq!(browser.rest(), "");
    };
    let mut modern = site.browser();
    modern.send(GET);
    assert_eq!(modern.answer().headers.get("connection"), None);
    modern.send("GET /icon.svg HTTP/1.1\r\nHost: here\r\nConnection: keep-alive, close\r\n\r\n");
    closes(&mut modern);
    let mut old = site.browser();
    old.send("GET /icon.svg HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
    assert_eq!(old.answer().headers.get("connection"), Some("keep-alive"));
    old.send("GET /icon.svg HTTP/1.0\r\n\r\n");
    closes(&mut old);
    let mut half = site.browser();
    half.send(GET);
    half.0.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(half.answer().status, 200);
    assert_eq!(half.rest(), "");
}

#[test]
fn who_asks_first_is_asked_for_the_body() {
    let site = Site::open(test_name!(), &[]);
    let mut browser = site.browser();
    for _ in 0..2 {
        let form = posted(&[("to", "ann@example.org")]).replacen("\r\n", "\r\nExpect: 100-Continue\r\n", 1);
        let (head, body) = form.split_once("\r\n\r\n").unwrap();
        browser.send(format!("{head}\r\n\r\n"));
        let (status, _) = browser.head();
        assert_eq!(status, 100);
        assert_eq!(browser.ask(body).status, 202);
        // Who does not wait for it is served all the same.
        browser.send(&form);
        assert_eq!([browser.head().0, browser.answer().status], [100, 202]);
    }
    let answer =
        browser.ask("POST /mails HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\nContent-Length: 300000\r\n\r\n");
    assert_eq!(answer.status, 413, "before the body is sent");
    assert_eq!(browser.rest(), "");
}

#[test]
fn a_client_that_is_refused_while_it_sends_hears_why() {
    let site = Site::open(test_name!(), &[]);
    let mut browser = site.browser();
    browser.send("POST /mails HTTP/1.1\r\nHost: here\r\nContent-Length: 600000\r\n\r\n");
    let mut writer = browser.0.get_ref().try_clone().unwrap();
    let body = thread::spawn(move || std::io::Write::write_all(&mut writer, &[b'x'; 600_000]));
    assert_eq!(browser.answer().status, 413);
    let _ = body.join().unwrap();
}

#[test]
fn nothing_is_written_among_the_events_whatever_their_reader_sends() {
    let site = Site::open(test_name!(), &[]);
    for sent in ["rubbish\r\n\r\n", GET, "x", "POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 300000\r\n\r\n"] {
        // Behind the request, and when the events have begun.
        for at_once in [true, false] {
            let mut browser = site.browser();
            let request = "GET /events?again HTTP/1.1\r\nHost: here\r\n\r\n";
            browser.send(if at_once { [request, sent].concat() } else { request.to_owned() });
            let (status, headers) = browser.head();
            assert_eq!((status, headers.get("x-accel-buffering")), (200, Some("no")));
            let mut events = Events(browser);
            events.next();
            if !at_once {
                events.0.send(sent);
            }
            assert_eq!(events.0.rest().trim(), "", "{sent:?}");
        }
    }
    // One who is not served the events is not served anything after them.
    let mut browser = site.browser();
    browser.send(format!("GET /events HTTP/1.1\r\nHost: evil.example\r\n\r\n{GET}"));
    let answer = browser.answer();
    assert_eq!((answer.status, answer.headers.get("connection")), (421, Some("close")));
    assert_eq!(browser.rest(), "");
}

#[test]
fn who_reads_nothing_of_the_events_is_dropped_and_the_others_read_on() {
    // Nothing is quicker than a mail that fails.
    let site = Site::open(test_name!(), &["--smtp", "smtp://127.0.0.1:1", "--attempts", "1"]);
    let mut deaf = slow_client(site.addr);
    deaf.send("GET /events HTTP/1.1\r\nHost: here\r\n\r\n");
    let mut events = site.events();
    let mut browser = site.browser();
    let form = posted(&[("to", "ann@example.org"), ("subject", &"\u{10348}".repeat(200))]);
    // More than the kernel takes for it, and may wait beyond that.
    for number in 1..=3000 {
        assert_eq!(browser.ask(&form).status, 202);
        events.states_of(number, "failed");
    }
    let (_, is_reset) = deaf.until_closed();
    assert!(is_reset);
}

#[test]
fn many_who_read_nothing_of_the_events_or_send_half_a_request_hold_nobody_up() {
    let site = Site::open(test_name!(), &[]);
    let deaf: Vec<_> = (0..50)
        .map(|_| {
            let mut browser = site.browser();
            browser.send("GET /events HTTP/1.1\r\nHost: here\r\n\r\n");
            browser
        })
        .collect();
    let half: Vec<_> = (0..50)
        .map(|_| {
            let mut browser = site.browser();
            browser.send("POST /mails HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\nto=");
            browser
        })
        .collect();
    let mut events = site.events();
    events.next();
    let subject = "s".repeat(200);
    for _ in 0..200 {
        let answer = site.post(&[("to", "ann@example.org"), ("subject", &subject)]);
        assert_eq!(answer.status, 202);
    }
    events.states_of(200, "sent");
    eventually("all mails are there", || site.mails_in_folder().len() == 200);
    drop((deaf, half));
}

#[test]
fn a_request_that_does_not_come_to_its_end_is_told_so() {
    let site = Site::open(test_name!(), &["--request-ms", "200"]);
    let mut browser = site.browser();
    browser.send("POST /mails HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\nto=");
    let answer = browser.answer();
    assert_eq!((answer.status, answer.headers.get("connection")), (408, Some("close")));
    assert_eq!(browser.rest(), "");
    // Where none has begun there is nothing to be said.
    let mut watcher = site.events();
    watcher.next();
}

#[test]
fn an_upload_that_is_too_large_reads_so_though_it_pauses() {
    let site = Site::open(test_name!(), &[]);
    let mut browser = site.browser();
    browser.send("POST /mails HTTP/1.1\r\nHost: here\r\nContent-Length: 600000\r\n\r\n");
    // The pauses are what is tested.
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(400));
        browser.send("x".repeat(100_000));
    }
    assert_eq!(browser.answer().status, 413);
}
